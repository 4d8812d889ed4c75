"""One network in streaming time, and in layered time with rate and with radix spikes, side by side.

    python bench/timings.py [--write PAGE]

digits-resnet on the 500 held-out scans, calibrated as by default on the training scans.  A row says
what `snnc eval` says: accuracy, the steps until the answer (latency) and from answer to answer
(period), spikes, and synaptic operations, of which the ANN's multiply-accumulates are the measure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BEGIN, END = "<!-- table of bench/timings.py -->", "<!-- end of the table -->"
#: Options of a compilation, and the T at which it is evaluated.
RUNS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("streaming", {}, (4, 8, 16, 32, 64)),
    ("layered, rate", {"timing": "layered", "coding": "rate", "steps": 4}, (4,)),
    ("layered, rate", {"timing": "layered", "coding": "rate", "steps": 8}, (8,)),
    ("layered, radix", {"timing": "layered", "coding": "radix", "steps": 2}, (2,)),
    ("layered, radix", {"timing": "layered", "coding": "radix", "steps": 3}, (3,)),
    ("layered, radix", {"timing": "layered", "coding": "radix", "steps": 4}, (4,)),
    ("layered, radix", {"timing": "layered", "coding": "radix", "steps": 6}, (6,)),
    ("layered, radix, int8", {"timing": "layered", "coding": "radix", "steps": 4, "weights": "int8"},
     (4,)),
)  # fmt: skip


def rows() -> Iterator[list[str]]:
    import snncompiler
    from snncompiler import models
    from snncompiler.emission.compiled import read_compiled

    net, how = models.path("digits-resnet"), snncompiler.Preprocess(scale=16)
    for name, options, steps in RUNS:
        snn = snncompiler.compile(
            net, calibration=models.path("digits-train"), preprocess=how, **options
        )
        compiled = read_compiled(snn)
        result = snncompiler.evaluate(
            net, snn, models.path("digits-test"), steps=list(steps), preprocess=how
        ).as_dict()
        for one in result["results"]:
            yield [
                name,
                str(one["steps"]),
                str(compiled.latency(one["steps"])),
                f"{100 * one['accuracy']:.2f} %",
                f"{100 * one['drop']:.2f}",
                f"{100 * one['agreement']:.2f} %",
                f"{one['relative_error']:.4f}",
                f"{one['spikes']:,.0f}",
                f"{one['synops']['done']:,.0f}",
            ]


TITLES = ("digits-resnet, 500 held-out scans", "T, and period", "latency", "top-1", "drop (points)",
          "agreement with the ANN", "relative error of the logits", "spikes an image",
          "synaptic operations")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, action="append", default=[])
    given = parser.parse_args()
    lines = ["| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|"]
    for row in rows():
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    for page in given.write:
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        made = "\n".join([before + BEGIN, "", *lines, "", END + after])
        page.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
