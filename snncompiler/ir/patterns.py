"""Activations and norms that exporters write out in many operators, recognised by their shape.

A *closing* operator multiplies, divides or chooses by two values that depend on time.  Where both come
from one value by functions of single elements and by reductions, all that lies between is one layer:
its name follows from the operators in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snncompiler.ir.graph import Graph, Node, Tensor, is_live, producer, value

#: What a written-out activation, norm or softmax is made of.
_PARTS = {
    "Abs", "Add", "Cast", "Clip", "Div", "Equal", "Erf", "Exp", "Expand", "Greater",
    "GreaterOrEqual", "HardSigmoid", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul",
    "Neg", "Not", "Pow", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Sigmoid", "Softplus", "Sqrt", "Squeeze", "Sub", "Tanh",
    "Unsqueeze", "Where",
}  # fmt: skip
_CLOSING = ("Div", "Log", "MatMul", "Mul", "Reciprocal", "Where")
_GATES = ("HardSigmoid", "Sigmoid", "Softmax", "Tanh")
#: On the way of scores to their Softmax, and of a gate to its product.
_ON_THE_WAY = {"Add", "Cast", "Div", "Expand", "Mul", "Reshape", "Transpose", "Unsqueeze", "Where"}
#: A layer that is written out has fewer operators than this.
_MOST = 16


@dataclass(frozen=True)
class Written:
    """A layer that is written out: its name and its operators in their order, the closing one last."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def text(self) -> str:
        return f"{self.name} ({', '.join(node.op for node in self.nodes)})"


def written_out(
    graph: Graph, refused: Sequence[Node], temporal: Callable[[Node], list[bool]]
) -> list[Written]:
    """The layers that the refused nodes belong to, where they are parts of one; the graph is sorted.

    `temporal` tells which inputs of a node depend on time.  No node is in two layers.
    """
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    unnamed = {id(node) for node in refused}
    taken: set[int] = set()
    found: list[Written] = []
    for node in sorted(refused, key=lambda one: -order[id(one)]):
        if id(node) in taken or node.domain or node.op not in _CLOSING:
            continue
        layer = _attention(node, temporal) if node.op == "MatMul" else _of_one_value(node, temporal)
        layer = layer or _gate(node, unnamed, temporal)
        if layer is None:
            continue
        name, parts = layer
        parts = [part for part in parts if id(part) not in taken]
        taken.update(id(part) for part in parts)
        found.append(Written(name, tuple(sorted(parts, key=lambda one: order[id(one)]))))
    return found[::-1]


def _operands(node: Node, temporal: Callable[[Node], list[bool]]) -> list[Tensor]:
    return [t for t, live in zip(node.inputs, temporal(node), strict=True) if live]


def _of_one_value(
    node: Node, temporal: Callable[[Node], list[bool]]
) -> tuple[str, list[Node]] | None:
    """The layer that ends in `node` and computes with one value, the nearest one that it can be."""
    waiting = _operands(node, temporal)
    seen: set[int] = set()
    best: tuple[str, list[Node]] | None = None
    while waiting and len(seen) < _MOST:
        source = waiting.pop(0)
        if id(source) in seen:
            continue
        seen.add(id(source))
        parts = _between(node, source)
        if parts is not None:
            name = _name(parts, source)
            if name and (best is None or len(parts) < len(best[1])):
                best = _with_ends(name, parts, source)
        maker = producer(source)
        if maker is not None and maker.op in _PARTS:
            waiting += [tensor for tensor in maker.inputs if is_live(tensor)]
    return best


def _between(node: Node, source: Tensor) -> list[Node] | None:
    """The nodes from `source` to `node`, if these compute with it and constants alone."""
    waiting, found = [node], {id(node): node}
    while waiting:
        for tensor in waiting.pop().inputs:
            if tensor is source or not is_live(tensor):
                continue
            maker = producer(tensor)
            if maker is None or maker.domain or maker.op not in _PARTS:
                return None
            if id(maker) not in found:
                found[id(maker)] = maker
                waiting.append(maker)
        if len(found) > _MOST:
            return None
    return list(found.values())


