"""Code in spikes what is bounded below, but no rectifier: SiLU, HardSwish, GELU, Sigmoid, gates.

In layered time any operator can be computed on complete values, with --allow-analog.  What it gives is
a real number; where weights read that, spikes may carry it instead, less its lower bound m:

    y = f(x)      r = relu(f(x) - m)      y = r + m

which is the same network.  The Relu becomes a neuron, whose spikes stand for r; `sink_offsets` moves m
into the biases of what reads them.

f is any expression of one value, element by element, whatever its operators are: SiLU is x·sigmoid(x),
and exporters write GELU with six nodes.  Its bound is found by computing it on a grid from -10,000 to
10,000, fine around 0; a value below what was found there would be cut off at m.  The bound of a product
of several values, as of a gate, follows from the bounds of its factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    drop_dead,
    infer_node,
    is_live,
    known,
    producer,
    rank,
    reachable_from,
    replace_uses,
    sort_nodes,
    tensor_names,
    unique_name,
    value,
)
from snncompiler.ir.offsets import passes_offsets, reads_with_weights
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.signs import never_negative
from snncompiler.passes.base import Coded, Context, Pass

Floats = NDArray[np.float32]

#: Where an activation bends; outside it has to go on as it does at the ends.
_NEAR = 24.0
_FAR = 1e4
#: How far the least value may lie outside of what bends, in parts of it.
_SLACK = 1e-3
#: Largest difference, on the grid, from a function that is known by name.
_ALIKE = 2e-3
#: Nodes of the longest expression that is looked through.
_LONGEST = 24


@dataclass(frozen=True)
class CodeActivations(Pass):
    """Activations with a lower bound get a Relu, and an offset behind it, where weights read them."""

    name: ClassVar[str] = "code-activations"
    requires: ClassVar[frozenset[str]] = frozenset({"constants-folded", "shapes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"activations-coded"})

    def run(self, graph: Graph, context: Context) -> None:
        if context.keeps_rounding:
            return  # a quantized source says itself how its values are coded
        sort_nodes(graph)
        trained = reachable_from(graph, _is_trained, set(), lambda node: True)
        taken = tensor_names(graph) | {node.name for node in graph.nodes}
        work = _Work(graph, context, trained, taken)
        for node in reversed(list(graph.nodes)):
            work.visit(node)
        drop_dead(graph)


def _is_trained(node: Node) -> bool:
    return not node.domain and record(node.op).weights is not None


@dataclass(frozen=True)
class _Expression:
    """y as a function of x alone, element by element, by these nodes in their order."""

    x: Tensor
    nodes: Sequence[Node]
    low: float
    high: float
    name: str


@dataclass
class _Work:
    graph: Graph
    context: Context
    #: ids of what depends on a trained layer; the rest is preprocessing.
    trained: set[int]
    taken: set[str]
    #: ids of the nodes in expressions that are coded.
    inside: set[int] = field(default_factory=set)
    found: dict[int, _Expression | None] = field(default_factory=dict)
    #: Where the nodes stand, by id.
    place: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = {id(node): index for index, node in enumerate(self.graph.nodes)}

    def visit(self, node: Node) -> None:
        if len(node.outputs) != 1 or id(node) in self.inside or rectifier(node) is not None:
            return
        y = node.outputs[0]
        floats = y.dtype is not None and np.dtype(y.dtype).kind == "f"
        if not floats or id(y) not in self.trained or not _leads_to_weights(y):
            return
        expression = self.expression(y)
        if expression is not None:
            if id(expression.x) not in self.trained:
                return
            self.inside.update(id(part) for part in expression.nodes)
            if expression.name == "HardSwish":
                self._spell_hard_swish(expression, y)
            self._code(y, expression.low, expression.name, expression.nodes)
            return
        if node.op == "Mul" and all(is_live(tensor) for tensor in node.inputs):
            low, _ = self.interval(y)
            if np.isfinite(low):
                self._code(y, low, "gated product", [node])

    # --- what a value may be ---

    def interval(self, tensor: Tensor, depth: int = 0) -> tuple[float, float]:
        """Bounds of all elements of a value."""
        array, node = value(tensor), producer(tensor)
        if array is not None:
            return float(array.min(initial=0)), float(array.max(initial=0))
        if node is None or node.domain or depth > _LONGEST:
            return -np.inf, np.inf
        found = rectifier(node)
        if found is not None:
            return 0.0, np.inf if found.cap is None else found.cap
        expression = self.expression(tensor)
        if expression is not None:
            return expression.low, expression.high
        nature = record(node.op)
        if nature.span == "unit":
            return 0.0, 1.0
        if nature.spikes == "moved" or nature.pools == "average":
            parts = [t for t in node.inputs if is_live(t)]
            parts = parts if node.op == "Concat" else parts[:1]
            bounds = [self.interval(part, depth + 1) for part in parts]
            low, high = min(one[0] for one in bounds), max(one[1] for one in bounds)
            padded = any(node.attrs.get("pads", []))
            return (min(low, 0.0), max(high, 0.0)) if padded else (low, high)
        if node.op == "Mul":
            return _product(*(self.interval(one, depth + 1) for one in node.inputs))
        return (0.0, np.inf) if never_negative(tensor) else (-np.inf, np.inf)

    # --- expressions of one value ---

    def expression(self, y: Tensor) -> _Expression | None:
        """The shortest expression of one value that y is, bends, and is bounded below."""
        if id(y) not in self.found:
            self.found[id(y)] = self._expression(y)
        return self.found[id(y)]

    def _expression(self, y: Tensor) -> _Expression | None:
        nodes: list[Node] = []
        front = {id(y): y}
        while len(nodes) < _LONGEST:
            last = max(front.values(), key=lambda t: self.place.get(id(producer(t)), -1))
            node = producer(last)
            if node is None or not _by_element(node):
                return None
            if nodes and len(front) == 1 and rectifier(node) is not None:
                return None  # the neuron is there already
            nodes.insert(0, node)
            del front[id(last)]
            front.update({id(t): t for t in node.inputs if is_live(t)})
            if len(front) == 1 and _bends(nodes):
                (x,) = front.values()
                found = _bounded(self.graph, x, nodes, y)
                if found is not None:
                    return found
        return None

    # --- writing ---

    def _spell_hard_swish(self, expression: _Expression, y: Tensor) -> None:
        """One operator, in which no bounded ReLU is seen that would become a neuron of its own."""
        if len(expression.nodes) == 1:
            return
        last = expression.nodes[-1]
        last.op, last.domain, last.attrs = "HardSwish", "", {}
        last.inputs.clear()
        last.inputs.append(expression.x)

    def _code(self, y: Tensor, low: float, function: str, nodes: Sequence[Node]) -> None:
        """relu(y - m) + m for every reader of y; where weights read rows, with channels on axis 1."""
        name = nodes[-1].name
        made: list[Node] = []

        def node(op: str, what: str, *inputs: Tensor, **attrs: Any) -> Tensor:
            result = gs.Variable(unique_name(f"{name}/{what}", self.taken))
            new = gs.Node(op, result.name, attrs=attrs, inputs=list(inputs), outputs=[result])
            infer_node(new, self.graph.opset)
            made.append(new)
            return result

        kind = np.dtype(y.dtype)
        size = rank(y) or 0
        turn = size > 2 and _read_by_rows(y)
        ours = y
        if turn:
            ours = node("Transpose", "channels_first", y, perm=[0, size - 1, *range(1, size - 1)])
        offset = constant(f"{name}/offset", np.asarray(low, kind), self.taken)
        above = node("Sub", "above", ours, offset)
        sent = node("Relu", "sent", above)
        layer = made[-1]
        back = sent
        if turn:
            back = node("Transpose", "channels_last", sent, perm=[0, *range(2, size), 1])
        shifted = node("Add", "shifted", back, offset)
        keep = [*nodes, made[0]]
        replace_uses(y, shifted, self.graph, keep)
        self.graph.nodes.extend(made)
        self.context.coded[layer.name] = Coded(
            function, float(np.asarray(low, kind)), tuple(part.name for part in nodes)
        )


def _by_element(node: Node) -> bool:
    """Whether all that a node reads, beside single numbers, is values of one shape."""
    if node.domain or not record(node.op).elementwise or len(node.outputs) != 1:
        return False
    live = [tensor for tensor in node.inputs if is_live(tensor)]
    numbers = [value(tensor) for tensor in node.inputs if not is_live(tensor)]
    if any(array is not None and array.size != 1 for array in numbers) or not live:
        return False
    shape = node.outputs[0].shape
    return shape is not None and all(
        tensor.shape is not None and list(tensor.shape) == list(shape) for tensor in live
    )


def _bends(nodes: Sequence[Node]) -> bool:
    """Whether it has an operator that is no sum of rectifiers, or a product of two values."""

    def one(node: Node) -> bool:
        nature = record(node.op)
        if nature.linear == "never" and not nature.becomes:
            return True
        return node.op in ("Mul", "Div") and sum(is_live(t) for t in node.inputs) == 2

    return any(one(node) for node in nodes)


def _bounded(graph: Graph, x: Tensor, nodes: Sequence[Node], y: Tensor) -> _Expression | None:
    """The expression with its bounds, None where it has no lower one."""
    near = np.linspace(-_NEAR, _NEAR, 1 + 48 * 512)
    far = np.geomspace(_NEAR, _FAR, 200)
    grid = np.concatenate([-far[::-1], near, far]).astype(np.float32)
    values = _computed(graph, x, nodes, y, grid)
    if values is None or not np.isfinite(values).all():
        return None
    inner = np.abs(grid) <= _NEAR
    low, high = float(values.min()), float(values.max())
    if low < values[inner].min() - _SLACK * max(1.0, abs(low)):
        return None  # it goes on falling
    lowest = grid[int(np.argmin(values))]
    around = lowest + np.linspace(-2 / 512, 2 / 512, 2001)
    finer = _computed(graph, x, nodes, y, around.astype(np.float32))
    if finer is not None:
        low = min(low, float(finer.min()))
    if high > values[inner].max() + _SLACK * max(1.0, abs(high)):
        high = np.inf
    return _Expression(x, tuple(nodes), low, high, _named(nodes, grid[inner], values[inner]))


def _computed(
    graph: Graph, x: Tensor, nodes: Sequence[Node], y: Tensor, grid: Floats
) -> Floats | None:
    """y for each x of the grid; None where onnx's reference cannot compute it."""
    read = [tensor for node in nodes for tensor in node.inputs]
    constants = {t.name: value(t) for t in read if value(t) is not None}
    try:
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [OnnxExporter.export_node(node) for node in nodes],
                "activation",
                [
                    onnx.helper.make_empty_tensor_value_info(name)
                    for name in dict.fromkeys([x.name, *constants])
                ],
                [onnx.helper.make_empty_tensor_value_info(y.name)],
            ),
            opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
        )
        kind = np.float32 if x.dtype is None else np.dtype(x.dtype)
        with np.errstate(all="ignore"):
            (found,) = onnx.reference.ReferenceEvaluator(model).run(
                [y.name], {**constants, x.name: grid.astype(kind)}
            )
    except Exception:  # whatever an operator of the reference fails with
        return None
    found = np.asarray(found, np.float32).reshape(-1)
    return found if found.size == grid.size else None


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


