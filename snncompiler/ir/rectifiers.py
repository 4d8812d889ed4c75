"""The nodes that become spiking neurons, and what a network has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.ir.graph import Graph, Node, Tensor, constant_input, input_at, rank, value


@dataclass(frozen=True)
class Rectifier:
    """A node that becomes a spiking neuron; `cap` is its upper bound, None for a plain ReLU."""

    node: Node
    cap: float | None


def rectifier(node: Node) -> Rectifier | None:
    """The node as a rectifier, None if it is none.

    Relu; Clip(0, c) with one upper bound c > 0, as ReLU6 is exported; Max(x, 0).  On integers (ids,
    pixels) it is none.
    """
    if node.domain or any(_is_integer(tensor) for tensor in node.inputs):
        return None
    if node.op == "Relu":
        return Rectifier(node, None)
    if node.op == "Clip":
        low, high = clip_bounds(node)
        if low != 0.0 or high is None or not high > 0.0:
            return None
        return Rectifier(node, None if np.isinf(high) else high)
    if node.op == "Max" and len(node.inputs) == 2:
        for zero, other in (node.inputs, reversed(node.inputs)):
            array = value(zero)
            # A zero of a larger shape would also broadcast the other operand.
            if array is not None and not array.any() and _spreads_over(array, other):
                return Rectifier(node, None)
    return None


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype is not None and np.dtype(tensor.dtype).kind in "iu"


def clip_bounds(node: Node) -> tuple[float | None, float | None]:
    """Lower and upper bound of a Clip: infinite where there is none, None where it is no constant.

    The largest float32 is no bound either: exporters write it where there was none.
    """
    found: list[float | None] = []
    for index, omitted in ((1, -np.inf), (2, np.inf)):
        array = constant_input(node, index)
        if input_at(node, index) is None:
            found.append(omitted)
        elif array is None or array.size != 1:
            found.append(None)
        else:
            bound = float(array.reshape(()))
            none = array.dtype.kind == "f" and abs(bound) >= np.finfo(np.float32).max
            found.append(float(np.copysign(np.inf, bound)) if none else bound)
    return found[0], found[1]


def _spreads_over(array: NDArray[Any], tensor: Tensor) -> bool:
    """Whether the array broadcasts to the tensor without changing the tensor's shape."""
    size = rank(tensor)
    if size is None or array.ndim > size or not array.size:
        return False
    shape = list(tensor.shape)[size - array.ndim :]
    return all(own in (1, dim) for own, dim in zip(array.shape, shape, strict=True))


def rectified_input(node: Node) -> int:
    """Which input of a rectifier is the current (Max may have its zero first)."""
    return 1 if node.op == "Max" and value(node.inputs[0]) is not None else 0


def rectified_channels(node: Node) -> int:
    """Channels (axis 1) of a rectifier's output; 1 where there is no such axis or it is unknown."""
    shape = node.outputs[0].shape
    return int(shape[1]) if shape and len(shape) > 1 and isinstance(shape[1], int) else 1


def rectifiers_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if rectifier(node) is not None]


def depth_of(graph: Graph) -> int:
    """The most rectifiers on a way from the input to an output."""
    depths: dict[int, int] = {}
    for node in graph.nodes:
        before = max((depths.get(id(tensor), 0) for tensor in node.inputs), default=0)
        for tensor in node.outputs:
            depths[id(tensor)] = before + (rectifier(node) is not None)
    return max((depths.get(id(tensor), 0) for tensor in graph.outputs), default=0)


def values_of(node: Node) -> int:
    """Values of a rectifier's output for one sample; unknown sizes count as 64."""
    shape = node.outputs[0].shape or []
    return int(np.prod([d if isinstance(d, int) else 64 for d in shape[1:]], dtype=np.int64))
