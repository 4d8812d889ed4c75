"""fold-forward: what is affine behind a rectifier goes into the layers behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import (
    Array,
    after,
    assert_close,
    compile_text,
    op_counts,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)

from snncompiler import pipeline
from snncompiler.runtime.session import create_session

#: Folding reorders sums of at most a hundred float32 products: a hundred roundings of 2^-24.
ROUNDING = 100 * 2.0**-24
#: |SNN - ANN| <= UNITS/T of the largest output: three layers, a few dozen neurons of θ/T each.
UNITS = 30.0

NORM = "BatchNormalization <epsilon = 0.01> (r, g, b, m, v)"
WEIGHTS = {
    "g": np.array([0.5, -1.0, 1.5, 2.0], np.float32),
    "b": np.array([0.1, 0.3, -0.2, 0.4], np.float32),
    "m": np.array([0.2, -0.1, 0.0, 0.1], np.float32),
    "v": np.array([1.0, 0.5, 2.0, 1.5], np.float32),
    "s": np.array([0.5, -1.0, 1.5, 2.0], np.float32).reshape(4, 1, 1),
    "map": random(9, 1, 4, 6, 6),
    "one": np.float32(1),
    "two": np.float32(2),
    "w": random(1, 4, 4, 3, 3) / 6,
    "w1": random(2, 4, 4, 1, 1) / 2,
    "wg": random(3, 4, 2, 3, 3) / 4,
    "wt": random(4, 4, 4, 2, 2) / 3,
    "wf": random(5, 144, 6) / 12,
    "bias": random(6, 4),
    "kernel": random(7, 4, 3, 3, 3) / 5,
}

#: From `r`, the rectified [N,4,6,6], to the current `c`; and the affine steps that are left.
CASES = {
    "norm, convolution": (f"n = {NORM}  c = Conv (n, w, bias)", []),
    "norm, strides": (f"n = {NORM}  c = Conv <strides = [2, 2]> (n, w)", []),
    "norm, groups": (f"n = {NORM}  c = Conv <group = 2> (n, wg)", []),
    "norm, dilations": (f"n = {NORM}  c = Conv <dilations = [2, 2]> (n, w)", []),
    "norm, VALID": (f'n = {NORM}  c = Conv <auto_pad = "VALID"> (n, w)', []),
    "norm, two readers": (f"n = {NORM}  d = Conv (n, w1)  e = Conv (n, w1, bias)  c = Sub (d, e)", []),
    "norm, flattened": (f"n = {NORM}  f = Flatten (n)  c = Gemm (f, wf)", []),
    # Where it falls the minimum is pooled: signs per channel stay before the pooling.
    "norm, max pooling": (
        f"n = {NORM}  p = MaxPool <kernel_shape = [2, 2]> (n)  c = Conv (p, w1)", ["Mul"]),
    "rising, max pooling": (
        "n = Mul (r, two)  a = Add (n, one)  p = MaxPool <kernel_shape = [2, 2]> (a)"
        "  c = Conv (p, w1)", []),
    "a scale, padding": ("n = Mul (r, s)  c = Conv <pads = [1, 1, 1, 1]> (n, w, bias)", []),
    "a quotient, transposed": ("n = Div (r, s)  c = ConvTranspose (n, wt)", []),
    "a difference": ("n = Sub (one, r)  c = Conv (n, w1)", []),
    "steps in a row": ("a = Add (r, one)  n = Mul (s, a)  d = Sub (n, one)  c = Conv (d, w)", []),
    # A shift at a border, a reader that cannot take it, and what is no constant per channel.
    "norm, padding": (f"n = {NORM}  c = Conv <pads = [1, 1, 1, 1]> (n, w)", ["Mul", "Add"]),
    "norm, SAME": (f'n = {NORM}  c = Conv <auto_pad = "SAME_UPPER"> (n, w)', ["Mul", "Add"]),
    "norm, transposed": (f"n = {NORM}  c = ConvTranspose (n, wt)", ["Mul", "Add"]),
    "norm, another reader": (f"n = {NORM}  d = Conv (n, w1)  c = Add (d, n)", ["Mul", "Add", "Add"]),
    "a map": ("n = Mul (r, map)  c = Conv (n, w)", ["Mul"]),
}  # fmt: skip


def network(body: str) -> onnx.ModelProto:
    text = f"""g (float[N,3,8,8] x) => (float[M] y)
    {{ x1 = Conv (x, kernel)  r = Relu (x1)  {body}  y = Relu (c) }}"""
    names = text.replace(",", " ").replace("(", " ").replace(")", " ").split()
    model = parse(text, {name: array for name, array in WEIGHTS.items() if name in names})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("name", CASES)
def test_affine_steps_fold_forward(name: str) -> None:
    body, left = CASES[name]
    model, x = network(body), random(0, 4, 3, 8, 8)
    (wanted,) = run_model(model, x=x)
    folded = rewritten(model, "fold-forward")
    assert [op for op in ops(folded) if op in ("Mul", "Add", "Div")] == left
    assert_close(run_model(folded, x=x)[0], wanted, relative=ROUNDING)
    notes = [f for f in after(model, "fold-forward")[1].findings if f.code == "SNNC207"]
    assert len(notes) == ("norm" in name and "Add" in left)
    snn = compile_text(model, x, growth="none")
    for more in ({}, {"events": False}, {"native": False}):
        session = create_session(snn, threads=1, **more)
        for steps in (64, 1024):
            (decoded,) = session.run(None, {"x": x, "snnc_steps": np.array(steps)})
            assert_close(decoded, wanted, relative=UNITS / steps)


def test_the_layer_behind_then_reads_binary_spikes() -> None:
    model, x = network(CASES["norm, convolution"][0]), random(0, 4, 3, 8, 8)
    snn = compile_text(model, x, unroll="loop")
    # θ went into the weights as well: nothing is left between the neuron and the convolution.
    plain = compile_text(network("c = Conv (r, w)"), x, unroll="loop")
    assert op_counts(snn)["Mul"] == op_counts(plain)["Mul"]


def test_strict_names_the_layer_that_took_a_batch_norm() -> None:
    model = network(CASES["norm, strides"][0])
    (finding,) = [f for f in refused(model, strict=True) if f.code == "SNNC204"]
    assert "Conv" in finding.message
    facts = [facts for facts in pipeline.prepare(model).context.layers.values() if facts.folded]
    assert [(one.batch_norm, one.bias) for one in facts] == [("folded", True)]


def values(array: Array) -> list[float]:
    return [float(value) for value in array.reshape(-1)]


def test_a_shared_weight_keeps_its_value_for_other_layers() -> None:
    model = network(f"n = {NORM}  d = Conv (n, w1)  e = Conv (r, w1)  c = Add (d, e)")
    folded = rewritten(model, "fold-forward")
    kept = [t for t in folded.graph.initializer if list(t.dims) == [4, 4, 1, 1]]
    assert any(values(onnx.numpy_helper.to_array(t)) == values(WEIGHTS["w1"]) for t in kept)
    x = random(0, 4, 3, 8, 8)
    assert_close(run_model(folded, x=x)[0], run_model(model, x=x)[0], relative=ROUNDING)
