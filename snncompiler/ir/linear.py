"""Whether an operator may stand between spiking layers.

Only the time-mean of a temporal value has a meaning in the ANN, so an operator may stand between
spiking layers if it commutes with the time-mean, that is, if it is affine in its temporal inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from snncompiler.ir.graph import Node, rank
from snncompiler.ir.operators import Linear, record

#: Which inputs of an operator are temporal, by position.
Temporal = list[bool]

#: Why an operator cannot stand between spiking layers, where it is not a condition of its own.
NOT_LINEAR = "not linear: its time-mean is not a function of its input's time-mean"
NO_RULE = "no rule for this operator yet, linear or not"
TWO_LIVE = "a product of two values that depend on time"


def linear_reason(node: Node, temporal: Temporal) -> str:
    """Why the operator is not affine in its temporal inputs; empty if it is."""
    kind = None if node.domain else record(node.op).linear
    return NO_RULE if kind is None else CONDITIONS[kind].unmet(node, temporal)


def _first_only(node: Node, temporal: Temporal) -> str:
    return "" if not any(temporal[1:]) else "an input other than the first depends on time"


def _any(node: Node, temporal: Temporal) -> str:
    return ""


def _never(node: Node, temporal: Temporal) -> str:
    return NOT_LINEAR


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


@dataclass(frozen=True)
class Condition:
    """When an operator is affine in its temporal inputs: in words, and as why a node is not."""

    text: str
    unmet: Callable[[Node, Temporal], str]


CONDITIONS: dict[Linear, Condition] = {
    "always": Condition("always", _any),
    "first": Condition("if only its first input depends on time", _first_only),
    "one": Condition("if one of its inputs alone depends on time", _one),
    "weights": Condition("if one of its two factors alone depends on time", _weights),
    "numerator": Condition("by what does not depend on time", _numerator),
    "condition": Condition("if its condition does not depend on time", _branches),
    "scatter": Condition(
        "with reduction none or add, if its indices do not depend on time", _scatter
    ),
    "cast": Condition("to float32, float16, bfloat16 or float64, all computed in float32", _cast),
    "resize": Condition(
        "if only its first input depends on time; not with tf_crop_and_resize", _resize
    ),
    "regions": Condition("with mode avg, if its regions do not depend on time", _regions),
    "never": Condition("never", _never),
}
