"""Write the operators that compute on integers as what they stand for.

QLinearConv, QLinearMatMul, and the operators of com.microsoft that onnxruntime's quantization writes,
are defined as dequantize, compute, quantize; they become these nodes.  So does Quant of QONNX, as
Brevitas exports it, which quantizes to any number of bits and dequantizes at once: of a constant it is
computed here, and of other values it is QuantizeLinear, a Clip of the integers, and DequantizeLinear.
`drop_fake_quant` then takes the rounding out, or `keep_rounding` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.errors import Refused, refuse
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    input_at,
    label,
    sort_nodes,
    tensor_names,
    unique_name,
)
from snncompiler.passes.base import Context, Pass

MICROSOFT = "com.microsoft"
#: The domains of QONNX, by the tools that write them.
QONNX = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")

_ROUNDINGS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
}


@dataclass(frozen=True)
class SpellQuantized(Pass):
    """QLinearConv and its like become DequantizeLinear, Conv, QuantizeLinear."""

    name: ClassVar[str] = "spell-quantized"
    ensures: ClassVar[frozenset[str]] = frozenset({"quantized-spelled"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = _Writer(graph, tensor_names(graph))
        for node in list(graph.nodes):
            rule = RULES.get((node.domain or "", node.op))
            if rule is not None:
                rule(writer, node)
        graph.nodes = [node for node in graph.nodes if node.outputs]
        sort_nodes(graph)


@dataclass
class _Writer:
    graph: Graph
    taken: set[str]

    def apply(
        self,
        node: Node,
        op: str,
        inputs: Sequence[Tensor],
        output: Tensor | None = None,
        **attrs: Any,
    ) -> Tensor:
        """The output of a new node that stands for a part of `node`."""
        result = output or gs.Variable(unique_name(f"{node.name}/{op.lower()}", self.taken))
        name = unique_name(f"{node.name}/{op.lower()}_node", self.taken)
        self.graph.nodes.append(
            gs.Node(op, name, attrs=dict(attrs), inputs=list(inputs), outputs=[result])
        )
        return result

    def inputs(self, node: Node, least: int) -> list[Tensor]:
        if len(node.inputs) < least:
            raise refuse(
                "SNNC110",
                f"it has {len(node.inputs)} inputs, at least {least} are needed",
                node=label(node),
            )
        return list(node.inputs)

    def real(self, node: Node, q: Tensor, scale: Tensor, zero: Tensor, axis: int = 1) -> Tensor:
        where = {"axis": axis} if _many(scale) else {}
        return self.apply(node, "DequantizeLinear", [q, scale, zero], **where)

    def bias(self, node: Node, bias: Tensor, *scales: Tensor) -> Tensor:
        """A bias of 32-bit integers: its scale is the product of those of the factors."""
        scale = scales[0]
        for other in scales[1:]:
            scale = self.apply(node, "Mul", [scale, other])
        where = {"axis": 0} if any(map(_many, scales)) else {}
        return self.apply(node, "DequantizeLinear", [bias, scale], **where)

    def quantize(self, node: Node, y: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        (output,) = node.outputs
        node.inputs.clear()
        node.outputs.clear()
        inputs = [y, scale] if zero is None else [y, scale, zero]
        self.apply(node, "QuantizeLinear", inputs, output)


def _many(scale: Tensor) -> bool:
    return isinstance(scale, gs.Constant) and scale.values.size > 1


def _conv(writer: _Writer, node: Node) -> None:
    x, xs, xz, w, ws, wz, ys, yz = writer.inputs(node, 8)[:8]
    values = [writer.real(node, x, xs, xz), writer.real(node, w, ws, wz, 0)]
    bias = input_at(node, 8)
    if bias is not None:
        values.append(writer.bias(node, bias, xs, ws))
    writer.quantize(node, writer.apply(node, "Conv", values, **node.attrs), ys, yz)


def _mat_mul(writer: _Writer, node: Node) -> None:
    a, a_s, az, b, bs, bz, ys, yz = writer.inputs(node, 8)[:8]
    values = [writer.real(node, a, a_s, az, -2), writer.real(node, b, bs, bz, -1)]
    writer.quantize(node, writer.apply(node, "MatMul", values), ys, yz)


def _gemm(writer: _Writer, node: Node) -> None:
    a, a_s, az, b, bs, bz = writer.inputs(node, 6)[:6]
    columns = 0 if node.attrs.get("transB") else 1
    values = [writer.real(node, a, a_s, az), writer.real(node, b, bs, bz, columns)]
    bias, ys, yz = (input_at(node, index) for index in (6, 7, 8))
    if bias is not None:
        alpha = node.attrs.get("alpha", 1.0)
        scales = [a_s, bs]
        if alpha != 1.0:
            scales.append(constant(f"{node.name}/alpha", np.array(alpha, np.float32), writer.taken))
        values.append(writer.bias(node, bias, *scales))
    if ys is not None:
        writer.quantize(node, writer.apply(node, "Gemm", values, **node.attrs), ys, yz)
        return
    (output,) = node.outputs
    attrs = dict(node.attrs)
    node.inputs.clear()
    node.outputs.clear()
    writer.apply(node, "Gemm", values, output, **attrs)


def _pair(writer: _Writer, node: Node) -> None:
    a, a_s, az, b, bs, bz, ys, *rest = writer.inputs(node, 7)
    values = [writer.real(node, a, a_s, az), writer.real(node, b, bs, bz)]
    result = writer.apply(node, node.op.removeprefix("QLinear"), values)
    writer.quantize(node, result, ys, rest[0] if rest else None)


def _single(writer: _Writer, node: Node) -> None:
    x, xs, xz, ys, *rest = writer.inputs(node, 4)
    attrs = dict(node.attrs)
    padded = any(attrs.get("pads", ())) or attrs.get("auto_pad", "NOTSET") != "NOTSET"
    if not padded and not attrs.get("ceil_mode"):
        attrs.pop("count_include_pad", None)  # without padding it changes nothing
    for name in ("channels_last", "count_include_pad"):
        if attrs.pop(name, 0):
            raise _unknown(node, name)
    result = writer.apply(
        node, node.op.removeprefix("QLinear"), [writer.real(node, x, xs, xz)], **attrs
    )
    writer.quantize(node, result, ys, rest[0] if rest else None)


def _softmax(writer: _Writer, node: Node) -> None:
    x, xs, xz, ys, *rest = writer.inputs(node, 4)
    real, axis = writer.real(node, x, xs, xz), node.attrs.get("axis", -1)
    if node.attrs.get("opset", 13) >= 13:
        result = writer.apply(node, "Softmax", [real], axis=axis)
    else:  # over all the axes from `axis` on, as if they were one
        rows = writer.apply(node, "Flatten", [real], axis=axis)
        shares = writer.apply(node, "Softmax", [rows], axis=-1)
        shape = writer.apply(node, "Shape", [real])
        result = writer.apply(node, "Reshape", [shares, shape])
    writer.quantize(node, result, ys, rest[0] if rest else None)


def _unknown(node: Node, what: str) -> Refused:
    return refuse(
        "SNNC106",
        f"operator {MICROSOFT}.{node.op} with {what} is not supported",
        node=label(node),
        hint="quantize with QuantFormat.QDQ",
    )


def _quant(writer: _Writer, node: Node) -> None:
    """Quant(x, scale, zero point, bits): round(x/scale + zero) within the range of the bits, with or
    without the least number of a signed one, times the scale again.

    QONNX, github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops.
    """
    x, *given = writer.inputs(node, 4)[:4]
    arrays = [_array(tensor) for tensor in given]
    scale, zero, bits = (array for array in arrays)
    if scale is None or zero is None or bits is None or bits.size != 1:
        raise _unknown_quant(node, "a scale, zero point or number of bits that is no constant")
    signed, narrow = bool(node.attrs.get("signed", 1)), bool(node.attrs.get("narrow", 1))
    mode = str(node.attrs.get("rounding_mode", "ROUND")).upper()
    size = int(bits.reshape(()))
    if size != bits or not 1 <= size <= 32:
        raise _unknown_quant(node, f"{bits.reshape(())} bits")
    if mode not in _ROUNDINGS:
        raise _unknown_quant(node, f"rounding_mode {mode}")
    low = -(1 << (size - 1)) + narrow if signed else 0
    high = (1 << (size - 1)) - 1 if signed else (1 << size) - 1 - narrow
    (output,) = node.outputs
    source = _array(x)
    if source is not None:
        scaled = source / scale + zero
        whole = np.clip(_ROUNDINGS[mode](scaled), low, high)
        if signed and size == 1:
            whole = np.where(scaled >= 0, 1.0, -1.0)
        result = ((whole - zero) * scale).astype(source.dtype)
        node.inputs.clear()
        node.outputs.clear()
        writer.apply(
            node, "Constant", [], output, value=gs.Constant(f"{output.name}/value", result)
        )
        return
    if mode != "ROUND":
        raise _unknown_quant(node, f"rounding_mode {mode}")
    if (signed and size == 1) or size > 16:
        raise _unknown_quant(node, f"{size} bits")
    kind = np.dtype(f"{'int' if signed else 'uint'}{8 if size <= 8 else 16}")
    limits = np.iinfo(kind)
    if np.any(zero != np.rint(zero)) or np.any(zero < limits.min) or np.any(zero > limits.max):
        raise _unknown_quant(node, "a zero point that is none of its integers")
    if max(scale.size, zero.size) > 1 and scale.shape != zero.shape:
        scale, zero = np.broadcast_arrays(scale, zero)
    where: dict[str, int] = {}
    if scale.size > 1:
        axes = [axis for axis, dim in enumerate(scale.shape) if dim > 1]
        if len(axes) > 1:
            raise _unknown_quant(node, "scales along several axes")
        where = {"axis": axes[0] - scale.ndim}
    shape = (-1,) if where else ()

    def written(array: NDArray[Any], dtype: Any) -> gs.Constant:
        name = unique_name(f"{node.name}/constant", writer.taken)
        return gs.Constant(name, np.asarray(array.reshape(shape), dtype))

    scales, zeros = written(scale, np.float32), written(zero, kind)
    node.inputs.clear()
    node.outputs.clear()
    value = writer.apply(node, "QuantizeLinear", [x, scales, zeros], **where)
    if (low, high) != (limits.min, limits.max):
        names = [unique_name(f"{node.name}/bound", writer.taken) for _ in range(2)]
        bounds = [
            gs.Constant(name, np.array(one, kind))
            for name, one in zip(names, (low, high), strict=True)
        ]
        value = writer.apply(node, "Clip", [value, *bounds])
    writer.apply(node, "DequantizeLinear", [value, scales, zeros], output, **where)


def _array(tensor: Tensor) -> NDArray[Any] | None:
    """The value of a constant, of an initializer or of a Constant node."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    maker = tensor.inputs[0] if tensor.inputs else None
    held = maker.attrs.get("value") if maker is not None and maker.op == "Constant" else None
    return np.asarray(held.values) if isinstance(held, gs.Constant) else None


