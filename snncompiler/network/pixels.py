"""A source whose inputs are pixels of 8 bits: what makes its own input of them stands in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snncompiler.errors import Refused, UsageError
from snncompiler.findings import Finding
from snncompiler.ir.graph import unique_name
from snncompiler.ir.pixels import FULL_SCALE, InputType
from snncompiler.network.load import Source
from snncompiler.network.preprocess import InputSpec, Preprocess, layout_of

#: Types of inputs that pixels can become.
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


def with_preprocessing(
    asked: InputType, how: Preprocess | None
) -> tuple[InputType, Preprocess | None, list[Finding]]:
    """The input with what is said of pixels in it, and what is left to be done to data outside.

    Raises UsageError where it is said twice.
    """
    if not asked:
        return asked, how, []
    how = how or Preprocess()
    how.check()
    how = how.resolved()
    told = [name for name in ("scale", "mean", "std") if getattr(how, name) is not None]
    if asked.scale is not None:
        if told:
            raise UsageError(
                f"--{told[0]} is said twice: --input-type {asked} has it already",
                hint="leave one of the two out",
            )
        return asked, how, []
    findings = []
    if how.scale is None:
        findings.append(
            Finding(
                "SNNC307",
                f"pixels are divided by {FULL_SCALE:g} inside the network",
                severity="note",
                hint="say --scale 1 if the source wants 0 to 255",
            )
        )
    found = InputType(
        True,
        FULL_SCALE if how.scale is None else float(how.scale),
        tuple(map(float, how.mean or ())),
        tuple(map(float, how.std or ())),
    )
    return found, replace(how, scale=None, mean=None, std=None), findings


def of_pixels(source: Source, given: InputType) -> Source:
    """The source with uint8 in place of every input of floating point; known by the same hash.

    Raises Refused where an input has other channels than there are means or deviations, or where none
    is of floating point.
    """
    if not given:
        return source
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    taken |= {entry.name for entry in (*graph.input, *graph.output)} | constants
    front: list[onnx.NodeProto] = []
    for entry in graph.input:
        kind = entry.type.tensor_type.elem_type
        if entry.name in constants or kind not in _FLOATS:
            continue
        nodes = _front(graph, entry, given, taken)
        renamed = nodes[-1].output[0]
        for node in graph.node:
            node.input[:] = [renamed if name == entry.name else name for name in node.input]
        if any(entry.name in _inner(node) for node in graph.node):
            raise _refused(f"a branch or a loop reads the input '{entry.name}'")
        front += nodes
        entry.type.tensor_type.elem_type = TensorProto.UINT8
    if not front:
        raise _refused("the network has no input of floating point")
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *rest])
    return replace(source, model=model, pixels=given)


def _front(
    graph: onnx.GraphProto, entry: onnx.ValueInfoProto, given: InputType, taken: set[str]
) -> list[onnx.NodeProto]:
    """The nodes from pixels to what the input was."""
    steps: list[tuple[str, Sequence[float]]] = [("Div", (given.scale or FULL_SCALE,))]
    steps += [(op, values) for op, values in (("Sub", given.mean), ("Div", given.std)) if values]
    value = unique_name(f"{entry.name}/pixels", taken)
    nodes = [_cast(entry.name, value, taken, TensorProto.FLOAT)]
    for op, values in steps:
        constant = unique_name(f"{entry.name}/{op.lower()}_by", taken)
        array = _spread(entry, values)
        graph.initializer.append(numpy_helper.from_array(array, constant))
        last, value = value, unique_name(f"{entry.name}/{op.lower()}", taken)
        nodes.append(_node(op, [last, constant], value, taken))
    kind = entry.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        last, value = value, unique_name(f"{entry.name}/own_type", taken)
        nodes.append(_cast(last, value, taken, kind))
    return nodes


def _node(op: str, inputs: list[str], output: str, taken: set[str]) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], unique_name(f"{output}/{op}", taken))


def _cast(source: str, output: str, taken: set[str], kind: int) -> onnx.NodeProto:
    node = _node("Cast", [source], output, taken)
    node.attribute.append(helper.make_attribute("to", kind))
    return node


def _spread(entry: onnx.ValueInfoProto, values: Sequence[float]) -> np.ndarray:
    """One number, or one for each channel, so that it broadcasts to the input."""
    row = np.asarray(values, np.float32)
    if row.size == 1:
        return row.reshape(())
    dims = entry.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    axis = len(shape) - 1
    if len(shape) == 4 and layout_of(InputSpec(entry.name, shape, np.dtype(np.float32))) == "NCHW":
        axis = 1
    if axis < 0 or shape[axis] not in (None, row.size):
        raise _refused(
            f"there are {row.size} means or deviations, and the input '{entry.name}' has "
            f"{shape[axis] if shape else 'no'} channels"
        )
    return row.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _inner(node: onnx.NodeProto) -> set[str]:
    """What the nodes inside of a node read."""
    found: set[str] = set()
    graphs = [one.g for one in node.attribute if one.HasField("g")]
    while graphs:
        graph = graphs.pop()
        for inside in graph.node:
            found |= set(inside.input)
            graphs += [one.g for one in inside.attribute if one.HasField("g")]
    return found


def _refused(why: str) -> Refused:
    hint = "leave out --input-type, and feed what the network takes"
    return Refused(Finding("SNNC302", f"it cannot take pixels: {why}", hint=hint))
