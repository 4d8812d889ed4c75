"""Compute in float32 what was exported in float16 or float64, and say so.

Weights and casts change their type; inputs and outputs keep theirs, with a Cast behind or before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snncompiler.errors import refuse
from snncompiler.ir.graph import (
    Graph,
    Node,
    constant,
    is_live,
    label,
    replace_uses,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.passes.base import Context, Pass

_OTHER = (np.dtype(np.float16), np.dtype(np.float64))
_OTHER_KINDS = (TensorProto.FLOAT16, TensorProto.DOUBLE)
#: The attributes that name the type of what an operator makes.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")


@dataclass(frozen=True)
class ToFloat32(Pass):
    """float16 and float64 networks become float32 inside."""

    name: ClassVar[str] = "to-float32"
    ensures: ClassVar[frozenset[str]] = frozenset({"float32"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        changed: set[str] = set()
        for node in graph.nodes:
            for index, tensor in enumerate(node.inputs):
                array = value(tensor)
                if array is not None and array.dtype in _OTHER:
                    changed.add(str(array.dtype))
                    wide = _unbounded(array) if _is_bound(node, index) else array
                    narrow = _narrow(wide, f"weight '{tensor.name}'", node)
                    node.inputs[index] = constant(f"{tensor.name}_fp32", narrow, taken)
            for key, attribute in node.attrs.items():
                if isinstance(attribute, gs.Constant) and attribute.values.dtype in _OTHER:
                    changed.add(str(attribute.values.dtype))
                    narrow = _narrow(attribute.values, f"attribute '{key}'", node)
                    node.attrs[key] = gs.Constant("", narrow)
            for key in _TYPE_ATTRIBUTES:
                if node.attrs.get(key) in _OTHER_KINDS:
                    node.attrs[key] = int(TensorProto.FLOAT)
            for tensor in node.outputs:
                if is_live(tensor) and tensor.dtype in _OTHER:
                    tensor.dtype = None
        for tensor in graph.inputs:
            if tensor.dtype in _OTHER and tensor.outputs:
                changed.add(str(np.dtype(tensor.dtype)))
                _cast_input(graph, tensor, taken)
        for index, output in enumerate(graph.outputs):
            kind = context.output_types.get(output.name)
            if kind in _OTHER and output.inputs:
                changed.add(str(kind))
                _cast_output(graph, index, kind, taken)
        for name in sorted(changed):
            context.note("SNNC109", f"the {name} of the source is computed in float32")


def _is_bound(node: Node, index: int) -> bool:
    """Whether an input of a node bounds its other values."""
    return not node.domain and (
        (node.op == "Clip" and index > 0) or (node.op in ("Max", "Min") and len(node.inputs) > 1)
    )


def _unbounded(array: NDArray[Any]) -> NDArray[Any]:
    """A bound at the end of its type's range, or beyond that of float32, becomes infinite."""
    end = min(float(np.finfo(array.dtype).max), float(np.finfo(np.float32).max))
    return np.where(np.abs(array) >= end, np.copysign(np.inf, array), array).astype(array.dtype)


def has_other_floats(model: onnx.ModelProto) -> bool:
    """Whether a model without subgraphs and functions names one of the types that become float32."""
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return any(
        kind in _OTHER_KINDS
        for kinds in (
            (entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)),
            (tensor.data_type for tensor in graph.initializer),
            (attribute.t.data_type for attribute in attributes),
            (attribute.i for attribute in attributes if attribute.name in _TYPE_ATTRIBUTES),
        )
        for kind in kinds
    )


def _narrow(array: NDArray[Any], what: str, node: Node) -> NDArray[np.float32]:
    """`array` in float32; Refused where a value does not fit."""
    with np.errstate(over="ignore"):  # told below, with the name
        narrow = array.astype(np.float32)
    if (np.isfinite(array) & ~np.isfinite(narrow)).any():
        raise refuse(
            "SNNC109",
            f"{what} ({array.dtype}) does not fit float32",
            node=label(node),
            hint="scale the network's values down, or export it in float32",
        )
    return narrow


def _cast_input(graph: Graph, tensor: gs.Tensor, taken: set[str]) -> None:
    inside = gs.Variable(unique_name(f"{tensor.name}_fp32", taken), np.float32, tensor.shape)
    cast = gs.Node("Cast", inside.name, attrs={"to": int(TensorProto.FLOAT)}, outputs=[inside])
    replace_uses(tensor, inside, graph)
    cast.inputs.append(tensor)
    graph.nodes.insert(0, cast)


def _cast_output(graph: Graph, index: int, kind: np.dtype[Any], taken: set[str]) -> None:
    output = graph.outputs[index]
    result = gs.Variable(output.name, kind, output.shape)
    output.name = unique_name(f"{output.name}_fp32", taken)
    output.dtype = np.dtype(np.float32)
    to = int(helper.np_dtype_to_tensor_dtype(kind))
    graph.nodes.append(
        gs.Node("Cast", output.name + "_back", attrs={"to": to}, inputs=[output], outputs=[result])
    )
    graph.outputs[index] = result
