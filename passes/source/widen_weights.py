"""Weights of 4 bit and of 8-bit floats as float32, and integers of 4 bit as those of 8, which is exact.

Most tools cannot hold these types, so DequantizeLinear of such a constant is computed here, on the
model as it was read, before anything else looks at its weights.  Activations that are quantized to
such integers get a Clip to their range behind a QuantizeLinear to 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir.graph import unique_name
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


#: The narrow integers: their least and largest, and the type of 8 bits that holds them.
_RANGES = {
    "INT4": (-8, 7, np.int8),
    "UINT4": (0, 15, np.uint8),
    "INT2": (-2, 1, np.int8),
    "UINT2": (0, 3, np.uint8),
}
_INTEGERS = {
    number: _RANGES[name] for name, number in TensorProto.DataType.items() if name in _RANGES
}


def widen_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with activations of 8 bits for those of 4 or 2; a copy if there are any.

    What is computed on such integers between a QuantizeLinear and a DequantizeLinear only chooses and
    moves them, so their type is the only thing that changes.
    """
    narrow = {one.name for one in model.graph.initializer if one.data_type in _INTEGERS}
    zeros = {
        node.input[2]: node
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and len(node.input) > 2
        and node.input[2] in narrow
    }
    typed = [node for node in model.graph.node if _narrow_output(node) is not None]
    if not zeros and not typed:
        return model
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    ranges: dict[str, tuple[int, int, Any]] = {}
    for tensor in wide.graph.initializer:
        if tensor.name in zeros:
            ranges[tensor.name] = _INTEGERS[tensor.data_type]
            values = numpy_helper.to_array(tensor).astype(ranges[tensor.name][2])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    taken = {name for node in wide.graph.node for name in (*node.output, *node.input)}
    for node in wide.graph.node:
        nodes.append(node)
        if node.op_type != "QuantizeLinear":
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        found = _narrow_output(node) or ranges.get(zero)
        if found is None:
            continue
        low, high, kind = found
        kept = [one for one in node.attribute if one.name != "output_dtype"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if not zero and kind is np.int8:
            node.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
        result, node.output[0] = node.output[0], unique_name(f"{node.output[0]}/wide", taken)
        bounds = [unique_name(f"{result}/{end}", taken) for end in ("low", "high")]
        for name, value in zip(bounds, (low, high), strict=True):
            wide.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        name = f"{node.name or result}/narrow"
        nodes.append(helper.make_node("Clip", [node.output[0], *bounds], [result], name=name))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    told = [one for one in wide.graph.value_info if one.type.tensor_type.elem_type not in _INTEGERS]
    del wide.graph.value_info[:]
    wide.graph.value_info.extend(told)
    return wide


def _narrow_output(node: onnx.NodeProto) -> tuple[int, int, Any] | None:
    """The range of a QuantizeLinear without a zero point whose attribute names a narrow type."""
    if node.op_type != "QuantizeLinear" or len([name for name in node.input if name]) > 2:
        return None
    told = [helper.get_attribute_value(one) for one in node.attribute if one.name == "output_dtype"]
    return _INTEGERS.get(told[0]) if told else None


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
