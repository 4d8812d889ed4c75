"""fold-affine: what folds, what stays, and the numbers, of any layer with any steps behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from folding import BN, bn, folded_in
from helpers import (
    Array,
    after,
    ops,
    parse,
    random,
    rewritten,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_facts_say_what_was_folded() -> None:
    text = f"""g (float[N,2,5,5] x) => (float[N,2,5,5] y) <float two = {{2}}>
    {{ [conv] h = Conv (x, w)  n = {BN} (h, g, b, m, v)  k = Mul (two, n)  y = Relu (k) }}"""
    model = parse(text, {"w": random(1, 2, 2, 1, 1), **bn(2)})
    (facts,) = after(model, "fold-affine")[1].layers.values()
    assert (facts.name, facts.output, facts.bias, facts.batch_norm) == (
        "conv",
        "k",
        False,
        "folded",
    )
    assert facts.folded == ["BatchNormalization", "Mul"]


@pytest.mark.parametrize("step", ["n = BN (h, g, b, m, v)", "n = Add (h, b)"])
@pytest.mark.parametrize("row_bias", [(3, 1), (3, 3)])
def test_a_bias_per_row_is_not_one_per_feature(
    folds: Callable[..., list[str]], row_bias: tuple[int, int], step: str
) -> None:
    text = f"""g (float[3,4] x) => (float[3,3] y)
    {{ h = Gemm (x, w, c)  {step.replace("BN", BN)}  y = Relu (n) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *row_bias), **bn(3)})
    folds(model, 3, 4)


@pytest.mark.parametrize(
    ("step", "folded"),
    [
        ("Mul (h, k)", True),
        ("Mul (k, h)", True),
        ("Div (h, k)", True),
        ("Div (k, h)", False),
        ("Add (h, k)", True),
        ("Add (k, h)", True),
        ("Sub (h, k)", True),
        ("Sub (k, h)", True),
        ("Pow (h, k)", False),
        ("Add (h, h)", False),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (1, 1, 1, 1)])
def test_affine_steps_fold(
    folds: Callable[..., list[str]], step: str, folded: bool, shape: tuple[int, ...]
) -> None:
    text = f"""g (float[N,2,5,5] x) => (float[N,3,5,5] y)
    {{ h = Conv (x, w, c)  s = {step}  y = Relu (s) }}"""
    amount = np.abs(random(3, *shape)) + np.float32(0.5)
    # 2^k is exact and finite; Pow is not folded and only checked for that.
    model = parse(text, {"w": random(1, 3, 2, 1, 1), "c": random(2, 3), "k": amount})
    left = ["Conv", "Relu"] if folded else ["Conv", step.split(" ")[0], "Relu"]
    if folded:
        assert folds(model, 2, 2, 5, 5) == left
    else:
        assert ops(rewritten(model, "fold-affine")) == left


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 3, 5, 5), (3, 5, 5)])
def test_steps_along_space_stay(folds: Callable[..., list[str]], shape: tuple[int, ...]) -> None:
    text = """g (float[N,2,5,5] x) => (float[N,3,5,5] y)
    { h = Conv (x, w)  s = Add (h, k)  y = Relu (s) }"""
    model = parse(text, {"w": random(1, 3, 2, 1, 1), "k": random(2, *shape)})
    assert folds(model, 2, 2, 5, 5) == ["Conv", "Add", "Relu"]


def test_a_step_that_adds_an_axis_stays() -> None:
    """[1,3,1,1,1] scales by the sample, and the result has one axis more."""
    text = """g (float[3,2,5,5] x) => (float[1,3,3,5,5] y)
    { h = Conv <pads = [1,1,1,1]> (x, w)  k = Mul (h, c)  y = Relu (k) }"""
    model = parse(text, {"w": random(1, 3, 2, 3, 3), "c": random(2, 1, 3, 1, 1, 1)})
    assert ops(rewritten(model, "fold-affine")) == ["Conv", "Mul", "Relu"]


def test_a_division_by_zero_stays() -> None:
    text = "g (float[N,2] x) => (float[N,3] y) { h = Gemm (x, w)  s = Div (h, k)  y = Relu (s) }"
    model = parse(text, {"w": random(1, 2, 3), "k": np.array([1, 0, 2], np.float32)})
    assert ops(rewritten(model, "fold-affine")) == ["Gemm", "Div", "Relu"]


@dataclass(frozen=True)
class Case:
    model: onnx.ModelProto
    image: tuple[int, ...]


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """A linear layer of some kind, then one to three batch-norms and affine steps."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    kind = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    bias = draw(st.booleans())
    weights: dict[str, Array] = {}
    if kind in ("Conv", "ConvTranspose"):
        space = draw(st.sampled_from([1, 2]))
        group = draw(st.sampled_from([1, 2]))
        channels, inner = 2 * group, draw(st.sampled_from([1, 2]))
        features = inner * group
        kernel = (3,) * space
        first = (features, 2) if kind == "Conv" else (channels, inner)
        weights["w"] = normal(*first, *kernel)
        pads = [draw(st.integers(0, 1))] * 2 * space
        stride = [draw(st.integers(1, 2))] * space
        image = (2, channels, *(6,) * space)
        call = f"{kind} <group = {group}, pads = {pads}, strides = {stride}> (x, w%s)"
        axes = space
    else:
        features, axes = 3, 0
        weights["w"] = normal(4, features)
        image = (2, 4)
        call = "Gemm (x, w%s)" if kind == "Gemm" else "MatMul (x, w)"
        bias = bias and kind == "Gemm"
    if bias:
        weights["c"] = normal(features)
    body = [f"t0 = {call % (', c' if bias else '')}" if "%s" in call else f"t0 = {call}"]
    steps = draw(
        st.lists(
            st.sampled_from(["BN", "Mul", "Add", "Div", "Sub", "RSub"]), min_size=1, max_size=3
        )
    )
    for i, step in enumerate(steps):
        if step == "BN":
            weights.update(bn(features, seed + i, f"n{i}"))
            body.append(f"t{i + 1} = {BN} (t{i}, n{i}g, n{i}b, n{i}m, n{i}v)")
            continue
        amount = normal(features, *(1,) * axes)
        if step in ("Mul", "Div"):
            amount = np.sign(amount) * (np.abs(amount) + np.float32(0.5))
        weights[f"k{i}"] = amount
        operands = f"k{i}, t{i}" if step == "RSub" else f"t{i}, k{i}"
        body.append(f"t{i + 1} = {step.removeprefix('R')} ({operands})")
    out = ",".join(["N", str(features), *"?" * axes])
    size = ",".join(map(str, image[1:]))
    lines = "\n".join(body)
    text = f"g (float[N,{size}] x) => (float[{out}] y) {{ {lines}\n y = Relu (t{len(steps)}) }}"
    return Case(parse(text, weights), image)


@settings(max_examples=150)
@given(layers())
def test_random_layers_fold_to_one_and_give_the_same(case: Case) -> None:
    assert len(folded_in("float32", case.model, *case.image)) == 2


@pytest.mark.parametrize("kind", ["float16", "float64"])
@given(layers())
def test_random_layers_of_other_float_types_fold_alike(kind: str, case: Case) -> None:
    assert len(folded_in(kind, case.model, *case.image)) == 2
