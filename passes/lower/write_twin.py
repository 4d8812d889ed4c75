"""Write a network by counts in standard operators: the integer twin of a layered spiking network.

The counts of the neurons are bytes that stand for themselves (scale 1), the weights have 8 bits, and
what a neuron does is a QuantizeLinear: with an odd threshold θ a whole sum x is never in the middle
between two counts, so

    n = floor((x + membrane) / θ) = round((x + membrane - (θ - 1) / 2) / θ)

and what is below 0 or above 255 saturates.  The division is exact enough where θ < 2^23 / 2^e, with 2^e
the largest power of two in L: then the quotient is farther from the middle than float32 rounds.  Where
(L + 1)·θ < 2^22, it may be a factor instead, which goes into the scale of the weights: such a layer is
DequantizeLinear, Conv, QuantizeLinear, which runtimes compute in 8-bit arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.errors import Refused
from snncompiler.findings import Finding
from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.ir.symbolic import attributes_of
from snncompiler.passes.lower.events.body import TO_FIRST, TO_LAST

Array = NDArray[Any]

_WINDOW = ("dilations", "pads", "strides")
#: Operators of bytes, channels last.
_BYTES = (
    "CountConv",
    "CountConvScaled",
    "CountConvAdd",
    "CountConvPair",
    "CountNeuron",
    "CountInput",
    "CountMaxPool",
    "EventSumPool",
)


def write_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a network by counts, all of whose neurons are, in standard operators.

    Bytes have the names that they had, channels first.  Raises Refused for layers whose thresholds are
    even, or too large for their levels, and for what needs spikes.
    """
    return _Twin(model).written()


