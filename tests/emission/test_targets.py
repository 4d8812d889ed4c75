"""Exports: what a target computes is what the compiled file computes, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import snnc
from helpers import codes, parse, random
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_networks import Network, networks

import snncompiler
from snncompiler import pipeline
from snncompiler.emission.targets import export
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.settings import Options
from snncompiler.models import path
from snncompiler.network.data import Preprocess

#: A compiler of C, as `make` finds it.
needs_compiler = pytest.mark.skipif(
    not shutil.which("cc") or not shutil.which("make"), reason="no cc, or no make"
)
FORMS: dict[str, dict[str, Any]] = {
    "step": {"emit": "step", "steps": 6},
    "rate": {"timing": "layered", "coding": "rate", "steps": 5},
    "radix": {"timing": "layered", "coding": "radix", "steps": 4},
}
#: Every operator with a statement of its own: padding by itself and by the convolution, windows beyond
#: the input, groups, strides, a slice, a transposed map, sums with and without a scale, two inputs.
NETWORK = """g (float[N,8,9,2] x, float[N,6] z) => (float[N,4] y, float[N,3] o) {
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    c = Conv <auto_pad = "SAME_LOWER", strides = [2, 1]> (t, w, b)  r = Relu (c)
    p = MaxPool <kernel_shape = [2, 2], strides = [1, 2], ceil_mode = 1> (r)
    g1 = Conv <pads = [1, 1, 1, 1], group = 4, dilations = [1, 1]> (p, d)  g2 = Relu (g1)
    a = AveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 1], strides = [1, 1]> (g2)
    e = Conv (a, u, v)  h = Slice (p, starts, ends, axes, strides)
    k = Pad (h, pads)  s = Add (e, k)  q = Relu (s)
    j = Concat <axis = 1> (q, q)  m = Conv <dilations = [2, 1], pads = [1, 0, 1, 0]> (j, n)
    l = Relu (m)  f = Flatten (l)  y = Gemm <transB = 1> (f, f1, f2)
    i = MatMul (z, z1)  i1 = Relu (i)  o = MatMul (i1, z2) }"""


def everything() -> onnx.ModelProto:
    weights = {
        "w": random(1, 4, 2, 3, 4), "b": random(2, 4), "d": random(3, 4, 1, 3, 3),
        "u": random(4, 4, 4, 1, 1), "v": random(5, 4) / 4, "n": random(6, 4, 8, 2, 3) / 4,
        "starts": np.array([0, 0], np.int64), "ends": np.array([4, 99], np.int64),
        "axes": np.array([2, 3], np.int64), "strides": np.array([1, 2], np.int64),
        "pads": np.array([0, 0, 0, 1, 0, 0, 0, 1], np.int64),
        "f2": random(8, 4), "z1": random(9, 6, 5), "z2": random(10, 5, 3),
    }  # fmt: skip
    weights["f1"] = random(7, 4, 36)
    return parse(NETWORK, weights)


def compiled(model: Any, calibration: Any, form: str, **more: Any) -> onnx.ModelProto:
    options = Options(weights="int8", **FORMS[form], **more)
    return pipeline.compile_model(model, options, calibration).model


def checked(folder: Path, *flags: str) -> tuple[bool, int]:
    """Whether `make check` finds no difference, and how many spikes there were."""
    done = subprocess.run(
        ["make", "-C", str(folder), "check", *flags], capture_output=True, text=True
    )
    found = re.search(r"(\d+) spikes: (\d+) differ", done.stdout)
    assert found, done.stdout + done.stderr
    assert (done.returncode == 0) == (found[2] == "0")
    return found[2] == "0", int(found[1])


@pytest.fixture(scope="module")
def digits() -> dict[str, onnx.ModelProto]:
    """A bundled network in every form, with few samples: what is exported is the same."""
    data, scale = path("digits-train"), Preprocess(scale=16)
    found = {}
    for form, options in FORMS.items():
        chosen = Options(weights="int8", **options)
        found[form] = pipeline.compile_model(path("digits-cnn"), chosen, data, scale, 16).model
    return found


@needs_compiler
@pytest.mark.parametrize("form", FORMS)
def test_c_has_the_spikes_and_the_outputs_of_a_trained_network(
    digits: dict[str, onnx.ModelProto], form: str, tmp_path: Path
) -> None:
    made = export(
        digits[form], "c", tmp_path / "c", data=path("digits-test"), preprocess=Preprocess(scale=16)
    )
    assert set(made.files) == {file.name for file in (tmp_path / "c").iterdir()}
    equal, spikes = checked(tmp_path / "c", "CFLAGS=-O0")
    assert equal and spikes > 1000


@needs_compiler
@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("step", {"growth": "none"}),
        ("step", {"growth": "auto"}),
        ("rate", {}),
        ("radix", {}),
    ],
)
def test_c_has_every_operator(form: str, more: dict[str, Any], tmp_path: Path) -> None:
    data = {"x": random(11, 16, 8, 9, 2), "z": random(12, 16, 6)}
    snn = compiled(everything(), data, form, **more)
    export(snn, "c", tmp_path, data={name: array[:3] for name, array in data.items()})
    equal, spikes = checked(tmp_path, "CFLAGS=-O0")
    assert equal and spikes > 100


@needs_compiler
def test_the_check_of_an_export_fails_where_a_weight_is_another(
    digits: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    export(digits["radix"], "c", tmp_path, name="net")
    text = (tmp_path / "net.c").read_text()
    place = text.index("{ /*", text.index("static const int8_t"))
    number = re.compile(r"-?\d+(?=,)").search(text, text.index("\n", place))
    assert number
    other = text[: number.start()] + str(int(number[0]) // 2 + 50) + text[number.end() :]
    (tmp_path / "net.c").write_text(other)
    assert not checked(tmp_path, "CFLAGS=-O0")[0]


def test_the_same_bytes_twice(digits: dict[str, onnx.ModelProto], tmp_path: Path) -> None:
    first = export(digits["step"], "c", tmp_path / "a")
    assert export(digits["step"], "c", tmp_path / "b") == first


def test_the_command_tells_what_it_wrote(
    digits: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    onnx.save(digits["radix"], tmp_path / "Digits 8x8.snn.onnx")
    done = snnc(
        "export", tmp_path / "Digits 8x8.snn.onnx", "--to", "c", "-o", tmp_path / "c", "--json"
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["target"] == "c" and told["files"][:2] == ["digits_8x8.h", "digits_8x8.c"]
    assert told["bytes_of_constants"] > 10_000 and told["bytes_of_states"] == 0
    assert all((tmp_path / "c" / file).is_file() for file in told["files"])


def test_what_a_target_does_not_express_is_told_at_once(tmp_path: Path) -> None:
    text = """g (float[N,4,4,4] x) => (float[N,4,4,4] y) {
        a = Conv (x, w)  r = Relu (a)  d = DepthToSpace <blocksize = 2> (r)
        s = SpaceToDepth <blocksize = 2> (d)  c = Conv (s, w)  q = Relu (c)
        t = Resize (q, , k)  e = SpaceToDepth <blocksize = 1> (t)  y = Conv (e, w) }"""
    weights = {"w": random(1, 4, 4, 1, 1), "k": np.array([1, 1, 1, 1], np.float32)}
    snn = compiled(parse(text, weights), random(2, 8, 4, 4, 4), "radix")
    with pytest.raises(Refused) as refusal:
        export(snn, "c", tmp_path / "c")
    found = refusal.value.findings
    assert set(codes(found)) == {"SNNC405"} and len(found) >= 2
    assert all(finding.node and finding.hint for finding in found)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "float32"}, "whole numbers"),
        ({"weights": "int8"}, "single steps"),
        ({"weights": "int8", "emit": "step", "timing": "layered", "steps": 4}, "whole windows"),
    ],
)
def test_other_forms_are_refused_with_the_option_that_makes_one(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { a = Gemm (x, w)  r = Relu (a)  y = Gemm (r, v) }"
    model = parse(text, {"w": random(1, 4, 5), "v": random(2, 5, 3)})
    snn = snncompiler.compile(model, calibration=random(3, 8, 4), **options)
    with pytest.raises(UsageError, match=message) as refusal:
        export(snn, "c", tmp_path / "c")
    assert "compile it with --" in refusal.value.findings[0].hint


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"to": "d"}, "no target 'd'"),
        ({"vectors": 0}, "out of range"),
        ({"name": "9 lives"}, "no name for a function"),
        ({"folder": "missing/c"}, "does not exist"),
    ],
)
def test_wrong_usage_is_told(
    digits: dict[str, onnx.ModelProto], asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"to": "c", "folder": "c", **asked}
    with pytest.raises(UsageError, match=message):
        export(digits["radix"], given.pop("to"), tmp_path / given.pop("folder"), **given)


def test_the_exponentials_behind_the_scores_are_left_out(tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[N,3] y) {
        a = Gemm (x, w)  r = Relu (a)  s = Gemm (r, v)  y = Softmax (s) }"""
    model = parse(text, {"w": random(1, 4, 5), "v": random(2, 5, 3)})
    made = export(compiled(model, random(3, 8, 4), "radix"), "c", tmp_path, name="net")
    assert [finding.severity for finding in made.findings] == ["note"]
    assert "Output 0: s" in (tmp_path / "net.h").read_text()


