"""Check what is about to be written: the ONNX checker, shape inference, and rules of our own."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from snncompiler.errors import InternalError
from snncompiler.ir import dialect
from snncompiler.passes.lower.attach_functions import operators_in


def verify_output(model: onnx.ModelProto) -> None:
    """Raises InternalError where the emitted model breaks a rule."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"the emitted model is not valid ONNX: {error}") from error
    bodies = {function.name for function in model.functions if function.domain == dialect.DOMAIN}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    used = {body.name for body in dialect.functions(operators_in(model.graph.node), opset)}
    if used != bodies:
        raise InternalError(f"operators {sorted(used)} but bodies {sorted(bodies)}")
    if any(entry.version > 0 and entry.domain == "ai.onnx" for entry in model.opset_import):
        raise InternalError("the default domain is spelled ai.onnx")
    for threshold in _thresholds(model.graph, {}):
        values = numpy_helper.to_array(threshold)
        if not (values > 0).all() or not (values < float("inf")).all():
            raise InternalError(f"threshold {threshold.name} is not finite and positive")


def _thresholds(
    graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]
) -> list[onnx.TensorProto]:
    """The initializers that neurons read as thresholds, in the graph and its subgraphs."""
    names = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    found = []
    for node in graph.node:
        if node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS:
            found.append(names[node.input[1]])
        elif node.domain == dialect.DOMAIN and node.op_type in dialect.EVENT_NEURONS:
            ports = [port.name for port in dialect.EVENT_OPERATORS[node.op_type].inputs]
            found.append(names[node.input[ports.index("threshold")]])
        for attribute in node.attribute:
            found += _thresholds(attribute.g, names)
    return found
