"""Collapse a layered network of real weights: its spikes become levels, and time goes.

What a layered neuron sends in a window is told by one number, n = Σ w_t·s_t.  Whatever is linear, and
treats every step alike, gives Σ w_t·f(s_t) = f(n).  So the operators between the neurons stay as they
are, over `[N, ...]` instead of `[T·N, ...]`, and one pass does the work of T.  A neuron becomes a
`LevelNeuron`, and a sum over the window is what it summed.  Sums are made in another order: where a
potential lies at a threshold a spike may move, and `snnc verify` holds this to what rounding can do.

All layers of a network are collapsed, or none, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.ir.symbolic import Shapes, attributes_of
from snncompiler.passes.lower.attach_functions import renew_functions
from snncompiler.passes.lower.events.body import Stays
from snncompiler.passes.lower.lower_events import LayerNote, Lowered

Floats = NDArray[np.float32]

NEURON = "LayeredRMPNeuron"
_SUMS = ("TimeSum", "WeightedTimeSum")
_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")


@dataclass(frozen=True)
class _Levels:
    """A tensor over a window, collapsed: for one level at most `size` in size, a sum of `products`
    products; `spikes` if it is what neurons send."""

    size: float
    products: int
    spikes: bool = False


@dataclass(frozen=True)
class LevelNote(LayerNote):
    """What became of a layer, and what bounds the rounding of its sums: the largest sum of the sizes of
    what is added, whatever arrives, for one level, and the number of products."""

    size: float = 0.0
    products: int = 0


def collapse_levels(model: onnx.ModelProto) -> Lowered:
    """A copy of a layered network without time, or the model as it is; what became of each layer."""
    names = [node.name for node in model.graph.node if _is_ours(node, NEURON)]
    try:
        return _Levelled(model).run()
    except Stays as why:
        return Lowered(model, [LayerNote(name, "", str(why)) for name in names])


def _is_ours(node: onnx.NodeProto, *kinds: str) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in kinds


class _Levelled:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.shapes = Shapes(model)
        given = {entry.name for entry in self.graph.input}
        self.constants = {t.name: t for t in self.graph.initializer if t.name not in given}
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.taken = {*given, *self.maker, *(t.name for t in self.graph.initializer)}
        self.taken.update(node.name for node in self.graph.node)
        self.over: dict[str, _Levels] = {}  # the tensors that were over a window
        self.code: tuple[bool, str] | None = None  # radix or not, and the name of T
        self.levels = ""  # the name of L
        self.notes: list[LayerNote] = []

    def run(self) -> Lowered:
        if any(tensor.data_type == TensorProto.FLOAT16 for tensor in self.graph.initializer):
            raise Stays("it computes in float16")
        self._leave_rounded_averages()
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if _is_ours(node, NEURON):
                nodes.append(self._neuron(node))
            elif any(name in self.over for name in node.input):
                nodes.append(self._linear(node))
            elif any(a.HasField("g") or a.graphs for a in node.attribute):
                raise Stays(f"{node.op_type} `{node.name}` holds a graph")
            else:
                nodes.append(node)
        for entry in self.graph.output:
            if entry.name in self.over:
                raise Stays(f"the spikes `{entry.name}` go out")
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)
        renew_functions(self.model)
        return Lowered(self.model, self.notes)

    def _leave_rounded_averages(self) -> None:
        """Many averages that a quantized source rounds lie half-way between two integers.

        Where these fall depends on the order of the sums: that of the file gives the source's.
        """
        kept = {entry.key: entry.value for entry in self.model.metadata_props}
        if kept.get("snnc.rounding") != "kept":
            return
        averages: set[str] = set()
        for node in self.graph.node:
            if _is_ours(node, NEURON):
                continue
            averaged = any(name in averages for name in node.input)
            if averaged and node.op_type == "Round":
                raise Stays(f"`{node.name}` rounds averages as the quantized source does")
            if averaged or node.op_type in _AVERAGES:
                averages.update(node.output)

    # --- constants ---

    def _value(self, name: str) -> Floats:
        if name not in self.constants:
            raise Stays(f"`{name}` is not constant")
        return numpy_helper.to_array(self.constants[name]).astype(np.float32)

    def _constant(self, wanted: str, values: NDArray[Any]) -> str:
        name = unique_name(wanted, self.taken)
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def _channels(self, node: onnx.NodeProto, name: str) -> Floats:
        """A constant with one number for each channel of a neuron, or one for all: [C, 1, ...]."""
        shape, array = self.shapes.of(node.output[0]), self._value(name)
        if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
            raise Stays(f"the shape of `{node.output[0]}` is not known")
        spread = (1,) * (len(shape) - array.ndim) + array.shape
        if len(spread) != len(shape) or any(n != 1 for i, n in enumerate(spread) if i != 1):
            raise Stays(f"`{name}` is not the same at every place")
        return np.broadcast_to(array.reshape(-1), (shape[1],)).reshape(-1, *[1] * (len(shape) - 2))

    # --- neurons and sums ---

    def _neuron(self, node: onnx.NodeProto) -> onnx.NodeProto:
        attributes = attributes_of(node)
        current, threshold, membrane, steps = node.input
        code = (bool(attributes.get("radix", 0)), steps)
        if self.code is None:
            self.code, self.levels = code, self._levels_of(*code)
        if code != self.code:
            raise Stays(f"`{node.name}` has a window of its own")
        received = self.over.get(current)
        if attributes.get("static_current", 0):
            if received is not None:
                raise Stays(f"`{node.name}` takes every step as if it were complete")
        elif received is None:
            raise Stays(f"what flows into `{node.name}` is no spikes")
        self.over[node.output[0]] = _Levels(1.0, 1, spikes=True)
        size, products = (received.size, received.products) if received else (0.0, 0)
        self.notes.append(LevelNote(node.name, "LevelNeuron", "", size, products))
        charge = self._constant(f"{node.name}/charge", self._channels(node, threshold))
        start = self._constant(f"{node.name}/start", self._channels(node, membrane))
        return helper.make_node(
            "LevelNeuron",
            [current, start, charge, self.levels],
            list(node.output),
            name=node.name,
            domain=dialect.DOMAIN,
        )

    def _levels_of(self, radix: bool, steps: str) -> str:
        """The name of L."""
        if not radix:
            return steps
        if steps not in self.constants:
            raise Stays("the number of time-steps may change")
        count = int(numpy_helper.to_array(self.constants[steps]).reshape(-1)[0])
        return self._constant(f"{steps}/levels", np.array((1 << count) - 1, np.int64))

    def _sum(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A sum over the window is what is summed."""
        assert self.code is not None
        radix, steps = self.code
        weighs = node.op_type == "TimeSum"
        if node.op_type == "WeightedTimeSum":
            worth = self._value(node.input[1]).reshape(-1)
            weighs = np.array_equal(worth, np.exp2(np.arange(len(worth) - 1, -1, -1)))
        if node.input[0] not in self.over or node.input[-1] != steps or not weighs:
            raise Stays(f"{node.op_type} `{node.name}` does not add up a window")
        if (node.op_type == "TimeSum") is radix:
            raise Stays(f"{node.op_type} `{node.name}` weighs steps as neurons do not")
        total = node.input[len(node.input) - 2]
        return helper.make_node("Add", [total, node.input[0]], list(node.output), name=node.name)

    # --- what is between them ---

    def _linear(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """What is linear, and treats every step alike, stays as it is."""
        if _is_ours(node, *_SUMS):
            return self._sum(node)
        rules: dict[str, Callable[[onnx.NodeProto], _Levels]] = {
            "Identity": self._kept,
            "Neg": self._linearly,
            "AveragePool": self._linearly,
            "GlobalAveragePool": self._linearly,
            "DepthToSpace": self._linearly,
            "Flatten": self._flattened,
            "Reshape": self._reshaped,
            "Transpose": self._turned,
            "Slice": self._sliced,
            "Pad": self._padded,
            "Concat": self._joined,
            "MaxPool": self._pooled,
            "Mul": self._multiplied,
            "Round": self._rounded,
            "Add": self._added,
            "Sub": self._added,
            "Conv": self._weighed,
            "Gemm": self._weighed,
            "MatMul": self._weighed,
        }
        rule = None if node.domain else rules.get(node.op_type)
        if rule is None:
            raise Stays(f"{node.op_type} `{node.name}` has no form without time")
        self.over[node.output[0]] = rule(node)
        return node

    def _kept(self, node: onnx.NodeProto) -> _Levels:
        return self.over[node.input[0]]

    def _linearly(self, node: onnx.NodeProto) -> _Levels:
        found, shape = self.over[node.input[0]], self.shapes.of(node.input[0])
        places = _window(node)
        if node.op_type == "GlobalAveragePool":
            known = [dim for dim in (shape or ())[2:] if isinstance(dim, int)]
            if shape is None or len(known) < len(shape) - 2:
                raise Stays(f"the size of the maps of `{node.name}` is not a number")
            places = int(np.prod(known))
        return _Levels(found.size, found.products + places)

    def _flattened(self, node: onnx.NodeProto) -> _Levels:
        if attributes_of(node).get("axis", 1) != 1:
            raise Stays(f"Flatten `{node.name}` mixes steps")
        return self.over[node.input[0]]

    def _reshaped(self, node: onnx.NodeProto) -> _Levels:
        shape, before = self._value(node.input[1]), self.shapes.of(node.input[0])
        after = self.shapes.of(node.output[0])
        if shape[0] not in (0, -1) or before is None or after is None or before[0] != after[0]:
            raise Stays(f"Reshape `{node.name}` mixes steps")
        return self.over[node.input[0]]

    def _turned(self, node: onnx.NodeProto) -> _Levels:
        if attributes_of(node).get("perm", [1])[0] != 0:
            raise Stays(f"Transpose `{node.name}` mixes steps")
        return self.over[node.input[0]]

    def _sliced(self, node: onnx.NodeProto) -> _Levels:
        shape = self.shapes.of(node.input[0])
        if shape is None or 0 in sliced(node, self._value, len(shape))[2]:
            raise Stays(f"Slice `{node.name}` cuts time")
        return self.over[node.input[0]]

    def _padded(self, node: onnx.NodeProto) -> _Levels:
        shape = self.shapes.of(node.input[0])
        pads = None if shape is None else padded(node, self._value, len(shape))
        if pads is None or pads[0] or pads[len(pads) // 2]:
            raise Stays(f"Pad `{node.name}` adds more than places without spikes")
        return self.over[node.input[0]]

    def _all_over(self, node: onnx.NodeProto) -> list[_Levels]:
        """The inputs, all of which must be over the window."""
        if any(name not in self.over for name in node.input):
            raise Stays(f"{node.op_type} `{node.name}` takes something at every step")
        return [self.over[name] for name in node.input]

    def _joined(self, node: onnx.NodeProto) -> _Levels:
        parts = self._all_over(node)
        if attributes_of(node)["axis"] == 0:
            raise Stays(f"Concat `{node.name}` mixes steps")
        return _Levels(
            max(part.size for part in parts),
            max(part.products for part in parts),
            all(part.spikes for part in parts),
        )

    def _pooled(self, node: onnx.NodeProto) -> _Levels:
        assert self.code is not None
        found = self.over[node.input[0]]
        # Spikes of rate coding come first, one after the other: the largest count has the most.
        if self.code[0] or not found.spikes or len(node.output) > 1:
            raise Stays(f"MaxPool `{node.name}` does not pool spikes of rate coding")
        return found

    def _multiplied(self, node: onnx.NodeProto) -> _Levels:
        place = 0 if node.input[0] in self.over else 1
        factor = self._value(node.input[1 - place])
        found = self.over[node.input[place]]
        if self.shapes.of(node.output[0]) != self.shapes.of(node.input[place]):
            raise Stays(f"Mul `{node.name}` spreads what it multiplies")
        return _Levels(found.size * float(np.abs(factor).max(initial=0)), found.products + 1)

    def _rounded(self, node: onnx.NodeProto) -> _Levels:
        """places·average is a whole number but for its rounding."""
        factor = self.maker.get(node.input[0])
        pool = self.maker.get(factor.input[0]) if factor is not None else None
        if (
            factor is None
            or pool is None
            or (factor.op_type, pool.op_type) != ("Mul", "AveragePool")
            or not self.over[pool.input[0]].spikes
            or float(self._value(factor.input[1]).reshape(-1)[0]) != _window(pool)
        ):
            raise Stays(f"Round `{node.name}` rounds every step")
        return self.over[node.input[0]]

    def _added(self, node: onnx.NodeProto) -> _Levels:
        one, two = self._all_over(node)
        if self.shapes.of(node.input[0]) != self.shapes.of(node.input[1]):
            raise Stays(f"{node.op_type} `{node.name}` spreads what it adds")
        return _Levels(one.size + two.size, one.products + two.products + 1)

    def _weighed(self, node: onnx.NodeProto) -> _Levels:
        if len(node.input) > 2 and node.input[2]:
            raise Stays(f"{node.op_type} `{node.name}` has a bias at every step")
        if node.input[0] not in self.over or node.input[1] in self.over:
            raise Stays(f"{node.op_type} `{node.name}` has weights that are no constants")
        if node.op_type == "Gemm" and attributes_of(node).get("transA", 0):
            raise Stays(f"Gemm `{node.name}` mixes steps")
        weights = self._value(node.input[1])
        # Of every output: the rows of Conv and of a transposed Gemm, the columns of the others.
        rows = node.op_type == "Conv" or attributes_of(node).get("transB", 0)
        axes = tuple(range(1, weights.ndim)) if rows else (weights.ndim - 2,)
        factor = abs(float(attributes_of(node).get("alpha", 1.0)))
        found = self.over[node.input[0]]
        size = float(np.abs(weights.astype(np.float64)).sum(axes).max(initial=0))
        count = int(np.prod([weights.shape[axis] for axis in axes]))
        return _Levels(found.size * size * factor, found.products + count)


def sliced(
    node: onnx.NodeProto, value: Callable[[str], NDArray[Any]], rank: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Starts, ends, axes from 0 on, and steps of a Slice of constants; `value` gives a constant."""
    most = 1 << 62  # stands for everything: constants come as floats, which round
    found = [
        [max(-most, min(int(n), most)) for n in value(name)] if name else []
        for name in node.input[1:]
    ]
    starts, ends = found[:2]
    axes = found[2] if len(found) > 2 and found[2] else list(range(len(starts)))
    steps = found[3] if len(found) > 3 and found[3] else [1] * len(starts)
    return starts, ends, [axis % rank for axis in axes], steps


def padded(
    node: onnx.NodeProto, value: Callable[[str], NDArray[Any]], rank: int
) -> list[int] | None:
    """What a Pad of constants adds, at the beginnings of all axes, and at the ends; None where this is
    more than zeros."""
    if attributes_of(node).get("mode", b"constant") not in (b"constant", "constant"):
        return None
    if len(node.input) > 2 and node.input[2] and np.any(value(node.input[2])):
        return None
    pads = [int(n) for n in value(node.input[1])]
    if len(node.input) > 3 and node.input[3]:
        axes = [int(axis) % rank for axis in value(node.input[3])]
        every = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            every[axis], every[rank + axis] = pads[i], pads[len(axes) + i]
        pads = every
    return pads if len(pads) == 2 * rank else None


def _window(pool: onnx.NodeProto) -> int:
    """The places that an AveragePool adds up."""
    return int(np.prod(attributes_of(pool).get("kernel_shape", [1])))
