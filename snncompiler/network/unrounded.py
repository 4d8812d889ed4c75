"""A quantized source without its rounding: what the converted network has to agree with.

Every integer that depends on an input becomes the float that it would be without rounding,
x/s + z, limited to the range of its type; what is computed from it stays as the file says, on floats.
It is written on the model as the file gives it, and knows nothing of the passes that it checks
(`passes/source/drop_fake_quant.py` computes real values, not unrounded integers).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_MICROSOFT = "com.microsoft"

#: A scale or zero point has fewer elements.
_LARGE = 1 << 16


class NotUnrounded(Exception):
    """The quantization is of a kind that is not known here; says which."""


def unrounded(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of `model` without rounding; `model` itself where nothing is quantized at run time.

    kept: the outputs of QuantizeLinear that stay rounded.  Other outputs of the model that are integers
    because they are quantized become float.  Raises NotUnrounded.
    """
    names = {node.op_type for owner in (model.graph, *model.functions) for node in owner.node}
    if not names & _QUANTIZING:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    writer = _Writer(copy, frozenset(kept))
    for node in list(copy.graph.node):
        writer.visit(node)
    if not writer.floats:
        return model
    graph = copy.graph
    del graph.node[:], graph.value_info[:]
    graph.node.extend(writer.made)
    graph.initializer.extend(writer.constants)
    for output in graph.output:
        if output.name in writer.floats:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


@dataclass
class _Writer:
    """Writes the nodes anew, one after the other."""

    model: onnx.ModelProto
    kept: frozenset[str]
    made: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    #: Names of the tensors that were integers and are floats now.
    floats: set[str] = field(default_factory=set)
    #: Names of the tensors that depend on an input.
    live: set[str] = field(default_factory=set)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.live = {one.name for one in graph.input} - self.arrays.keys()
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        for entry in (*inferred.input, *inferred.value_info, *inferred.output):
            if entry.type.tensor_type.HasField("shape"):
                self.ranks[entry.name] = len(entry.type.tensor_type.shape.dim)
        self.ranks |= {name: array.ndim for name, array in self.arrays.items()}

    def visit(self, node: onnx.NodeProto) -> None:
        if not any(name in self.live for name in node.input):
            self.made.append(node)
            self.evaluate(node)
            return
        self.live.update(node.output)
        rule = _RULES.get((node.domain.replace("ai.onnx", "", 1), node.op_type))
        if rule is None and any(name in self.floats for name in node.input):
            rule = _on_floats
        elif rule is _dequantize_node and node.input[0] not in self.floats:
            rule = None
        if rule is None:
            self.made.append(node)
        else:
            rule(self, node)

    def evaluate(self, node: onnx.NodeProto) -> None:
        """Note the value of a small constant: it may be a scale or a zero point."""
        given = {name: self.arrays.get(name) for name in node.input if name}
        sizes = [_LARGE if array is None else array.size for array in given.values()]
        if len(node.output) != 1 or any(size >= _LARGE for size in sizes):
            return
        feeds = [helper.make_empty_tensor_value_info(name) for name in given]
        result = [helper.make_empty_tensor_value_info(node.output[0])]
        graph = helper.make_graph([node], "constant", feeds, result)
        alone = helper.make_model(graph, opset_imports=self.model.opset_import)
        try:
            (array,) = list(onnx.reference.ReferenceEvaluator(alone).run(None, given))
        except Exception:  # then it is not known, and that is said where it is needed
            return
        self.arrays[node.output[0]] = np.asarray(array)
        self.ranks[node.output[0]] = np.asarray(array).ndim

    # --- pieces; each gives the name of its result ---

    def apply(self, op: str, *inputs: str, result: str = "", **attrs: Any) -> str:
        name = result or f"snnc_unrounded/{len(self.made)}"
        self.made.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def number(self, values: object, kind: Any = np.float32) -> str:
        name = f"snnc_unrounded/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def as_float(self, name: str) -> str:
        """An integer, unrounded or constant, as a float."""
        return name if name in self.floats else self.apply("Cast", name, to=TensorProto.FLOAT)

    def along(self, name: str, rank: int | None, axis: int) -> str:
        """A scale or zero point, along the axis of a tensor of that rank."""
        array = self.arrays.get(name)
        if array is None:
            raise NotUnrounded("a scale or zero point is computed at run time")
        result = self.as_float(name)
        if array.size == 1:
            return self.apply("Reshape", result, self.number([1], np.int64))
        if rank is None or array.ndim != 1:
            raise NotUnrounded("a scale for each block, or for the channels of an unknown rank")
        shape = [-1 if at == axis % rank else 1 for at in range(rank)]
        return self.apply("Reshape", result, self.number(shape, np.int64))

    def real(self, q: str, scale: str, zero: str, axis: int = 1, result: str = "") -> str:
        """(q - zero)·scale."""
        rank, value = self.ranks.get(q), self.as_float(q)
        if zero:
            value = self.apply("Sub", value, self.along(zero, rank, axis))
        array = self.arrays.get(scale)
        if array is None or array.dtype == np.float32:
            return self.apply("Mul", value, self.along(scale, rank, axis), result=result)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value = self.apply("Mul", value, self.along(scale, rank, axis))
        return self.apply("Cast", value, result=result, to=kind)

    def quantize(self, x: str, scale: str, zero: str, kind: Any, result: str, axis: int = 1) -> str:
        """x/scale + zero, limited to the range of the type."""
        if np.dtype(kind).kind not in "iu":
            raise NotUnrounded(f"quantization to {np.dtype(kind).name}")
        rank = self.ranks.get(x)
        value = self.apply("Div", self.as_float(x), self.along(scale, rank, axis))
        if zero:
            value = self.apply("Add", value, self.along(zero, rank, axis))
        limits = np.iinfo(kind)
        value = self.apply("Max", value, self.number(limits.min))
        self.floats.add(result)
        return self.apply("Min", value, self.number(limits.max), result=result)

    def to(self, node: onnx.NodeProto, x: str, scale: str, zero: str) -> None:
        """The output of a node that quantizes its result."""
        kind = self.arrays[zero].dtype if zero in self.arrays else np.dtype(np.uint8)
        self.quantize(x, scale, zero, kind, node.output[0])


