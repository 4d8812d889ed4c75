"""`--target cpu`: a file that is lowered already, what stays in it, and the commands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import CALIBRATED, CNN, RESNET, SCALED, TEST, errors, good, snnc
from helpers import Array, codes, compile_text, parse, random, tell, told

import snncompiler
from snncompiler import models
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir import dialect
from snncompiler.ir.settings import Options
from snncompiler.passes.lower import lower_events as lower_pass
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.pipeline import Compiled, compile_model
from snncompiler.runtime import create_session, library_path

needs_library = pytest.mark.skipif(library_path() is None, reason="the library is not built")

#: The second layer reads two spike trains, one above the other, which has no event-driven form.
BESIDE = """g (float[N,2,6,6] x) => (float[N,4,12,6] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)
  u = Concat <axis = 2> (r, r)
  d = Conv <pads = [1, 1, 1, 1]> (u, b)  q = Relu (d)
  e = Conv (q, k)  y = Relu (e)
}"""


def beside() -> onnx.ModelProto:
    weights = {
        "a": random(1, 4, 2, 3, 3),
        "b": random(2, 4, 4, 3, 3),
        "k": random(3, 4, 4, 1, 1),
    }
    return parse(BESIDE, weights)


def images(count: int) -> Array:
    with np.load(models.path("digits-test")) as archive:
        scaled = archive["x"][:count].transpose(0, 3, 1, 2).astype(np.float32) / 16
        return np.ascontiguousarray(scaled)


def digits(**options: Any) -> onnx.ModelProto:
    return compile_text(onnx.load(RESNET), images(32), **{"steps": 8, **options})


def compiled_beside(**options: Any) -> Compiled:
    return compile_model(beside(), Options(steps=6, **options), random(4, 8, 2, 6, 6))


def body_operators(model: onnx.ModelProto) -> list[str]:
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    return [node.op_type for entry in loop.attribute for node in entry.g.node]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("target")
    files = {}
    for target in ("portable", "cpu"):
        files[target] = folder / f"{target}.snn.onnx"
        args = (RESNET, "-o", files[target], "-T", 8, *CALIBRATED, "--samples", 64)
        good("compile", *args, "--target", target)
    return files


# --- the file ---


@needs_library
@pytest.mark.parametrize("options", [{}, {"unroll": "loop"}, {"readout": "ramp"}], ids=str)
def test_a_lowered_file_is_what_a_session_makes_of_the_portable_one(
    options: dict[str, Any],
) -> None:
    x = {"input": images(5)}
    portable, lowered = digits(**options), digits(**options, target="cpu")
    for threads in (1, 2):
        by_itself = create_session(portable, native=True, threads=threads).run(None, x)[0]
        for events in (True, False):
            session = create_session(lowered, native=True, threads=threads, events=events)
            assert np.array_equal(session.run(None, x)[0], by_itself)


@needs_library
def test_a_session_by_events_holds_no_copy_of_the_model_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feeds = digits(), {"input": images(8)}
    wanted = create_session(model, native=True).run(None, feeds)[0]
    given: list[Any] = []
    save = onnx.save_model

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc, unused-ignore]
        def __init__(self, source: Any, *arguments: Any, **more: Any) -> None:
            given.append(source)
            super().__init__(source, *arguments, **more)

    def cut_short(model: onnx.ModelProto, path: Path, **options: Any) -> None:
        save(model, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = create_session(model, native=True)
    assert isinstance(given[-1], str) and Path(given[-1]).is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not session.get_session_options().enable_mem_pattern
    assert np.array_equal(session.run(None, feeds)[0], wanted)
    # Where no file can be written, or not all of it: the bytes themselves.
    for broken in (
        (onnx, "save_model", cut_short),
        ("tempfile.tempdir", str(tmp_path / "absent")),
    ):
        monkeypatch.setattr(*broken)
        session = create_session(model, native=True)
        assert isinstance(given[-1], bytes) and not list(tmp_path.iterdir())
        assert np.array_equal(session.run(None, feeds)[0], wanted)


@pytest.mark.parametrize("options", [{}, {"unroll": "loop"}], ids=str)
def test_a_lowered_file_runs_without_the_library(options: dict[str, Any]) -> None:
    x = images(5)
    lowered = digits(**options, target="cpu")
    found = create_session(lowered, native=False).run(None, {"input": x})[0]
    wanted = create_session(digits(**options), native=False).run(None, {"input": x})[0]
    # Sums in another order may move a spike, which is one step of 8.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.1 * np.abs(wanted).max())
    onnx.checker.check_model(lowered, full_check=True)


def test_every_layer_is_named_and_time_stays_free() -> None:
    lowered = digits(target="cpu")
    assert {"EventConv", "EventConvAdd", "EventConvPair"} <= set(body_operators(lowered))
    assert not {"Conv", "ScheduledRMPNeuron", "RMPNeuron"} & set(body_operators(lowered))
    found = read_compiled(lowered)
    assert found.options.target == told(lowered)["target"] == "cpu"
    assert [note.operator for note in found.events] == [
        "EventNeuron",
        "EventConv",
        "EventConvAdd",
        "EventConv",
        "EventConvPair",
    ]
    assert found.events == read_compiled(digits()).events
    assert found.overrides(steps=30)


def test_a_lowered_file_is_left_as_it_is() -> None:
    lowered = digits(target="cpu")
    again = lower_events(lowered)
    assert again.model is lowered and not again.layers
    partly = compiled_beside(target="cpu").model
    assert lower_events(partly).model is partly


def test_what_stays_is_told() -> None:
    made = compiled_beside(target="cpu")
    (note,) = (finding for finding in made.prepared.findings if finding.code == "SNNC210")
    assert note.severity == "note" and "Concat" in note.message
    first, second, third = read_compiled(made.model).events
    assert (first.operator, third.operator) == ("EventNeuron", "EventConv")
    assert not second.operator and second.name == note.node and second.reason in note.message
    assert {"Conv", "EventConv", "EventNeuron"} <= set(body_operators(made.model))
    assert not any(f.code in ("SNNC210", "SNNC211") for f in compiled_beside().prepared.findings)


def test_nothing_to_lower_is_a_warning() -> None:
    made = compiled_beside(target="cpu", reset="hard")
    assert codes(made.prepared.findings).count("SNNC210") == 3
    (warning,) = (finding for finding in made.prepared.findings if finding.code == "SNNC211")
    assert warning.severity == "warning" and "changes nothing" in warning.message
    found = read_compiled(made.model)
    assert found.options.target == "cpu" and not any(note.operator for note in found.events)
    x = {"x": random(5, 2, 2, 6, 6)}
    wanted = create_session(compiled_beside(reset="hard").model).run(None, x)[0]
    assert np.array_equal(create_session(made.model).run(None, x)[0], wanted)
    assert all(dialect.DOMAIN not in str(note.operator) for note in found.events)


def test_where_the_lowering_fails_every_layer_stays_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("by nought")

    portable = compiled_beside().model
    monkeypatch.setattr(lower_pass, "_lower_body", fails)
    lowered = lower_events(portable)
    assert lowered.model is portable and len(lowered.layers) == 3
    assert all(not note.operator and "by nought" in note.reason for note in lowered.layers)
    made = compiled_beside(target="cpu")
    notes = [finding for finding in made.prepared.findings if finding.code == "SNNC210"]
    assert len(notes) == 3 and all("by nought" in note.message for note in notes)
    x = {"x": random(5, 2, 2, 6, 6)}
    wanted = create_session(portable, events=False).run(None, x)[0]
    for model in (portable, made.model):
        assert np.array_equal(create_session(model).run(None, x)[0], wanted)


@needs_library
def test_a_session_that_does_not_load_what_is_lowered_stays_dense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    portable, x = compiled_beside().model, {"x": random(5, 2, 2, 6, 6)}
    renew = lower_pass.renew_functions

    def unheard(model: onnx.ModelProto) -> None:
        renew(model)
        model.graph.node.append(onnx.helper.make_node("Unheard", ["x"], ["never"]))

    monkeypatch.setattr(lower_pass, "renew_functions", unheard)
    with pytest.warns(RuntimeWarning, match=r"not computed by events.*Unheard"):
        session = create_session(portable, threads=1)
    assert session.get_session_options().enable_mem_pattern
    wanted = create_session(portable, threads=1, events=False).run(None, x)[0]
    assert np.array_equal(session.run(None, x)[0], wanted)


def test_damaged_notes_are_refused() -> None:
    lowered = digits(target="cpu")
    for text in ("[{}]", "nothing", '[{"name": "a", "shape": 3}]', "7"):
        tell(lowered, events=text)
        with pytest.raises(Refused, match="damaged"):
            read_compiled(lowered)


# --- evaluation ---


@pytest.mark.parametrize("network", ["digits", "beside"])
def test_activity_of_a_lowered_file(network: str) -> None:
    if network == "digits":
        source, x = onnx.load(RESNET), images(20)
        files = [digits(), digits(target="cpu")]
    else:
        source, x = beside(), random(5, 7, 2, 6, 6)
        files = [compiled_beside().model, compiled_beside(target="cpu").model]
    plain, lowered = (snncompiler.evaluate(source, snn, x, steps=[3, 8]) for snn in files)
    assert lowered.macs == plain.macs and lowered.events == plain.events
    for mine, other in zip(plain.results, lowered.results, strict=True):
        assert [layer.layer for layer in mine.layers] == [layer.layer for layer in other.layers]
        for one, two in zip(mine.layers, other.layers, strict=True):
            assert two.firing_rate == pytest.approx(one.firing_rate, rel=0.02)
            assert two.silent == pytest.approx(one.silent, abs=0.02)
        for first, second in zip(mine.synops, other.synops, strict=True):
            assert (first.layer, first.dense) == (second.layer, second.dense)
            assert second.done == pytest.approx(first.done, rel=0.02)
    with pytest.raises(UsageError, match="without --target cpu"):
        snncompiler.evaluate(source, files[1], x, diagnose=True)


@needs_library
def test_evaluating_runs_by_events_and_says_so() -> None:
    found = snncompiler.evaluate(beside(), compiled_beside().model, random(5, 7, 2, 6, 6))
    assert [note.operator for note in found.events] == ["EventNeuron", "", "EventConv"]
    assert "Concat" in found.events[1].reason
    steps = compiled_beside(unroll="steps").model
    found = snncompiler.evaluate(beside(), steps, random(5, 7, 2, 6, 6))
    assert {note.reason for note in found.events} == {"nothing can be lowered"}


# --- commands ---


def test_compile_lists_the_layers(tmp_path: Path) -> None:
    args = ("compile", CNN, "-o", tmp_path / "a.onnx", *CALIBRATED, "--samples", 32)
    told = good(*args, "--target", "cpu")
    assert "Layers on the CPU" in told.out and "EventNeuron" in told.out
    content = good(*args, "--target", "cpu", "--json").json()
    assert content["target"] == "cpu"
    assert all(layer["operator"] and layer["reason"] is None for layer in content["layers"])
    assert "Layers on the CPU" not in good(*args).out
    onnx.save(beside(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=random(4, 8, 2, 6, 6))
    args = ("compile", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz", "--target", "cpu")
    told = good(*args)
    assert "no: Concat" in told.out and "note SNNC210" in told.err
    content = good(*args, "--json").json()
    assert [layer["operator"] for layer in content["layers"]] == ["EventNeuron", None, "EventConv"]
    assert "Concat" in content["layers"][1]["reason"]
    assert "warning SNNC211" in good(*args, "--reset", "hard").err


def test_the_same_bytes_twice(built: dict[str, Path], tmp_path: Path) -> None:
    args = (RESNET, "-o", tmp_path / "a.onnx", "-T", 8, *CALIBRATED, "--samples", 64)
    good("compile", *args, "--target", "cpu")
    assert (tmp_path / "a.onnx").read_bytes() == built["cpu"].read_bytes()


def test_forms_that_cannot_be_lowered_are_refused(tmp_path: Path) -> None:
    for more in (("--emit", "step"), ("--unroll", "steps"), ("--precision", "fp16")):
        ran = snnc("compile", CNN, "-o", tmp_path / "a.onnx", "--target", "cpu", *more)
        assert ran.code == 2 and " ".join(more) in errors(ran)[0] and "leave one" in errors(ran)[0]
    assert not list(tmp_path.iterdir())


def test_info_tells_operators_and_multiply_accumulates(built: dict[str, Path]) -> None:
    portable, lowered = (good("info", built[name], "--json").json() for name in built)
    assert (portable["target"], lowered["target"]) == ("portable", "cpu")
    assert portable["macs"] == lowered["macs"] and portable["layers"] == lowered["layers"]
    assert portable["findings"] == []
    layers = portable["layers"]
    assert [layer["operator"] for layer in layers][::2] == [
        "EventNeuron",
        "EventConvAdd",
        "EventConvPair",
    ]
    # 16 channels in and out; 22 of 24 taps of a row of 8 places and 3 taps are no padding.
    assert [layer["macs_a_step"] for layer in layers[:2]] == [0, 16 * 16 * 22 * 22]
    assert portable["macs"]["a_step"] == sum(layer["macs_a_step"] for layer in layers)
    for name in built:
        told = good("info", built[name]).out
        assert "EventConvPair" in told and "123,904" in told and "MACs a step" in told


def test_info_of_a_form_that_is_not_lowered(tmp_path: Path) -> None:
    args = ("compile", CNN, "-o", tmp_path / "a.onnx", *CALIBRATED, "--samples", 32, "-T", 4)
    for more, reason in (
        (("--unroll", "steps"), "steps has no loop"),
        (("--emit", "step"), "step has"),
    ):
        good(*args, *more)
        content = good("info", tmp_path / "a.onnx", "--json").json()
        assert len(content["layers"]) == 4
        assert all(reason in layer["reason"] for layer in content["layers"])
    assert content["macs"] is None  # a single step has its states outside


def test_info_of_a_file_that_does_not_run(built: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(built["portable"])
    next(node for node in model.graph.node if node.op_type == "Conv").attribute[0].ints[0] = 77
    model.graph.node.append(onnx.helper.make_node("Unheard", ["input"], ["more"]))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    ran = good("info", tmp_path / "a.onnx")
    assert "warning SNNC403" in ran.err and "does not run" in ran.err and "source sha256" in ran.out


def test_eval_tells_synaptic_operations(built: dict[str, Path]) -> None:
    for snn in built.values():
        args = ("eval", RESNET, snn, "--data", TEST, *SCALED, "--limit", 16, "--steps", "4,8")
        told = good(*args).out
        assert "SynOps a sample" in told and "multiply-accumulates a sample: 428,416" in told
        content = good(*args, "--json").json()
        assert content["macs"] == {"ann": 428416, "a_step": 420352, "once": 8064}
        for result in content["results"]:
            synops = result["synops"]
            assert synops["dense"] == 420352 * result["steps"]
            assert synops["avoided"] == pytest.approx(synops["dense"] - synops["done"])
            assert 0 < synops["share"] < 0.5
            for key in ("done", "dense", "avoided"):
                assert sum(part[key] for part in synops["layers"]) == pytest.approx(synops[key])
        assert len(content["events"]) == 5
        if library_path() is not None:
            assert all(note["operator"] for note in content["events"])
            assert "EventConvPair" in told


def test_the_other_commands_on_a_lowered_file(built: dict[str, Path], tmp_path: Path) -> None:
    lowered = built["cpu"]
    assert "by events = dense" in good("verify", RESNET, lowered).out
    logits = good("run", lowered, "--input", TEST, *SCALED, "--json").json()["logits"]
    assert np.shape(logits) == (500, 10)
    ran = snnc("eval", RESNET, lowered, "--data", TEST, *SCALED, "--limit", 4, "--diagnose")
    assert ran.code == 2 and "compile it without --target cpu" in errors(ran)[0]
    rows = [
        good("info", built[name], "--thresholds", "--json").json()["thresholds"] for name in built
    ]
    for mine, other in zip(*rows, strict=True):
        assert {**mine, "neuron": ""} == {**other, "neuron": ""}
    traces = []
    for name, snn in built.items():
        target = tmp_path / f"{name}.npz"
        good("trace", snn, "--data", TEST, *SCALED, "--ann", RESNET, "-o", target)
        traces.append(np.load(target))
    assert set(traces[0].files) == set(traces[1].files)
    for key in traces[0].files:
        mine, other = (archive[key] for archive in traces)
        if mine.dtype.kind in "fu" and key.startswith(("spikes", "membrane", "activation")):
            assert np.mean(np.abs(mine.astype(float) - other) > 1e-3) < 0.01, key
        else:
            assert mine.shape == other.shape, key


@needs_library
def test_chunks_are_longer_by_events_unless_their_length_was_asked_for() -> None:
    portable, asked = digits(chunk=2), digits(chunk=2, target="cpu")
    lowered = lower_events(portable).model
    assert [read_compiled(m).metadata["snnc.chunk"] for m in (portable, lowered, asked)] == [
        "2",
        "8",
        "2",
    ]
    feeds = {"input": images(3)}
    ran = [create_session(model).run(None, feeds)[0] for model in (lowered, asked)]
    np.testing.assert_array_equal(*ran)
