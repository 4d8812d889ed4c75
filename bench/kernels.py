"""The same compiled file by function bodies, by the native kernels and by events: the same accuracy.

    python bench/kernels.py [--networks digits-resnet,resnet20,..] [--steps 8,32] [--limit N]
                            [--threads 1,2] [--json FILE]

Every way runs one file on the same test images.  Bodies and native kernels do the same arithmetic;
by events the currents are summed in another order, so a current near θ can move a spike.  `differ` is
the number of images with another class than by the bodies, `logits` the largest difference of any
class score over the largest class score.  Real networks are those of the material (SNNC_MATERIAL).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from bench.accuracy import environment, numbers
from bench.networks import CLASSIFIERS, Data
from bench.zoo import material_root
from snncompiler.cli.tables import table
from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.ir.settings import Options
from snncompiler.network.batching import batches, filled
from snncompiler.network.data import Dataset
from snncompiler.pipeline import compile_model
from snncompiler.runtime import create_session

Array = NDArray[Any]
#: The ways: arguments of `create_session`.
WAYS: dict[str, dict[str, Any]] = {
    "function bodies": {"native": False},
    "native, dense": {"native": True, "events": False},
    "native, events": {"native": True, "events": True},
}
BATCH, CALIBRATION_IMAGES = 16, 256


def scores(compiled: CompiledFile, data: Dataset, steps: int, **way: Any) -> Array:
    """The class scores of all images, [N, classes]."""
    session = create_session(compiled.model, **way)
    found = []
    for part in batches(len(data), compiled.batch_size(BATCH)):
        feeds = filled(data.feeds, part, compiled.fixed_batch)
        values = session.run(compiled.outputs, {**feeds, **compiled.overrides(steps=steps)})
        wanted = next(v for v in values if v.dtype.kind == "f" and v.ndim == 2 and v.shape[1] > 1)
        found.append(wanted[: part.stop - part.start])
    return np.concatenate(found)


def measure(name: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    data = Data(CLASSIFIERS[name], material_root())
    test = data.test(asked.limit)
    calibration = data.calibration(0, CALIBRATION_IMAGES)
    model = compile_model(onnx.load(data.model), Options(), calibration).model
    compiled = read_compiled(model)
    assert test.labels is not None
    rows = []
    for steps in asked.steps:
        reference: Array | None = None
        for way, given in WAYS.items():
            for threads in asked.threads:
                found = scores(compiled, test, steps, threads=threads, **given)
                if reference is None:
                    reference = found
                classes = found.argmax(axis=1)
                row = {
                    "network": name,
                    "images": len(test),
                    "T": steps,
                    "way": way,
                    "threads": threads,
                    "top-1": f"{100 * (classes == test.labels).mean():.2f} %",
                    "differ": int((classes != reference.argmax(axis=1)).sum()),
                    "logits": f"{np.abs(found - reference).max() / np.abs(reference).max():.2g}",
                }
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", default="digits-resnet,resnet20")
    parser.add_argument("--steps", type=numbers, default=(8, 32))
    parser.add_argument("--threads", type=numbers, default=(1, 2))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [row for name in asked.networks.split(",") for row in measure(name, asked)]
    console = Console(width=160)
    found = environment(None)
    del found["threads"]  # they are a column
    console.print(", ".join(f"{key} {value}" for key, value in found.items()))
    console.print(table("", list(rows[0]), [[str(v) for v in row.values()] for row in rows]))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
