"""What counts as a rectifier: on floats only."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, compile_text, parse, random, run_model

from snncompiler.ir.rectifiers import rectifier
from snncompiler.network.prepare import prepare

#: One rectifier behind a static current: off by at most θ/2 over T steps, here of 256.
ERROR = 1 / 256


def ids(operator: str) -> tuple[onnx.ModelProto, Array]:
    """Ids limited to the rows of an embedding, which is looked up."""
    model = parse(
        f"""
        g (int64[N, 3] x) => (float[N, 2] y) {{
            i = {operator}
            e = Gather(table, i)
            f = Flatten(e)
            h = MatMul(f, w)
            r = Relu(h)
            y = MatMul(r, v)
        }}
        """,
        {
            "zero": np.int64(0), "last": np.int64(4), "table": random(1, 5, 4),
            "w": random(2, 12, 6), "v": random(3, 6, 2),
        },
    )  # fmt: skip
    return model, np.arange(24).reshape(8, 3) % 5


def pixels(operator: str) -> tuple[onnx.ModelProto, Array]:
    """Pixels of 8 bit, limited before they become floats."""
    model = parse(
        f"""
        g (uint8[N, 3] x) => (float[N, 2] y) {{
            i = {operator}
            e = Cast <to = 1>(i)
            h = MatMul(e, w)
            r = Relu(h)
            y = MatMul(r, v)
        }}
        """,
        {
            "zero": np.uint8(0), "last": np.uint8(200), "w": random(2, 3, 6) / 100,
            "v": random(3, 6, 2),
        },
    )  # fmt: skip
    return model, np.random.default_rng(4).integers(0, 255, (8, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("made", "operator"),
    [
        (ids, "Clip(x, zero, last)"),
        (ids, "Clip(x, zero)"),
        (ids, "Max(x, zero)"),
        (ids, "Max(zero, x)"),
        (ids, "Min(x, last)"),
        (ids, "Abs(x)"),
        (ids, "Relu(x)"),
        (pixels, "Clip(x, zero, last)"),
        (pixels, "Max(x, zero)"),
        (pixels, "Min(x, last)"),
    ],
)
def test_integers_are_not_rectified(made: object, operator: str) -> None:
    """They stay integers, computed once: the only neurons are those of the ReLU."""
    assert callable(made)
    model, x = made(operator)
    if operator == "Relu(x)":  # int64 has no kernel in onnxruntime; int32 has
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
        x = x.astype(np.int32)
    graph = prepare(model).graph
    assert [node.op for node in graph.nodes if rectifier(node) is not None] == ["Relu"]
    compiled = compile_text(model, x, steps=256)
    assert_close(run_model(compiled, x=x)[0], run_model(model, x=x)[0], relative=6 * ERROR)