def _unknown_quant(node: Node, what: str) -> Refused:
    return refuse(
        "SNNC106",
        f"operator {node.domain}.{node.op} with {what} is not supported",
        node=label(node),
        hint="of values that change, 2 to 16 bits with rounding_mode ROUND can be converted",
    )


def _concat(writer: _Writer, node: Node) -> None:
    ys, yz, *rest = writer.inputs(node, 5)
    values = [writer.real(node, *rest[at : at + 3]) for at in range(0, len(rest), 3)]
    writer.quantize(node, writer.apply(node, "Concat", values, **node.attrs), ys, yz)


def _standard(writer: _Writer, node: Node) -> None:
    """onnxruntime writes its own spelling where the file's opset lacks a type: 16 bit before 21, to
    which the file has been converted."""
    node.domain = None


#: The operators that are known, by domain and name.
RULES: dict[tuple[str, str], Callable[[_Writer, Node], None]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _mat_mul,
    (MICROSOFT, "QuantizeLinear"): _standard,
    (MICROSOFT, "DequantizeLinear"): _standard,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _pair,
    (MICROSOFT, "QLinearMul"): _pair,
    (MICROSOFT, "QLinearAveragePool"): _single,
    (MICROSOFT, "QLinearGlobalAveragePool"): _single,
    (MICROSOFT, "QLinearLeakyRelu"): _single,
    (MICROSOFT, "QLinearSigmoid"): _single,
    (MICROSOFT, "QLinearSoftmax"): _softmax,
    (MICROSOFT, "QLinearConcat"): _concat,
    **{(domain, "Quant"): _quant for domain in QONNX},
}
