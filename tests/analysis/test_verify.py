"""verify: every check passes on what the compiler writes, and fails on what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, compile_text, parse, random, tell
from onnx import numpy_helper

import snncompiler
from snncompiler import models
from snncompiler.analysis import verify as verification
from snncompiler.analysis.verify import Verification, verify
from snncompiler.cli.main import app
from snncompiler.errors import InternalError
from snncompiler.ir import dialect
from snncompiler.runtime.session import runs_events

needs_events = pytest.mark.skipif(not runs_events(), reason="the native library is not built")

SAMPLES = random(0, 12, 3, 10, 10)


def scaled(seed: int, *shape: int) -> Array:
    return np.asarray(random(seed, *shape) * np.sqrt(2 / np.prod(shape[1:])), np.float32)


def deep(layers: int, channels: int = 12) -> onnx.ModelProto:
    """Convolutions one behind the other."""
    weights, text, last, before = {}, "", "x", 3
    for at in range(layers):
        weights[f"w{at}"] = scaled(at, channels, before, 3, 3)
        weights[f"b{at}"] = (random(50 + at, channels) / 10).astype(np.float32)
        text += f"c{at} = Conv <pads = [1, 1, 1, 1]> ({last}, w{at}, b{at})  r{at} = Relu (c{at})\n"
        last, before = f"r{at}", channels
    weights["o"] = scaled(99, 5, channels, 1, 1)
    return parse(
        f"g (float[N,3,10,10] x) => (float[N,5,10,10] y) {{ {text} y = Conv ({last}, o) }}", weights
    )


#: Strides, pooling, a residual and a read-out by weights.
MIXED = parse(
    """g (float[N,3,10,10] x) => (float[N,5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w1)  r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2)  s = Relu (d)
    e = Conv <pads = [1, 1, 1, 1]> (s, w3)  f = Add (e, s)  t = Relu (f)
    p = MaxPool <kernel_shape = [2, 2]> (t)  h = Conv (p, w4)  u = Relu (h)
    m = ReduceMean <axes = [2, 3], keepdims = 0> (u)  y = Gemm (m, o) }""",
    {
        "w1": scaled(1, 8, 3, 3, 3),
        "w2": scaled(2, 8, 8, 3, 3),
        "w3": scaled(3, 8, 8, 3, 3),
        "w4": scaled(4, 8, 8, 2, 2),
        "o": scaled(5, 5, 8).T.copy(),
    },
)


def failed(found: Verification) -> list[str]:
    """The names of the checks that fail, without numbers."""
    return [
        check.name.split(" at ")[0].split(" in ")[0] for check in found.checks if not check.passed
    ]


# --- what the compiler writes passes ---


@pytest.mark.parametrize("target", ["portable", "cpu"])
def test_a_deep_network_passes(target: str) -> None:
    """Event kernels add in another order: a share of moved spikes grew with every layer here."""
    model = deep(12, 24)
    found = verify(model, compile_text(model, SAMPLES, steps=16, target=target))
    assert found.passed, failed(found)
    names = [check.name for check in found.checks]
    assert ("by events = dense in 16 steps" in names) == (target == "cpu" or runs_events())
    for check in found.checks:
        if " = loop at " in check.name:
            assert check.detail.startswith("0 of") and check.detail.endswith("at most 0"), check


OPTIONS: list[dict[str, Any]] = [
    {},
    {"readout": "ramp", "correction": "schedule"},
    {"unroll": "loop"},
    {"unroll": "steps"},
    {"emit": "cuda-graph", "batch": 4},
    {"emit": "step"},
    {"target": "cpu"},
    {"target": "cpu", "readout": "ramp", "correction": "schedule"},
    {"neuron": "burst:3"},
    {"neuron": "signed:2"},
    {"reset": "hard"},
    {"precision": "fp16"},
    {"growth": "1.15@3,1.3@5", "correction": "schedule"},
    {"encode": "poisson"},
    {"readout": "delay:3"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_passes(options: dict[str, Any]) -> None:
    found = verify(MIXED, compile_text(MIXED, SAMPLES, steps=8, **options))
    assert found.passed, [check for check in found.checks if not check.passed]


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(33, 257, 65), (64, 1, 7)])
def test_products_of_vectors_pass(sizes: tuple[int, ...], samples: int) -> None:
    """K·N rows at once, and a single row, give the same bits."""
    text, last, weights = "", "x", {}
    for at, (rows, columns) in enumerate(pairwise(sizes)):
        weights[f"w{at}"] = scaled(at, columns, rows).T.copy()
        text += f"c{at} = MatMul ({last}, w{at})  r{at} = Relu (c{at})\n"
        last = f"r{at}"
    weights["o"] = scaled(9, 3, sizes[-1]).T.copy()
    model = parse(
        f"g (float[N,{sizes[0]}] x) => (float[N,3] y) {{ {text} y = MatMul ({last}, o) }}", weights
    )
    x = random(1, 8, sizes[0])
    found = verify(model, compile_text(model, x, steps=16), data=x[:samples])
    assert found.passed, failed(found)


# --- what it does not write fails ---


def loop_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.GraphProto]:
    node = next(node for node in model.graph.node if node.op_type == "Loop")
    return node, next(a.g for a in node.attribute if a.name == "body")


def change(model: onnx.ModelProto, name: str, how: Callable[[Array], Array]) -> None:
    """Change a constant, wherever it is."""
    graphs = [model.graph]
    if any(node.op_type == "Loop" for node in model.graph.node):
        graphs.append(loop_of(model)[1])
    tensors = [t for graph in graphs for t in graph.initializer if t.name == name]
    assert len(tensors) == 1, name
    values = np.array(how(numpy_helper.to_array(tensors[0]).copy()))
    tensors[0].CopyFrom(numpy_helper.from_array(values, name))


def neurons(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [
        n for n in loop_of(model)[1].node if n.op_type in (*dialect.NEURONS, *dialect.EVENT_NEURONS)
    ]


def port(node: onnx.NodeProto, name: str) -> str:
    known = dialect.ALL_OPERATORS[node.op_type]
    return str(node.input[[one.name for one in known.inputs].index(name)])


def threshold(model: onnx.ModelProto) -> None:
    change(model, port(neurons(model)[1], "threshold"), lambda theta: theta * np.float32(1.01))


def weight(model: onnx.ModelProto) -> None:
    node = next(n for n in loop_of(model)[1].node if n.op_type == "Conv")

    def one(values: Array) -> Array:
        values[0, 0, 0, 0] += np.float32(0.1)
        return values

    change(model, node.input[1], one)


def schedule(model: onnx.ModelProto) -> None:
    change(model, port(neurons(model)[1], "schedule"), lambda rows: np.roll(rows, 1, axis=0))


def one_chunk_less(model: onnx.ModelProto) -> None:
    """The Loop ends a chunk too early."""
    node, _ = loop_of(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    trips = -(-int(told["snnc.steps"]) // int(told["snnc.chunk"]))
    assert trips > 1 and not node.input[0]
    node.input[0] = "trips_less"
    less = numpy_helper.from_array(np.array(trips - 1, np.int64), node.input[0])
    model.graph.initializer.append(less)


def state_not_carried(model: onnx.ModelProto) -> None:
    """Every chunk starts from the membrane of the first."""
    _, body = loop_of(model)
    before, after = port(neurons(model)[1], "membrane"), neurons(model)[1].output[1]
    body.node.append(onnx.helper.make_node("Identity", [before], ["kept"]))
    next(entry for entry in body.output if entry.name == after).name = "kept"


def states_swapped(model: onnx.ModelProto) -> None:
    """Two layers of one size go on from each other's membranes."""
    _, body = loop_of(model)
    names = [node.output[1] for node in neurons(model)[1:3]]
    one, two = (next(entry for entry in body.output if entry.name == name) for name in names)
    one.name, two.name = names[1], names[0]


