"""snnc: compiles trained ReLU networks in ONNX into spiking networks that onnxruntime runs.

import snncompiler
snn = snncompiler.compile("resnet20.onnx", calibration="train.npz", steps=64)
report = snncompiler.check("resnet20.onnx")
result = snncompiler.evaluate("resnet20.onnx", snn, "test.npz", steps=[16, 32, 64])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from snncompiler.errors import EnvironmentMissing, InternalError, Refused, SnncError, UsageError
from snncompiler.findings import Finding
from snncompiler.version import __version__

if TYPE_CHECKING:
    from snncompiler.analysis.evaluate import evaluate
    from snncompiler.analysis.evaluation import Evaluation
    from snncompiler.analysis.verify import Verification, verify
    from snncompiler.api import check, compile
    from snncompiler.calibration.record import Calibration
    from snncompiler.emission.targets import export
    from snncompiler.network.data import Dataset, Preprocess

__all__ = [
    "Calibration",
    "Dataset",
    "EnvironmentMissing",
    "Evaluation",
    "Finding",
    "InternalError",
    "Preprocess",
    "Refused",
    "SnncError",
    "UsageError",
    "Verification",
    "__version__",
    "check",
    "compile",
    "evaluate",
    "export",
    "verify",
]

#: Where the names are that load onnx and numpy.  They are looked up at their first use, so that
#: `import snncompiler.errors` and `snnc --help` do not wait for them.
_LATER = {
    "Calibration": "calibration.record",
    "Dataset": "network.data",
    "Evaluation": "analysis.evaluation",
    "Preprocess": "network.data",
    "Verification": "analysis.verify",
    "check": "api",
    "compile": "api",
    "evaluate": "analysis.evaluate",
    "export": "emission.targets",
    "verify": "analysis.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"snncompiler.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