# --- slow: sanitizers, other compilers and processors, random networks ---


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("form", FORMS)
def test_a_hundred_digits_under_the_sanitizers(form: str, tmp_path: Path) -> None:
    for name in ("digits-cnn", "digits-resnet"):
        options = Options(weights="int8", **FORMS[form])
        scale = Preprocess(scale=16)
        snn = pipeline.compile_model(path(name), options, path("digits-train"), scale).model
        export(
            snn, "c", tmp_path, name="net", data=path("digits-test"), preprocess=scale, vectors=100
        )
        flags = "CFLAGS=-O1 -g -fsanitize=address,undefined -fno-sanitize-recover"
        equal, spikes = checked(tmp_path, flags)
        assert equal and spikes > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "runner"), [("clang", ""), ("aarch64-linux-gnu-gcc", "qemu-aarch64")]
)
def test_other_compilers_and_processors(
    digits: dict[str, onnx.ModelProto], compiler: str, runner: str, tmp_path: Path
) -> None:
    if not shutil.which(compiler) or (runner and not shutil.which(runner)):
        pytest.skip(f"no {compiler}, or no {runner}")
    for form, snn in digits.items():
        export(snn, "c", tmp_path / form)
        flags = [
            "CFLAGS=-O2 -static" if runner else "CFLAGS=-O2",
            f"CC={compiler}",
            f"RUN={runner}",
        ]
        assert checked(tmp_path / form, *flags)[0]


@pytest.mark.slow
@needs_compiler
def test_random_networks_have_the_same_spikes(tmp_path: Path) -> None:
    tally: Counter[str] = Counter()

    @settings(
        max_examples=120,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(network=networks(), form=st.sampled_from(sorted(FORMS)))
    def run(network: Network, form: str) -> None:
        try:
            snn = compiled(network.model, network.x, form)
            export(snn, "c", tmp_path, name="net", data={"x": network.x[:2]})
        except Refused as error:
            tally[error.findings[0].code] += 1
            return
        assert checked(tmp_path, "CFLAGS=-O0")[0]
        tally["equal"] += 1

    run()
    print(dict(tally))
    assert tally["equal"] >= 20 and set(tally) <= {
        "equal",
        "SNNC405",
        "SNNC223",
        "SNNC205",
        "SNNC110",
    }
