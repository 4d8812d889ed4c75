"""Say which operators cannot be converted, all at once, and what breaks the paper's constraints.

The paper trains its ANNs without bias and batch-norm.  The default folds batch-norm exactly and
injects the bias as a constant current; `strict` refuses both, layer by layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from snncompiler.errors import Refused
from snncompiler.findings import Finding, describe
from snncompiler.ir.graph import Graph, Node, label
from snncompiler.ir.grids import rounds
from snncompiler.ir.linear import NO_RULE, NOT_LINEAR, TWO_LIVE, linear_reason
from snncompiler.ir.operators import record
from snncompiler.ir.patterns import written_out
from snncompiler.ir.phases import Timing, analyze
from snncompiler.ir.randomness import random_reason
from snncompiler.ir.rectifiers import rectifier
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.normalize.spell_max_pool import (
    ACROSS_SAMPLES,
    MAX_AXES,
    TOO_MANY_AXES,
    UNKNOWN_AXES,
    UNKNOWN_SIZE,
    obstacle,
)
from snncompiler.passes.padding import fills_with_lowest


@dataclass(frozen=True)
class CheckConstraints(Pass):
    """Refuse what has no spiking form; with `strict`, also bias and batch-norm.

    `layered`: in layered time, where every value is complete once.
    """

    strict: bool = False
    allow_analog: bool = False
    layered: bool = False

    name: ClassVar[str] = "check-constraints"
    requires: ClassVar[frozenset[str]] = frozenset({"affine-folded", "max-pool-of-spikes"})
    ensures: ClassVar[frozenset[str]] = frozenset({"constraints-checked"})

    def run(self, graph: Graph, context: Context) -> None:
        timing = analyze(graph, lambda node: rectifier(node) is not None)
        coded = {name for one in context.coded.values() for name in one.nodes}
        errors = [*_random(graph), *_unconvertible(graph, timing, context.keeps_rounding, coded)]
        if self.allow_analog:
            kept = [finding for finding in errors if finding.code == "SNNC202"]
            errors = [finding for finding in errors if finding.code != "SNNC202"]
            way = "computed on complete values" if self.layered else "kept exact by telescoping"
            for finding in kept:
                text = f"not spiking, {way}: {finding.message}"
                context.warn("SNNC206", text, node=finding.node)
            for layer, one in context.coded.items():
                context.warn(
                    "SNNC225",
                    f"{one.function} is no rectifier: it is computed on complete values, and what "
                    f"neurons send is its value less its lower bound of {one.offset:.4g}",
                    node=layer,
                )
        if self.strict:
            errors += _violations(context)
        if errors:
            raise Refused(*errors)
        for node in graph.nodes:
            reason = _kept(node, timing)
            if reason and node.name not in coded:
                context.note("SNNC206", reason, node=label(node))


def _random(graph: Graph) -> list[Finding]:
    """The operators whose outputs are no function of the inputs: nothing can be compared then."""
    return [
        Finding(
            "SNNC212",
            f"{reason}, so that the outputs are no function of the inputs",
            node=label(node),
            hint="export the network for inference, without noise and dropout",
        )
        for node in graph.nodes
        if (reason := random_reason(node)) and not _only_its_shape(node, graph)
    ]


def _only_its_shape(node: Node, graph: Graph) -> bool:
    """Whether nothing but the shape of a node's outputs is read."""
    return all(
        record(reader.op).shape_only for tensor in node.outputs for reader in tensor.outputs
    ) and not any(output is tensor for output in graph.outputs for tensor in node.outputs)


