"""Weights of 4 bit and of 8-bit floats as float32, which is exact.

Most tools cannot hold these types, so DequantizeLinear of such a constant is computed here, on the
model as it was read, before anything else looks at its weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import TensorProto, helper, numpy_helper

from snncompiler.passes.source.spell_quantized import MICROSOFT

#: The types; older versions of onnx lack some.
_NAMES = (
    "INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2",
    "FLOAT8E5M2FNUZ",
)  # fmt: skip
_NARROW = {number for name, number in TensorProto.DataType.items() if name in _NAMES}


def widen_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with DequantizeLinear of narrow constants as its value; a copy if there is any.

    What is malformed or not constant stays, and is refused by its type later.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                constants[node.output[0]] = attribute.t
    values = [_value(node, constants) for node in model.graph.node]
    if not any(values):
        return model
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    left = [node for node, value in zip(wide.graph.node, values, strict=True) if value is None]
    read = {name for node in left for name in node.input}
    read |= {output.name for output in wide.graph.output}
    unread = {
        name for name, one in constants.items() if one.data_type in _NARROW and name not in read
    }
    weights = [one for one in wide.graph.initializer if one.name not in unread]
    weights += [value for value in values if value is not None]
    left = [node for node in left if not unread.intersection(node.output)]
    del wide.graph.node[:], wide.graph.initializer[:]
    wide.graph.node.extend(left)
    wide.graph.initializer.extend(weights)
    return wide


def _value(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """The value of a DequantizeLinear of a narrow constant; None for any other node."""
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx", MICROSOFT):
        return None
    given = [name for name in node.input if name]
    if not given or any(name not in constants for name in given) or len(node.output) != 1:
        return None
    if constants[given[0]].data_type not in _NARROW:
        return None
    standard = onnx.NodeProto()
    standard.CopyFrom(node)
    standard.domain = ""
    feeds = [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(given)]
    result = [helper.make_empty_tensor_value_info(node.output[0])]
    opset = helper.make_opsetid("", min(25, onnx.defs.onnx_opset_version()))
    try:
        arrays: dict[str, Any] = {name: numpy_helper.to_array(constants[name]) for name in given}
        alone = helper.make_model(
            helper.make_graph([standard], "widen", feeds, result), opset_imports=[opset]
        )
        (found,) = list(onnx.reference.ReferenceEvaluator(alone).run(None, arrays))
        return numpy_helper.from_array(np.asarray(found), node.output[0])
    except Exception:  # the constant stays, and is refused with its type
        return None
