"""Write the preprocessing of scikit-learn pipelines (ai.onnx.ml) in ONNX's own operators.

    Scaler             (x - offset)·scale
    Imputer            Where(x is the value that is replaced, what replaces it, x)
    Binarizer          x > threshold, as a float
    Normalizer         x over its row's largest |x|, its sum or its root of squares; 1 for 0
    FeatureVectorizer  Concat along the last axis
    LinearRegressor    MatMul and Add, where nothing is done behind it
ONNX infers no shapes for these, so that nothing behind them would have a rank.  The other operators of
the domain stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from snncompiler.ir.graph import Graph, Node, Tensor, constant, tensor_names, unique_name
from snncompiler.passes.base import Context, Pass

DOMAIN = "ai.onnx.ml"


@dataclass(frozen=True)
class SpellMl(Pass):
    """Scaler, Imputer, Normalizer and their like become Sub, Mul, Where, Div."""

    name: ClassVar[str] = "spell-ml"
    ensures: ClassVar[frozenset[str]] = frozenset({"ml-spelled"})

    def run(self, graph: Graph, context: Context) -> None:
        taken = tensor_names(graph)
        nodes: list[Node] = []
        for node in graph.nodes:
            writer = _Writer(node, taken)
            if node.domain == DOMAIN and node.op in _SPELLED:
                result = _SPELLED[node.op](writer)
                if result is not None:
                    writer.replace(result)
                    nodes += writer.made
                    continue
            nodes.append(node)
        graph.nodes = nodes


@dataclass
class _Writer:
    """Makes the nodes that stand for one node."""

    node: Node
    taken: set[str]

    def __post_init__(self) -> None:
        self.made: list[Node] = []

    def apply(self, op: str, *inputs: Tensor | NDArray[Any], **attrs: Any) -> Tensor:
        given = [
            x if isinstance(x, gs.Tensor) else constant(f"{self.node.name}/constant", x, self.taken)
            for x in inputs
        ]
        result = gs.Variable(unique_name(f"{self.node.name}/{op.lower()}", self.taken))
        self.made.append(gs.Node(op, result.name, attrs, inputs=given, outputs=[result]))
        return result

    def floats(self, tensor: Tensor) -> Tensor:
        return self.apply("Cast", tensor, to=int(TensorProto.FLOAT))

    def numbers(self, key: str, default: float) -> NDArray[np.float32]:
        """An attribute with one value for all features, or one for each."""
        return np.asarray(self.node.attrs.get(key) or [default], np.float32)

    def replace(self, result: Tensor) -> None:
        last = self.made[-1]
        assert last.outputs[0] is result
        output = self.node.outputs[0]
        last.name = self.node.name
        self.node.inputs.clear()
        self.node.outputs.clear()
        last.outputs[0] = output


def _scaler(writer: _Writer) -> Tensor:
    x = writer.floats(writer.node.inputs[0])
    moved = writer.apply("Sub", x, writer.numbers("offset", 0.0))
    return writer.apply("Mul", moved, writer.numbers("scale", 1.0))


def _imputer(writer: _Writer) -> Tensor | None:
    attrs, x = writer.node.attrs, writer.node.inputs[0]
    filling = attrs.get("imputed_value_floats")
    if not filling:
        return None  # of whole numbers
    replaced = float(attrs.get("replaced_value_float", 0.0))
    if np.isnan(replaced):
        missing = writer.apply("IsNaN", x)
    else:
        missing = writer.apply("Equal", x, np.asarray(replaced, np.float32))
    return writer.apply("Where", missing, np.asarray(filling, np.float32), x)


def _binarizer(writer: _Writer) -> Tensor:
    x = writer.floats(writer.node.inputs[0])
    above = writer.apply("Greater", x, np.float32(writer.node.attrs.get("threshold", 0.0)) + _ZERO)
    return writer.floats(above)


def _normalizer(writer: _Writer) -> Tensor | None:
    kind = str(writer.node.attrs.get("norm", "MAX"))
    if kind not in ("L1", "L2"):
        return None  # the largest value, with or without its sign: ONNX does not say
    x = writer.floats(writer.node.inputs[0])
    parts = writer.apply("Abs", x) if kind == "L1" else writer.apply("Mul", x, x)
    size = writer.apply("ReduceSum", parts, np.array([-1], np.int64), keepdims=1)
    if kind == "L2":
        size = writer.apply("Sqrt", size)
    nothing = writer.apply("Equal", size, _ZERO)
    return writer.apply("Div", x, writer.apply("Where", nothing, _ZERO + np.float32(1), size))


def _feature_vectorizer(writer: _Writer) -> Tensor:
    columns = [writer.floats(tensor) for tensor in writer.node.inputs]
    return writer.apply("Concat", *columns, axis=-1)


def _linear_regressor(writer: _Writer) -> Tensor | None:
    attrs = writer.node.attrs
    if attrs.get("post_transform", "NONE") != "NONE" or not attrs.get("coefficients"):
        return None
    targets = int(attrs.get("targets", 1))
    weights = np.asarray(attrs["coefficients"], np.float32).reshape(targets, -1).T
    product = writer.apply("MatMul", writer.floats(writer.node.inputs[0]), weights)
    shift = np.asarray(attrs.get("intercepts") or [0.0] * targets, np.float32)
    return writer.apply("Add", product, shift)


_ZERO = np.zeros((), np.float32)

_SPELLED: dict[str, Callable[[_Writer], Tensor | None]] = {
    "Scaler": _scaler,
    "Imputer": _imputer,
    "Binarizer": _binarizer,
    "Normalizer": _normalizer,
    "FeatureVectorizer": _feature_vectorizer,
    "LinearRegressor": _linear_regressor,
}