class _Twin:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.taken = {name for node in graph.node for name in (node.name, *node.output)}
        self.taken.update((*self.constants, *(entry.name for entry in graph.input)))
        self.nodes: list[onnx.NodeProto] = []
        self.made: list[onnx.TensorProto] = []
        self.bytes: set[str] = set()  # what is bytes, and has its channels first now
        self.wide: dict[str, str] = {}  # Cast of bytes -> these
        self.findings: list[Finding] = []
        self.one = self._constant("twin/one", np.array(1, np.float32))
        self.none = self._constant("twin/none", np.array(0, np.uint8))

    def written(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.domain == dialect.DOMAIN and node.op_type in _BYTES:
                self._bytes(node)
            elif node.op_type == "Concat" and node.input[0] in self.bytes:
                self._add("Concat", node.input, node.output[0], axis=1)
                self.bytes.add(node.output[0])
            elif node.op_type in ("Slice", "Pad") and node.input[0] in self.bytes:
                self._cut(node)
            elif node.op_type == "Cast" and node.input[0] in self.bytes:
                self.wide[node.output[0]] = node.input[0]
            elif node.op_type == "Transpose" and node.input[0] in self.wide:
                assert tuple(attributes_of(node)["perm"]) == TO_FIRST
                count = self.wide[node.input[0]]
                self._add("DequantizeLinear", [count, self.one, self.none], node.output[0])
            elif node.domain == dialect.DOMAIN:
                self._refuse(node.name, f"{node.op_type} adds up spikes whose sums are no bytes")
            else:
                self.nodes.append(node)
        if self.findings:
            raise Refused(*self.findings)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.node[:], model.graph.value_info[:], model.functions[:]
        model.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        tensors = [t for t in (*self.model.graph.initializer, *self.made) if t.name in read]
        del model.graph.initializer[:]
        model.graph.initializer.extend(tensors)
        standard = [entry for entry in model.opset_import if entry.domain != dialect.DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(standard)
        return model

    # --- names ---

    def _constant(self, wanted: str, values: Array) -> str:
        name = unique_name(wanted, self.taken)
        self.made.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def _add(self, op: str, inputs: Sequence[str], output: str, **more: Any) -> str:
        """A node that gives `output`."""
        name = unique_name(f"{output}/{op}", self.taken)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **more))
        return output

    def _emit(self, op: str, inputs: Sequence[str], wanted: str, **more: Any) -> str:
        """The name of what a new node gives."""
        return self._add(op, inputs, unique_name(wanted, self.taken), **more)

    def _per_channel(self, wanted: str, values: Array) -> str:
        return self._constant(wanted, values.astype(np.float32).reshape(-1, 1, 1))

    # --- operators of bytes ---

    def _bytes(self, node: onnx.NodeProto) -> None:
        attributes, out = attributes_of(node), node.output[0]
        self.bytes.add(out)
        if node.op_type == "CountMaxPool":
            self._add("MaxPool", node.input, out, **attributes)
        elif node.op_type == "EventSumPool":
            self._sum_pool(node, attributes)
        elif node.op_type == "CountInput":
            self._input(node, attributes)
        elif node.op_type == "CountNeuron":
            self._neuron(node)
        else:
            self._layer(node, attributes)

    def _cut(self, node: onnx.NodeProto) -> None:
        """Slice or Pad of bytes, whose axes are others now."""
        first, *parts = node.input
        values = [self.constants[name] for name in parts]
        if node.op_type == "Slice":
            values[2] = np.array([TO_LAST[axis] for axis in values[2]], np.int64)
        else:
            begins, ends = values[0][:4], values[0][4:]
            values[0] = np.array([*begins[list(TO_FIRST)], *ends[list(TO_FIRST)]], np.int64)
        out = node.output[0]
        inputs = [self._constant(f"{out}/{i}", value) for i, value in enumerate(values)]
        self._add(node.op_type, [first, *inputs], out)
        self.bytes.add(out)

    def _input(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        out = node.output[0]
        factor = self._per_channel(f"{out}/factor", self.constants[node.input[1]])
        scaled = self._emit("Mul", [node.input[0], factor], f"{out}/scaled")
        clipped = self._clipped(scaled, attributes["lowest"], attributes["highest"], out)
        origin = self._constant(f"{out}/origin", np.array(attributes["origin"], np.uint8))
        self._add("QuantizeLinear", [clipped, self.one, origin], out)

    def _clipped(self, x: str, lowest: int, highest: int, out: str) -> str:
        bounds = [
            self._constant(f"{out}/{what}", np.array(value, np.float32))
            for what, value in (("lowest", lowest), ("highest", highest))
        ]
        return self._emit("Clip", [x, *bounds], f"{out}/clipped")

    def _sum_pool(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        out = node.output[0]
        window = {key: attributes[key] for key in ("kernel_shape", "pads", "strides")}
        wide = self._emit("DequantizeLinear", [node.input[0], self.one, self.none], f"{out}/wide")
        mean = self._emit("AveragePool", [wide], f"{out}/mean", count_include_pad=1, **window)
        places = np.array(np.prod(window["kernel_shape"]), np.float32)
        total = self._emit("Mul", [mean, self._constant(f"{out}/places", places)], f"{out}/sum")
        self._add("QuantizeLinear", [total, self.one, self.none], out)

    def _neuron(self, node: onnx.NodeProto) -> None:
        """A current of real numbers: its quotient is on the right side of every count in float64."""
        out = node.output[0]
        membrane, threshold = (self.constants[name] for name in node.input[1:3])
        start = self._per_channel(f"{out}/start", membrane)
        potential = self._emit("Add", [node.input[0], start], f"{out}/potential")
        wide = self._emit("Cast", [potential], f"{out}/wide", to=TensorProto.DOUBLE)
        theta = threshold.astype(np.float64).reshape(-1, 1, 1)
        charge = self._constant(f"{out}/charge", theta)
        floor = self._emit(
            "Floor", [self._emit("Div", [wide, charge], f"{out}/quotient")], f"{out}/floor"
        )
        levels = self.constants[node.input[3]].astype(np.float64)
        bounds = [
            self._constant(f"{out}/no_level", np.array(0, np.float64)),
            self._constant(f"{out}/top", levels),
        ]
        fired = self._emit("Clip", [floor, *bounds], f"{out}/fired")
        self._add("Cast", [fired], out, to=TensorProto.UINT8)

    def _layer(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        out = node.output[0]
        membrane, theta, levels = (self.constants[name] for name in node.input[-3:])
        top, start = int(levels), membrane.astype(np.int64) - (theta.astype(np.int64) - 1) // 2
        if np.any(theta % 2 == 0):
            self._refuse(out, "even thresholds")
        if theta.max() >= 2.0 ** (23 - int(np.log2(top + 0.5))):
            self._refuse(out, f"a threshold of {theta.max()} beside {top} levels")
        folds = node.op_type == "CountConv" and (top + 1) * int(theta.max()) < 1 << 22
        scale = (np.float32(1) / theta.astype(np.float32)) if folds else np.ones(len(theta))
        bias = self.constants[node.input[2]] if node.op_type == "CountConvScaled" else start
        total = self._conv(node.input[0], node.input[1], attributes, "", out, scale, bias)
        if node.op_type == "CountConvScaled":
            factor = self._per_channel(f"{out}/factor", self.constants[node.input[3]])
            scaled = self._emit("Mul", [total, factor], f"{out}/scaled")
            clipped = self._clipped(scaled, attributes["lowest"], attributes["highest"], out)
            rounded = self._emit("Round", [clipped], f"{out}/rounded")
            total = self._emit(
                "Add", [rounded, self._per_channel(f"{out}/start", start)], f"{out}/total"
            )
        elif node.op_type == "CountConvAdd":
            past = self._emit(
                "DequantizeLinear", [node.input[2], self.one, self.none], f"{out}/past"
            )
            coefficient = self._per_channel(f"{out}/coefficient", self.constants[node.input[3]])
            charged = self._emit("Mul", [past, coefficient], f"{out}/charged")
            total = self._emit("Add", [total, charged], f"{out}/total")
        elif node.op_type == "CountConvPair":
            more = self._conv(
                node.input[2], node.input[3], attributes, "more_", out, np.ones(len(theta)), None
            )
            total = self._emit("Add", [total, more], f"{out}/total")
        if not folds:
            charge = self._per_channel(f"{out}/charge", theta)
            total = self._emit("Div", [total, charge], f"{out}/quotient")
        if top == 255:
            self._add("QuantizeLinear", [total, self.one, self.none], out)
            return
        fired = self._emit("QuantizeLinear", [total, self.one, self.none], f"{out}/fired")
        most = self._constant(f"{out}/top", np.array(top, np.uint8))
        self._add("Clip", [fired, self.none, most], out)

    def _conv(
        self,
        counts: str,
        weights: str,
        attributes: dict[str, Any],
        prefix: str,
        out: str,
        scale: Array,
        bias: Array | None,
    ) -> str:
        """A convolution of counts, times `scale` for each channel."""
        zero = self.none
        if not prefix and attributes["origin"]:
            origin = np.array(attributes["origin"], np.uint8)
            zero = self._constant(f"{out}/origin", origin)
        wide = self._emit("DequantizeLinear", [counts, self.one, zero], f"{out}/{prefix}values")
        factor = self._constant(f"{out}/{prefix}scale", scale.astype(np.float32))
        kernel = self._constant(
            f"{out}/{prefix}weights", self.constants[weights].transpose(3, 2, 0, 1)
        )
        zeros = self._constant(f"{out}/{prefix}zeros", np.zeros(len(scale), np.int8))
        inputs = [
            wide,
            self._emit(
                "DequantizeLinear", [kernel, factor, zeros], f"{out}/{prefix}kernel", axis=0
            ),
        ]
        if bias is not None:
            whole = self._constant(f"{out}/bias", bias.astype(np.int32))
            inputs.append(
                self._emit("DequantizeLinear", [whole, factor], f"{out}/bias_values", axis=0)
            )
        window = {key: attributes[prefix + key] for key in _WINDOW}
        group = 1 if prefix else attributes["group"]
        return self._emit("Conv", inputs, f"{out}/{prefix}conv", group=group, **window)

    def _refuse(self, out: str, reason: str) -> None:
        layer = out.removesuffix("/counts")
        self.findings.append(
            Finding(
                "SNNC223",
                f"{reason}, which has no form of 8 bits in standard operators",
                node=layer,
                hint="take fewer levels (-T), or leave --emit counts away: sessions run spiking files "
                "by counts",
            )
        )
