"""Rewrite a source to the base opset: one default domain, no initializers as inputs, no maps."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from snncompiler.errors import refuse
from snncompiler.findings import Finding, describe
from snncompiler.ir import dialect
from snncompiler.ir.graph import unique_name
from snncompiler.passes.source.spell_quantized import MICROSOFT

#: What `asymmetric` and its rounding are written in.
_RESIZE_MODES = ("coordinate_transformation_mode", "nearest_mode")
#: The newest that the installed onnx knows.
NEWEST_OPSET = onnx.defs.onnx_opset_version()


def unify_default_domain(model: onnx.ModelProto) -> None:
    """`ai.onnx` is another spelling of the default domain; the same import again says nothing new."""
    owners = [model, *model.functions]
    for owner in owners:
        imports: list[tuple[str, int]] = []
        for entry in owner.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if (domain, entry.version) not in imports:
                imports.append((domain, entry.version))
        del owner.opset_import[:]
        owner.opset_import.extend(helper.make_opsetid(*entry) for entry in imports)
    for node in (*model.graph.node, *(n for f in model.functions for n in f.node)):
        if node.domain == "ai.onnx":
            node.domain = ""


def opset_of(model: onnx.ModelProto) -> int | None:
    versions = [o.version for o in model.opset_import if o.domain == ""]
    return versions[0] if versions else None


def tensor_names_of(graph: onnx.GraphProto) -> set[str]:
    """The names of all tensors of a graph."""
    entries = (*graph.input, *graph.output, *graph.initializer)
    names = {entry.name for entry in entries}
    return names.union(*((*node.input, *node.output) for node in graph.node))


def cut_by_slicing(graph: onnx.GraphProto, opset: int) -> None:
    """Write a Pad with negative pads as a Pad and a Slice.

    onnx's shape inference ends the process where such a Pad leaves less than nothing; a Slice leaves
    nothing then.  Pads are an attribute before opset 11, and what a Slice cuts before opset 10.
    """
    taken = tensor_names_of(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                constants[node.output[0]] = attribute.t
    nodes = []
    for node in graph.node:
        nodes.append(node)
        given = next((a for a in node.attribute if a.name in ("pads", "paddings")), None)
        if node.op_type != "Pad":
            continue
        if given is not None:
            pads = np.array(given.ints, np.int64)
        elif len(node.input) > 1 and node.input[1] in constants:
            pads = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).astype(np.int64)
        else:
            continue
        if not (pads < 0).any():
            continue
        axes = node.input[3] if len(node.input) > 3 else ""
        begins, ends = np.split(pads, 2)
        base = unique_name(f"{node.output[0]}/cut", taken)
        limits = {
            "starts": np.maximum(-begins, 0),
            "ends": np.where(ends < 0, ends, np.iinfo(np.int64).max),
            "axes": np.arange(begins.size),
        }
        values = {**limits, "pads": np.maximum(pads, 0)}
        if given is not None:
            given.ints[:] = values.pop("pads").tolist()
        if axes or opset < 10:
            del values["axes"]
        if opset < 10:
            del values["starts"], values["ends"]
        made = {name: unique_name(f"{base}/{name}", taken) for name in values}
        for name, array in values.items():
            graph.initializer.append(numpy_helper.from_array(array, made[name]))
        result, node.output[0] = node.output[0], base
        if given is None:
            node.input[1] = made["pads"]
        name = f"{node.name or base}/slice"
        if opset < 10:
            cut = helper.make_node("Slice", [base], [result], name=name)
            cut.attribute.extend(helper.make_attribute(*limit) for limit in limits.items())
        else:
            names = [base, made["starts"], made["ends"], axes or made["axes"]]
            cut = helper.make_node("Slice", names, [result], name=name)
        nodes.append(cut)
    if len(nodes) > len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def forget_initializer_inputs(graph: onnx.GraphProto) -> None:
    """IR versions 3 and 4 list weights as inputs; with a value they are not inputs of the network."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [entry for entry in graph.input if entry.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def give_arrays(graph: onnx.GraphProto) -> list[Finding]:
    """Let a ZipMap, with which scikit-learn's scores end, give the array that it reads.

    A map of each sample's scores is no value over which a mean can be taken or compared; what it holds
    is the array's row, and its keys are constants, which are told.  Errors for other outputs that are
    no tensors.
    """
    findings = []
    arrays: set[str] = set()
    for node in graph.node:
        if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml":
            keys = [key for a in node.attribute for key in (*a.ints, *a.strings)]
            names = ", ".join(
                k.decode(errors="replace") if isinstance(k, bytes) else str(k) for k in keys
            )
            text = f"its map is given as the array that it is made of; the columns are {names}"
            where = describe(node.op_type, node.name)
            findings.append(Finding("SNNC206", text, severity="note", node=where))
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            arrays.update(node.output)
        elif node.op_type == "Identity" and node.domain == "" and arrays.intersection(node.input):
            arrays.update(node.output)
    for output in graph.output:
        kind = output.type.WhichOneof("value")
        if output.name in arrays:
            output.type.Clear()
            output.type.tensor_type.elem_type = TensorProto.FLOAT
        elif kind not in (None, "tensor_type"):
            findings.append(
                Finding(
                    "SNNC109",
                    f"output '{output.name}' is a {kind.removesuffix('_type').replace('_', ' ')}",
                    hint="leave it out of the outputs, and give the tensors that it is made of",
                )
            )
    return findings