def first_weight_of_time(model: onnx.ModelProto) -> None:
    """The steps count from the second on: a ramp of 2, 3, 4."""
    _, body = loop_of(model)
    node = next(node for node in body.node if node.op_type == "Range")
    shifted = onnx.helper.make_node("Add", [node.output[0], node.input[2]], ["shifted"])
    for user in body.node:
        for index, name in enumerate(user.input):
            if name == node.output[0]:
                user.input[index] = "shifted"
    body.node.insert(list(body.node).index(node) + 1, shifted)


def steps_in_metadata(model: onnx.ModelProto) -> None:
    tell(model, steps=7)


def window_of(name: str, values: list[int]) -> Callable[[onnx.ModelProto], None]:
    """A convolution by events with another attribute."""

    def corrupt(model: onnx.ModelProto) -> None:
        node = next(
            n
            for n in neurons(model)
            for a in n.attribute
            if a.name == "strides" and list(a.ints) == [1, 1]
        )
        attribute = next(a for a in node.attribute if a.name == name)
        assert list(attribute.ints) != values
        del attribute.ints[:]
        attribute.ints.extend(values)

    return corrupt


def event_weight(model: onnx.ModelProto) -> None:
    node = next(n for n in neurons(model) if n.op_type == "EventConv")

    def one(values: Array) -> Array:
        values[(0,) * values.ndim] += np.float32(0.1)
        return values

    change(model, port(node, "weights"), one)


