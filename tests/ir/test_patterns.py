"""Activations, norms and attention that are written out: each is refused once, by its name."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from helpers import Array, codes, compile_text, parse, random, refused, run_model
from rich.console import Console

from snncompiler.cli.tables import print_findings
from snncompiler.findings import Finding

CONSTANTS: dict[str, Array] = {
    "one": np.float32(1), "three": np.float32(3), "six": np.float32(6), "half": np.float32(0.5),
    "sixth": np.float32(1 / 6), "root": np.float32(2**0.5), "two": np.float32(2),
    "tiny": np.float32(1e-5), "zero": np.float32(0), "cube": np.float32(3),
    "much": np.float32(0.044715), "pi": np.float32(0.7978846), "gamma": random(4, 4),
    "last": np.array([-1]), "slope": np.float32(1.7), "minus": np.float32(-0.5),
}  # fmt: skip

#: A layer as exporters write it, from `h` to `z`; its name, and its operators in their order.
LAYERS: dict[str, tuple[str, str, str]] = {
    "hardswish, divided": (
        "a = Add (h, three)  b = Clip (a, zero, six)  c = Mul (h, b)  z = Div (c, six)",
        "HardSwish", "Add, Clip, Mul, Div"),
    "hardswish, scaled first": (
        "a = Add (h, three)  b = Clip (a, zero, six)  c = Mul (b, sixth)  z = Mul (h, c)",
        "HardSwish", "Add, Clip, Mul, Mul"),
    "silu": ("a = Sigmoid (h)  z = Mul (a, h)", "SiLU", "Sigmoid, Mul"),
    "swish": ("b = Mul (h, slope)  a = Sigmoid (b)  z = Mul (h, a)", "SiLU", "Mul, Sigmoid, Mul"),
    "silu by Exp": (
        "a = Neg (h)  b = Exp (a)  c = Add (b, one)  d = Reciprocal (c)  z = Mul (h, d)",
        "SiLU", "Neg, Exp, Add, Reciprocal, Mul"),
    "gelu by Erf": (
        "a = Div (h, root)  b = Erf (a)  c = Add (b, one)  d = Mul (h, c)  z = Mul (d, half)",
        "GELU", "Div, Erf, Add, Mul, Mul"),
    "gelu, halved first": (
        "e = Mul (h, half)  a = Div (h, root)  b = Erf (a)  c = Add (b, one)  z = Mul (e, c)",
        "GELU", "Mul, Div, Erf, Add, Mul"),
    "gelu by Tanh": (
        "a = Pow (h, cube)  b = Mul (a, much)  c = Add (h, b)  d = Mul (c, pi)  e = Tanh (d)"
        "  f = Add (e, one)  g = Mul (h, half)  z = Mul (g, f)",
        "GELU", "Pow, Mul, Add, Mul, Tanh, Add, Mul, Mul"),
    "mish": ("a = Softplus (h)  b = Tanh (a)  z = Mul (h, b)", "Mish", "Softplus, Tanh, Mul"),
    "layer norm": (
        "a = ReduceMean <axes = [-1]> (h)  b = Sub (h, a)  c = Pow (b, two)"
        "  d = ReduceMean <axes = [-1]> (c)  e = Add (d, tiny)  f = Sqrt (e)  g = Div (b, f)"
        "  z = Mul (g, gamma)",
        "LayerNormalization", "ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div"),
    "rms norm": (
        "c = Mul (h, h)  d = ReduceMean <axes = [-1]> (c)  e = Add (d, tiny)  f = Sqrt (e)"
        "  g = Reciprocal (f)  z = Mul (h, g)",
        "RMSNormalization", "Mul, ReduceMean, Add, Sqrt, Reciprocal, Mul"),
    "l2 norm": (
        "a = ReduceL2 <axes = [-1]> (h)  b = Max (a, tiny)  z = Div (h, b)", "LpNormalization", ""),
    "softmax": (
        "a = Exp (h)  b = ReduceSum (a, last)  z = Div (a, b)", "Softmax", "Exp, ReduceSum, Div"),
    "attention": (
        "q = MatMul (h, u)  k = MatMul (h, w)  t = Transpose <perm = [0, 2, 1]> (k)"
        "  a = MatMul (q, t)  b = Mul (a, half)  c = Softmax (b)  z = MatMul (c, h)",
        "attention", "MatMul, Mul, Softmax, MatMul"),
    "elu": (
        "t = Greater (h, zero)  a = Exp (h)  b = Sub (a, one)  z = Where (t, h, b)",
        "ELU", "Greater, Exp, Sub, Where"),
    "gated linear unit": (
        "g = MatMul (h, u)  a = Sigmoid (g)  z = Mul (h, a)", "gate", "Sigmoid, Mul"),
    "sigmoid": (
        "a = Neg (h)  b = Exp (a)  c = Add (b, one)  z = Div (one, c)",
        "Sigmoid", "Neg, Exp, Add, Div"),
    "softplus": ("a = Exp (h)  b = Add (a, one)  z = Log (b)", "Softplus", "Exp, Add, Log"),
}  # fmt: skip


def network(step: str, times: int = 1) -> onnx.ModelProto:
    """`times` layers between rectifiers, each behind a MatMul."""
    body, before = "", "r"
    for index in range(times):
        own = re.sub(r"\b([a-hkqtz])\b(?=[ ,)])", rf"\g<1>{index}", step)
        body += f"  h{index} = MatMul ({before}, v)  {own}"
        before = f"z{index}"
    text = f"""g (float[N,3,4] x) => (float[N,3,4] y)
    {{ i = MatMul (x, v)  r = Relu (i) {body}  j = MatMul ({before}, v)  y = Relu (j) }}"""
    arrays = {**CONSTANTS, "v": random(1, 4, 4), "u": random(2, 4, 4), "w": random(3, 4, 4)}
    used = {n: a for n, a in arrays.items() if re.search(rf"\b{n}\b", text)}
    return parse(text, used)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_is_written_out_is_refused_once_by_its_name(kind: str) -> None:
    step, name, operators = LAYERS[kind]
    (finding,) = refused(network(step))
    assert finding.code == "SNNC202"
    assert finding.message == (
        f"{name} stands between spiking layers: not linear: its time-mean is not a function of its "
        "input's time-mean"
    )
    assert finding.node.startswith(f"{name} ({operators})" if operators else name)
    assert "--allow-analog" in finding.hint


@pytest.mark.parametrize("kind", ["silu", "gelu by Erf", "layer norm", "hardswish, divided"])
def test_several_are_several_findings_and_one_line(kind: str) -> None:
    step, name, _ = LAYERS[kind]
    found = refused(network(step, 5))
    assert codes(found) == ["SNNC202"] * 5 and len({f.node for f in found}) == 5
    (line,) = printed(found)
    assert name in line and "and 4 more: " in line and line.count("--allow-analog") == 1


@pytest.mark.parametrize("kind", ["silu", "layer norm", "hardswish, divided"])
def test_what_is_refused_by_its_name_can_be_kept_analog(kind: str) -> None:
    model, x = network(LAYERS[kind][0]), random(5, 4, 3, 4)
    (wanted,) = run_model(model, x=x)
    (decoded,) = run_model(
        compile_text(model, x, allow_analog=True), x=x, snnc_steps=np.array(1024)
    )
    # C/T: the errors of two layers pass through a function of slope near one; a norm divides them.
    assert np.abs(decoded - wanted).max() < 0.1 * np.abs(wanted).max()


def test_what_is_no_known_layer_is_named_operator_by_operator() -> None:
    found = refused(network("a = Exp (h)  b = Sin (a)  z = Mul (a, b)"))
    assert [f.node.split(" ")[0] for f in found] == ["Exp", "Sin", "Mul"]
    assert "a product of two values" in found[-1].message


# --- the terminal ---


def printed(findings: Sequence[Finding]) -> list[str]:
    stream = io.StringIO()
    print_findings(Console(file=stream, width=80), findings)
    return stream.getvalue().splitlines()


def test_findings_that_differ_in_their_node_are_one_line() -> None:
    many = [Finding("SNNC202", "no", node=f"Exp '{i}'", hint="train") for i in range(34)]
    few = [Finding("SNNC206", "kept", "note", node=f"Tanh '{i}'", hint="train") for i in range(3)]
    lines = printed([*many[:20], *few, *many[20:], many[0]])
    assert lines == [
        "error SNNC202 Exp '0' and 33 more: no (train)",
        "note SNNC206 Tanh '0', Tanh '1', Tanh '2': kept",
    ]
