"""What a number that is added to all elements of a value passes through."""

from __future__ import annotations

from snncompiler.ir.graph import Node, value
from snncompiler.ir.operators import record


def passes_offsets(node: Node) -> bool:
    """Whether f(x + m) = f(x) + m for a number m, for all live inputs together: the node chooses, moves
    and averages elements, and puts nothing beside them."""
    if node.domain:
        return False
    nature = record(node.op)
    if nature.pools == "maximum":
        return nature.over != "axes" and len(node.outputs) == 1
    if nature.spikes == "moved":
        return True
    if nature.pools == "average":
        padded = any(node.attrs.get("pads", [])) or "SAME" in node.attrs.get("auto_pad", "")
        ceiled = bool(node.attrs.get("ceil_mode", 0))
        return not (padded or ceiled) or not node.attrs.get("count_include_pad", 0)
    if node.op == "ReduceMean":
        return True
    if nature.linear == "resize":
        return bool(node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize")
    return False


def reads_with_weights(node: Node) -> bool:
    """Whether the node is a layer with constant weights for its first input."""
    nature = record(node.op)
    if node.domain or nature.weights in (None, "equation") or len(node.inputs) < 2:
        return False
    return value(node.inputs[0]) is None and value(node.inputs[1]) is not None
