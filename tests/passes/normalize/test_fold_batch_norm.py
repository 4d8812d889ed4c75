"""fold-batch-norm: what folds, what stays as an affine step, what is refused, and the numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from folding import BN, FOLD, bn
from helpers import (
    after,
    assert_close,
    codes,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)

# --- what folds ---


@pytest.mark.parametrize(
    ("attributes", "weight", "image"),
    [
        ("", (6, 4, 3), (2, 4, 9)),
        ("pads = [1, 1]", (6, 4, 3), (2, 4, 9)),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (6, 4, 3, 3), (2, 4, 7, 7)),
        ("group = 2", (6, 2, 3, 3), (2, 4, 7, 7)),
        ("group = 4", (4, 1, 3, 3), (2, 4, 7, 7)),
        ("group = 4", (8, 1, 3, 3), (2, 4, 7, 7)),
        ("dilations = [2, 2]", (6, 4, 3, 3), (2, 4, 7, 7)),
    ],
)
@pytest.mark.parametrize("bias", ["", ", c", ', ""'])
def test_conv(
    folds: Callable[..., list[str]],
    attributes: str,
    weight: tuple[int, ...],
    image: tuple[int, ...],
    bias: str,
) -> None:
    out = ", ".join("?" for _ in image[2:])
    text = f"""g (float[N,4,{",".join(map(str, image[2:]))}] x) => (float[N,{weight[0]},{out}] y)
    {{ h = Conv <{attributes or "group = 1"}> (x, w{bias})  n = {BN} (h, g, b, m, v)
       y = Relu (n) }}"""
    weights = {"w": random(1, *weight), **bn(weight[0])}
    if bias == ", c":
        weights["c"] = random(2, weight[0])
    assert folds(parse(text, weights), *image) == ["Conv", "Relu"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", ["", ", c"])
def test_conv_transpose(folds: Callable[..., list[str]], groups: int, bias: str) -> None:
    features, told = 2 * groups, f"group = {groups}, " if groups > 1 else ""
    text = f"""g (float[N,4,5,5] x) => (float[N,{features},?,?] y)
    {{ h = ConvTranspose <{told}strides = [2, 2], pads = [1, 1, 1, 1]> (x, w{bias})
       n = {BN} (h, g, b, m, v)  y = Relu (n) }}"""
    weights = {"w": random(1, 4, 2, 3, 3), **bn(features)}
    if bias:
        weights["c"] = random(2, features)
    assert folds(parse(text, weights), 2, 4, 5, 5) == ["ConvTranspose", "Relu"]


@pytest.mark.parametrize("bias", [None, (), (1,), (3,), (1, 1), (1, 3)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(
    folds: Callable[..., list[str]], bias: tuple[int, ...] | None, transposed: int
) -> None:
    text = f"""g (float[N,4] x) => (float[N,3] y)
    {{ h = Gemm <transB = {transposed}, alpha = 0.5, beta = 3.0> (x, w{"" if bias is None else ", c"})
       n = {BN} (h, g, b, m, v)  y = Relu (n) }}"""
    weights = {"w": random(1, 3, 4) if transposed else random(1, 4, 3), **bn(3)}
    if bias is not None:
        weights["c"] = random(2, *bias)
    assert folds(parse(text, weights), 5, 4) == ["Gemm", "Relu"]


def test_shared_weights_fold_apart(folds: Callable[..., list[str]]) -> None:
    text = f"""g (float[N,2,5,5] x) => (float[N,2,5,5] y, float[N,2,5,5] z)
    {{ h = Conv (x, w, c)  n = {BN} (h, g, b, m, v)  y = Relu (n)
       i = Conv (x, w, c)  j = Neg (i)  z = Relu (j) }}"""
    weights = {"w": random(1, 2, 2, 1, 1), "c": random(2, 2), **bn(2)}
    assert sorted(folds(parse(text, weights), 2, 2, 5, 5)) == [
        "Conv", "Conv", "Neg", "Relu", "Relu",
    ]  # fmt: skip


def test_moments_are_those_of_the_batch_norm() -> None:
    text = f"""g (float[N,2,5,5] x) => (float[N,2,5,5] y)
    {{ h = Conv (x, w)  n = {BN} (h, g, b, m, v)  y = Relu (n) }}"""
    given_bn = bn(2)
    _, context = after(parse(text, {"w": random(1, 2, 2, 1, 1), **given_bn}), "fold-batch-norm")
    mean, deviation = context.moments["n"]
    assert np.array_equal(mean, given_bn["b"]) and np.array_equal(deviation, abs(given_bn["g"]))


# --- what stays as an affine step ---


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # Before a padded convolution, as in pre-activation networks: the shift differs at the border.
        (
            "n = BN (x, g, b, m, v)  h = Conv <pads = [1, 1, 1, 1]> (n, w)  y = Relu (h)",
            ["Mul", "Add", "Conv", "Relu"],
        ),
        (
            "h = Conv (x, w1)  s = Add (h, x)  n = BN (s, g, b, m, v)  y = Relu (n)",
            ["Conv", "Add", "Mul", "Add", "Relu"],
        ),
        (
            "h = Conv (x, w1)  n = BN (h, g, b, m, v)  s = Add (n, h)  y = Relu (s)",
            ["Conv", "Mul", "Add", "Add", "Relu"],
        ),
        (
            "h = Conv (x, w1)  p = MaxPool <kernel_shape = [1, 1]> (h)  n = BN (p, g, b, m, v)"
            "  y = Relu (n)",
            ["Conv", "MaxPool", "Mul", "Add", "Relu"],
        ),
    ],
)
def test_affine_steps_stay(folds: Callable[..., list[str]], body: str, left: list[str]) -> None:
    text = f"g (float[N,2,6,6] x) => (float[N,2,6,6] y) {{ {body.replace('BN', BN)} }}"
    model = parse(text, {"w": random(1, 2, 2, 3, 3), "w1": random(2, 2, 2, 1, 1), **bn(2)})
    assert folds(model, 2, 2, 6, 6) == left
    notes = [f for f in after(model, "fold-affine")[1].findings if f.code == "SNNC207"]
    assert [(note.severity, note.node) for note in notes] == [
        ("note", f"BatchNormalization '{notes[0].node.split(chr(39))[1]}'")
    ]


def test_an_output_of_the_layer_is_a_reader(folds: Callable[..., list[str]]) -> None:
    text = f"""g (float[N,2,6,6] x) => (float[N,2,6,6] y, float[N,2,6,6] h)
    {{ h = Conv (x, w)  n = {BN} (h, g, b, m, v)  y = Relu (n) }}"""
    model = parse(text, {"w": random(1, 2, 2, 1, 1), **bn(2)})
    assert folds(model, 2, 2, 6, 6) == ["Conv", "Mul", "Add", "Relu"]


def test_a_live_bias_or_weight_keeps_the_affine_step() -> None:
    text = f"""g (float[N,4] x, float[1,3] c) => (float[N,3] y)
    {{ h = Gemm (x, w, c)  n = {BN} (h, g, b, m, v)  y = Relu (n) }}"""
    model = parse(text, {"w": random(1, 4, 3), **bn(3)})
    x, c = random(0, 1, 4), random(1, 1, 3)
    result = rewritten(model, "fold-affine")
    assert ops(result) == ["Gemm", "Mul", "Add", "Relu"]
    assert_close(run_model(result, x=x, c=c)[0], run_model(model, x=x, c=c)[0], relative=FOLD)


# --- what is refused ---

REFUSED = """g (float[N,2,5,5] x%s) => (float[N,2,5,5] y%s)
{ h = Conv (x, w)  [norm] n%s = BatchNormalization <%s> (h, g, b, m, v)  y = Relu (n) }"""


def test_training_mode_is_refused() -> None:
    text = REFUSED % ("", "", ", mean, var", "training_mode = 1")
    (finding,) = refused(parse(text, {"w": random(1, 2, 2, 1, 1), **bn(2)}))
    assert finding.code == "SNNC207" and finding.node == "BatchNormalization 'norm'"
    assert "training_mode" in finding.message


def test_extra_outputs_are_refused() -> None:
    text = REFUSED % ("", ", float[2] mean", ", mean, var", "training_mode = 0")
    (finding,) = refused(parse(text, {"w": random(1, 2, 2, 1, 1), **bn(2)}))
    assert finding.code in ("SNNC207", "SNNC110")


def test_parameters_at_run_time_are_refused() -> None:
    weights = {"w": random(1, 2, 2, 1, 1), **bn(2)}
    del weights["g"]
    # That `g` has no axis for the samples is found as well.
    input_g, finding = refused(parse(REFUSED % (", float[2] g", "", "", "epsilon = 0.1"), weights))
    assert input_g.code == "SNNC205" and "'g'" in input_g.message
    assert finding.code == "SNNC207" and "run time" in finding.message


def test_all_batch_norms_that_cannot_be_folded_are_named_at_once() -> None:
    text = """g (float[N,2] x) => (float[N,2] y)
    { [one] n = BatchNormalization <epsilon = 0.5> (x, g, b, m, v)
      [two] o = BatchNormalization <epsilon = 0.5> (n, g, b, m, v)  y = Relu (o) }"""
    weights = {**bn(2), "v": np.array([1.0, -0.5], np.float32)}
    findings = refused(parse(text, weights))
    assert codes(findings) == ["SNNC207"] * 2
    assert [finding.node[-5:] for finding in findings] == ["'one'", "'two'"]
    assert "not positive" in findings[0].message
