"""Sessions of onnxruntime for ANNs and compiled networks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import onnx

from snncompiler.errors import EnvironmentMissing

if TYPE_CHECKING:
    import onnxruntime


def import_onnxruntime() -> Any:
    """The onnxruntime module; EnvironmentMissing says how to install it where it is not."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissing(
            f"onnxruntime is not installed ({error})",
            hint='pip install "snnc[cpu]", or "snnc[gpu]" for CUDA; the two exclude each other',
        ) from error
    return onnxruntime


def create_session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An onnxruntime session for a model given as a path, as bytes or as a ModelProto.

    `threads` is the number of intra-op threads; None leaves onnxruntime's default.
    Raises EnvironmentMissing where onnxruntime is not installed.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
