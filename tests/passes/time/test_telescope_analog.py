"""telescope-analog: an operator between spiking layers is exact through time, and stands between a
RunningMean and a Telescope of its own."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, compile_text, op_counts, parse, random, run_model

#: Of h [N,4], spiking, makes a: how many values are averaged, and how many operators are kept analog.
KEPT = {
    "Tanh": ("a = Tanh (h)", 1, 1),
    "a product of two": ("a = Mul (h, g)", 2, 1),
    "a square": ("a = Mul (h, h)", 1, 1),
    "two of one value": ("s = Sigmoid (h)  e = Exp (h)  a = Sub (s, e)", 1, 2),
    "one behind the other": ("s = Sigmoid (h)  a = Exp (s)", 2, 2),
    "with a linear one between": ("s = Sigmoid (h)  t = MatMul (s, v)  a = Tanh (t)", 2, 2),
}


def network(body: str, outputs: str = "float[N,3] y") -> str:
    return f"""g (float[N,4] x) => ({outputs})
    {{ c = MatMul (x, w)  h = Relu (c)  d = MatMul (x, u)  g = Relu (d)
       {body}
       z = MatMul (a, o)  y = Relu (z) }}"""


WEIGHTS = {
    "w": random(1, 4, 4) / 2,
    "u": random(2, 4, 4) / 2,
    "v": random(3, 4, 4) / 2,
    "o": random(4, 4, 3) / 2,
}


@pytest.mark.parametrize("name", KEPT)
def test_it_converges_and_only_what_is_not_linear_is_wrapped(name: str) -> None:
    body, means, kept = KEPT[name]
    text = network(body)
    model = parse(text, {n: a for n, a in WEIGHTS.items() if f" {n})" in text})
    x = random(7, 16, 4)
    (wanted,) = run_model(model, x=x)
    snn = compile_text(model, x, allow_analog=True)
    counts = op_counts(snn)
    assert (counts["RunningMean"], counts["Telescope"]) == (means, kept)
    # C/T: two layers of four neurons, with slopes of at most a few units between them.
    assert_close(run_model(snn, x=x, snnc_steps=np.array(2048))[0], wanted, relative=60 / 2048)


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_mean_of_its_outputs_is_that_of_the_mean_at_every_step(steps: int) -> None:
    text = network("a = Tanh (h)", "float[N,3] y, float[N,4] h, float[N,4] a")
    model = parse(text, {name: WEIGHTS[name] for name in ("w", "u", "o")})
    x = random(8, 16, 4)
    snn = compile_text(model, x, allow_analog=True)
    _, h, a = run_model(snn, x=x, snnc_steps=np.array(steps))
    # Each step rounds t·f a few times, and T of them are summed.
    assert_close(a, np.tanh(h), relative=8 * steps * 2.0**-24)


def test_an_output_that_nothing_reads_is_left_alone() -> None:
    """The places of the largest: whole numbers, which have no mean."""
    head = "=> (float[N,3] y)"
    text = network("a, i = TopK (h, all)").replace(head, f"{head} <int64[1] all = {{4}}>")
    model = parse(text, {name: WEIGHTS[name] for name in ("w", "u", "o")})
    counts = op_counts(compile_text(model, random(9, 8, 4), allow_analog=True))
    assert (counts["RunningMean"], counts["Telescope"]) == (1, 1)
