"""The Python functions: what they take, what they give back, what they leave alone, how they refuse."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest
from helpers import parse
from numpy.typing import NDArray

import snncompiler
from snncompiler import models
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.pipeline import compile_model, prepare

CNN, RESNET = models.path("digits-cnn"), models.path("digits-resnet")


def digits(which: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images as the networks want them, [n, 1, 8, 8] from 0 to 1, and their labels."""
    with np.load(models.path(which)) as archive:
        images = archive["x"][:count].astype(np.float32) / 16
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), archive["y"][:count]


IMAGES, _ = digits("digits-train", 16)
TEST, LABELS = digits("digits-test", 64)


@pytest.fixture(scope="module")
def snn() -> onnx.ModelProto:
    return snncompiler.compile(CNN, calibration=IMAGES, steps=16)


# --- compile ---


def test_every_form_of_the_same_data_gives_the_same_network() -> None:
    forms: list[Any] = [
        IMAGES,
        IMAGES.astype(np.float64),
        {"input": IMAGES},
        {"x": IMAGES},
        {"images": IMAGES, "y": np.zeros(16, np.int64)},
        snncompiler.Dataset({"input": IMAGES}),
        compile_model(CNN, Options(steps=16), IMAGES).calibration,
    ]
    made = {
        snncompiler.compile(CNN, calibration=form, steps=16).SerializeToString(deterministic=True)
        for form in forms
    }
    assert len(forms) == 7 and len(made) == 1


def test_data_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.savez(tmp_path / "x.npz", input=IMAGES)
    stored = (IMAGES * 16).astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "u.npz", images=stored)
    scaled = snncompiler.Preprocess(scale=16)
    made = [
        snncompiler.compile(CNN, calibration=IMAGES),
        snncompiler.compile(CNN, calibration=tmp_path / "x.npy"),
        snncompiler.compile(CNN, calibration=str(tmp_path / "x.npz")),
        snncompiler.compile(CNN, calibration=tmp_path / "u.npz", preprocess=scaled),
    ]
    assert len({model.SerializeToString(deterministic=True) for model in made[:3]}) == 1
    # The file keeps how its pixels became numbers, and nothing else is another.
    assert read_compiled(made[3]).preprocess == scaled
    for model in (made[0], made[3]):
        entries = {entry.key: entry for entry in model.metadata_props}
        calibration = json.loads(entries["snnc.calibration"].value)
        calibration.pop("preprocess", None)
        entries["snnc.calibration"].value = json.dumps(calibration)
        entries["snnc.calibration_sha256"].value = ""
    assert made[0] == made[3]


def test_every_form_of_the_same_model() -> None:
    loaded = onnx.load(CNN)
    made = [snncompiler.compile(m, calibration=IMAGES) for m in (CNN, str(CNN), CNN.read_bytes())]
    made.append(snncompiler.compile(loaded, calibration=IMAGES))
    assert len(made) == 4
    for model in made:
        # The name and hash of the source differ between a file and a model; the network does not.
        assert model.graph == made[0].graph and list(model.functions) == list(made[0].functions)


@pytest.mark.parametrize("path", [CNN, RESNET], ids=["cnn", "resnet"])
def test_the_source_and_the_data_are_not_changed(path: Path) -> None:
    source = onnx.load(path)
    before = source.SerializeToString(deterministic=True)
    images, labels = TEST.copy(), LABELS.copy()
    made = snncompiler.compile(source, calibration={"input": images, "y": labels}, steps=4)
    compiled = made.SerializeToString(deterministic=True)
    snncompiler.check(source)
    snncompiler.evaluate(source, made, {"input": images, "y": labels})
    assert snncompiler.verify(source, made, data=images).passed
    assert source.SerializeToString(deterministic=True) == before
    assert made.SerializeToString(deterministic=True) == compiled
    assert np.array_equal(images, TEST) and np.array_equal(labels, LABELS)


def test_inputs_and_outputs_are_those_of_the_ann(snn: onnx.ModelProto) -> None:
    assert isinstance(snn, onnx.ModelProto)
    onnx.checker.check_model(snn, full_check=True)
    ann = onnx.load(CNN)
    given = {tensor.name for tensor in snn.graph.initializer}
    assert [e.name for e in snn.graph.input if e.name not in given] == [
        e.name for e in ann.graph.input
    ]
    assert [e.name for e in snn.graph.output] == [e.name for e in ann.graph.output]


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    snncompiler.compile(CNN, calibration=IMAGES, progress=lambda *what: told.append(what))
    assert list(dict.fromkeys(text for text, _, _ in told)) == ["calibrating", "correcting"]
    for text, last in (("calibrating", 16), ("correcting", 4)):
        steps = [(done, of) for name, done, of in told if name == text]
        assert steps[-1] == (last, last) and steps == sorted(steps) and steps[0][0] > 0


