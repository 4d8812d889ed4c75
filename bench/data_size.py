"""What `snnc eval` takes for data of any size: memory, and how long the networks wait for data.

    python -m bench.data_size --images 1000,8000 --size 224

Draws JPEG images of random shapes, evaluates a small network on the first n of them in a process of
its own for each n, and prints a line for each: peak memory (resident set) of that process, its time,
and the share of the time in which the networks waited for a batch that was not read yet.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def draw(folder: Path, count: int, size: int) -> None:
    """Seeded JPEG images of smooth shapes, about as large as photographs of this size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 256, (size // 8, size // 8, 3)).astype(np.uint8)
        image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number % 10}_{number:06}.jpg", quality=90)


def network(path: Path, size: int) -> None:
    """A small network: two strided convolutions and a classifier, with seeded weights."""
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    rng = np.random.default_rng(1)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,{size},{size}] x) => (float[N,10] y)
        {{ c = Conv <strides = [4, 4], pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
           d = Conv <strides = [4, 4], pads = [1, 1, 1, 1]> (r, b)  s = Relu (d)
           m = ReduceMean <axes = [2, 3], keepdims = 0> (s)  y = MatMul (m, o) }}"""
    )
    shapes = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "o": (16, 10)}
    for name, shape in shapes.items():
        weights = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
    onnx.save(model, path)


def measured(folder: Path, count: int) -> dict[str, Any]:
    """Evaluate on the first images, in this process."""
    import snncompiler
    from snncompiler.network.data import Batch, Dataset

    waited = 0.0
    batches = Dataset.batches

    def timed(self: Dataset, *arguments: Any) -> Iterator[Batch]:
        nonlocal waited
        source = batches(self, *arguments)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    setattr(Dataset, "batches", timed)  # noqa: B010
    start = time.perf_counter()
    result = snncompiler.evaluate(
        folder / "ann.onnx", folder / "snn.onnx", folder / "images", limit=count, threads=1
    )
    seconds = time.perf_counter() - start
    return {
        "images": result.samples,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(seconds, 1),
        "images_per_second": round(result.samples / seconds, 1),
        "waited_for_data": round(waited / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", default="1000,8000", help="numbers of images")
    parser.add_argument("--size", type=int, default=224, help="height and width")
    parser.add_argument("--steps", type=int, default=16, help="time-steps")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(measured(Path(asked.run[0]), int(asked.run[1]))))
        return
    counts = [int(count) for count in asked.images.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        draw(folder / "images", max(counts), asked.size)
        network(folder / "ann.onnx", asked.size)
        import onnx

        import snncompiler

        snn = snncompiler.compile(
            folder / "ann.onnx", calibration=folder / "images", samples=32, steps=asked.steps
        )
        onnx.save(snn, folder / "snn.onnx")
        for count in counts:
            command = [sys.executable, "-m", "bench.data_size", "--run", name, str(count)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
