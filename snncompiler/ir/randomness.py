"""Operators whose outputs are no function of their inputs."""

from __future__ import annotations

import numpy as np

from snncompiler.ir.graph import Node, constant_input, input_at
from snncompiler.ir.operators import record


def random_reason(node: Node) -> str:
    """Why what the operator gives is drawn at random; empty where it is not."""
    if node.domain:
        return ""
    if record(node.op).random:
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
