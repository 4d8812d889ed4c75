"""Check a model before anything is done to it: versions, structure, operators, weights.

onnxruntime and the ONNX checker accept much of this silently, so the checks are ours.  All findings
come at once.  Afterwards the graph is topologically sorted, at a supported opset, without local
functions, and its initializers are no inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from snncompiler.errors import Refused, refuse
from snncompiler.findings import Finding, describe, errors_of
from snncompiler.ir.operators import record
from snncompiler.passes.source.spell_quantized import MICROSOFT
from snncompiler.passes.source.spell_quantized import RULES as QUANTIZED
from snncompiler.passes.source.to_base_opset import (
    NEWEST_OPSET,
    at_base_opset,
    complete_outputs,
    cut_by_slicing,
    forget_initializer_inputs,
    give_arrays,
    opset_of,
    unify_default_domain,
)
from snncompiler.passes.source.widen_weights import widen_activations, widen_weights

OLDEST_OPSET = 7
NEWEST_IR = int(onnx.IR_VERSION)

#: Local functions may expand to at most this many nodes.
MAX_EXPANDED = 1_000_000

_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_SUPPORTED = {
    *_FLOATS, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8,
    TensorProto.INT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32,
    TensorProto.UINT64, TensorProto.STRING,
}  # fmt: skip


def verify_input(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Finding]]:
    """The checked model at a supported opset, and the warnings.  Raises Refused with every error."""
    _refuse_compiled(model)
    unify_default_domain(model)
    findings = _versions(model)
    if errors_of(findings):
        raise Refused(*findings)
    model = _inline(model)
    findings += _structure(model.graph)
    if errors_of(findings):
        raise Refused(*findings)
    model = widen_activations(widen_weights(model))
    findings += _operators(model) + _weights(model.graph)
    if errors_of(findings):
        raise Refused(*findings)
    forget_initializer_inputs(model.graph)
    cut_by_slicing(model.graph, opset_of(model) or NEWEST_OPSET)
    findings += _checked(model)
    if errors_of(findings):
        raise Refused(*findings)
    findings += give_arrays(model.graph)
    if errors_of(findings):
        raise Refused(*findings)
    return at_base_opset(model), findings


def _refuse_compiled(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if entry.key == "snnc.version":
            raise refuse(
                "SNNC114",
                f"the model was already compiled by snnc {entry.value}",
                hint="compile the network that it was made from",
            )


def _versions(model: onnx.ModelProto) -> list[Finding]:
    findings = []
    opset = opset_of(model)
    if opset is None:
        findings.append(Finding("SNNC102", "the model imports no ONNX opset"))
    elif not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        findings.append(
            Finding(
                "SNNC102",
                f"opset {opset} is outside the supported range {OLDEST_OPSET} to {NEWEST_OPSET}",
                hint="export it again with a supported opset",
            )
        )
    for domain, count in Counter(entry.domain for entry in model.opset_import).items():
        if count > 1:
            versions = [str(e.version) for e in model.opset_import if e.domain == domain]
            text = (
                f"domain '{domain or 'ai.onnx'}' is imported in {count} versions, "
                f"{' and '.join(versions)}"
            )
            hint = "keep the one that the operators are of"
            findings.append(Finding("SNNC102", text, hint=hint))
    for entry in model.opset_import:
        if entry.domain and not 1 <= entry.version < 1 << 31:
            text = f"version {entry.version} of domain '{entry.domain}' does not exist"
            findings.append(Finding("SNNC102", text))
    if not 3 <= model.ir_version <= NEWEST_IR:
        findings.append(
            Finding(
                "SNNC102",
                f"ir_version {model.ir_version} is outside the supported range 3 to {NEWEST_IR}",
            )
        )
    return findings


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions, their expanded size checked first."""
    if not model.functions:
        return model
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_now: set[tuple[str, str]] = set()

    # Depth-first without recursion: a function is finished after everything that it calls.
    stack = [(key, False) for key in bodies]
    while stack:
        key, leaving = stack.pop()
        inside = _all_nodes(bodies[key].node)
        called = [(n.domain, n.op_type) for n in inside if (n.domain, n.op_type) in bodies]
        if leaving:
            open_now.discard(key)
            inner = sum(sizes[other] for other in called)
            sizes[key] = min(len(inside) + inner, MAX_EXPANDED + 1)
            continue
        if key in sizes:
            continue
        open_now.add(key)
        stack.append((key, True))
        for other in called:
            if other in open_now:
                raise refuse("SNNC112", f"function '{other[1]}' calls itself", node=other[1])
            if other not in sizes:
                stack.append((other, False))
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in _all_nodes(model.graph.node))
    if total > MAX_EXPANDED:
        raise refuse(
            "SNNC112", f"its functions expand to more than {MAX_EXPANDED:,} nodes",
            hint="is the file what it claims to be?",
        )  # fmt: skip
    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise refuse("SNNC112", f"its functions cannot be expanded: {_one_line(error)}") from None
    # What is left is not expanded: where it is called, it is an unknown operator.
    del inlined.functions[:]
    return inlined


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes and those of all their subgraphs, without recursion."""
    found: list[onnx.NodeProto] = []
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        found.append(node)
        for attribute in node.attribute:
            waiting += attribute.g.node
            for graph in attribute.graphs:
                waiting += graph.node
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _structure(graph: onnx.GraphProto) -> list[Finding]:
    """Names defined once and before use; the nodes are sorted where they were not."""
    findings: list[Finding] = []
    weights = [tensor.name for tensor in graph.initializer]
    for name, count in Counter(weights).items():
        if count > 1:
            findings.append(
                Finding(
                    "SNNC105",
                    f"initializer '{name}' is there {count} times: which one wins is undefined",
                )
            )
    sparse = [tensor.values.name for tensor in graph.sparse_initializer]
    given = set(weights) | set(sparse) | {tensor.name for tensor in graph.input}
    defined: dict[str, str] = dict.fromkeys(given, "the inputs")
    for node in graph.node:
        for name in node.output:
            if name and name in defined:
                findings.append(
                    Finding(
                        "SNNC103",
                        f"'{name}' is defined twice, also by {defined[name]}",
                        node=describe(node.op_type, node.name),
                    )
                )
            elif name:
                defined[name] = describe(node.op_type, node.name)
    for node in graph.node:
        for name in node.input:
            if name and name not in defined:
                findings.append(
                    Finding(
                        "SNNC103",
                        f"reads '{name}', which nothing defines",
                        node=describe(node.op_type, node.name),
                    )
                )
    for output in graph.output:
        if output.name not in defined:
            findings.append(Finding("SNNC103", f"output '{output.name}' is never defined"))
    return findings or _sort(graph, given)


def _sort(graph: onnx.GraphProto, given: set[str]) -> list[Finding]:
    """Sort the nodes topologically in place; an error names the nodes of a cycle."""
    seen = set(given)
    in_order = True
    for node in graph.node:
        in_order = in_order and all(not name or name in seen for name in node.input)
        seen.update(node.output)
    if in_order:
        return []
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waiting = [len({makers[n] for n in node.input if n in makers}) for node in graph.node]
    users: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        for maker in {makers[name] for name in node.input if name in makers}:
            users.setdefault(maker, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for user in users.get(index, []):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(order) < len(graph.node):
        left = sorted(set(range(len(graph.node))) - set(order))[:5]
        names = ", ".join(describe(graph.node[i].op_type, graph.node[i].name) for i in left)
        return [Finding("SNNC103", f"the graph has a cycle through {names}")]
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return [
        Finding("SNNC104", "the nodes were not in topological order; sorted", severity="warning")
    ]


def _operators(model: onnx.ModelProto) -> list[Finding]:
    findings = []
    versions = {o.domain: o.version for o in model.opset_import}
    for node in model.graph.node:
        where = describe(node.op_type, node.name)
        domain = node.domain
        if domain == "" and node.op_type in _CONTROL_FLOW:
            findings.append(
                Finding(
                    "SNNC111",
                    f"{node.op_type} is control flow, which is not supported",
                    node=where,
                    hint="export the network without data-dependent control flow",
                )
            )
            continue
        problem = _attribute_problem(node)
        if any(attribute.ref_attr_name for attribute in node.attribute):
            problem = "an attribute refers to a function's, but it stands in no function"
        if problem:
            findings.append(Finding("SNNC110", problem, node=where))
        if (domain, node.op_type) in QUANTIZED and domain in versions:
            continue
        if domain not in versions or not onnx.defs.has(node.op_type, versions[domain], domain):
            spelled = f"{domain}.{node.op_type}" if domain else node.op_type
            findings.append(
                Finding(
                    "SNNC106",
                    f"operator {spelled} is not known to ONNX opset {versions.get(domain, '?')}",
                    node=where,
                    hint=_MICROSOFT_HINT
                    if domain == MICROSOFT
                    else "only standard operators can be converted",
                )
            )
    return findings


_MICROSOFT_HINT = (
    "give the network as it was exported, before onnxruntime's optimizer; quantize it with "
    "QuantFormat.QDQ"
)

_PADDINGS = (b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID")


def _attribute_problem(node: onnx.NodeProto) -> str:
    """What is wrong with the attributes of a convolution or pooling; empty if nothing is."""
    if record(node.op_type).over != "window":
        return ""
    for attribute in node.attribute:
        sizes = list(attribute.ints)
        if attribute.name == "auto_pad" and attribute.s not in _PADDINGS:
            return f"auto_pad is '{attribute.s.decode(errors='replace')}'"
        if attribute.name in ("strides", "dilations", "kernel_shape") and any(s < 1 for s in sizes):
            return f"{attribute.name} is {sizes}, every value must be at least 1"
        if attribute.name == "group" and attribute.i < 1:
            return f"group is {attribute.i}, it must be at least 1"
    return ""


def _group_problem(node: onnx.NodeProto, shapes: dict[str, list[int | None]]) -> str:
    """Why a convolution's group, weights and channels do not fit; empty if they do."""
    layout = record(node.op_type).weights
    if layout not in ("outputs-first", "inputs-first") or len(node.input) < 2:
        return ""
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    x, weights = shapes.get(node.input[0]), shapes.get(node.input[1])
    if not weights or len(weights) < 2 or group < 1:
        return ""
    outer, inner = weights[:2]
    if outer is not None and outer % group:
        return f"group {group} does not divide the {outer} rows of its weights"
    wanted = outer
    if layout == "outputs-first":
        wanted = None if inner is None else inner * group
    channels = x[1] if x and len(x) > 1 else None
    if wanted is not None and channels is not None and wanted != channels:
        return f"it has {channels} input channels, its weights and group {group} need {wanted}"
    return ""


