"""What holds for every graph between two passes, and whether a pass changed one.

`run_passes` looks after every pass where SNNC_CHECK_PASSES is 1, as it is under our tests.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from snncompiler.errors import Refused
from snncompiler.ir.graph import Graph, Node, Tensor, infer_node, is_live, known, label


def faults(graph: Graph, shapes: bool = True, checked: Snapshot | None = None) -> list[str]:
    """What is wrong with a graph; empty where nothing is.

    Nodes have names of their own, as tensors have; every value is made once, before anybody reads it or
    by the input; and, where `shapes` are known already, types and shapes are those that the operators
    make of their inputs.  Shapes of nodes that are as they were in `checked`, where nothing was wrong,
    are not inferred again.
    """
    found = [
        f"{count} nodes are called '{name}'"
        for name, count in Counter(node.name for node in graph.nodes).items()
        if count > 1 or not name
    ]
    tensors: dict[int, Tensor] = {}
    for node in graph.nodes:
        tensors |= {id(one): one for one in (*node.inputs, *node.outputs) if not one.is_empty()}
    names = Counter(tensor.name for tensor in tensors.values())
    found += [f"{count} tensors are called '{name}'" for name, count in names.items() if count > 1]
    made = {id(tensor) for tensor in graph.inputs}
    listed = {id(node) for node in graph.nodes}
    for node in graph.nodes:
        for tensor in node.outputs:
            if id(tensor) in made:
                found.append(f"'{tensor.name}' is made twice, the second time by {label(node)}")
            made.add(id(tensor))
    for node in graph.nodes:
        for tensor in node.inputs:
            if is_live(tensor) and id(tensor) not in made:
                found.append(f"{label(node)} reads '{tensor.name}', which nothing makes")
            if any(id(before) not in listed for before in tensor.inputs):
                found.append(f"'{tensor.name}' is made by a node that is not in the graph")
    found += [
        f"the output '{tensor.name}' is made by nothing"
        for tensor in graph.outputs
        if is_live(tensor) and id(tensor) not in made
    ]
    if not found and _has_cycle(graph):
        found.append("its nodes depend on each other in a circle")
    if shapes and not found:
        for node in graph.nodes:
            if checked is None or not checked.holds(node):
                found += _shape_faults(node, graph.opset)
    return found


def _has_cycle(graph: Graph) -> bool:
    """Whether nodes are left when all that wait for nothing are taken away, again and again."""
    waiting = {id(node): sum(bool(tensor.inputs) for tensor in node.inputs) for node in graph.nodes}
    free = [node for node in graph.nodes if not waiting[id(node)]]
    done = 0
    while free:
        node = free.pop()
        done += 1
        for tensor in node.outputs:
            for reader in tensor.outputs:
                waiting[id(reader)] -= 1
                if not waiting[id(reader)]:
                    free.append(reader)
    return done < len(graph.nodes)


def _shape_faults(node: Node, opset: int) -> list[str]:
    """Where the type or shape of an output is not what the operator makes of its inputs."""
    held = [(tensor, tensor.dtype, tensor.shape) for tensor in node.outputs]
    found = []
    try:
        infer_node(node, opset)
        for tensor, dtype, shape in held:
            if dtype is not None and np.dtype(dtype) != np.dtype(tensor.dtype):
                found.append(f"'{tensor.name}' of {label(node)} is {tensor.dtype}, not {dtype}")
            elif not _agree(shape, tensor.shape):
                found.append(
                    f"'{tensor.name}' of {label(node)} has the shape {tensor.shape}, not {shape}"
                )
    except Refused as refused:
        found.append(f"{label(node)}: {refused}")
    finally:
        for tensor, dtype, shape in held:
            tensor.dtype, tensor.shape = dtype, shape
    return found


def _agree(held: list[Any] | None, inferred: list[Any] | None) -> bool:
    """Whether two shapes can be the same: equal in every size that both know."""
    if held is None or inferred is None:
        return True
    return len(held) == len(inferred) and all(
        one == other
        for one, other in zip(held, inferred, strict=True)
        if known(one) and known(other)
    )


class Snapshot:
    """What a graph is at one moment, to be compared with what it is later.

    Passes never write into the values of a constant: they put another constant in its place.  So it is
    enough to compare which constants there are.
    """

    def __init__(self, graph: Graph) -> None:
        self._nodes = [(node.name, _state(node)) for node in graph.nodes]
        self._by_name = dict(self._nodes)
        self._ends = [_tensor(tensor) for tensor in (*graph.inputs, *graph.outputs)]
        # Nothing that is compared by its id may die meanwhile, and give its id to another.
        self._held = [tensor for node in graph.nodes for tensor in node.inputs]

    def holds(self, node: Node) -> bool:
        """Whether a node was in the graph, with the same attributes, inputs and outputs."""
        return self._by_name.get(node.name) == _state(node)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return self._ends == other._ends and self._nodes == other._nodes

    __hash__ = None  # type: ignore[assignment]


def _state(node: Node) -> tuple[Any, ...]:
    return (
        node.op,
        node.domain,
        {key: _comparable(value) for key, value in node.attrs.items()},
        [_tensor(tensor) for tensor in node.inputs],
        [_tensor(tensor) for tensor in node.outputs],
    )


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    if not is_live(tensor):
        return (tensor.name, id(tensor))
    return (tensor.name, tensor.dtype, None if tensor.shape is None else tuple(tensor.shape))


def _comparable(value: Any) -> Any:
    """An attribute's value, compared by content where it is an array."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, (int, float, str, bytes, bool, type(None))):
        return value
    return id(value)