def test_samples_are_drawn_by_seed() -> None:
    def calibration(**options: Any) -> snncompiler.Calibration:
        made = snncompiler.compile(CNN, calibration=IMAGES, **options)
        return read_compiled(made).calibration

    assert calibration(samples=8).samples == 8
    assert calibration(samples=None).samples == calibration(samples=1000).samples == 16
    first, again, other = (calibration(samples=8, seed=seed) for seed in (1, 1, 2))
    assert first.data_sha256 == again.data_sha256 != other.data_sha256


def test_a_calibration_is_for_its_own_model() -> None:
    calibration = compile_model(CNN, Options(), IMAGES).calibration
    with pytest.raises(snncompiler.Refused, match="SNNC306"):
        snncompiler.compile(RESNET, calibration=calibration)
    again = snncompiler.Calibration.from_json(calibration.to_json())
    assert again.to_json() == calibration.to_json()
    with pytest.raises(snncompiler.Refused, match="cannot be read"):
        snncompiler.Calibration.from_json("{}")


# --- check ---


def test_check_is_plain_data_and_refuses_with_all_findings() -> None:
    content = snncompiler.check(RESNET)
    assert len(content["rectifiers"]) == 5 and len(content["linear_layers"]) == 7
    with pytest.raises(snncompiler.Refused) as caught:
        snncompiler.check(RESNET, strict=True)
    assert len(caught.value.findings) == 13
    assert all(isinstance(finding, snncompiler.Finding) for finding in caught.value.findings)
    assert str(caught.value).count("\n") == 12


# --- evaluate ---


def test_evaluate_takes_every_form_of_data(snn: onnx.ModelProto) -> None:
    found = snncompiler.evaluate(CNN, snn, {"x": TEST, "y": LABELS}, steps=[4, 16])
    assert (found.samples, [r.steps for r in found.results]) == (64, [4, 16])
    dataset = snncompiler.Dataset({"input": TEST}, LABELS)
    assert snncompiler.evaluate(CNN, snn, dataset, steps=[4, 16]) == found
    bare = snncompiler.evaluate(CNN, snn, TEST, steps=[4, 16])
    assert bare.ann_accuracy is None
    for with_labels, without in zip(found.results, bare.results, strict=True):
        assert with_labels.accuracy is not None and without.accuracy is None
        assert with_labels.agreement == without.agreement
        assert with_labels.layers == without.layers
    assert found.as_dict()["results"][1]["steps"] == 16
    own = snncompiler.evaluate(CNN, snn, dataset)
    assert own.results == found.results[1:]
    assert snncompiler.evaluate(CNN, snn, dataset, limit=10).samples == 10


def test_evaluate_and_verify_refuse_what_does_not_belong_together(snn: onnx.ModelProto) -> None:
    with pytest.raises(snncompiler.Refused, match="SNNC402"):
        snncompiler.evaluate(RESNET, snn, TEST)
    with pytest.raises(snncompiler.Refused, match="SNNC402"):
        snncompiler.verify(RESNET, snn)
    with pytest.raises(snncompiler.Refused, match="SNNC401"):
        snncompiler.evaluate(CNN, CNN, TEST)
    with pytest.raises(snncompiler.Refused, match="SNNC114"):
        snncompiler.compile(snn)


# --- verify ---


def test_verify_tells_every_check(snn: onnx.ModelProto) -> None:
    data: list[Any] = [None, TEST, {"input": TEST}, snncompiler.Dataset({"input": TEST})]
    for form in data:
        found = snncompiler.verify(CNN, snn, data=form)
        assert found.passed and len(found.checks) == 8 and len(found.layers) == 4
        assert found.as_dict()["passed"] is True
    assert len(data) == 4


# --- what is refused, and how ---


def test_values_out_of_range() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "-T 0"),
        ({"steps": -1}, "-T -1"),
        ({"steps": 10**9}, "-T 1000000000"),
        ({"threshold": "mean"}, "mean is unknown"),
        ({"unroll": "twice"}, "twice is unknown"),
        ({"reset": "gentle"}, "gentle is unknown"),
        ({"encode": "morse"}, "morse is unknown"),
        ({"percentile": 0.0}, "--percentile"),
        ({"alpha": float("nan")}, "--alpha"),
        ({"initial": 1.0}, "--initial"),
        ({"seed": -1}, "--seed"),
        ({"chunk": 4, "unroll": "loop"}, "--chunk"),
    ]
    for options, part in cases:
        with pytest.raises(snncompiler.UsageError) as caught:
            snncompiler.compile(CNN, calibration=IMAGES, **options)
        assert part in str(caught.value), options
    assert len(cases) == 12


def test_data_that_does_not_fit() -> None:
    hole = IMAGES.copy()
    hole[3, 0, 1, 2] = np.inf
    cases: list[tuple[Any, str]] = [
        (IMAGES[:, :, :4], "SNNC302"),
        (IMAGES[:0], "SNNC303"),
        (hole, "SNNC303"),
        ({"other": IMAGES}, "SNNC302"),
        ({"input": IMAGES.astype(str)}, "SNNC302"),
        ({"input": IMAGES.astype(object)}, "SNNC302"),
        ({"input": IMAGES, "y": np.zeros(3, np.int64)}, "SNNC302"),
        ({"input": IMAGES, "y": np.zeros(16)}, "SNNC302"),
    ]
    for data, code in cases:
        with pytest.raises(snncompiler.Refused, match=code):
            snncompiler.compile(CNN, calibration=data)
    assert len(cases) == 8


