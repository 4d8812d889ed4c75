"""Give the model the body of every operator of ours that it uses, so that it runs anywhere."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from snncompiler.ir import dialect


def operators_in(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The operators of `ai.snnc` that the nodes and their subgraphs use."""
    used: set[str] = set()
    for node in nodes:
        if node.domain == dialect.DOMAIN:
            used.add(node.op_type)
        for attribute in node.attribute:
            used |= operators_in(attribute.g.node)
    return used


def renew_functions(model: onnx.ModelProto) -> None:
    """The bodies of the operators in use, in place of those of ours that the model had."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    kept = [function for function in model.functions if function.domain != dialect.DOMAIN]
    del model.functions[:]
    model.functions.extend([*kept, *dialect.functions(operators_in(model.graph.node), opset)])


def attach_functions(
    graph: onnx.GraphProto, opset_imports: Iterable[onnx.OperatorSetIdProto]
) -> onnx.ModelProto:
    """`graph` as a model with the bodies of its operators of `ai.snnc` as local functions."""
    domains = {entry.domain: entry.version for entry in opset_imports if entry.domain != "ai.onnx"}
    opset = domains[""]
    used = {node.domain for node in graph.node}
    imports = [
        helper.make_opsetid(domain, version)
        for domain, version in sorted(domains.items())
        if domain == "" or domain in used
    ]
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=[*imports, helper.make_opsetid(dialect.DOMAIN, dialect.VERSION)],
        functions=dialect.functions(operators_in(graph.node), opset),
        producer_name="snnc",
        ir_version=dialect.MAX_IR_VERSION,
    )
    return model
