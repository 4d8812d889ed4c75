"""Shared by the tests: models from ONNX text, passes up to a given one, runs in onnxruntime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from snncompiler import pipeline
from snncompiler.errors import Refused
from snncompiler.findings import Finding
from snncompiler.ir.graph import Graph, export_model, import_model
from snncompiler.ir.settings import Options
from snncompiler.passes.base import Context, run_passes
from snncompiler.passes.source.verify_input import verify_input
from snncompiler.runtime.session import create_session

Array = NDArray[Any]


def parse(
    text: str,
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    imports: str = "",
) -> onnx.ModelProto:
    """The model of an ONNX text without its header, with `weights` added as initializers."""
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>\n'
    model: onnx.ModelProto = onnx.parser.parse_model(header + text)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def in_type(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """The same network with its inputs, outputs, weights and constants in another float type."""
    target = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    tensors = [a.t for node in graph.node for a in node.attribute if a.name == "value"]
    for tensor in (*graph.initializer, *tensors):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), tensor.name))
    for entry in (*graph.input, *graph.output):
        if entry.type.tensor_type.elem_type in FLOATS:
            entry.type.tensor_type.elem_type = target
    del graph.value_info[:]
    return twin


#: The float types in which networks are exported.
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def told(model: onnx.ModelProto) -> dict[str, Any]:
    """What a compiled file says of itself: its metadata without `snnc.`, and its options as values."""
    found = {entry.key.removeprefix("snnc."): entry.value for entry in model.metadata_props}
    return {**found, **json.loads(found["options"])}


def tell(model: onnx.ModelProto, **values: Any) -> None:
    """Change what a compiled file says of itself."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    options = json.loads(entries["snnc.options"])
    for key, value in values.items():
        if key in options:
            options[key] = value
        else:
            entries[f"snnc.{key}"] = str(value)
    onnx.helper.set_model_props(model, {**entries, "snnc.options": json.dumps(options)})


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    """Seeded standard-normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_model(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    """All outputs of a model in onnxruntime, one thread, function bodies for our operators."""
    outputs: list[Array] = create_session(model, threads=1, native=False).run(None, feeds)
    return outputs


def after(model: onnx.ModelProto, last: str = "", strict: bool = False) -> tuple[Graph, Context]:
    """The graph after verify-input and the normalization passes up to and with `last`."""
    checked, findings = verify_input(model)
    passes = pipeline.normalization_passes(strict=strict)
    names = [step.name for step in passes]
    assert not last or last in names, f"no pass {last}"
    graph, context = import_model(checked), Context(findings=findings)
    context.output_types = {output.name: np.dtype(output.dtype) for output in graph.outputs}
    run_passes(passes[: names.index(last) + 1] if last else passes, graph, context)
    return graph, context


def rewritten(model: onnx.ModelProto, last: str = "") -> onnx.ModelProto:
    """The model after the passes up to and with `last`."""
    return export_model(after(model, last)[0])


def ops(model: onnx.ModelProto | Graph) -> list[str]:
    """The operators of a graph, in its order."""
    if isinstance(model, onnx.ModelProto):
        return [node.op_type for node in model.graph.node]
    return [node.op for node in model.nodes]


def op_counts(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator is there, in the graph and its subgraphs."""
    counts: Counter[str] = Counter()
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            counts[node.op_type] += 1
            pending += [a.g for a in node.attribute if a.HasField("g")]
    return counts


def refused(model: Any, *, strict: bool = False) -> Sequence[Finding]:
    """The findings with which `prepare` refuses the model."""
    with pytest.raises(Refused) as caught:
        pipeline.prepare(model, strict=strict)
    return [finding for finding in caught.value.findings if finding.severity == "error"]


def codes(findings: Sequence[Finding]) -> list[str]:
    return sorted(finding.code for finding in findings)


def assert_close(found: Array, wanted: Array, *, relative: float) -> None:
    """|found - wanted| <= relative * max|wanted|; the caller explains `relative`."""
    assert found.shape == wanted.shape
    scale = float(np.abs(wanted).max(initial=0.0))
    error = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    assert error <= relative * scale, f"error {error:.3g} of {scale:.3g}, allowed {relative:.1g}"


def compile_text(
    model: onnx.ModelProto, data: Array | Mapping[str, Array], **options: Any
) -> onnx.ModelProto:
    """The spiking model, calibrated on `data` (thresholds: the maxima, unless asked otherwise)."""
    chosen = {"threshold": "max", "correction": "none", "readout": "mean", **options}
    return pipeline.compile_model(model, Options(**chosen), data).model


def same(model: onnx.ModelProto, last: str, *shape: int) -> list[str]:
    """The operators after `last`; source and result agree in onnxruntime on one sample of a `shape`."""
    result = rewritten(model, last)
    x = random(7, *shape)
    for now, before in zip(run_model(result, x=x), run_model(model, x=x), strict=True):
        # Sums of at most 16 products, once in the source's order and once in ours: 16 roundings of
        # 2^-24 each way, with room to spare.
        assert_close(now, before, relative=32 * 2.0**-24)
    return ops(result)
