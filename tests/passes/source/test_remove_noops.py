"""remove-noops: what disappears, what stays, and names that are kept."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    after,
    assert_close,
    compile_text,
    ops,
    parse,
    random,
    rewritten,
    run_model,
    same,
)

from snncompiler.runtime.session import create_session


def test_noops_disappear() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float half = {0.5}, bool no = {0}>
    {
      a = Identity (x)  b = Dropout (a)  c = Cast <to = 1> (b)  d, mask = Dropout (c, half, no)
      e = Relu (d)  y = Identity (e)
    }"""
    assert same(parse(text), "remove-noops", 1, 2) == ["Relu"]


def test_what_does_something_stays() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, bool[N,2] kept) <float half = {0.5}, bool yes = {1}>
    { a, mask = Dropout (x, half)  b = Cast <to = 6> (a)  c = Cast <to = 1> (b)
      d = Dropout (c, half, yes)  kept = Not (mask)  y = Relu (d) }"""
    found = ops(after(parse(text), "remove-noops")[0])
    # The mask of the first one is true everywhere: a comparison of the input with itself.
    assert sorted(found) == ["Cast", "Cast", "Dropout", "Equal", "Not", "Relu"]


def test_what_is_computed_of_a_mask_alone_has_all_samples() -> None:
    text = """g (float[N,2] x) => (float[N,2] y, bool[N,2] kept)
    { d, mask = Dropout (x)  kept = Not (mask)  y = Relu (d) }"""
    snn = compile_text(parse(text), random(0, 8, 2), steps=4)
    _, kept = run_model(snn, x=random(1, 5, 2))
    assert kept.shape == (5, 2) and not kept.any()


def test_an_input_passed_on_keeps_its_names() -> None:
    text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Identity (x)  z = Relu (x) }"
    model = rewritten(parse(text), "remove-noops")
    assert [output.name for output in model.graph.output] == ["y", "z"]
    x = random(0, 1, 2)
    assert np.array_equal(run_model(model, x=x)[0], x)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "h = Relu (x)  y = Identity (h)  z = Identity (h)",
        ),
        "y = Relu (x)  z = Identity (y)",
        "h = Relu (x)  y = Identity (h)  z = Neg (h)",
    ],
)
def test_outputs_keep_their_names(body: str) -> None:
    text = f"g (float[N,2] x) => (float[N,2] y, float[N,2] z) {{ {body} }}"
    source = parse(text)
    model = rewritten(source, "remove-noops")
    assert [output.name for output in model.graph.output] == ["y", "z"]
    x = random(0, 1, 2)
    for now, before in zip(run_model(model, x=x), run_model(source, x=x), strict=True):
        assert np.array_equal(now, before)


MASK = """g (float[N,2,4,4] x) => (float[N,3] y%s)
{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  d, mask = Dropout (r)  %s
  f = Flatten (k)  y = MatMul (f, z) }"""


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        "k = Identity (d)",
        "m = Cast <to = 1> (mask)  k = Mul (r, m)",
        "k = Where (mask, d, zero)",
        "i = Not (mask)  m = Cast <to = 1> (i)  k = Sub (d, m)",
        "m = Cast <to = 1> (mask)  s = ReduceMean <axes = [1, 2, 3]> (m)  k = Mul (d, s)",
    ],
)
def test_the_mask_of_dropout_is_true_at_inference(step: str, output: bool) -> None:
    text = MASK % (", bool[N,2,4,4] mask" if output else "", step)
    weights = {"w": random(1, 2, 2, 3, 3), "z": random(2, 32, 3), "zero": np.zeros((), "f4")}
    model, x = parse(text, weights), random(3, 8, 2, 4, 4)
    wanted = run_model(model, x=x)
    for native in (True, False):
        found = create_session(compile_text(model, x, steps=512), threads=1, native=native).run(
            None, {"x": x}
        )
        # C/T, with C of 10.
        assert_close(found[0], wanted[0], relative=10 / 512)
        assert not output or (found[1].all() and found[1].shape == (8, 2, 4, 4))
