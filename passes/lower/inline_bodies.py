"""Replace operators of ours by their function bodies, for a device that has no kernels of them.

The operators by counts have kernels for the CPU only.  On CUDA onnxruntime would send what they compute
with to the CPU and back, although every operator in their bodies has a kernel on the GPU.
"""

from __future__ import annotations

import onnx
import onnx.inliner

from snncompiler.ir import dialect

#: The operators without CUDA kernels that a collapsed network is made of.
BY_COUNTS = (*sorted(dialect.COUNT_OPERATORS.keys() - {"LevelNeuron"}), "EventSumPool")


def inline_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a collapsed model, its operators by counts as the standard ones of their bodies."""
    return onnx.inliner.inline_selected_functions(
        model, [(dialect.DOMAIN, name) for name in BY_COUNTS]
    )
