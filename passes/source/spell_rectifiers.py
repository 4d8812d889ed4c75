"""Write the piecewise linear functions as sums of rectifiers, which is exact.

    LeakyRelu, PRelu    relu(x) - a·relu(-x); Where(x > 0, x, a·x) likewise
    Where(x > 0, x, 0), x·(x > 0), ThresholdedRelu(0)        relu(x)
    x + |x|             2·relu(x)
    |x| - |x - a|       2·Clip(x, 0, a) - a, as PACT is trained
    Min(relu(x), c), Relu(Clip(x, lo <= 0, c))               Clip(x, 0, c)
for activations (`snncompiler/ir/activations.py`) also
    Clip(x, lo, hi)     lo + Clip(x - lo, 0, hi - lo), and with one bound likewise
    HardSigmoid         Clip(α·x + β, 0, 1)
    Abs                 relu(x) + relu(-x)
    Max(x, y)           x + relu(y - x)
    Min(x, y)           x - relu(x - y)
    Shrink              relu(x - λ) - relu(-x - λ), where its bias is λ
between spiking layers also
    ReduceL1, LpPool of power 1                              sums of Abs(x), of x where x >= 0
As preprocessing and in the read-out these stay as they are and are computed exactly.
GlobalMaxPool becomes the MaxPool that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from snncompiler.ir.activations import activations
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    axes_of,
    constant,
    constant_input,
    drop_dead,
    infer_node,
    known,
    producer,
    rank,
    readers,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import clip_bounds, rectifier
from snncompiler.ir.signs import never_negative
from snncompiler.passes.base import Context, Pass


@dataclass(frozen=True)
class SpellRectifiers(Pass):
    """LeakyRelu, PRelu, Clip, Max and their like become Relu and Clip(0, c)."""

    name: ClassVar[str] = "spell-rectifiers"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"rectifiers-spelled"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = _Writer(graph, tensor_names(graph), context.limits)
        for node in list(graph.nodes):
            if node.outputs and not node.domain and node.op in _ALWAYS and _is_float(node):
                _ALWAYS[node.op](writer, node)
        graph.nodes = [node for node in graph.nodes if node.outputs]
        chosen = activations(graph, context.limits)

        def fires(node: Node) -> bool:
            return rectifier(node) is not None or id(node) in chosen

        while True:
            graph.nodes = [node for node in graph.nodes if node.outputs]
            timing = analyze(graph, fires)
            found = [
                node
                for node in graph.nodes
                if timing.phase(node) == "temporal"
                and not node.domain
                and node.op in _BETWEEN
                and rectifier(node) is None
                and _is_float(node)
            ]
            # Every rewrite leaves rectifiers and linear operators, so this ends.
            if not any([_BETWEEN[node.op](writer, node) for node in found]):
                break
            chosen = set()
        drop_dead(graph)


def _is_float(node: Node) -> bool:
    """Whether a node computes floats; where its type is not known it is taken for one."""
    kind = node.outputs[0].dtype
    return kind is None or np.dtype(kind).kind == "f"


@dataclass
class _Writer:
    """Replaces a node by a small expression."""

    graph: Graph
    taken: set[str]
    #: Names of the Max and Min that are seldom met.
    limits: set[str]
    made: list[Node] = field(default_factory=list)

    def constant(self, node: Node, values: object) -> gs.Constant:
        dtype = node.outputs[0].dtype or np.float32
        return constant(f"{node.name}/constant", np.asarray(values, dtype), self.taken)

    def apply(self, node: Node, op: str, *inputs: Tensor, **attrs: Any) -> Tensor:
        """The output of a new node that stands for a part of `node`."""
        result = gs.Variable(unique_name(f"{node.name}/{op.lower()}", self.taken))
        new = gs.Node(op, result.name, attrs=dict(attrs), inputs=list(inputs), outputs=[result])
        infer_node(new, self.graph.opset)
        self.made.append(new)
        return result

    def replace(self, node: Node, result: Tensor) -> bool:
        """Let `result`, of the node made last, take the place of the node's output."""
        last = self.made[-1]
        assert last.outputs[0] is result
        output = node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        last.outputs[0] = output
        last.name = unique_name(f"{node.name}/{last.op.lower()}_out", self.taken)
        if len(self.made) == 1:
            last.name = node.name
        self.graph.nodes.extend(self.made)
        self.made = []
        return True