def _name(parts: list[Node], source: Tensor) -> str:
    """What the operators between a value and a closing operator make; empty for nothing known."""
    ops = {part.op for part in parts}
    maker = producer(source)
    roots = "Sqrt" in ops or any(_is_root(part) for part in parts)
    if "ReduceSum" in ops and ("Exp" in ops or (maker is not None and maker.op == "Exp")):
        return "Softmax"
    if "Where" in ops and "Exp" in ops:
        return "ELU"
    if "Erf" in ops:
        return "GELU"
    if "Tanh" in ops:
        return "Mish" if ops & {"Softplus", "Log"} else "GELU" if len(parts) > 3 else "gate"
    if "Sigmoid" in ops or ("Exp" in ops and ops & {"Reciprocal", "Div"} and "Mul" in ops):
        return "SiLU"
    if "HardSigmoid" in ops or ("Clip" in ops and "Mul" in ops and "Add" in ops):
        return "HardSwish"
    if roots and "ReduceMean" in ops:
        centred = "Sub" in ops or (maker is not None and maker.op == "Sub")
        return "LayerNormalization" if centred else "RMSNormalization"
    if "ReduceL2" in ops or (roots and ops & {"ReduceSum", "ReduceSumSquare"}):
        return "LpNormalization"
    if "Exp" in ops and ops & {"Reciprocal", "Div"}:
        return "Sigmoid"
    return "Softplus" if ops == {"Add", "Exp", "Log"} else ""


def _is_constant(tensor: Tensor) -> bool:
    return value(tensor) is not None


def _is_root(node: Node) -> bool:
    if node.op != "Pow":
        return False
    exponent = value(node.inputs[1])
    return exponent is not None and exponent.size == 1 and abs(float(exponent.reshape(()))) == 0.5


def _with_ends(name: str, parts: list[Node], source: Tensor) -> tuple[str, list[Node]]:
    """The layer with what belongs to it in front (Exp, x - mean) and behind (a constant factor)."""
    whole = list(parts)
    maker = producer(source)
    if maker is not None and (
        (name == "Softmax" and maker.op == "Exp")
        or (name == "LayerNormalization" and maker.op == "Sub")
        or (name == "Sigmoid" and maker.op == "Neg")
    ):
        whole.append(maker)
        mean = [producer(tensor) for tensor in maker.inputs]
        whole += [one for one in mean if one is not None and one.op in ("ReduceMean", "ReduceMax")]
    after = parts[0].outputs[0].outputs
    scaled = len(after) == 1 and after[0].op in ("Div", "Mul")
    if name in ("GELU", "HardSwish") and scaled and any(map(_is_constant, after[0].inputs)):
        whole.append(after[0])
    return name, whole


def _attention(node: Node, temporal: Callable[[Node], list[bool]]) -> tuple[str, list[Node]] | None:
    """Softmax(q·k)·v, whose two products are of values that depend on time."""
    for start in node.inputs:
        parts, waiting = [node], [start]
        softmax = False
        while waiting and len(parts) < _MOST:
            maker = producer(waiting.pop())
            if maker is None or maker.domain:
                continue
            if maker.op == "MatMul":
                if softmax and sum(temporal(maker)) == 2:
                    return "attention", [*parts, maker]
                continue
            if maker.op not in (*_ON_THE_WAY, "Softmax"):
                continue
            softmax = softmax or maker.op == "Softmax"
            parts.append(maker)
            waiting += [tensor for tensor in maker.inputs if is_live(tensor)]
    return None


def _gate(
    node: Node, unnamed: set[int], temporal: Callable[[Node], list[bool]]
) -> tuple[str, list[Node]] | None:
    """A product with what comes out of a Sigmoid, Tanh or Softmax, as in squeeze-and-excitation."""
    if node.op not in ("MatMul", "Mul"):
        return None
    for start in _operands(node, temporal):
        tensor, parts = start, [node]
        while True:
            maker = producer(tensor)
            if maker is None or maker.domain:
                break
            if maker.op in _GATES and id(maker) in unnamed:
                return "gate", [*parts, maker]
            if maker.op not in _ON_THE_WAY or sum(temporal(maker)) != 1:
                break
            parts.append(maker)
            tensor = _operands(maker, temporal)[0]
    return None