#: How a file is corrupted, and which checks see it beside that it is not what would be emitted.
CORRUPTED: dict[str, tuple[Callable[[onnx.ModelProto], None], dict[str, Any], set[str]]] = {
    "threshold": (threshold, {}, {"this file = loop"}),
    "weight": (weight, {}, {"this file = loop"}),
    "schedule row": (schedule, {"correction": "schedule"}, {"this file = loop"}),
    "one chunk less": (one_chunk_less, {}, {"this file = loop"}),
    "one step less": (one_chunk_less, {"unroll": "loop"}, {"this file = loop"}),
    "state not carried": (state_not_carried, {}, {"runs"}),
    "states swapped": (states_swapped, {}, {"this file = loop", "soft-reset identity"}),
    "read-out weights": (first_weight_of_time, {"readout": "ramp"}, {"this file = loop"}),
    "T in the metadata": (steps_in_metadata, {}, set()),
}
LOWERED: dict[str, tuple[Callable[[onnx.ModelProto], None], dict[str, Any]]] = {
    "pads": (window_of("pads", [0, 1, 2, 1]), {}),
    "more pads": (window_of("pads", [2, 1, 0, 1]), {}),
    "weight": (event_weight, {}),
    "threshold": (threshold, {}),
    "schedule row": (schedule, {"correction": "schedule"}),
}


def corrupted(
    how: Callable[[onnx.ModelProto], None], earlier: bool, **options: Any
) -> Verification:
    """The verification of a corrupted file, which says that another version wrote it if `earlier`."""
    snn = compile_text(MIXED, SAMPLES, **{"steps": 8, "chunk": None, **options})
    assert verify(MIXED, snn).passed
    how(snn)
    if earlier:
        next(e for e in snn.metadata_props if e.key == "snnc.version").value = "0.0.1"
    return verify(MIXED, snn)


@pytest.mark.parametrize("name", CORRUPTED)
def test_a_corrupted_file_fails(name: str) -> None:
    how, options, more = CORRUPTED[name]
    options = {"chunk": 4, **options} if options.get("unroll") != "loop" else options
    assert set(failed(corrupted(how, False, **options))) >= {"emits the same bytes again", *more}


@pytest.mark.parametrize(
    "name", ["threshold", "weight", "one step less", "states swapped", "read-out weights"]
)
def test_a_corrupted_file_of_another_version_fails(name: str) -> None:
    """There the bytes may differ, and what it computes is compared."""
    how, options, more = CORRUPTED[name]
    options = {"chunk": 4, **options} if options.get("unroll") != "loop" else options
    assert set(failed(corrupted(how, True, **options))) >= {"computes what is emitted again", *more}


@needs_events
@pytest.mark.parametrize("name", LOWERED)
def test_a_corrupted_event_driven_file_fails(name: str) -> None:
    how, options = LOWERED[name]
    found = failed(corrupted(how, False, target="cpu", **options))
    assert set(found) == {"emits the same bytes again", "by events = dense"}


@needs_events
def test_a_file_that_does_not_run_fails() -> None:
    """Another stride gives another size, which the residual does not fit."""
    found = corrupted(window_of("strides", [2, 2]), True, target="cpu")
    assert "runs" in failed(found)


def test_a_step_model_with_a_wrong_state_fails() -> None:
    """The membrane of a layer comes out as it came in."""

    def stuck(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type in dialect.NEURONS)
        after = node.output[1]
        node.output[1] = "lost"
        model.graph.node.append(
            onnx.helper.make_node("Identity", [port(node, "membrane")], [after])
        )

    snn = compile_text(MIXED, SAMPLES, steps=8, emit="step")
    stuck(snn)
    assert set(failed(verify(MIXED, snn))) == {"emits the same bytes again", "stepped = loop"}