def _leaky(writer: _Writer, node: Node, x: Tensor, slope: NDArray[Any]) -> None:
    if not np.any(slope):
        writer.replace(node, writer.apply(node, "Relu", x))
        return
    up = writer.apply(node, "Relu", x)
    down = writer.apply(node, "Relu", writer.apply(node, "Neg", x))
    scaled = writer.apply(node, "Mul", down, writer.constant(node, slope))
    writer.replace(node, writer.apply(node, "Sub", up, scaled))


def _leaky_relu(writer: _Writer, node: Node) -> None:
    _leaky(writer, node, node.inputs[0], np.array(node.attrs.get("alpha", 0.01)))


def _prelu(writer: _Writer, node: Node) -> None:
    slope = constant_input(node, 1)
    if slope is not None:
        _leaky(writer, node, node.inputs[0], slope)


def _thresholded(writer: _Writer, node: Node) -> None:
    if node.attrs.get("alpha", 1.0) == 0.0:
        writer.replace(node, writer.apply(node, "Relu", node.inputs[0]))


def _where(writer: _Writer, node: Node) -> None:
    """Where(x > 0, x, 0), and the same with the branches swapped and x < 0."""
    test = producer(node.inputs[0])
    if test is None or test.op not in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        return
    x, bound = test.inputs
    wanted = (x, 1, 2) if test.op.startswith("Greater") else (x, 2, 1)
    zero = value(bound)
    if zero is None and value(x) is not None:
        x, zero = bound, value(x)
        wanted = (x, 2, 1) if test.op.startswith("Greater") else (x, 1, 2)
    other = value(node.inputs[wanted[2]])
    if zero is None or np.any(zero) or node.inputs[wanted[1]] is not x:
        return
    if x.shape != node.outputs[0].shape:
        return
    slope = _slope(node.inputs[wanted[2]], x)
    if other is not None and not np.any(other):
        writer.replace(node, writer.apply(node, "Relu", x))
    elif slope is not None:
        _leaky(writer, node, x, slope)


def _slope(tensor: Tensor, x: Tensor) -> NDArray[Any] | None:
    """a, where the tensor is a·x with a constant a."""
    source = producer(tensor)
    if source is None or source.op != "Mul" or not any(one is x for one in source.inputs):
        return None
    return next((a for one in source.inputs if (a := value(one)) is not None), None)


def _masked(writer: _Writer, node: Node) -> None:
    """x·(x > 0), the comparison cast to a float."""
    for x, mask in (node.inputs, reversed(node.inputs)):
        test = producer(mask)
        while test is not None and test.op == "Cast":
            test = producer(test.inputs[0])
        if test is None or test.op not in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
            continue
        larger, smaller = test.inputs if test.op.startswith("Greater") else reversed(test.inputs)
        zero = value(smaller)
        fits = zero is not None and not np.any(zero) and x.shape == node.outputs[0].shape
        if larger is x and fits:
            writer.replace(node, writer.apply(node, "Relu", x))
            return


def _with_its_size(writer: _Writer, node: Node) -> None:
    """x + |x| is 2·relu(x)."""
    for x, other in (node.inputs, reversed(node.inputs)):
        if _absolute(other) is x and value(x) is None:
            double = writer.constant(node, 2.0)
            writer.replace(node, writer.apply(node, "Mul", writer.apply(node, "Relu", x), double))
            return


def _pact(writer: _Writer, node: Node) -> None:
    """|x| - |x - a| is 2·Clip(x, 0, a) - a for a > 0."""
    x, moved = map(_absolute, node.inputs)
    step = None if moved is None else producer(moved)
    if x is None or step is None or step.op != "Sub" or step.inputs[0] is not x:
        return
    top = value(step.inputs[1])
    if top is None or top.size != 1 or top.ndim > (rank(x) or 0) or not float(top.reshape(())) > 0:
        return
    high = float(top.reshape(()))
    limits = writer.constant(node, 0.0), writer.constant(node, high)
    double = writer.apply(
        node, "Mul", writer.apply(node, "Clip", x, *limits), writer.constant(node, 2.0)
    )
    writer.replace(node, writer.apply(node, "Sub", double, writer.constant(node, high)))


