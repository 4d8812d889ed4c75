"""Every operator of the domain, and their bodies as functions of a model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import onnx
import onnx.parser

from snncompiler.ir.dialect.by_counts import COUNT_OPERATORS
from snncompiler.ir.dialect.core import DOMAIN, VERSION, Operator
from snncompiler.ir.dialect.counting import COUNTING_OPERATORS
from snncompiler.ir.dialect.driven import DRIVEN, DRIVEN_OPERATORS
from snncompiler.ir.dialect.events import EVENT_OPERATORS
from snncompiler.ir.dialect.neurons import NEURON_OPERATORS
from snncompiler.ir.dialect.over_time import TIME_OPERATORS

#: Those of a compiled file before it is lowered for the CPU.
OPERATORS: dict[str, Operator] = {**NEURON_OPERATORS, **TIME_OPERATORS}
#: Every operator of the domain.
ALL_OPERATORS = {
    **OPERATORS,
    **DRIVEN_OPERATORS,
    **EVENT_OPERATORS,
    **COUNT_OPERATORS,
    **COUNTING_OPERATORS,
}

#: The operators that a body is made of, beside those of ONNX.
_BODY_NEEDS = {
    "EventNeuron": ("Drive", "ScheduledRMPNeuron"),
    "EventConv": ("ScheduledRMPNeuron",),
    "EventConvAdd": ("ScheduledRMPNeuron",),
    "EventConvPair": ("ScheduledRMPNeuron",),
    "EventSum": ("WeightedTimeSum",),
    "EventMaxPool": ("SpikeMaxPool",),
    **{driven: ("Drive", neuron) for neuron, driven in DRIVEN.items()},
}


@cache
def _function(name: str, opset: int) -> bytes:
    operator = ALL_OPERATORS[name]
    ours = f', "{DOMAIN}" : {VERSION}' if name in _BODY_NEEDS else ""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}{ours}]>\n'
    function = onnx.parser.parse_function(header + operator.body)
    function.doc_string = f"{operator.summary}\n{operator.equation}"
    if name in COUNTING_OPERATORS:
        # An error tells the node by its name.
        for node in function.node:
            node.name = node.output[0]
    return bytes(function.SerializeToString(deterministic=True))


def function(name: str, opset: int) -> onnx.FunctionProto:
    """The body of operator `name` for a model of the given opset.

    Raises KeyError for an operator that is not of this domain.
    """
    body = onnx.FunctionProto()
    body.ParseFromString(_function(name, opset))
    return body


def functions(names: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """The bodies of several operators and of those that they are made of, in the order of names."""
    wanted = set(names)
    wanted |= {needed for name in wanted for needed in _BODY_NEEDS.get(name, ())}
    return [function(name, opset) for name in sorted(wanted)]