def without_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the arrays of its ZipMaps for its maps; itself where it has none."""
    if all(node.op_type != "ZipMap" for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    give_arrays(copy.graph)
    return copy


def complete_outputs(model: onnx.ModelProto) -> None:
    """Infer the shapes of outputs that the exporter left without one, which the checker wants."""
    kinds = [output.type.tensor_type for output in model.graph.output]
    if all(kind.HasField("shape") for kind in kinds):
        return
    inferred = onnx.shape_inference.infer_shapes(model)
    for mine, found in zip(model.graph.output, inferred.graph.output, strict=True):
        if not mine.type.tensor_type.HasField("shape"):
            mine.type.CopyFrom(found.type)


def at_base_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert up to our base opset, at one IR version."""
    model.ir_version = dialect.MAX_IR_VERSION
    opset = opset_of(model)
    assert opset is not None
    # onnxruntime's own QuantizeLinear has types that the standard's has from opset 21 on.
    pairs = ((MICROSOFT, "QuantizeLinear"), (MICROSOFT, "DequantizeLinear"))
    wide = any((node.domain, node.op_type) in pairs for node in model.graph.node)
    base = 21 if wide else dialect.BASE_OPSET
    if opset >= base:
        return model
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, base)
    except Exception as error:
        raise refuse(
            "SNNC102",
            f"opset {opset} cannot be converted to {base}: {str(error).strip().splitlines()[-1]}",
            hint=f"export it again with opset {base}",
        ) from None
    converted.ir_version = dialect.MAX_IR_VERSION
    if opset < 11:
        _old_resize(converted.graph)
    return converted


def _old_resize(graph: onnx.GraphProto) -> None:
    """Before opset 11, Upsample and Resize meant what is now `asymmetric`; the converter leaves the new
    default, half_pixel.  Nearest rounded down on axes that grow, and up on axes that shrink."""
    taken = tensor_names_of(graph)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                scales[node.output[0]] = numpy_helper.to_array(attribute.t)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Resize":
            continue
        factors = scales.get(node.input[2]) if len(node.input) > 2 else None
        shrinks = factors is not None and bool((factors < 1).any())
        if factors is not None and shrinks and (factors > 1).any():
            # Both roundings in one node: first the axes that grow, then those that shrink.
            result, base = node.output[0], unique_name(f"{node.output[0]}/grown", taken)
            up, down = (unique_name(f"{base}/{x}", taken) for x in ("up", "down"))
            for name, part in ((up, np.maximum(factors, 1)), (down, np.minimum(factors, 1))):
                graph.initializer.append(numpy_helper.from_array(part, name))
            second = onnx.NodeProto()
            second.CopyFrom(node)
            node.input[2], node.output[0] = up, base
            second.input[0], second.input[2] = base, down
            second.output[0], second.name = result, f"{node.name or base}/shrink"
            _asymmetric(second, "ceil")
            nodes.append(second)
            shrinks = False
        _asymmetric(node, "ceil" if shrinks else "floor")
    if len(nodes) > len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def _asymmetric(node: onnx.NodeProto, nearest: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in _RESIZE_MODES]
    del node.attribute[:]
    node.attribute.extend(kept)
    modes = dict(zip(_RESIZE_MODES, ("asymmetric", nearest), strict=True))
    node.attribute.extend(helper.make_attribute(name, mode) for name, mode in modes.items())