def _absolute(tensor: Tensor) -> Tensor | None:
    """x, where the tensor is |x|."""
    source = producer(tensor)
    return source.inputs[0] if source is not None and source.op == "Abs" else None


def _bounded_relu(writer: _Writer, node: Node) -> None:
    """Min(Relu(x), c) is Clip(x, 0, c)."""
    for index in range(len(node.inputs)):
        relu, bound = producer(node.inputs[index]), value(node.inputs[1 - index])
        if len(node.inputs) != 2 or relu is None or relu.op != "Relu" or bound is None:
            continue
        size = rank(relu.outputs[0])
        if size is None or bound.ndim > size:
            continue  # it spreads the others over more axes
        if bound.size == 1 and float(bound.reshape(())) > 0 and _only(writer, relu):
            _clip(writer, node, relu.inputs[0], float(bound.reshape(())))
            return


def _relu_of_clip(writer: _Writer, node: Node) -> None:
    """Relu(Clip(x, lo, c)) with lo <= 0 < c is Clip(x, 0, c)."""
    clip = producer(node.inputs[0])
    if clip is None or clip.op != "Clip" or not _only(writer, clip):
        return
    low, high = clip_bounds(clip)
    if low is not None and high is not None and low <= 0.0 < high:
        _clip(writer, node, clip.inputs[0], high)


def _unbounded_clip(writer: _Writer, node: Node) -> None:
    if clip_bounds(node) == (-np.inf, np.inf):
        writer.replace(node, writer.apply(node, "Identity", node.inputs[0]))


def _clip(writer: _Writer, node: Node, x: Tensor, high: float) -> None:
    bounds = writer.constant(node, 0.0), writer.constant(node, high)
    writer.replace(node, writer.apply(node, "Clip", x, *bounds))


def _only(writer: _Writer, node: Node) -> bool:
    return readers(node.outputs[0], writer.graph) == 1


def _global_max_pool(writer: _Writer, node: Node) -> None:
    shape = node.inputs[0].shape
    if shape is not None and all(known(dim) for dim in shape[2:]):
        kernel = [int(dim) for dim in shape[2:]]
        writer.replace(node, writer.apply(node, "MaxPool", node.inputs[0], kernel_shape=kernel))


_ALWAYS: dict[str, Callable[[_Writer, Node], None]] = {
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "ThresholdedRelu": _thresholded,
    "Where": _where,
    "Min": _bounded_relu,
    "Relu": _relu_of_clip,
    "Clip": _unbounded_clip,
    "Mul": _masked,
    "Add": _with_its_size,
    "Sub": _pact,
    "GlobalMaxPool": _global_max_pool,
}


# --- only where it has to become spiking; each says whether it rewrote ---


def _any_clip(writer: _Writer, node: Node) -> bool:
    low, high = clip_bounds(node)
    x = node.inputs[0]
    if low is None or high is None or not low < high:
        return False
    if np.isinf(low):
        bound = writer.constant(node, high)
        room = writer.apply(node, "Relu", writer.apply(node, "Sub", bound, x))
        return writer.replace(node, writer.apply(node, "Sub", bound, room))
    bound = writer.constant(node, low)
    shifted = writer.apply(node, "Sub", x, bound)
    if np.isinf(high):
        rectified = writer.apply(node, "Relu", shifted)
    else:
        limits = writer.constant(node, 0.0), writer.constant(node, high - low)
        rectified = writer.apply(node, "Clip", shifted, *limits)
    return writer.replace(node, writer.apply(node, "Add", rectified, bound))


def _hard_sigmoid(writer: _Writer, node: Node) -> bool:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    scaled = writer.apply(node, "Mul", node.inputs[0], writer.constant(node, alpha))
    moved = writer.apply(node, "Add", scaled, writer.constant(node, beta))
    limits = writer.constant(node, 0.0), writer.constant(node, 1.0)
    return writer.replace(node, writer.apply(node, "Clip", moved, *limits))


def _abs(writer: _Writer, node: Node) -> bool:
    up = writer.apply(node, "Relu", node.inputs[0])
    down = writer.apply(node, "Relu", writer.apply(node, "Neg", node.inputs[0]))
    return writer.replace(node, writer.apply(node, "Add", up, down))


