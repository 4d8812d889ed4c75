"""Make one node of the layers by counts that follow each other: a `CountNetwork`.

Between two nodes onnxruntime looks up their inputs, makes room for their outputs, and may wake threads;
for small layers this takes as long as they do.  The native library runs all of them in one call
(runtime/native/count_ops.cc).  The node exists in sessions only, and has no function body.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name

FUSED = "CountNetwork"
#: What it may consist of; the library knows their names.
PARTS = (
    "CountConv",
    "CountConvScaled",
    "CountConvAdd",
    "CountConvPair",
    "CountNeuron",
    "CountInput",
    "CountMaxPool",
)


def fuse_counts(model: onnx.ModelProto) -> bool:
    """Fuse the layers by counts of a model, in place; whether there were any."""
    graph = model.graph
    regions = _regions(graph)
    if not regions:
        return False
    read = {entry.name for entry in graph.output}
    read.update(name for node in graph.node if not _is_part(node) for name in _names(node))
    taken = {name for node in graph.node for name in (node.name, *node.output)}
    fused = {
        place: _fused(nodes, _read_elsewhere(place, regions) | read, unique_name(FUSED, taken))
        for place, nodes in regions.items()
    }
    # What reads a region comes behind it, and what it reads before it.
    ordered = [
        *((place, node) for place, node in fused.items()),
        *((place + 0.5, node) for node, place in _places(graph) if not _is_part(node)),
    ]
    nodes = [node for _, node in sorted(ordered, key=lambda entry: entry[0])]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {node.op_type for node in nodes if node.domain == dialect.DOMAIN}
    kept = [
        entry
        for entry in model.functions
        if entry.domain != dialect.DOMAIN or entry.name in used or entry.name not in PARTS
    ]
    del model.functions[:]
    model.functions.extend(kept)
    return True


def _is_part(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in PARTS


def _places(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, int]]:
    """Every node with the number of the last region before it, or its own: -1, 0, 1, ...

    From a region nothing leads back into it: what reads a node that is no layer by counts, and comes
    behind a region, is in a later one.
    """
    place: dict[str, int] = {}
    inside: set[str] = set()
    found = []
    for node in graph.node:
        names = [name for name in _names(node) if name in place]
        if _is_part(node):
            here = max([0, *(place[name] + (name not in inside) for name in names)])
            inside.update(node.output)
        else:
            here = max([-1, *(place[name] for name in names)])
        place.update(dict.fromkeys(node.output, here))
        found.append((node, here))
    return found


def _names(node: onnx.NodeProto) -> list[str]:
    """What a node and the graphs in it read."""
    inner = [name for a in node.attribute for each in a.g.node for name in _names(each)]
    return [*node.input, *inner]


def _regions(graph: onnx.GraphProto) -> dict[int, list[onnx.NodeProto]]:
    """Layers by counts that are one node together."""
    regions: dict[int, list[onnx.NodeProto]] = {}
    for node, place in _places(graph):
        if _is_part(node):
            regions.setdefault(place, []).append(node)
    return regions


def _read_elsewhere(place: int, regions: dict[int, list[onnx.NodeProto]]) -> set[str]:
    others = (nodes for other, nodes in regions.items() if other != place)
    return {name for nodes in others for node in nodes for name in node.input}


def _fused(nodes: Sequence[onnx.NodeProto], wanted: set[str], name: str) -> onnx.NodeProto:
    """One node for these, of which others read what is `wanted`."""
    made = {node.output[0]: k for k, node in enumerate(nodes)}
    given = list(dict.fromkeys(n for node in nodes for n in node.input if n not in made))
    number = {value: i for i, value in enumerate(given)}
    number |= {value: len(given) + k for value, k in made.items()}
    results = [value for value in made if value in wanted]
    fused = helper.make_node(
        FUSED,
        given,
        results,
        name=name,
        domain=dialect.DOMAIN,
        given=len(given),
        operators=len(nodes),
        results=[made[value] for value in results],
    )
    for k, node in enumerate(nodes):
        fused.attribute.append(helper.make_attribute(f"{k}.operator", node.op_type))
        inputs = [number[value] for value in node.input]
        fused.attribute.append(helper.make_attribute(f"{k}.inputs", inputs))
        for attribute in node.attribute:
            own = fused.attribute.add()
            own.CopyFrom(attribute)
            own.name = f"{k}.{attribute.name}"
    return fused
