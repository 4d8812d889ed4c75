"""average-max-pool: which poolings become averages, and of what windows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import ops, parse, random, run_model

from snncompiler import pipeline
from snncompiler.ir.graph import export_model, import_model
from snncompiler.passes.base import Context, run_passes

WINDOW = "kernel_shape = [2, 3], strides = [2, 1]"


def averaged(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model after the pass, and the nodes of which it warns."""
    passes = pipeline.normalization_passes(maxpool="average")
    names = [step.name for step in passes]
    graph, context = import_model(model), Context()
    context.output_types = {"y": np.dtype(np.float32)}
    run_passes(passes[: names.index("average-max-pool") + 1], graph, context)
    warned = [one.node for one in context.findings if one.severity == "warning"]
    return export_model(graph), warned


def network(body: str, opset: int = 17) -> onnx.ModelProto:
    model = parse(f"g (float[1,2,6,7] x) => (float y) {{ {body} }}", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize(
    ("step", "wanted", "opset"),
    [
        (f"MaxPool <{WINDOW}> (x)", f"AveragePool <{WINDOW}> (x)", 17),
        (f"MaxPool <{WINDOW}, storage_order = 1> (x)", f"AveragePool <{WINDOW}> (x)", 17),
        (f"MaxPool <{WINDOW}, dilations = [1, 1]> (x)", f"AveragePool <{WINDOW}> (x)", 17),
        (f"MaxPool <{WINDOW}, dilations = [1, 2]> (x)",
         f"AveragePool <{WINDOW}, dilations = [1, 2]> (x)", 19),
        ("GlobalMaxPool (x)", "GlobalAveragePool (x)", 17),
    ],
)  # fmt: skip
def test_a_pooling_becomes_the_average_of_its_window(step: str, wanted: str, opset: int) -> None:
    found, warned = averaged(network(f"y = {step}", opset))
    x = random(1, 1, 2, 6, 7)
    assert np.array_equal(
        run_model(found, x=x)[0], run_model(network(f"y = {wanted}", opset), x=x)[0]
    )
    assert warned == [f"{step.split()[0]} '{step.split()[0]}_0'"]
    assert not any(one.name in ("storage_order",) for one in found.graph.node[0].attribute)


@pytest.mark.parametrize(
    "first",
    [
        # AveragePool has no dilations before opset 19.
        f"a = MaxPool <{WINDOW}, dilations = [2, 2]> (x)",
        f"a, i = MaxPool <{WINDOW}> (x)  j = Cast <to = 1> (i)  k = ReduceMean (j)",
    ],
)
def test_others_stay_and_do_not_stand_in_the_way(first: str) -> None:
    end = "y = Add (b, k)" if "k =" in first else "y = Identity (b)"
    found, warned = averaged(network(f"{first}  b = MaxPool <kernel_shape = [2, 2]> (a)  {end}"))
    pools = [op for op in ops(found) if "Pool" in op]
    assert pools == ["MaxPool", "AveragePool"] and len(warned) == 1
    assert "MaxPool_0" not in warned[0]


def test_indices_without_a_name_are_none() -> None:
    model = network(f"y = MaxPool <{WINDOW}> (x)")
    model.graph.node[0].output.append("")
    assert ops(averaged(model)[0]) == ["AveragePool"]