def _input(node: onnx.NodeProto, index: int) -> str:
    return str(node.input[index]) if index < len(node.input) else ""


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _quantize_node(writer: _Writer, node: onnx.NodeProto) -> None:
    if node.output[0] in writer.kept:
        writer.made.append(node)
        return
    attrs, zero = _attributes(node), _input(node, 2)
    if attrs.get("block_size"):
        raise NotUnrounded("a scale for each block")
    kind: Any = np.uint8
    if zero:
        if zero not in writer.arrays:
            raise NotUnrounded("a zero point is computed at run time")
        kind = writer.arrays[zero].dtype
    elif attrs.get("output_dtype"):
        kind = helper.tensor_dtype_to_np_dtype(attrs["output_dtype"])
    axis = attrs.get("axis", 1)
    writer.quantize(node.input[0], node.input[1], zero, kind, node.output[0], axis)


def _dequantize_node(writer: _Writer, node: onnx.NodeProto) -> None:
    q, scale, zero = node.input[0], node.input[1], _input(node, 2)
    if scale in writer.live:  # of a DynamicQuantizeLinear
        writer.apply("Mul", writer.apply("Sub", q, zero), scale, result=node.output[0])
        return
    writer.real(q, scale, zero, _attributes(node).get("axis", 1), node.output[0])


def _quantize_dynamically(writer: _Writer, node: onnx.NodeProto) -> None:
    x, zero = node.input[0], writer.number(0)
    low = writer.apply("Min", writer.apply("ReduceMin", x, keepdims=0), zero)
    high = writer.apply("Max", writer.apply("ReduceMax", x, keepdims=0), zero)
    room = writer.apply("Max", writer.apply("Sub", high, low), writer.number(1e-30))
    scale = writer.apply("Div", room, writer.number(255), result=node.output[1])
    point = writer.apply("Neg", writer.apply("Div", low, scale), result=node.output[2])
    scaled = writer.apply("Div", x, scale)
    writer.apply("Add", scaled, point, result=node.output[0])
    writer.floats |= {node.output[0], node.output[2]}


def _integer_product(writer: _Writer, node: onnx.NodeProto) -> None:
    """ConvInteger, MatMulInteger: values and weights less their zero points."""
    if not any(name in writer.floats for name in node.input):
        writer.made.append(node)
        return
    values = [writer.as_float(node.input[0]), writer.as_float(node.input[1])]
    if _input(node, 2):
        values[0] = writer.apply("Sub", values[0], writer.as_float(node.input[2]))
    if zero := _input(node, 3):
        rank = writer.ranks.get(node.input[1])
        axis = 0 if node.op_type == "ConvInteger" else -1
        values[1] = writer.apply("Sub", values[1], writer.along(zero, rank, axis))
    op = node.op_type.removesuffix("Integer")
    writer.apply(op, *values, result=node.output[0], **_attributes(node))
    writer.floats.add(node.output[0])