def _unconvertible(
    graph: Graph, timing: Timing, keeps_rounding: bool, coded: Collection[str]
) -> list[Finding]:
    """What has no spiking form; `coded` are the nodes that compute what is coded in spikes."""
    if not any(rectifier(node) is not None for node in graph.nodes):
        others = Counter(node.op for node in graph.nodes)
        seen = ", ".join(f"{op} x{count}" for op, count in sorted(others.items())) or "no operators"
        return [
            Finding(
                "SNNC201",
                f"the network has no ReLU, so there is nothing to convert; it has {seen}",
                hint="only rectifiers become spiking neurons; --timing layered --allow-analog codes "
                "others with a lower bound in spikes, as SiLU and GELU",
            )
        ]
    reasons = {
        id(node): reason
        for node in graph.nodes
        if timing.phase(node) == "temporal"
        and rectifier(node) is None
        and not random_reason(node)
        and node.name not in coded
        and not (keeps_rounding and rounds(node))  # in layered time, of complete values
        and (reason := blocking(node, timing))
    }
    refused = [node for node in graph.nodes if id(node) in reasons]
    layers = {
        id(part): layer
        for layer in written_out(graph, refused, timing.inputs)
        for part in layer.nodes
    }
    found = []
    for node in refused:
        layer = layers.get(id(node))
        if layer is None:
            text = f"{node.op} stands between spiking layers: {reasons[id(node)]}"
            hint = _REMEDIES.get(reasons[id(node)], _REMEDIES[NOT_LINEAR])
            found.append(Finding("SNNC202", text, node=label(node), hint=hint))
        elif node is next(part for part in layer.nodes if id(part) in reasons):
            # Once for the whole layer, under the name that its last operator has.
            text = f"{layer.name} stands between spiking layers: {NOT_LINEAR}"
            where = describe(layer.text, layer.nodes[-1].name)
            hint = _LAYERS.get(layer.name, _REMEDIES[NOT_LINEAR])
            found.append(Finding("SNNC202", text, node=where, hint=hint))
    return found


#: What helps against a layer that is written out, by its name.
_LAYERS = {
    "LayerNormalization": "train with batch-norm for it, or keep it analog with --allow-analog",
    "RMSNormalization": "train with batch-norm for it, or keep it analog with --allow-analog",
    "attention": "keep it analog with --allow-analog",
    "gate": "train the network without its gates, or keep them analog with --allow-analog",
}

INDICES = "its indices are used"
LOWEST = "it pads with minus infinity, which is no rate of spikes"

#: What helps, by the reason.
_REMEDIES = {
    NOT_LINEAR: "train the network with ReLU there, or keep it analog with --allow-analog",
    NO_RULE: "please report it; --allow-analog keeps it exact, as an analog operator",
    UNKNOWN_SIZE: "export the network with a fixed input size, or keep it analog with --allow-analog",
    UNKNOWN_AXES: "export it with constant axes",
    ACROSS_SAMPLES: "reduce the axes of one sample",
    TOO_MANY_AXES: f"reduce at most {MAX_AXES} axes at a time",
    INDICES: "train the network with an upsampling that needs no indices",
    LOWEST: "let the pooling pad, by less than its kernel",
    TWO_LIVE: "a gate or an attention: train without it, or keep it analog with --allow-analog",
}


def blocking(node: Node, timing: Timing) -> str:
    """Why a node cannot stand between spiking layers; empty where it can."""
    if not any(timing.inputs(node)):
        return ""  # shape arithmetic on temporal values
    nature = record(node.op)
    if nature.shape_only and not node.domain:
        return ""
    if node.op == "MaxPool" and not node.domain:
        # `pool_spikes` has rewritten all others.
        return INDICES if len(node.outputs) > 1 else ""
    if node.op == "Pad" and not node.domain and fills_with_lowest(node):
        rectified = all(rectifier(reader) is not None for reader in node.outputs[0].outputs)
        return "" if rectified else LOWEST
    if nature.pools == "maximum" and not node.domain:
        return obstacle(node)
    return linear_reason(node, timing.inputs(node))


def _violations(context: Context) -> list[Finding]:
    found = []
    for layer in context.layers.values():
        if layer.bias:
            found.append(
                Finding(
                    "SNNC203",
                    f"{layer.op} has a bias",
                    node=layer.name,
                    hint="train without bias, or compile with --no-strict",
                )
            )
        if layer.batch_norm:
            found.append(
                Finding(
                    "SNNC204",
                    f"a batch-norm is folded into {layer.op}",
                    node=layer.name,
                    hint="train without batch-norm, or compile with --no-strict",
                )
            )
    found += [
        Finding("SNNC204", finding.message, node=finding.node, hint="train without batch-norm")
        for finding in context.findings
        if finding.code == "SNNC207"
    ]
    return found


def _kept(node: Node, timing: Timing) -> str:
    """Why a nonlinear operator is kept as it is; empty for linear ones and rectifiers."""
    phase = timing.phase(node)
    if phase == "temporal" or not linear_reason(node, [True, *[False] * (len(node.inputs) - 1)]):
        return ""
    if record(node.op).shape_only or node.op == "Constant":
        return ""
    if phase == "static":
        return "kept: it comes before the first spiking layer and is computed once"
    return "kept: it comes after the last spiking layer and is applied to the decoded values"