BAD_DATASETS: dict[str, dict[str, NDArray[Any]]] = {
    "name": {"other": IMAGES},
    "shape": {"input": IMAGES[:, :, :4]},
    "NaN": {"input": IMAGES * np.float32("nan")},
    "no samples": {"input": IMAGES[:0]},
    "type": {"input": IMAGES.astype(np.float64)},
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_a_dataset_that_does_not_fit(name: str) -> None:
    with pytest.raises(snncompiler.Refused, match="SNNC30"):
        snncompiler.compile(CNN, calibration=snncompiler.Dataset(BAD_DATASETS[name]))


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], onnx.GraphProto()], ids=repr)
def test_a_model_of_a_wrong_type_is_a_type_error(wrong: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: snncompiler.compile(wrong),
        lambda: snncompiler.check(wrong),
        lambda: snncompiler.evaluate(CNN, wrong, TEST),
        lambda: snncompiler.verify(wrong, wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=type(wrong).__name__):
            call()


def test_data_of_a_wrong_type_is_a_type_error() -> None:
    wrong: Any
    for wrong in (3, [1, 2], onnx.ModelProto()):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            snncompiler.compile(CNN, calibration=wrong)


WRONG_TYPES: dict[str, dict[str, Any]] = {
    "steps is text": {"steps": "64"},
    "steps is no whole number": {"steps": 2.5},
    "chunk is no whole number": {"chunk": 2.5},
    "seed is no whole number": {"seed": 1.5},
    "alpha is text": {"alpha": "1"},
    "preprocess is a dict": {"preprocess": {"scale": 16}},
    "samples is 0": {"samples": 0},
    "samples is negative": {"samples": -1},
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_an_option_of_a_wrong_type_is_named(name: str) -> None:
    with pytest.raises((TypeError, snncompiler.UsageError)) as caught:
        snncompiler.compile(CNN, calibration=IMAGES, **WRONG_TYPES[name])
    message = str(caught.value)
    assert name.split()[0] in message or "-T" in message


def test_numpy_numbers_are_numbers() -> None:
    numbers: dict[str, Any] = {"steps": np.int64(16), "alpha": np.float64(1), "seed": np.int64(0)}
    made = snncompiler.compile(CNN, calibration=IMAGES, **numbers)
    plain = snncompiler.compile(CNN, calibration=IMAGES, steps=16, alpha=1.0, seed=0)
    assert made.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


@pytest.mark.parametrize("limit", [0, -1])
def test_evaluate_refuses_an_absurd_limit(snn: onnx.ModelProto, limit: int) -> None:
    with pytest.raises(snncompiler.UsageError, match="limit"):
        snncompiler.evaluate(CNN, snn, TEST, limit=limit)


def test_evaluate_refuses_labels_that_no_class_has(snn: onnx.ModelProto) -> None:
    with pytest.raises(snncompiler.Refused, match="label"):
        snncompiler.evaluate(CNN, snn, {"x": TEST, "y": LABELS + 100})


def test_errors_are_one_tree() -> None:
    tree = {
        snncompiler.Refused: 1,
        snncompiler.UsageError: 2,
        snncompiler.EnvironmentMissing: 3,
        snncompiler.InternalError: 4,
    }
    for kind, code in tree.items():
        assert issubclass(kind, snncompiler.SnncError) and kind.exit_code == code
    network = "agraph (float[N,4] x) => (float[N,4] y) { y = Add (x, x) }"
    with pytest.raises(snncompiler.SnncError, match="no ReLU") as caught:
        prepare(parse(network))
    assert caught.value.exit_code == 1


def test_everything_public_is_documented_and_typed() -> None:
    assert len(snncompiler.__all__) == len(set(snncompiler.__all__)) >= 15
    for name in snncompiler.__all__:
        thing = getattr(snncompiler, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            parameters = inspect.signature(thing).parameters
            assert set(get_type_hints(thing)) == {*parameters, "return"}, name
    assert (Path(snncompiler.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_type_checker_sees_the_options(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    calls = """
import snncompiler
from snncompiler.ir.spikes import Spikes
snncompiler.compile("a.onnx", steps=3, neuron="burst:2", alpha="auto", calibration="x.npz")
snncompiler.compile("a.onnx", neuron=Spikes("burst", 2), progress=None)
snncompiler.compile("a.onnx", steps="3")
snncompiler.compile("a.onnx", threshold="mean")
snncompiler.compile("a.onnx", stepz=3)
snncompiler.compile(steps=3)
"""
    script = tmp_path / "calls.py"
    script.write_text(calls, encoding="utf-8")
    said, _, _ = mypy.run([str(script), "--follow-imports=silent", "--no-error-summary"])
    lines = [line for line in said.splitlines() if line.startswith(str(script)) and "error" in line]
    assert [int(line.split(":")[1]) for line in lines] == [6, 7, 8, 9], said
