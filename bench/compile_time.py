"""Time to prepare and to compile against the number of nodes: linear, or where it is not.

    python bench/compile_time.py [--nodes 1000,5000,20000]

The network is a chain of Conv, Relu, Add and Identity.  Every row is a child process of its own.  The
times are CPU seconds of one thread.  `prepare` loads, checks and normalizes; `compile` is everything
without data, sessions of onnxruntime included, whose creation is measured apart: onnxruntime's graph
optimizer is not linear in the length of a chain.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from snncompiler.cli.tables import table

Row = dict[str, float]

STEPS = 8


def chain(count: int) -> onnx.ModelProto:
    """`count` nodes: Conv 1x1, Relu, the sum with itself, Identity, again and again."""
    nodes = []
    for i in range(count):
        op = ("Conv", "Relu", "Add", "Identity")[i % 4]
        inputs = {"Conv": [f"t{i}", "w"], "Add": [f"t{i}", f"t{i}"]}.get(op, [f"t{i}"])
        nodes.append(helper.make_node(op, inputs, [f"t{i + 1}"], name=f"{op}_{i}"))
    shape: list[str | int | None] = ["N", 1, 2, 2]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"t{count}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full((1, 1, 1, 1), 0.5, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(count: int) -> Row:
    """In this process: CPU seconds of prepare, of compile, and of the sessions in it."""
    import onnxruntime

    from snncompiler import pipeline
    from snncompiler.ir.settings import Options

    raw = chain(count).SerializeToString()
    started = time.process_time()
    pipeline.prepare(raw)
    prepared = time.process_time() - started

    sessions = 0.0
    create = onnxruntime.InferenceSession.__init__

    def timed(self: Any, *args: Any, **options: Any) -> None:
        nonlocal sessions
        before = time.process_time()
        create(self, *args, **options)
        sessions += time.process_time() - before

    onnxruntime.InferenceSession.__init__ = timed
    started = time.process_time()
    pipeline.compile_model(raw, Options(steps=STEPS))
    whole = time.process_time() - started
    return {"prepare": prepared, "compile": whole, "sessions": sessions, "ours": whole - sessions}


def cell(count: int) -> Row:
    """`measure` in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--cell", str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    row: Row = json.loads(result.stdout)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nodes", default="1000,5000,20000")
    parser.add_argument("--cell", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.cell)))
        return

    import onnxruntime

    console = Console(width=140)
    console.print(
        f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}",
        highlight=False,
    )
    counts = [int(part) for part in options.nodes.split(",")]
    found = {count: cell(count) for count in counts}
    first = found[counts[0]]
    columns = ["nodes"]
    for part in first:
        columns += [f"{part} s", "ms/node", "ratio"]
    rows = []
    for count, row in found.items():
        cells: list[object] = [f"{count:,}"]
        for part, seconds in row.items():
            ratio = (seconds / count) / (first[part] / counts[0])
            cells += [f"{seconds:.2f}", f"{1e3 * seconds / count:.3f}", f"{ratio:.2f}"]
        rows.append(tuple(cells))
    title = f"CPU time of a chain, T = {STEPS}; ratio of the time per node to the first row's"
    console.print(table(title, tuple(columns), rows))


if __name__ == "__main__":
    main()