def _weights(graph: onnx.GraphProto) -> list[Finding]:
    findings = []
    for sparse in graph.sparse_initializer:
        findings.append(Finding("SNNC109", f"weight '{sparse.values.name}' is sparse"))
    constants = []
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value":
                where = describe(node.op_type, node.name)
                findings.append(Finding("SNNC109", "its value is sparse", node=where))
            elif attribute.name == "value":
                named = onnx.TensorProto()
                named.CopyFrom(attribute.t)
                named.name = "".join(node.output[:1])
                constants.append(named)
            elif attribute.name in ("value_float", "value_floats"):
                values = np.array([attribute.f, *attribute.floats], np.float32)
                constants.append(numpy_helper.from_array(values, "".join(node.output[:1])))
    bounds = _Bounds(graph)
    for tensor in (*graph.initializer, *constants):
        problem = _data_problem(tensor)
        if problem:
            findings.append(Finding("SNNC107", f"weight '{tensor.name}': {problem}"))
            continue
        if tensor.data_type not in _SUPPORTED:
            findings.append(
                Finding(
                    "SNNC109",
                    f"weight '{tensor.name}' has type {_type_name(tensor.data_type)}",
                    hint="export the network in float32",
                )
            )
        elif tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor)
            bad = ~np.isfinite(values)
            if bad.any() and not np.isnan(values).any() and bounds.takes(tensor.name):
                continue
            if bad.any():
                index = tuple(int(i) for i in np.argwhere(bad)[0])
                findings.append(
                    Finding(
                        "SNNC108",
                        f"weight '{tensor.name}' is {values[index]} at {list(index)}"
                        f" ({int(bad.sum()):,} such values)",
                        hint="the training diverged, or the file is damaged",
                    )
                )
    return findings