def _conv(writer: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, w, ws, wz, ys, yz = node.input[:8]
    values = [writer.real(x, xs, xz), writer.real(w, ws, wz, 0)]
    if bias := _input(node, 8):
        scale = writer.apply("Mul", writer.along(xs, 1, 0), writer.along(ws, 1, 0))
        values.append(writer.apply("Mul", writer.as_float(bias), scale))
    writer.to(node, writer.apply("Conv", *values, **_attributes(node)), ys, yz)


def _mat_mul(writer: _Writer, node: onnx.NodeProto) -> None:
    a, a_s, az, b, bs, bz, ys, yz = node.input[:8]
    values = writer.real(a, a_s, az, -2), writer.real(b, bs, bz, -1)
    writer.to(node, writer.apply("MatMul", *values), ys, yz)


def _gemm(writer: _Writer, node: onnx.NodeProto) -> None:
    a, a_s, az, b, bs, bz = node.input[:6]
    attrs = _attributes(node)
    columns = 0 if attrs.get("transB") else 1
    values = [writer.real(a, a_s, az), writer.real(b, bs, bz, columns)]
    if bias := _input(node, 6):
        scale = writer.apply("Mul", writer.along(a_s, 1, 0), writer.along(bs, 1, 0))
        scale = writer.apply("Mul", scale, writer.number(attrs.get("alpha", 1.0)))
        values.append(writer.apply("Mul", writer.as_float(bias), scale))
    if _input(node, 7):
        writer.to(node, writer.apply("Gemm", *values, **attrs), node.input[7], _input(node, 8))
    else:
        writer.apply("Gemm", *values, result=node.output[0], **attrs)


def _pair(writer: _Writer, node: onnx.NodeProto) -> None:
    a, a_s, az, b, bs, bz, ys, yz = node.input[:8]
    values = writer.real(a, a_s, az), writer.real(b, bs, bz)
    writer.to(node, writer.apply(node.op_type.removeprefix("QLinear"), *values), ys, yz)


def _single(writer: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, ys, yz = node.input[:5]
    attrs = {name: one for name, one in _attributes(node).items() if name != "channels_last"}
    op = node.op_type.removeprefix("QLinear")
    writer.to(node, writer.apply(op, writer.real(x, xs, xz), **attrs), ys, yz)


def _softmax(writer: _Writer, node: onnx.NodeProto) -> None:
    x, xs, xz, ys, yz = node.input[:5]
    attrs, real = _attributes(node), writer.real(x, xs, xz)
    axis = attrs.get("axis", -1)
    if attrs.get("opset", 13) >= 13:
        result = writer.apply("Softmax", real, axis=axis)
    else:  # over all the axes from `axis` on
        rows = writer.apply("Softmax", writer.apply("Flatten", real, axis=axis), axis=-1)
        result = writer.apply("Reshape", rows, writer.apply("Shape", real))
    writer.to(node, result, ys, yz)


def _concat(writer: _Writer, node: onnx.NodeProto) -> None:
    ys, yz, *rest = node.input
    values = [writer.real(*rest[at : at + 3]) for at in range(0, len(rest), 3)]
    writer.to(node, writer.apply("Concat", *values, **_attributes(node)), ys, yz)


def _on_floats(writer: _Writer, node: onnx.NodeProto) -> None:
    """Any other operator, on floats where it had integers."""
    if node.op_type == "Cast":
        writer.apply("Identity", node.input[0], result=node.output[0])
        if _attributes(node)["to"] != TensorProto.FLOAT:
            writer.floats.add(node.output[0])
        return
    new = onnx.NodeProto()
    new.CopyFrom(node)
    positions = _DATA.get(node.op_type, range(1))
    for index in positions or range(len(new.input)):
        if index < len(new.input) and new.input[index]:
            new.input[index] = writer.as_float(new.input[index])
    writer.made.append(new)
    if node.op_type not in ("Shape", "Size"):
        writer.floats.update(node.output[:1] if node.op_type == "MaxPool" else node.output)


#: Which inputs are of the type of the first; all of them where it is empty.
_DATA: dict[str, tuple[int, ...]] = {
    "Clip": (0, 1, 2),
    "Pad": (0, 2),
    **dict.fromkeys(("Concat", "Max", "Min", "Add", "Sub", "Mul"), ()),
}

_RULES: dict[tuple[str, str], Callable[[_Writer, onnx.NodeProto], None]] = {
    ("", "QuantizeLinear"): _quantize_node,
    ("", "DequantizeLinear"): _dequantize_node,
    (_MICROSOFT, "QuantizeLinear"): _quantize_node,
    (_MICROSOFT, "DequantizeLinear"): _dequantize_node,
    ("", "DynamicQuantizeLinear"): _quantize_dynamically,
    ("", "ConvInteger"): _integer_product,
    ("", "MatMulInteger"): _integer_product,
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _mat_mul,
    (_MICROSOFT, "QGemm"): _gemm,
    (_MICROSOFT, "QLinearConcat"): _concat,
    (_MICROSOFT, "QLinearSoftmax"): _softmax,
    **dict.fromkeys([(_MICROSOFT, f"QLinear{op}") for op in ("Add", "Mul")], _pair),
    **dict.fromkeys(
        [
            (_MICROSOFT, f"QLinear{op}")
            for op in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
        ],
        _single,
    ),
}

_QUANTIZING = {op for _, op in _RULES} - {"DequantizeLinear", "ConvInteger", "MatMulInteger"}
