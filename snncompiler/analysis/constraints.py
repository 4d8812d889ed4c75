"""The constraints report of a network, as plain data."""

from __future__ import annotations

from typing import Any

from snncompiler.ir.graph import Node, label
from snncompiler.ir.operators import record
from snncompiler.ir.phases import analyze
from snncompiler.ir.reads import reads_of
from snncompiler.ir.rectifiers import Rectifier, rectifier
from snncompiler.network.prepared import Prepared
from snncompiler.passes.base import Coded


def constraints(prepared: Prepared) -> dict[str, Any]:
    """The constraints report: rectifiers, linear layers with what was folded, pooling, findings."""
    graph = prepared.graph
    timing = analyze(graph, lambda node: rectifier(node) is not None)
    found = [(node, rectifier(node)) for node in graph.nodes]
    spiking = {node.name for node, kind in found if kind is not None}
    reads = reads_of(prepared.ann.graph, lambda node: node.name in spiking)
    return {
        "model": prepared.source.name,
        "sha256": prepared.source.sha256,
        "any_batch": prepared.any_batch,
        "rectifiers": [
            _rectifier(node, kind, prepared.context.coded.get(node.name))
            for node, kind in found
            if kind is not None
        ],
        "linear_layers": [
            {
                "name": layer.name,
                "operator": layer.op,
                "reads": reads.get(layer.name),
                "bias": layer.bias,
                "batch_norm": layer.batch_norm or "none",
                "folded": list(layer.folded),
                "largest_change": layer.change[0] if layer.change else None,
                "relative_change": layer.change[1] if layer.change else None,
            }
            for layer in prepared.context.layers.values()
        ],
        "pooling": [
            {"name": node.name, "operator": node.op, "phase": timing.phase(node)}
            for node in graph.nodes
            if record(node.op).pools and record(node.op).over != "axes"
        ],
        "paper_constraints_met": not any(
            layer.bias or layer.batch_norm for layer in prepared.context.layers.values()
        )
        and not any(finding.code == "SNNC207" for finding in prepared.findings),
        "findings": [finding.as_dict() for finding in prepared.findings],
    }


def _rectifier(node: Node, kind: Rectifier, coded: Coded | None) -> dict[str, Any]:
    shape = node.outputs[0].shape
    return {
        "name": node.name,
        "operator": node.op,
        # What its spikes stand for, where that is no rectifier: the activation, less its lower bound.
        "codes": None if coded is None else {"function": coded.function, "offset": coded.offset},
        "upper_bound": kind.cap,
        "shape": None if shape is None else [dim if dim is None else str(dim) for dim in shape],
        "current": _current_of(node),
    }


def _current_of(node: Node) -> str:
    """What feeds a rectifier: the operator before it."""
    sources = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
    return label(sources[0]) if sources else "input"
