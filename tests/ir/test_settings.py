"""Options: what is refused, what `auto` stands for, the task of a network, and the search for α."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random, run_model, told

import snncompiler
from snncompiler import models, pipeline
from snncompiler.calibration import search
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.option import written
from snncompiler.ir.readout import ReadOut
from snncompiler.ir.rectifiers import depth_of, rectifiers_of
from snncompiler.ir.settings import MAX_SCHEDULE, Options
from snncompiler.ir.spikes import Spikes
from snncompiler.network.task import task_of
from snncompiler.pipeline import prepare

RELU = "g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"

# --- what is refused ---

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "ranking"}, "--task ranking"),
    ({"threshold": "mean"}, "--threshold mean"),
    ({"correction": "full"}, "--correction full"),
    ({"encode": "rate"}, "--encode rate"),
    ({"tau": 0.0}, "--tau 0.0"),
    ({"tau": -1}, "--tau -1"),
    ({"tau": float("inf")}, "--tau inf"),
    ({"tau": float("nan")}, "--tau nan"),
    ({"tau": "100"}, "tau is '100'"),
    ({"alpha": "best"}, "alpha is 'best'"),
    ({"alpha": 0.0}, "--alpha 0.0"),
    ({"alpha": True}, "alpha is True"),
    ({"schedule_steps": 0}, "--schedule-steps 0"),
    ({"schedule_steps": MAX_SCHEDULE + 1}, "--schedule-steps 1025"),
    ({"schedule_steps": 8.0}, "schedule_steps is 8.0"),
    ({"per_channel": 1}, "per_channel is 1"),
    ({"paper": "yes"}, "paper is 'yes'"),
    ({"initial": -0.1}, "--initial -0.1"),
    ({"initial": 1.0}, "--initial 1.0"),
    ({"initial": float("nan")}, "--initial nan"),
    ({"readout": "last"}, "--readout: 'last'"),
    ({"readout": "mean:3"}, "--readout: 'mean:3'"),
    ({"readout": "ramp:"}, "--readout: 'ramp:'"),
    ({"readout": "ramp:0"}, "--readout: 'ramp:0'"),
    ({"readout": "ramp:4"}, "--readout: 'ramp:4'"),
    ({"readout": "delay"}, "--readout: 'delay'"),
    ({"readout": "delay:-1"}, "--readout: 'delay:-1'"),
    ({"readout": "delay:1.5"}, "--readout: 'delay:1.5'"),
    ({"readout": "delay:²"}, "--readout: 'delay:²'"),
    ({"readout": "delay:64"}, "--readout delay:64"),
    ({"readout": "delay:8", "steps": 8}, "--readout delay:8"),
    ({"readout": None}, "--readout is None"),
    ({"weights": "int1"}, "--weights: 'int1'"),
    ({"weights": "int17"}, "--weights: 'int17'"),
    ({"weights": "int08"}, "--weights: 'int08'"),
    ({"weights": "fp8"}, "--weights: 'fp8'"),
    ({"weights": 8}, "--weights is 8"),
    ({"input_bits": 8}, "--input-bits belongs to weights"),
    ({"compact": True}, "--compact belongs to weights"),
    ({"neuron": "ternary"}, "--neuron: 'ternary'"),
    ({"neuron": "burst"}, "--neuron: 'burst'"),
    ({"neuron": "burst:0"}, "--neuron: 'burst:0'"),
    ({"neuron": "burst:128"}, "--neuron: 'burst:128'"),
    ({"neuron": "signed:-2"}, "--neuron: 'signed:-2'"),
    ({"neuron": "signed: 2"}, "--neuron: 'signed: 2'"),
    ({"neuron": "binary:1"}, "--neuron: 'binary:1'"),
    ({"neuron": 3}, "--neuron is 3"),
    ({"reset": "hard", "neuron": "burst:2"}, "--reset hard"),
    ({"reset": "hard", "correction": "schedule"}, "--reset hard"),
    ({"encode": "poisson", "emit": "step"}, "--encode poisson"),
    ({"paper": True, "emit": "step"}, "--encode"),
    ({"target": "gpu"}, "--target gpu"),
    ({"timing": "later"}, "--timing later"),
    ({"coding": "rate"}, "--coding belongs to --timing layered"),
    ({"timing": "layered", "coding": "burst"}, "--coding burst"),
    ({"timing": "layered", "coding": "radix"}, "--steps 64"),
    ({"timing": "layered", "coding": "radix", "steps": 64}, "--steps 64"),
    ({"timing": "layered", "coding": "radix", "steps": 17}, "--steps 17"),
    ({"timing": "layered", "unroll": "loop"}, "--unroll loop belongs to --timing streaming"),
    ({"timing": "layered", "chunk": 4}, "--chunk belongs to --timing streaming"),
    ({"timing": "layered", "growth": "none"}, "--growth none belongs to --timing streaming"),
    ({"timing": "layered", "readout": "ramp:2"}, "--readout ramp:2 belongs to"),
    ({"timing": "layered", "neuron": "burst:2"}, "--neuron burst:2 belongs to"),
    ({"timing": "layered", "reset": "hard"}, "--reset hard belongs to"),
    ({"timing": "layered", "initial": 0.5}, "--initial belongs to"),
    ({"timing": "layered", "paper": True}, "--paper True belongs to"),
    ({"timing": "layered", "schedule_steps": 8}, "--schedule-steps 8 belongs to"),
    ({"timing": "layered", "correction": "schedule"}, "--correction schedule"),
    ({"timing": "layered", "threshold": "vin-max"}, "--threshold vin-max"),
    ({"timing": "layered", "encode": "poisson"}, "--encode poisson"),
    ({"timing": "layered", "target": "cpu"}, "--target cpu"),
    ({"target": "cpu", "emit": "step"}, "--emit step"),
    ({"target": "cpu", "emit": "cuda-graph", "batch": 2}, "--emit cuda-graph"),
    ({"target": "cpu", "unroll": "steps"}, "--unroll steps"),
    ({"target": "cpu", "precision": "fp16"}, "--precision fp16"),
]


@pytest.mark.parametrize(
    ("options", "named"),
    REFUSED,
    ids=[str(options) for options, _ in REFUSED],
)
def test_a_bad_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipeline.compile_model(parse(RELU), Options(**options), random(0, 8, 3))
    assert named in str(caught.value)


GOOD: list[dict[str, Any]] = [
    {"readout": "delay:7", "steps": 8},
    {"readout": "delay:0", "steps": 1},
    {"neuron": "burst:127"},
    {"neuron": "signed:1"},
    {"schedule_steps": MAX_SCHEDULE},
    {"initial": 0.0},
    {"initial": 0.999},
    {"reset": "hard", "correction": "none"},
    {"alpha": "auto"},
    {"tau": 1e-9},
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_the_ends_of_the_ranges_are_allowed(options: dict[str, Any]) -> None:
    Options(**options).check()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("neuron", "burst:4", Spikes("burst", 4)),
        ("readout", "delay:3", ReadOut("delay", 3)),
        ("growth", "1.15@33,1.3@65", Growth(((33, 1.15), (65, 1.3)))),
    ],
)
def test_a_text_and_its_object_are_the_same(name: str, text: str, value: object) -> None:
    by_text, by_object = Options(**{name: text}), Options(**{name: value})  # type: ignore[arg-type]
    assert by_text == by_object and hash(by_text) == hash(by_object)
    assert getattr(by_text, name) == value and written(value) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neuron", Spikes("burst", 500)),
        ("readout", ReadOut("ramp", power=7)),
        ("growth", Growth(((5, 2.0), (3, 1.0)))),
        ("readout", Spikes()),
    ],
)
def test_an_object_that_no_text_stands_for_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        Options(**{name: value})  # type: ignore[arg-type]


def test_the_python_function_takes_every_option_with_its_default() -> None:
    parameters = inspect.signature(snncompiler.compile).parameters
    for option in fields(Options):
        assert parameters[option.name].default == written(option.default), option.name
    assert set(parameters) - {option.name for option in fields(Options)} == {
        "model", "calibration", "samples", "preprocess", "skip_damaged",
        "statistics", "progress",
    }  # fmt: skip


# --- what auto stands for ---

RESOLVED: list[tuple[dict[str, Any], str, bool, dict[str, Any]]] = [
    (
        {}, "classification", True,
        {"threshold": "balance", "correction": "schedule", "readout": "ramp:3", "initial": 0.5,
         "per_channel": True, "encode": "constant", "strict": False, "task": "classification",
         "growth": "auto"},
    ),
    (
        {}, "regression", True,
        {"threshold": "max", "correction": "schedule", "readout": "mean", "initial": 0.5,
         "per_channel": True, "encode": "constant", "task": "regression", "growth": "none"},
    ),
    ({}, "classification", False,
     {"threshold": "percentile", "correction": "none", "readout": "ramp:3", "growth": "none"}),
    ({}, "regression", False, {"threshold": "percentile", "correction": "none", "readout": "mean"}),
    ({"reset": "hard"}, "classification", True,
     {"threshold": "balance", "correction": "none", "growth": "none"}),
    ({"encode": "poisson"}, "classification", True, {"correction": "schedule", "growth": "none"}),
    ({"threshold": "percentile"}, "classification", True, {"growth": "none"}),
    ({"growth": "1.2@9"}, "regression", True, {"threshold": "max", "growth": "1.2@9"}),
    ({"growth": "none"}, "classification", True, {"threshold": "balance", "growth": "none"}),
    ({"threshold": "vin-max"}, "classification", True, {"correction": "none", "readout": "ramp:3"}),
    (
        {"paper": True}, "classification", True,
        {"threshold": "vin-max", "correction": "none", "readout": "mean", "initial": 0.0,
         "per_channel": False, "encode": "poisson", "strict": True},
    ),
    (
        {"paper": True, "threshold": "max", "correction": "bias", "readout": "delay:3",
         "initial": 0.25, "per_channel": True, "encode": "constant"}, "classification", True,
        {"threshold": "max", "correction": "bias", "readout": "delay:3", "initial": 0.25,
         "per_channel": True, "encode": "constant", "strict": True},
    ),
    (
        {"threshold": "mmse", "correction": "potential", "readout": "mean", "initial": 0.0,
         "per_channel": False, "encode": "poisson"}, "classification", True,
        {"threshold": "mmse", "correction": "potential", "readout": "mean", "initial": 0.0,
         "per_channel": False, "encode": "poisson", "strict": False},
    ),
    ({"threshold": "vin-max", "correction": "schedule"}, "regression", True,
     {"threshold": "vin-max", "correction": "schedule"}),
    ({"strict": True}, "regression", True, {"strict": True}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "task", "data", "wanted"), RESOLVED)
def test_what_is_left_open_follows_the_task_and_what_is_given_stays(
    options: dict[str, Any], task: Any, data: bool, wanted: dict[str, Any]
) -> None:
    found = Options(**options).resolved(task, data, 20)
    assert {name: written(getattr(found, name)) for name in wanted} == wanted
    assert found.resolved(task, data, 20) == found
    left = {f.name for f in fields(Options)} - set(wanted) - {"task", "threshold", "correction",
        "readout", "initial", "per_channel", "encode", "strict", "growth"}  # fmt: skip
    for name in left:
        assert getattr(found, name) == getattr(Options(**options), name)


@pytest.mark.parametrize(
    ("options", "hindrance", "said"),
    [
        ({"correction": "none"}, "", "it needs --correction schedule, not none"),
        ({"reset": "hard"}, "", "it needs --correction schedule, not none"),
        ({"encode": "poisson"}, "", "the input is coded as spikes"),
        ({"data": False}, "", "it needs calibration data"),
        ({}, "Clip 'a' has an upper bound", "Clip 'a' has an upper bound"),
    ],
)
def test_thresholds_do_not_grow_where_they_cannot(
    options: dict[str, Any], hindrance: str, said: str
) -> None:
    options, data = dict(options), bool(options.get("data", True))
    options.pop("data", None)
    left = Options(**options).resolved("classification", data, 3, hindrance)
    assert left.growth == STEADY
    with pytest.raises(UsageError, match=re.escape(f"--growth 1.5@4 is not possible: {said}")):
        Options(**options, growth="1.5@4").resolved("classification", data, 3, hindrance)


def test_deeper_class_scores_weigh_later_steps_more() -> None:
    depths = (0, 4, 5, 7, 9, 99)
    chosen = [str(Options().resolved("classification", True, depth).readout) for depth in depths]
    assert chosen == ["mean", "mean", "ramp:1", "ramp:2", "ramp:3", "ramp:3"]


def test_depth_is_that_of_the_longest_way() -> None:
    text = """g (float[N,4] x) => (float[N,4] y)
    { a = Relu (x)  b = MatMul (a, w)  c = Relu (b)  s = Add (a, c)  d = Relu (s)  y = Add (d, a) }"""
    assert depth_of(prepare(parse(text, {"w": random(1, 4, 4)})).graph) == 3
    digits = prepare(models.path("digits-resnet")).graph
    assert depth_of(digits) == len(rectifiers_of(digits)) == 5


def test_what_was_chosen_is_in_the_file() -> None:
    model = models.path("digits-cnn")
    with np.load(models.path("digits-train")) as archive:
        x = (archive["x"][:32].astype(np.float32) / 16).transpose(0, 3, 1, 2)
    for options, wanted in (
        ({}, {"task": "classification", "threshold": "balance", "correction": "schedule",
              "readout": "mean", "initial": 0.5, "encode": "constant", "neuron": "binary"}),
        ({"task": "regression"}, {"task": "regression", "threshold": "max", "readout": "mean"}),
        ({"paper": True}, {"paper": True, "threshold": "vin-max", "correction": "none",
                           "readout": "mean", "initial": 0.0, "encode": "poisson"}),
    ):  # fmt: skip
        made = snncompiler.compile(model, calibration=x, steps=4, **options)  # type: ignore[arg-type]
        assert {name: told(made)[name] for name in wanted} == wanted
        read = read_compiled(made)
        assert read.options.task == wanted["task"] if "task" in wanted else True
        assert read.calibration.method == wanted["threshold"]


def test_without_data_nothing_is_corrected() -> None:
    made = pipeline.compile_model(models.path("digits-cnn"), Options(steps=4))
    assert made.calibration.method == "percentile" and made.calibration.correction == "none"
    assert not made.calibration.schedules


@pytest.mark.parametrize("threshold", ["max", "mmse", "balance", "vin-max"])
def test_without_data_random_input_serves_any_method_and_batch_norm_does_not(
    threshold: Any,
) -> None:
    options = Options(steps=4, threshold=threshold)
    made = pipeline.compile_model(models.path("digits-cnn"), options)
    assert (made.calibration.method, made.calibration.source) == (threshold, "synthetic")
    assert all((theta > 0).all() for theta in made.calibration.thresholds.values())
    resnet = models.path("digits-resnet")
    if threshold == "max":
        assert pipeline.compile_model(resnet, options).calibration.source == "batch-norm"
        return
    with pytest.raises(UsageError, match=f"--threshold {threshold} needs calibration data"):
        pipeline.compile_model(resnet, options)


@pytest.mark.parametrize("correction", ["schedule", "bias", "potential"])
def test_a_correction_needs_data(correction: Any) -> None:
    with pytest.raises(UsageError, match=f"--correction {correction} needs calibration data"):
        pipeline.compile_model(models.path("digits-cnn"), Options(correction=correction))


def test_preprocessing_needs_data() -> None:
    with pytest.raises(UsageError, match="preprocessing is for calibration data"):
        snncompiler.compile(models.path("digits-cnn"), preprocess=snncompiler.Preprocess(scale=16))


# --- a calibration that is used again ---

NET = parse("g (float[N,4] x) => (float[N,4] y) { a = MatMul (x, w)  y = Relu (a) }",
            {"w": random(1, 4, 4)})  # fmt: skip


def used_again(options: Options, **made: Any) -> pipeline.Compiled:
    first = Options(**{"task": "classification", "schedule_steps": 4, **made})
    calibration = pipeline.compile_model(NET, first, random(2, 64, 4)).calibration
    return pipeline.compile_model(NET, options, calibration)


@pytest.mark.parametrize(
    "asked",
    [
        {"threshold": "max"}, {"tau": 50.0}, {"percentile": 90.0}, {"alpha": 0.5},
        {"alpha": "auto"}, {"per_channel": False}, {"correction": "bias"}, {"growth": "none"},
        {"neuron": "burst:4"}, {"neuron": "signed:4"}, {"initial": 0.0}, {"reset": "hard"},
        {"schedule_steps": 8}, {"encode": "poisson"},
    ],
    ids=str,
)  # fmt: skip
def test_a_calibration_is_not_used_for_what_it_is_not(asked: dict[str, Any]) -> None:
    ((name, value),) = asked.items()
    said = re.escape(f"--{name.replace('_', '-')} {value} needs data, a calibration with ")
    with pytest.raises(UsageError, match=said):
        used_again(Options(**asked))


def test_every_option_that_a_calibration_is_not_for_is_named() -> None:
    said = "--alpha 0.5, --neuron burst:2 needs data, a calibration with 1.0, binary was given"
    with pytest.raises(UsageError, match=re.escape(said)):
        used_again(Options(alpha=0.5, neuron="burst:2"))
    with pytest.raises(UsageError, match=r"--threshold vin-max, --encode poisson needs data"):
        used_again(Options(paper=True))


def test_a_calibration_is_used_for_what_it_is() -> None:
    made = {"threshold": "max", "alpha": 0.5, "neuron": "burst:4", "initial": 0.25}
    for options in (Options(neuron="burst:4"), Options(**made, schedule_steps=4)):
        again = read_compiled(used_again(options, **made).model).options
        assert {name: written(getattr(again, name)) for name in made} == made
    # Without charges nothing depends on the neuron.
    free = Options(correction="none", growth="none", neuron="signed:2", initial=0.0)
    plain = read_compiled(used_again(free).model)
    assert (str(plain.options.neuron), plain.options.initial) == ("signed:2", 0.0)
    assert (plain.options.correction, plain.options.growth) == ("none", STEADY)


# --- the delay of a read-out ---


def test_a_window_within_the_delay_is_refused() -> None:
    snn = snncompiler.compile(NET, calibration=random(2, 64, 4), steps=32, readout="delay:10")
    found = read_compiled(snn)
    for steps in (1, 10):
        with pytest.raises(UsageError, match=rf"T = {steps} is within the delay .*delay:10"):
            found.overrides(steps=steps)
    assert found.overrides(steps=11)
    with pytest.raises(UsageError, match="T = 8 is within the delay"):
        snncompiler.evaluate(NET, snn, random(3, 8, 4), steps=[8, 16])


def test_alpha_is_searched_beyond_the_delay() -> None:
    options = Options(steps=64, readout="delay:20", alpha="auto", task="classification")
    made = pipeline.compile_model(NET, options, random(2, 64, 4))
    (note,) = [f.message for f in made.prepared.findings if f.code == "SNNC308"]
    assert "the mean over T = 32, 64 on" in note


# --- paper mode ---


def test_paper_mode_is_strict_unless_told_otherwise() -> None:
    resnet = models.path("digits-resnet")
    with pytest.raises(Refused, match="SNNC203"):
        pipeline.compile_model(resnet, Options(paper=True))
    data = np.load(models.path("digits-train"))["x"][:16].transpose(0, 3, 1, 2).astype(np.float32)
    made = pipeline.compile_model(resnet, Options(paper=True, strict=False), data / 16)
    found = read_compiled(made.model).options
    assert found.paper and found.strict is False and found.threshold == "vin-max"


# --- the task ---

#: The network's text, whether the data has labels, and what it is.
TASKS: dict[str, tuple[str, bool, str]] = {
    "Softmax": ("g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  y = Softmax (h) }", False,
                "classification"),
    "LogSoftmax": ("g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  y = LogSoftmax (h) }",
                   False, "classification"),
    "ArgMax beside the scores": (
        """g (float[N,3] x) => (float[N,3] y, int64[N] c)
        { y = Relu (x)  c = ArgMax <axis = 1, keepdims = 0> (y) }""", False, "classification"),
    "vector to vector with labels": (
        "g (float[N,4] x) => (float[N,3] y) { h = Relu (x)  y = MatMul (h, w) }", True,
        "classification"),
    "vector to vector without labels": (
        "g (float[N,4] x) => (float[N,3] y) { h = Relu (x)  y = MatMul (h, w) }", False,
        "regression"),
    "image to vector": (
        "g (float[N,1,2,2] x) => (float[N,3] y) { h = Relu (x)  f = Flatten (h)  y = MatMul (f, w) }",
        False, "classification"),
    "sequence to vector": (
        "g (float[N,2,2] x) => (float[N,3] y) { h = Relu (x)  f = Flatten (h)  y = MatMul (f, w) }",
        False, "classification"),
    "image to one number": (
        "g (float[N,1,2,2] x) => (float[N,1] y) { h = Relu (x)  f = Flatten (h)  y = MatMul (f, v) }",
        False, "regression"),
    "one number with labels": (
        "g (float[N,4] x) => (float[N,1] y) { h = Relu (x)  y = MatMul (h, v) }", True, "regression"),
    "autoencoder": (
        "g (float[N,1,2,2] x) => (float[N,4] y) { h = Relu (x)  y = Flatten (h) }", False,
        "regression"),
    "autoencoder of vectors, with labels": (
        "g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }", True, "regression"),
    "image to image": ("g (float[N,1,2,2] x) => (float[N,1,2,2] y) { y = Relu (x) }", True,
                       "regression"),
    "detection": (
        """g (float[N,1,2,2] x) => (float[N,2,2] y) <int64[3] boxes = {0, 2, 2}>
        { h = Relu (x)  y = Reshape (h, boxes) }""", True, "regression"),
    "scores beside boxes": (
        """g (float[N,1,2,2] x) => (float[N,3] y, float[N,2,2] b) <int64[3] boxes = {0, 2, 2}>
        { h = Relu (x)  f = Flatten (h)  y = MatMul (f, w)  b = Reshape (h, boxes) }""", False,
        "regression"),
    "Softmax beside boxes": (
        """g (float[N,1,2,2] x) => (float[N,3] y, float[N,2,2] b) <int64[3] boxes = {0, 2, 2}>
        { h = Relu (x)  f = Flatten (h)  z = MatMul (f, w)  y = Softmax (z)
          b = Reshape (h, boxes) }""", True, "regression"),
    "scores beside their Softmax": (
        """g (float[N,1,2,2] x) => (float[N,3] z, float[N,3] y)
        { h = Relu (x)  f = Flatten (h)  z = MatMul (f, w)  y = Softmax (z) }""", False,
        "classification"),
    "an output of unknown size": (
        """g (float[N,1,H,W] x) => (float[N,?] y) { h = Relu (x)  y = Flatten (h) }""", True,
        "regression"),
}  # fmt: skip


def network(name: str) -> onnx.ModelProto:
    text, _, _ = TASKS[name]
    weights = {"w": random(0, 4, 3), "v": random(1, 4, 1)}
    return parse(text, {key: array for key, array in weights.items() if f", {key})" in text})


@pytest.mark.parametrize("name", TASKS)
def test_the_task_is_seen_in_the_network_and_its_data(name: str) -> None:
    _, labelled, wanted = TASKS[name]
    prepared = pipeline.prepare(network(name))
    labels = np.zeros(5, np.int64) if labelled else None
    assert task_of(prepared, Options(), labels) == wanted
    for task in ("classification", "regression"):
        assert task_of(prepared, Options(task=task), labels) == task  # type: ignore[arg-type]


def test_labels_in_the_data_make_a_classifier() -> None:
    model = network("vector to vector with labels")
    x, y = random(3, 20, 4), np.arange(20) % 3
    options = Options(steps=4)
    with_labels = pipeline.compile_model(model, options, {"x": x, "y": y})
    without = pipeline.compile_model(model, options, {"x": x})
    forced = pipeline.compile_model(model, Options(steps=4, task="classification"), {"x": x})
    assert with_labels.calibration.method == forced.calibration.method == "balance"
    assert without.calibration.method == "max"
    assert with_labels.model.SerializeToString(
        deterministic=True
    ) == forced.model.SerializeToString(deterministic=True)


def test_the_networks_that_come_with_the_compiler_are_classifiers() -> None:
    for name in ("digits-cnn", "digits-resnet"):
        assert task_of(pipeline.prepare(models.path(name)), Options(), None) == "classification"


# --- α by search ---


def outlier(count: int = 64) -> Array:
    """Values from 0.1 to 0.45; every eighth, never a held-out one, has one value of 1 in it."""
    x = np.tile(np.linspace(0.1, 0.45, 4, dtype=np.float32), (count, 1))
    x += np.arange(count, dtype=np.float32)[:, None] / count / 50
    x[1::8, 0] = 1.0
    return x


NOTE = "SNNC308"


def searched(model: onnx.ModelProto, data: Any, **options: Any) -> tuple[float, str]:
    """The α that was chosen, and the note that says so."""
    chosen = {
        "alpha": "auto",
        "threshold": "max",
        "correction": "none",
        "readout": "mean",
        **options,
    }
    if options.get("timing") == "layered":
        chosen |= {"readout": "auto", "correct": "none"}
    made = pipeline.compile_model(model, Options(**chosen), data)
    (note,) = [f for f in made.prepared.findings if f.code == NOTE]
    assert note.severity == "note"
    return made.calibration.alpha, note.message


@pytest.mark.parametrize(
    ("timing", "tried"), [("streaming", (2, 4, 8)), ("layered", (8,))], ids=["streaming", "layered"]
)
def test_the_search_takes_the_best_alpha_of_its_list(timing: str, tried: tuple[int, ...]) -> None:
    """The held-out samples fit below 0.5: a smaller θ costs them nothing and quantizes less.  A neuron
    of layered time has the same levels."""
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    x = outlier()
    alpha, text = searched(model, x, steps=8, per_channel=False, timing=timing)
    # One of four samples is held out; thresholds come from the others.
    trial, rest = x[::4], x[np.arange(len(x)) % 4 > 0]
    error = {}
    for part in search.ALPHAS:
        theta = np.float32(part) * rest.max()
        found = []
        for steps in tried:
            count = np.floor(np.minimum(steps * trial / theta + 0.5, steps) + 1e-6)
            found.append(
                np.sqrt(np.square(count * theta / steps - trial).sum() / np.square(trial).sum())
            )
        error[part] = np.mean(found)
    best = min(error, key=lambda part: error[part])
    assert alpha == best != 1.0
    assert f"α = {best:g}" in text
    assert f"T = {', '.join(map(str, tried))} on 16 held-out samples" in text
    assert f"minus relative error {-error[best]:.3f}, the mean" in text


def test_of_equals_the_search_takes_the_alpha_nearest_one() -> None:
    """Two classes far apart: every α reads them right."""
    model = parse("g (float[N,2] x) => (float[N,2] y) { h = Relu (x)  y = Softmax (h) }")
    x = np.tile(np.array([[4, 0], [0, 4]], np.float32), (20, 1))
    alpha, text = searched(model, x, steps=8)
    assert alpha == 1.0 and "agreement with the ANN 1.000" in text


def test_what_was_searched_is_what_is_compiled() -> None:
    model = models.path("digits-cnn")
    with np.load(models.path("digits-train")) as archive:
        x = (archive["x"][:16].astype(np.float32) / 16).transpose(0, 3, 1, 2)
    options = Options(alpha="auto", steps=4, schedule_steps=4)
    found = pipeline.compile_model(model, options, x)
    assert found.calibration.alpha in search.ALPHAS
    rest = x[np.arange(16) % 4 > 0]
    options = replace(options, alpha=found.calibration.alpha)
    given = pipeline.compile_model(model, options, rest)
    assert found.calibration.to_json() == given.calibration.to_json()
    (one,), (other,) = (run_model(made.model, input=x[:4]) for made in (found, given))
    assert np.array_equal(one, other)
    # What the trials had to say, they do not say for the file that is written.
    extra = [f.code for f in found.prepared.findings if f.code != NOTE]
    assert extra == [f.code for f in given.prepared.findings]


def test_the_search_needs_data() -> None:
    model = parse(RELU)
    for data in (None, random(0, 3, 3)):
        with pytest.raises(UsageError, match=r"--alpha auto needs at least 4 calibration samples"):
            pipeline.compile_model(model, Options(alpha="auto"), data)
    made = pipeline.compile_model(model, Options(alpha="auto", steps=4), random(0, 4, 3))
    assert made.calibration.samples == 3


@pytest.mark.parametrize("options", [{"unroll": "steps"}, {"unroll": "loop"}, {"emit": "step"},
                                     {"emit": "cuda-graph", "batch": 2}, {"chunk": 2}])  # fmt: skip
def test_the_search_does_not_depend_on_the_form(options: dict[str, Any]) -> None:
    model, x = parse(RELU), random(0, 40, 3)
    assert searched(model, x, steps=4, **options) == searched(model, x, steps=4)