@dataclass
class _Bounds:
    """Finds the constants in which an infinity has a meaning: bounds, fillings and masks."""

    graph: onnx.GraphProto
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, index))
        self.outputs = {output.name for output in self.graph.output}

    def takes(self, name: str) -> bool:
        """Whether every reader of the constant takes an infinity for a bound, filling or mask."""
        waiting, seen = [name], {name}
        while waiting:
            tensor = waiting.pop()
            if tensor in self.outputs or tensor not in self.readers:
                return False
            for node, index in self.readers[tensor]:
                nature = record("" if node.domain else node.op_type)
                here = nature.infinite is None or index in nature.infinite
                if nature.infinity == "bound" and here:
                    continue
                if nature.infinity == "moved" and here:
                    new = node.output
                elif not node.domain and node.op_type in ("Add", "Sub") and self._masks(node):
                    new = []
                else:
                    return False
                waiting += [output for output in new if output not in seen]
                seen.update(new)
        return True

    def _masks(self, node: onnx.NodeProto) -> bool:
        """Whether a sum goes into a Softmax or a search for the largest, and nowhere else."""
        found = [reader for name in node.output for reader, _ in self.readers.get(name, [])]
        return (
            bool(found)
            and all(record(reader.op_type).infinity == "masked" for reader in found)
            and not any(name in self.outputs for name in node.output)
        )