#: What several operators write together, by its name.
_KNOWN: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "SiLU": lambda x: x * _sigmoid(x),
    "HardSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "GELU": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick GELU": lambda x: x * _sigmoid(1.702 * x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
}
_OPERATORS = {"Gelu": "GELU", "Swish": "SiLU", "Selu": "SELU", "Elu": "ELU", "Celu": "CELU"}


def _named(nodes: Sequence[Node], grid: Floats, values: Floats) -> str:
    wide = grid.astype(np.float64)
    for name, function in _KNOWN.items():
        if np.abs(function(wide) - values).max() < _ALIKE:
            return name
    last = nodes[-1].op
    return _OPERATORS.get(last, last) if len(nodes) == 1 else "activation"


def _product(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    """Bounds of a product of independent values; 0 times infinity is 0."""
    corners = [0.0 if 0.0 in (a, b) else a * b for a in one for b in two]
    return min(corners), max(corners)


def _leads_to_weights(tensor: Tensor) -> bool:
    """Whether constant weights read the values, moved and averaged at most."""
    pending, seen = [tensor], {id(tensor)}
    while pending:
        for reader in pending.pop().outputs:
            if reads_with_weights(reader):
                return True
            padded = reader.op in ("Pad", "AveragePool") and not reader.domain
            if passes_offsets(reader) or padded:
                new = [t for t in reader.outputs if id(t) not in seen]
                seen.update(id(t) for t in new)
                pending += new
    return False


def _read_by_rows(tensor: Tensor) -> bool:
    """Whether all that reads a value is products with a matrix, whose inputs are its last axis."""
    shape = tensor.shape or []
    return (
        bool(tensor.outputs)
        and known(shape[-1])
        and all(
            reads_with_weights(reader) and record(reader.op).weights == "matrix"
            for reader in tensor.outputs
        )
    )
