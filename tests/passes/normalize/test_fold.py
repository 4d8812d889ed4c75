"""fold-batch-norm and fold-affine: what folds, what stays, what is refused, and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from helpers import (
    Array,
    after,
    assert_close,
    codes,
    in_type,
    ops,
    parse,
    random,
    refused,
    rewritten,
    run_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from snncompiler import pipeline
from snncompiler.network.checks import check_source, measure_folds

#: Folding rounds every weight and every bias once to float32 (2^-24 each); source and result sum at
#: most 200 products each, and the batch-norm step rounds four times: under 512 roundings.  The bound
#: is relative to the largest |weight|·|input| sum, which the outputs here reach within a factor 8.
FOLD = 8 * 512 * 2.0**-24


def bn(channels: int, seed: int = 0, prefix: str = "") -> dict[str, Array]:
    """Parameters of a batch-norm: γ of both signs, variances from 0.3 to 3."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels)
    made = {
        "g": gamma,
        "b": rng.standard_normal(channels),
        "m": rng.standard_normal(channels),
        "v": rng.uniform(0.3, 3, channels),
    }
    return {prefix + name: array.astype(np.float32) for name, array in made.items()}


def folded_in(kind: str, model: onnx.ModelProto, *shape: int) -> list[str]:
    """The operators after both folds of the network exported in `kind`, without the casts of its own.

    Source and result agree in onnxruntime.
    """
    source, x = in_type(model, kind), random(7, *shape).astype(kind)
    result = rewritten(source, "fold-affine")
    # onnxruntime has no float64 convolutions and rounds every float16 value: the same in float32.
    wanted = run_model(in_type(source, "float32"), x=x.astype(np.float32))
    # The last cast to float16 rounds once more.
    rounding = 2.0**-11 if kind == "float16" else 0.0
    for now, before in zip(run_model(result, x=x), wanted, strict=True):
        assert now.dtype == kind
        assert_close(now, before, relative=FOLD + rounding)
    return [op for op in ops(result) if op != "Cast"]


@pytest.fixture(params=["float32", "float16", "float64"])
def folds(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """`folded_in` each type; a twin is also compared with its source, and its folds are measured."""

    def fold(model: onnx.ModelProto, *shape: int) -> list[str]:
        found = folded_in(request.param, model, *shape)
        if request.param == "float32":
            return found
        prepared = pipeline.prepare(in_type(model, request.param))
        feeds = {"x": random(7, *shape).astype(request.param)}
        check_source(prepared, feeds)
        assert not any("was not compared" in finding.message for finding in prepared.findings)
        measure_folds(prepared, feeds)
        made = {tensor.name for node in prepared.graph.nodes for tensor in node.outputs}
        for layer in prepared.context.layers.values():
            if layer.folded and layer.output in made:
                assert layer.change is not None and layer.change[1] <= FOLD
        return found

    return fold


BN = "BatchNormalization <epsilon = 0.01>"


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


@pytest.mark.parametrize("step", ["n = BN (h, g, b, m, v)", "n = Add (h, b)"])
@pytest.mark.parametrize("row_bias", [(3, 1), (3, 3)])
def test_a_bias_per_row_is_not_one_per_feature(
    folds: Callable[..., list[str]], row_bias: tuple[int, int], step: str
) -> None:
    text = f"""g (float[3,4] x) => (float[3,3] y)
    {{ h = Gemm (x, w, c)  {step.replace("BN", BN)}  y = Relu (n) }}"""
    model = parse(text, {"w": random(1, 4, 3), "c": random(2, *row_bias), **bn(3)})
    folds(model, 3, 4)


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


# --- Mul, Div, Add, Sub ---


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


# --- any of it, at random ---


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