def _shrink(writer: _Writer, node: Node) -> bool:
    """What is left of x when λ is taken off its size: Shrink with its bias at λ."""
    margin = node.attrs.get("lambd", 0.5)
    if node.attrs.get("bias", 0.0) != margin or margin < 0:
        return False
    x, gap = node.inputs[0], writer.constant(node, margin)
    up = writer.apply(node, "Relu", writer.apply(node, "Sub", x, gap))
    fallen = writer.apply(node, "Sub", writer.apply(node, "Neg", x), gap)
    return writer.replace(node, writer.apply(node, "Sub", up, writer.apply(node, "Relu", fallen)))


def _never_wins(op: str, array: NDArray[Any] | None) -> bool:
    """Whether a constant of Max is -inf, or one of Min is inf, and does not spread the others."""
    if array is None or array.size != 1 or array.ndim:
        return False
    return bool(array == (-np.inf if op == "Max" else np.inf))


def _extremum(writer: _Writer, node: Node) -> bool:
    """Max and Min of any number of values, pair by pair."""
    operands = [tensor for tensor in node.inputs if not _never_wins(node.op, value(tensor))]
    if len(operands) == 1:
        return writer.replace(node, writer.apply(node, "Identity", operands[0]))
    # Constants first: c + relu(x - c) needs x at its rectifier alone.  A limit that is seldom met has
    # them last, x + relu(c - x): x passes as it is, by a neuron that is silent while x keeps to it.
    last = node.name in writer.limits
    result, *others = sorted(operands, key=lambda tensor: (value(tensor) is None) != last)
    for other in others:
        if node.op == "Max":
            more = writer.apply(node, "Relu", writer.apply(node, "Sub", other, result))
            result = writer.apply(node, "Add", result, more)
        else:
            less = writer.apply(node, "Relu", writer.apply(node, "Sub", result, other))
            result = writer.apply(node, "Sub", result, less)
    return writer.replace(node, result)


def _sum_of_sizes(writer: _Writer, node: Node) -> bool:
    """ReduceL1 and GlobalLpPool of power 1: the sum of absolute values."""
    size = rank(node.inputs[0])
    if size is None or (node.op == "GlobalLpPool" and node.attrs.get("p", 2) != 1):
        return False
    try:
        axes = axes_of(node, size) if node.op == "ReduceL1" else list(range(2, size))
    except ValueError:
        return False
    chosen = [] if axes is None else [gs.Constant("", np.array(axes, np.int64))]
    for tensor in chosen:
        tensor.name = unique_name(f"{node.name}/axes", writer.taken)
    kept = {k: v for k, v in node.attrs.items() if k in ("keepdims", "noop_with_empty_axes")}
    return writer.replace(
        node, writer.apply(node, "ReduceSum", _size(writer, node), *chosen, **kept)
    )


def _window_of_sizes(writer: _Writer, node: Node) -> bool:
    """LpPool of power 1: the mean of absolute values in each window, times the window's size."""
    given = node.attrs
    plain = given.get("auto_pad", "NOTSET") == "NOTSET" and not given.get("ceil_mode", 0)
    if given.get("p", 2) != 1 or not plain or any(d != 1 for d in given.get("dilations", [1])):
        return False
    kept = {key: given[key] for key in ("kernel_shape", "pads", "strides") if key in given}
    mean = writer.apply(node, "AveragePool", _size(writer, node), count_include_pad=1, **kept)
    window = writer.constant(node, prod(given["kernel_shape"]))
    return writer.replace(node, writer.apply(node, "Mul", mean, window))


def _size(writer: _Writer, node: Node) -> Tensor:
    """|x|, which is x where that is never negative."""
    x = node.inputs[0]
    return x if never_negative(x) else writer.apply(node, "Abs", x)


_BETWEEN: dict[str, Callable[[_Writer, Node], bool]] = {
    "Clip": _any_clip,
    "HardSigmoid": _hard_sigmoid,
    "Abs": _abs,
    "Max": _extremum,
    "Min": _extremum,
    "Shrink": _shrink,
    "ReduceL1": _sum_of_sizes,
    "GlobalLpPool": _sum_of_sizes,
    "LpPool": _window_of_sizes,
}