def _data_problem(tensor: onnx.TensorProto) -> str:
    """Why the data of a tensor does not fit its type and shape, before any allocation."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == 0:
        return f"data type {tensor.data_type} does not exist"
    if tensor.HasField("segment"):
        return "it is a segment of a tensor, which is not supported"
    if any(dim < 0 for dim in tensor.dims):
        return f"shape {list(tensor.dims)} has a negative dimension"
    if prod(dim for dim in tensor.dims if dim) >= 1 << 62:
        return f"shape {list(tensor.dims)} overflows"
    elements = prod(tensor.dims)
    if not tensor.HasField("raw_data"):
        field = helper.tensor_dtype_to_field(tensor.data_type)
        held = len(getattr(tensor, field))
        expected = elements * (2 if tensor.data_type in (14, 15) else 1)
        four_bit = tensor.data_type in (21, 22, 23)
        if held != expected and not four_bit:
            return f"it has {held:,} values, shape {list(tensor.dims)} needs {expected:,}"
        return ""
    size = _itemsize(tensor.data_type)
    if size and len(tensor.raw_data) != elements * size:
        return (
            f"it has {len(tensor.raw_data):,} bytes, shape {list(tensor.dims)} "
            f"needs {elements * size:,}"
        )
    return ""


def _itemsize(data_type: int) -> int:
    """Bytes per element; 0 for strings and sub-byte types."""
    if data_type in (TensorProto.STRING, *range(21, 30)):
        return 0
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _type_name(kind: int) -> str:
    known = TensorProto.DataType.values()
    return TensorProto.DataType.Name(kind) if kind in known else f"number {kind}, which is unknown"


def _checked(model: onnx.ModelProto) -> list[Finding]:
    """What the ONNX checker and the strict shape inference say, in one line each."""
    findings = [
        Finding(
            "SNNC109",
            f"input '{entry.name}' is a {kind.removesuffix('_type').replace('_', ' ')}",
            hint="export the network with tensors as inputs",
        )
        for entry in model.graph.input
        if (kind := entry.type.WhichOneof("value") or "tensor_type") != "tensor_type"
    ]
    if findings:
        return findings
    kinds = {tensor.name: tensor.type.tensor_type.elem_type for tensor in model.graph.input}
    findings = [
        Finding(
            "SNNC109",
            f"input '{name}' has type {_type_name(kind)}",
            hint="export the network in float32",
        )
        for name, kind in kinds.items()
        if kind not in _SUPPORTED or kind == TensorProto.STRING
    ]
    findings += _types(model.graph)
    if findings:
        return findings
    try:
        # Old models without inputs for their weights pass only as a newer IR version.
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.ir_version = max(model.ir_version, 4)
        complete_outputs(probe)
        onnx.checker.check_model(probe)
        inferred = onnx.shape_inference.infer_shapes(probe, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        findings.append(Finding("SNNC110", _one_line(error)))
        return findings
    made = (*inferred.graph.value_info, *inferred.graph.output)
    types = {entry.name: entry.type.tensor_type.elem_type for entry in made}
    shapes = _shapes(inferred.graph)
    for node in model.graph.node:
        for kind in {types.get(name, 0) for name in node.output} - {0} - _SUPPORTED:
            findings.append(
                Finding(
                    "SNNC109",
                    f"it computes values of type {_type_name(kind)}",
                    node=describe(node.op_type, node.name),
                    hint="export the network in float32",
                )
            )
        problem = _group_problem(node, shapes)
        if problem:
            where = describe(node.op_type, node.name)
            findings.append(Finding("SNNC110", problem, node=where))
    return findings


def _types(graph: onnx.GraphProto) -> list[Finding]:
    """What is wrong with the declared types of inputs, outputs and values."""
    findings = []
    known = set(TensorProto.DataType.values()) - {0}
    for entry in graph.input:
        sizes = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        if any(size < 0 for size in sizes):
            findings.append(
                Finding("SNNC107", f"input '{entry.name}' has a negative size: {sizes}")
            )
    for entry in (*graph.output, *graph.value_info):
        other = entry.type.WhichOneof("value") not in (None, "tensor_type")
        untyped = entry.type.WhichOneof("value") is None and entry not in graph.output
        if not other and not untyped and entry.type.tensor_type.elem_type not in known:
            kind = _type_name(entry.type.tensor_type.elem_type)
            findings.append(Finding("SNNC110", f"the declared type of '{entry.name}' is {kind}"))
    return findings


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """The shapes that are known, None for a dimension that is not."""
    found: dict[str, list[int | None]] = {t.name: list(t.dims) for t in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        kind = entry.type.tensor_type
        if kind.HasField("shape"):
            found[entry.name] = [
                dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim
            ]
    return found