@pytest.mark.parametrize("way", ["steps", "fold (K = 4)", "fold (K = 8)"])
def test_a_wrong_way_to_unroll_fails(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself writes one of the ways with a θ that is 1 % larger."""
    real = verification.emit
    steps = 8

    def emit(prepared: Any, calibration: Any, options: Any) -> onnx.ModelProto:
        model = real(prepared, calibration, options)
        chunk = f" (K = {options.chunk})" if options.chunk else ""
        if options.steps == steps and f"{options.unroll}{chunk}" == way:
            nodes = [*model.graph.node]
            if any(node.op_type == "Loop" for node in nodes):
                nodes = [*loop_of(model)[1].node]
            node = next(node for node in nodes if node.op_type in dialect.NEURONS)
            change(model, node.input[1], lambda theta: theta * np.float32(1.01))
        return model

    # T of the file is another one, so that none of the ways is the file itself.
    snn = compile_text(MIXED, SAMPLES, steps=8, chunk=3)
    monkeypatch.setattr(verification, "emit", emit)
    assert failed(verify(MIXED, snn)) == [f"{way} = loop"]


#: Two layers' counts and two outputs; "same" again, and with one of them changed.
COUNTS = [np.array([[1, 2]], np.float32), np.array([[0]], np.float32)]
OUTPUTS = [np.array([[0.5, np.nan]], np.float32), np.array([3])]


@pytest.mark.parametrize(
    ("counts", "outputs", "detail"),
    [
        (COUNTS, OUTPUTS, ""),
        ([COUNTS[0] + [[0, 1]], COUNTS[1]], OUTPUTS, "1 of 3 spike counts differ"),
        (COUNTS, [OUTPUTS[0] + np.float32(0.25), OUTPUTS[1]], "0 of 3 spike counts differ"),
        (COUNTS, [OUTPUTS[0] * np.array([[1, 0]]), OUTPUTS[1] + 1], "0 of 3 spike counts differ"),
        (COUNTS, [OUTPUTS[0][:, :1], OUTPUTS[1]], "the outputs have other shapes"),
    ],
)
def test_ways_agree_where_all_is_equal(
    counts: list[Array], outputs: list[Array], detail: str
) -> None:
    check = verification._compared("two ways", (counts, outputs), (COUNTS, OUTPUTS))
    assert check.passed == (not detail) and detail in check.detail


@needs_events
def test_the_default_session_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A portable file runs by events too, and what is wrong in that lowering is seen."""
    from snncompiler.analysis import instrument as watching

    real = watching.lower_events

    def wrong(model: onnx.ModelProto, **more: Any) -> Any:
        found = real(model, **more)
        window_of("pads", [0, 1, 2, 1])(found.model)
        return found

    snn = compile_text(MIXED, SAMPLES, steps=8)
    monkeypatch.setattr(watching, "lower_events", wrong)
    assert failed(verify(MIXED, snn)) == ["by events = dense"]


def test_rules_of_our_own_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: onnx.ModelProto) -> None:
        raise InternalError("a rule is broken")

    snn = compile_text(MIXED, SAMPLES, steps=8)
    monkeypatch.setattr(verification, "verify_output", broken)
    found = verify(MIXED, snn)
    assert [check.detail for check in found.checks] == ["a rule is broken"] and not found.passed


def test_the_command_fails_by_name(tmp_path: Path, capsys: Any) -> None:
    paths = [str(tmp_path / name) for name in ("m.onnx", "s.onnx")]
    onnx.save(MIXED, paths[0])
    snn = compile_text(onnx.load(paths[0]), SAMPLES, steps=8)
    onnx.save(snn, paths[1])
    assert app(["verify", *paths], standalone_mode=False) in (None, 0)
    threshold(snn)
    onnx.save(snn, paths[1])
    capsys.readouterr()
    code = app(["verify", *paths, "--json"], standalone_mode=False)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert code == 1 and not found["passed"] and "SNNC403" in said.err
    assert "this file = loop" in said.err


def test_a_real_network_passes() -> None:
    with np.load(models.path("digits-test")) as archive:
        images = np.ascontiguousarray(archive["x"][:24].transpose(0, 3, 1, 2), np.float32) / 16
    source = models.path("digits-resnet")
    snn = snncompiler.compile(source, calibration=images, steps=16)
    assert verify(source, snn, data=images).passed
