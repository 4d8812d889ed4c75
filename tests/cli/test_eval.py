"""The commands that look into a compiled file: `eval --diagnose`, `info --thresholds`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import CALIBRATED, CNN, RESNET, SCALED, TEST, errors, good, listing, snnc
from helpers import compile_text, parse, random

from snncompiler.analysis import walk
from snncompiler.analysis.count import thresholds_of
from snncompiler.analysis.instrument import watch
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import EnvironmentMissing


@pytest.fixture(scope="module")
def snn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("look") / "resnet.snn.onnx"
    good("compile", RESNET, "-o", target, *CALIBRATED, "--samples", 64)
    return target


# --- eval ---


def test_the_table_of_a_diagnosis(snn: Path) -> None:
    args = ("eval", RESNET, snn, "--data", TEST, *SCALED, "--steps", "4,16", "--limit", 24)
    told = good(*args, "--diagnose").out
    for text in (
        "quantised ANN",
        "unevenness",
        "inherited",
        "Errors at T = 16",
        "mainly",
        "the schedule",
    ):
        assert text in told
    plain = good(*args).out
    assert "95 %" in plain and "drop" in plain
    assert "quantised" not in plain and "unevenness" not in plain


def test_the_json_of_a_diagnosis_and_predictions(snn: Path) -> None:
    args = (
        "eval",
        RESNET,
        snn,
        "--data",
        TEST,
        *SCALED,
        "--steps",
        "4,16",
        "--limit",
        24,
        "--json",
    )
    plain = good(*args).json()
    assert set(plain) == {"samples", "ann_accuracy", "results", "findings", "macs", "events"}
    more = {"drop", "drop_interval", "synops", "outputs", "latency", "spikes"}
    before = {"steps", "accuracy", "agreement", "relative_error", "firing_rate", "layers"}
    assert set(plain["results"][0]) == before | more
    whole = good(*args, "--diagnose", "--predictions").json()
    assert set(whole) == {*plain, "ann_predictions"}
    for result, known in zip(whole["results"], plain["results"], strict=True):
        assert set(result) == before | more | {"predictions", "diagnosis"}
        assert result["accuracy"] == known["accuracy"]
        assert len(result["predictions"]) == len(whole["ann_predictions"]) == 24
        assert len(result["diagnosis"]["layers"]) == 5
        quantised = result["diagnosis"]["quantised"]
        assert quantised["accuracy"] is not None and 0 < quantised["relative_error"] < 1


def test_predictions_belong_to_json(snn: Path) -> None:
    ran = snnc("eval", RESNET, snn, "--data", TEST, "--predictions")
    assert ran.code == 2 and "--predictions belongs to --json" in errors(ran)[0]


def test_a_diagnosis_without_labels_or_classes(tmp_path: Path) -> None:
    model = parse("g (float[N,2,3] x) => (float[N,2,3] y) { y = Relu (x) }")
    x = random(0, 6, 2, 3)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=x)
    good("compile", tmp_path / "m.onnx", "--calibration", tmp_path / "x.npz")
    args = ("eval", tmp_path / "m.onnx", tmp_path / "m.snn.onnx", "--data", tmp_path / "x.npz")
    told = good(*args, "--diagnose").out
    assert "quantised ANN" in told and "mainly" in told
    (result,) = good(*args, "--diagnose", "--json").json()["results"]
    assert result["diagnosis"]["quantised"]["agreement"] is None
    assert result["drop"] is None and result["drop_interval"] is None


# --- info ---


def test_every_threshold(snn: Path, tmp_path: Path) -> None:
    rows = good("info", snn, "--thresholds", "--json").json()["thresholds"]
    layers = watch(onnx.load(snn)).layers
    assert [row["layer"] for row in rows] == [
        layer.name for layer in layers for _ in range(layer.threshold.size)
    ]
    at = 0
    for layer in layers:
        for channel, value in enumerate(layer.threshold.reshape(-1)):
            row: dict[str, Any] = rows[at + channel]
            assert row["channel"] == channel and row["threshold"] == float(value)
            assert row["initial"] == pytest.approx(float(value) / 2)
            assert row["schedule"] == (0 if layer.schedule is None else len(layer.schedule))
        at += layer.threshold.size
    # 8x8 pictures: 16 channels, and 32 of 4x4 after the stride.
    sizes = {row["layer"]: row["neurons"] for row in rows}
    assert all(isinstance(size, int) and size in (512, 1024, 2048) for size in sizes.values())

    target = tmp_path / "t.csv"
    told = good("info", snn, "--thresholds", "--csv", target).out
    assert f"{len(rows):,} thresholds" in told and list(listing(tmp_path)) == ["t.csv"]
    with target.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["threshold"]) for row in read] == [row["threshold"] for row in rows]
    assert [row["layer"] for row in read] == [row["layer"] for row in rows]
    table = good("info", snn, "--thresholds").out
    assert rows[0]["layer"] in table and "threshold" in table


@pytest.mark.parametrize(
    ("options", "levels"),
    [({}, 1), ({"neuron": "burst:4"}, 4), ({"neuron": "signed:2"}, 2), ({"unroll": "steps"}, 1)],
)
def test_thresholds_of_every_neuron(options: dict[str, Any], levels: int) -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { h = Relu (x)  n = Neg (h)  y = Relu (n) }")
    snn = compile_text(model, random(0, 9, 3), per_channel=False, steps=8, **options)
    compiled = read_compiled(snn)
    rows = thresholds_of(compiled)
    assert len(rows) == 2
    for row, theta in zip(rows, compiled.calibration.thresholds.values(), strict=True):
        assert row["channel"] is None and row["neurons"] == 3 and row["levels"] == levels
        assert row["threshold"] == pytest.approx(float(theta[0]), rel=1e-6)
        assert row["per_spike"] * levels == pytest.approx(row["threshold"], rel=1e-6)


def test_neurons_where_they_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,2,H,W] x) => (float[N,2,H,W] y) { y = Relu (x) }"
    x = random(0, 4, 2, 3, 3)
    for options in ({}, {"emit": "step"}):
        rows = thresholds_of(read_compiled(compile_text(parse(text), x, **options)))
        assert [row["neurons"] for row in rows] == [None, None]
    known = read_compiled(compile_text(parse(text.replace("H,W", "3,3")), x))
    assert [row["neurons"] for row in thresholds_of(known)] == [18, 18]

    def missing(*args: Any, **options: Any) -> None:
        raise EnvironmentMissing("onnxruntime is not installed")

    monkeypatch.setattr(walk, "create_session", missing)
    assert [row["neurons"] for row in thresholds_of(known)] == [None, None]


def test_csv_is_refused_where_it_does_not_belong(snn: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[object, ...], str]] = [
        (("info", snn, "--csv", tmp_path / "t.csv"), "--csv belongs to --thresholds"),
        (("info", snn, "--thresholds", "--csv", tmp_path / "none" / "t.csv"), "does not exist"),
        (("info", snn, "--thresholds", "--csv", snn), "is the input"),
        (("info", CNN, "--thresholds"), "was not compiled by snnc"),
    ]
    before = snn.read_bytes()
    for args, message in cases:
        ran = snnc(*args)
        assert ran.code in (1, 2) and message in errors(ran)[0], args
    assert not listing(tmp_path) and snn.read_bytes() == before
