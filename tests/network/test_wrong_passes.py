"""A pass that computes something else is caught by the comparison with the source: SNNC208, in check
and in compile, in small networks and in deep ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse, random

from snncompiler import pipeline
from snncompiler.cli.main import app
from snncompiler.errors import Refused
from snncompiler.ir.graph import Graph, Node, constant, constant_input, tensor_names
from snncompiler.ir.settings import Options
from snncompiler.network import prepare as preparation
from snncompiler.passes.base import Context, Pass

Wrong = Callable[[Graph], bool]


@dataclass(frozen=True)
class Followed(Pass):
    """A pass and a fault of it: what it leaves is changed."""

    real: Pass
    fault: Wrong
    seen: list[bool]
    name: ClassVar[str] = "wrong"

    def run(self, graph: Graph, context: Context) -> None:
        self.real.run(graph, context)
        self.seen.append(self.fault(graph))
        graph.cleanup().toposort()
        context.facts |= self.real.ensures


def scaled(seed: int, *shape: int) -> Array:
    return np.asarray(random(seed, *shape) * np.sqrt(2 / np.prod(shape[1:])), np.float32)


def network(layers: int) -> onnx.ModelProto:
    """`layers` blocks: a padded convolution, a batch-norm and a ReLU6; an affine step and a residual; a
    strided convolution with a pooling; a linear layer."""
    weights: dict[str, Array] = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "low": np.float32(0),
        "high": np.float32(1),
        "gain": np.linspace(0.5, 1.5, 8, dtype=np.float32).reshape(8, 1, 1),
        "shift": np.linspace(-0.4, 0.6, 8, dtype=np.float32).reshape(8, 1, 1),
        "e": scaled(90, 8, 8, 3, 3),
        "o": scaled(91, 5, 8),
        "last": random(92, 5),
    }
    text, source, channels = "", "x", 3
    for at in range(layers):
        weights |= {
            f"w{at}": scaled(at, 8, channels, 3, 3),
            f"g{at}": 1 + random(100 + at, 8) / 8,
            f"b{at}": random(200 + at, 8) / 3,
            f"m{at}": random(300 + at, 8) / 3,
            f"v{at}": 0.5 + np.abs(random(400 + at, 8)),
        }
        text += f"""p{at} = Pad ({source}, pads)  c{at} = Conv (p{at}, w{at})
        n{at} = BatchNormalization (c{at}, g{at}, b{at}, m{at}, v{at})  r{at} = Clip (n{at}, low, high)
        """
        source, channels = f"r{at}", 8
    text += f"""a = Mul ({source}, gain)  h = Add (a, shift)  t = Relu (h)  u = Add (t, {source})
    d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (u, e)  q = Relu (d)
    k = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)  f = GlobalAveragePool (k)
    z = Flatten (f)  y = Gemm <transB = 1> (z, o, last)"""
    weights = {name: np.asarray(array, array.dtype) for name, array in weights.items()}
    return parse(f"g (float[N,3,12,12] x) => (float[N,5] y) {{ {text} }}", weights)


# --- faults ---


def of(graph: Graph, *ops: str) -> list[Node]:
    return [node for node in graph.nodes if node.op in ops]


def biased(factor: float) -> Wrong:
    """The bias of the first convolution that has one is multiplied."""

    def fault(graph: Graph) -> bool:
        for node in of(graph, "Conv"):
            bias = constant_input(node, 2)
            if bias is not None:
                taken = tensor_names(graph)
                node.inputs[2] = constant("wrong_bias", bias * np.float32(factor), taken)
                return True
        return False

    return fault


def without(op: str, at: int = 0) -> Wrong:
    """One node of an operator is taken out."""

    def fault(graph: Graph) -> bool:
        found = of(graph, op)
        if not found:
            return False
        node = found[at]
        source, result = node.inputs[0], node.outputs[0]
        for user in list(result.outputs):
            user.inputs = [source if tensor is result else tensor for tensor in user.inputs]
        node.outputs.clear()
        return True

    return fault


def swapped_past_a_stride(graph: Graph) -> bool:
    """ReLU, MaxPool on a strided convolution become MaxPool, convolution, ReLU."""
    pool = of(graph, "MaxPool")[0]
    rectifier = pool.inputs[0].inputs[0]
    if rectifier.op != "Relu" or rectifier.inputs[0].inputs[0].op != "Conv":
        return False
    convolution = rectifier.inputs[0].inputs[0]
    result, pooled, before = pool.outputs[0], rectifier.outputs[0], convolution.inputs[0]
    for user in list(result.outputs):
        user.inputs = [pooled if tensor is result else tensor for tensor in user.inputs]
    pool.inputs[0] = before
    convolution.inputs[0] = result
    for tensor in (result, pooled, convolution.outputs[0]):
        tensor.shape = None
    return True


def bound_lost(graph: Graph) -> bool:
    """A Clip that is spelled as a ReLU."""
    for node in of(graph, "Clip"):
        node.op, node.inputs = "Relu", node.inputs[:1]
        return True
    return False


def transposed(graph: Graph) -> bool:
    """The channels of a convolution's result in another order."""
    node = of(graph, "Conv")[-1]
    weights = constant_input(node, 1)
    assert weights is not None
    node.inputs[1] = constant("wrong_weights", weights[::-1].copy(), tensor_names(graph))
    return True


#: The pass, and what it does wrong.
FAULTS: dict[str, tuple[str, Wrong]] = {
    "batch-norm with the wrong sign": ("fold-batch-norm", biased(-1)),
    "batch-norm without its shift": ("fold-batch-norm", biased(0)),
    "affine step twice": ("fold-affine", biased(2)),
    "dropped Pad": ("unify-linear", without("Pad")),
    "pooling past a strided convolution": ("swap-max-pool", swapped_past_a_stride),
    "bound lost": ("spell-rectifiers", bound_lost),
    "lost ReLU": ("remove-noops", without("Relu")),
    "residual lost": ("remove-noops", without("Add", -1)),
    "channels in another order": ("unify-linear", transposed),
}


def with_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Put the fault into the passes; the list says whether it found its place.

    As in a user's run, no check looks at the graph after each pass: the outputs have to tell.
    """
    monkeypatch.setenv("SNNC_CHECK_PASSES", "0")
    place, fault = FAULTS[name]
    seen: list[bool] = []
    real = preparation.normalization_passes

    def passes(**options: Any) -> list[Pass]:
        steps = real(**options)
        assert place in [step.name for step in steps]
        return [Followed(step, fault, seen) if step.name == place else step for step in steps]

    monkeypatch.setattr(preparation, "normalization_passes", passes)
    return seen


@pytest.mark.parametrize("layers", [1, 10])
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_pass_is_caught(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model = network(layers)
    x = random(0, 8, 3, 12, 12)
    assert "SNNC208" not in codes(
        pipeline.compile_model(model, Options(steps=4), x).prepared.findings
    )
    seen = with_fault(name, monkeypatch)
    for data in (None, x):
        with pytest.raises(Refused, match="SNNC208"):
            pipeline.compile_model(model, Options(steps=4), data)
    assert seen and all(seen)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert app(["check", str(path)], standalone_mode=False) == 1
    assert "SNNC208" in capsys.readouterr().err
