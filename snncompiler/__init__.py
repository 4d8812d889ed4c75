"""snnc: compiles trained ReLU networks in ONNX into spiking networks that onnxruntime runs.

import snncompiler
snn = snncompiler.compile("resnet20.onnx", calibration="train.npz", steps=64)
report = snncompiler.check("resnet20.onnx")
result = snncompiler.evaluate("resnet20.onnx", snn, "test.npz", steps=[16, 32, 64])
"""

from snncompiler.api import check, compile
from snncompiler.calibration import Calibration
from snncompiler.data import Dataset, Preprocess
from snncompiler.diagnostics import Finding
from snncompiler.errors import EnvironmentMissing, InternalError, Refused, SnncError, UsageError
from snncompiler.evaluation import Evaluation, evaluate
from snncompiler.verification import Verification, verify
from snncompiler.version import __version__

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
    "verify",
]
