"""`bench/zoo.py` as a module: the structural networks, and the real ones with their data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.network.data import Dataset
from snncompiler.runtime.session import create_session

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parents[2]


def _bench() -> Any:
    name = "snnc_bench_zoo"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / "zoo.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


bench = _bench()


def errors(
    model: onnx.ModelProto, data: Dataset | None, steps: tuple[int, ...], *, analog: bool = False
) -> list[float]:
    """Relative output errors at every T, with thresholds at the maxima of the samples that are run.

    Without data: two seeded random samples to calibrate with, the first of which is run.
    """
    prepared = pipeline.prepare(model, allow_analog=analog)
    options = Options(
        threshold="max", correction="none", readout="mean", allow_analog=analog
    ).resolved("regression", data=True, depth=0)
    used = data or Dataset(pipeline.synthetic_feeds(prepared, 2, 0))
    snn = pipeline.emit(prepared, pipeline.calibrated(prepared, options, used), options)
    run = used if data else used.head(1)
    compiled, session = read_compiled(snn), create_session(snn, threads=2)
    ann = bench.run_ann(model, run, compiled)
    found = []
    for total in steps:
        outputs = bench.gathered(session, run, compiled, 1, compiled.overrides(steps=total))
        error, _ = bench.compare(ann, outputs, 0)
        assert error is not None
        found.append(error)
    return found
