"""What every operator does to a spike train: fires, is linear, is a max pooling, or is none of it.

Only the time-mean of a temporal value has a meaning in the ANN, so an operator may stand between
spiking layers if it commutes with the time-mean, that is, if it is affine in its temporal inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.graph import Node, Tensor, constant_input, input_at, producer, rank, value

#: Which inputs of an operator are temporal, by position.
Temporal = list[bool]
_Rule = Callable[[Node, Temporal], str]


@dataclass(frozen=True)
class Rectifier:
    """A node that becomes a spiking neuron; `cap` is its upper bound, None for a plain ReLU."""

    node: Node
    cap: float | None


def rectifier(node: Node) -> Rectifier | None:
    """The node as a rectifier, None if it is none.

    Relu; Clip(0, c) with one upper bound c > 0, as ReLU6 is exported; Max(x, 0).
    """
    if node.domain:
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


#: Their outputs are drawn anew at every run.
RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip


def random_reason(node: Node) -> str:
    """Why what the operator gives is drawn at random; empty where it is not."""
    if node.domain:
        return ""
    if node.op in RANDOM:
        return f"{node.op} draws other values at every run"
    if node.op != "Dropout" or input_at(node, 2) is None:
        return ""
    ratio, training = constant_input(node, 1), constant_input(node, 2)
    if input_at(node, 1) is not None and ratio is not None and not np.any(ratio):
        return ""
    if training is None:
        return "whether Dropout drops values is decided at run time"
    return (
        "Dropout is in training mode: it drops other values at every run" if training.any() else ""
    )


def linear_reason(node: Node, temporal: Temporal) -> str:
    """Why the operator is not affine in its temporal inputs; empty if it is."""
    rule = None if node.domain else LINEAR.get(node.op)
    if rule is None:
        return "not linear: its time-mean is not a function of its input's time-mean"
    return rule(node, temporal)


def _first_only(node: Node, temporal: Temporal) -> str:
    return "" if not any(temporal[1:]) else "an input other than the first depends on time"


def _any(node: Node, temporal: Temporal) -> str:
    return ""


def _one(node: Node, temporal: Temporal) -> str:
    return "" if sum(temporal) == 1 else "a product of two values that depend on time"


def _weights(node: Node, temporal: Temporal) -> str:
    if sum(temporal[:2]) != 1:
        return "a product of two values that depend on time"
    other = node.inputs[0 if temporal[1] else 1]
    return "" if value(other) is not None else "its weights are computed at run time"


def _cast(node: Node, temporal: Temporal) -> str:
    # FLOAT, FLOAT16, DOUBLE, BFLOAT16: other types round or cut.
    return "" if node.attrs.get("to") in (1, 10, 11, 16) else "a cast to a type that rounds or cuts"


def _resize(node: Node, temporal: Temporal) -> str:
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "its region of interest may lie outside"
    return _first_only(node, temporal)


#: They only choose and move elements, so that spikes stay spikes (where all data inputs are).
SELECTION = {
    "Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


def turns_signs(node: Node) -> bool:
    """Whether the node multiplies its first input by constants of 1 and -1."""
    factors = value(node.inputs[1]) if node.op == "Mul" and not node.domain else None
    return factors is not None and bool(np.all(np.abs(factors) == 1))


def moves_spikes(node: Node) -> bool:
    """Whether the node chooses, moves, or turns the sign of what its data inputs are, or adds zeros."""
    if node.domain:
        return False
    if node.op == "Pad":
        fill = constant_input(node, 2)
        zeros = input_at(node, 2) is None or (fill is not None and not np.any(fill))
        return zeros or node.attrs.get("mode", "constant") != "constant"
    return node.op in SELECTION or node.op == "Neg" or turns_signs(node)


def carries_spikes(tensor: Tensor, fires: Callable[[Node], bool]) -> bool:
    """Whether every element is the output of a node that `fires`, chosen, moved and turned only."""
    pending = [tensor]
    seen: set[int] = set()
    while pending:
        source = producer(pending.pop())
        if source is None:
            return False
        if id(source) in seen or fires(source):
            continue
        if not moves_spikes(source):
            return False
        seen.add(id(source))
        pending += source.inputs if source.op == "Concat" else source.inputs[:1]
    return True


#: The operators that may stand between spiking layers, with the condition that makes them affine.
LINEAR: dict[str, _Rule] = {
    "Conv": _weights,
    "ConvTranspose": _weights,
    "Gemm": _weights,
    "MatMul": _weights,
    "Add": _any,
    "Sub": _any,
    "Sum": _any,
    "Mean": _any,
    "Concat": _any,
    "Neg": _any,
    "Mul": _one,
    "Div": _first_only,
    "AveragePool": _first_only,
    "GlobalAveragePool": _first_only,
    "ReduceMean": _first_only,
    "ReduceSum": _first_only,
    "Pad": _first_only,
    "Slice": _first_only,
    "Split": _first_only,
    "Gather": _first_only,
    "Transpose": _first_only,
    "Reshape": _first_only,
    "Flatten": _first_only,
    "Squeeze": _first_only,
    "Unsqueeze": _first_only,
    "Expand": _first_only,
    "Tile": _first_only,
    "Identity": _first_only,
    "Cast": _cast,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _first_only,
    "SpaceToDepth": _first_only,
}
