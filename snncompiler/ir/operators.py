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

from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    input_at,
    producer,
    rank,
    value,
)

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


#: Why an operator cannot stand between spiking layers, where it is not a condition of its own.
NOT_LINEAR = "not linear: its time-mean is not a function of its input's time-mean"
NO_RULE = "no rule for this operator yet, linear or not"
TWO_LIVE = "a product of two values that depend on time"


def linear_reason(node: Node, temporal: Temporal) -> str:
    """Why the operator is not affine in its temporal inputs; empty if it is."""
    if node.domain:
        return NO_RULE
    rule = LINEAR.get(node.op)
    if rule is None:
        return NOT_LINEAR if node.op in NONLINEAR else NO_RULE
    return rule(node, temporal)


def _first_only(node: Node, temporal: Temporal) -> str:
    return "" if not any(temporal[1:]) else "an input other than the first depends on time"


def _any(node: Node, temporal: Temporal) -> str:
    return ""


def _one(node: Node, temporal: Temporal) -> str:
    return "" if sum(temporal) == 1 else TWO_LIVE


def _weights(node: Node, temporal: Temporal) -> str:
    return "" if sum(temporal[:2]) == 1 else TWO_LIVE


def _numerator(node: Node, temporal: Temporal) -> str:
    return "" if not temporal[1] else "it divides by a value that depends on time"


def _branches(node: Node, temporal: Temporal) -> str:
    return "" if not temporal[0] else "it chooses by a value that depends on time"


def _scatter(node: Node, temporal: Temporal) -> str:
    if temporal[1]:
        return "its indices depend on time"
    kind = node.attrs.get("reduction", "none")
    return "" if kind in ("none", "add") else f"{kind} of values that depend on time"


def _cast(node: Node, temporal: Temporal) -> str:
    # FLOAT, FLOAT16, DOUBLE, BFLOAT16: other types round or cut.
    return "" if node.attrs.get("to") in (1, 10, 11, 16) else "a cast to a type that rounds or cuts"


def _resize(node: Node, temporal: Temporal) -> str:
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "its region of interest may lie outside"
    return _first_only(node, temporal)


def _regions(node: Node, temporal: Temporal) -> str:
    if node.attrs.get("mode", "avg") != "avg":
        return "it takes the largest of values that depend on time"
    return _first_only(node, temporal)


def einsum_terms(node: Node) -> tuple[list[list[str]], list[str]] | None:
    """The labels of every axis of the operands and of the result of an Einsum.

    Axes under an ellipsis are called `...1` (the last one), `...2` and so on.  None where a rank is
    not known or the equation does not fit.
    """
    equation = node.attrs["equation"]
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = text.partition("->")
    terms, most = [], 0
    for term, tensor in zip(left.split(","), node.inputs, strict=False):
        size = rank(tensor)
        if size is None:
            return None
        dots = size - len(term.replace("...", ""))
        if dots < 0 or (dots and "..." not in term):
            return None
        most = max(most, dots)
        terms.append(_labels(term, dots))
    if not arrow:
        letters = [letter for term in terms for letter in term if not letter.startswith(".")]
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    return (terms, _labels(right, most)) if len(terms) == len(node.inputs) else None


def _labels(term: str, dots: int) -> list[str]:
    before, found, behind = term.partition("...")
    spread = [f"...{place}" for place in range(dots, 0, -1)] if found else []
    return [*before, *spread, *behind]


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
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _weights),
    **dict.fromkeys(("Add", "Concat", "Mean", "Neg", "Sub", "Sum"), _any),
    **dict.fromkeys(("Einsum", "Mul"), _one),
    **dict.fromkeys(
        (
            "AffineGrid", "AveragePool", "CastLike", "CenterCropPad", "Col2Im", "Compress", "CumSum",
            "DFT", "DeformConv", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
            "GatherND", "GlobalAveragePool", "GridSample", "Identity", "MaxUnpool", "Pad",
            "ReduceMean", "ReduceSum", "Reshape", "ReverseSequence", "RotaryEmbedding", "STFT", "Slice",
            "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
        ),
        _first_only,
    ),
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    "Div": _numerator,
    "Where": _branches,
    "Cast": _cast,
    "RoiAlign": _regions,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
}  # fmt: skip

#: Operators of which it is known that their time-mean is no function of their input's time-mean.
NONLINEAR = {
    # functions of one value that bend or jump
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf",
    "Exp", "Floor", "Gelu", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Mod", "Not",
    "PRelu", "Pow", "Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "SwiGLU", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "Abs", "BitCast", "Clip", "HardSigmoid",
    # comparisons, logic and bits
    "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Or", "Xor",
    # choices by value
    "ArgMax", "ArgMin", "GlobalMaxPool", "Hardmax", "Max", "MaxRoiPool", "Min", "NonMaxSuppression",
    "NonZero", "OneHot", "ReduceMax", "ReduceMin", "TopK", "Unique",
    # powers, products and norms of what depends on time
    "CumProd", "Det", "GlobalLpPool", "GroupNormalization", "InstanceNormalization", "LRN",
    "LayerNormalization", "LpNormalization", "LpPool", "MeanVarianceNormalization",
    "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
    "ReduceSumSquare", "SoftmaxCrossEntropyLoss",
    # attention, gates and recurrence
    "Attention", "GRU", "LSTM", "LogSoftmax", "RNN", "Softmax",
    # roundings
    "DynamicQuantizeLinear", "QuantizeLinear",
}  # fmt: skip


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


#: Operators on values of equal shape, or broadcast to one.
ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor", "Dropout", "Swish",
    "Asin", "Asinh", "Acos", "Acosh", "Atan", "Atanh", "Cosh", "Shrink", "Sinh", "Tan",
}  # fmt: skip
