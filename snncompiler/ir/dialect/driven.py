"""Driven neurons, which `passes/lower` makes of a Drive and the neuron behind it.

A neuron reads the static current and its factors itself, so that the driven current, a row for each
step, is never written.  A body is the pair as it was.
"""

from __future__ import annotations

from snncompiler.ir.dialect.core import DOMAIN, Operator, Port
from snncompiler.ir.dialect.neurons import NEURON_OPERATORS

#: The driven twin of a neuron.
DRIVEN: dict[str, str] = {
    "ScheduledRMPNeuron": "DrivenRMPNeuron",
    "BurstNeuron": "DrivenBurstNeuron",
    "SignedNeuron": "DrivenSignedNeuron",
}

_DRIVE = Port("drive", "float32", "[D]", "d_t; the last element holds at all later steps")


def _driven(neuron: Operator, name: str) -> Operator:
    others = neuron.inputs[1:]
    inputs = (Port("current", "T", "[N, ...]", "static current"), _DRIVE, *others)
    attributes = tuple(a for a in neuron.attributes if a.name != "static_current")
    references = ["static_current = 0", *(f"{a.name}: {a.type} = @{a.name}" for a in attributes)]
    header = f" <{', '.join(a.name for a in attributes)}>" if attributes else ""
    outputs = ", ".join(port.name for port in neuron.outputs)
    return Operator(
        name=name,
        summary=f"Drive and {neuron.name} as one operator.",
        equation=f"{neuron.equation}   with x = x·d_t, rounded to T, and d_t as in Drive",
        inputs=inputs,
        outputs=neuron.outputs,
        attributes=attributes,
        body=f"{name}{header} ({', '.join(port.name for port in inputs)}) => ({outputs})\n{{\n"
        f"  currents = {DOMAIN}.Drive (current, drive, start, steps)\n"
        f"  {outputs} = {DOMAIN}.{neuron.name} <{', '.join(references)}>\n"
        f"    (currents, {', '.join(port.name for port in others)})\n}}",
        states=tuple((place + 1, out) for place, out in neuron.states),
    )


DRIVEN_OPERATORS: dict[str, Operator] = {
    name: _driven(NEURON_OPERATORS[neuron], name) for neuron, name in DRIVEN.items()
}
