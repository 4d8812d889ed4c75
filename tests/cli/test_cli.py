"""Every command, option, refusal and exit code, on the two networks that come with the compiler.

Most calls run in this process with its streams caught; what depends on a process (the exit code that
the shell sees, SIGINT, a missing package, --debug, hash seeds) runs in a child.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import (
    CALIBRATED,
    CNN,
    RESNET,
    SCALED,
    TEST,
    TRAIN,
    Ran,
    child,
    children,
    edit,
    errors,
    good,
    listing,
    snnc,
)
from helpers import parse, tell, told
from numpy.typing import NDArray
from onnx import numpy_helper

from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.findings import CODES
from snncompiler.ir import dialect
from snncompiler.runtime.session import create_session
from snncompiler.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def neurons_and_values(
    model: onnx.ModelProto,
) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
    """The neuron nodes and all initializers, of the graph and its subgraphs."""
    nodes: list[onnx.NodeProto] = []
    values: dict[str, onnx.TensorProto] = {}
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        values.update({tensor.name: tensor for tensor in graph.initializer})
        for node in graph.node:
            if node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS:
                nodes.append(node)
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    return nodes, values


def scale_threshold(factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        nodes, values = neurons_and_values(model)
        tensor = values[nodes[0].input[1]]
        array = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))

    return change


def ann_logits(count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(TEST) as archive:
        images = (archive["x"][:count].astype(np.float32) / 16).transpose(0, 3, 1, 2)
        labels = archive["y"][:count]
    logits = create_session(str(CNN), threads=1).run(None, {"input": images})[0]
    return np.asarray(logits), labels


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Compiled files at T = 16, by name."""
    folder = tmp_path_factory.mktemp("built")
    wanted: dict[str, tuple[Path, tuple[str, ...]]] = {
        "cnn": (CNN, ("--samples", "256")),  # whose accuracy is looked at
        "resnet": (RESNET, ()),
        "loop": (CNN, ("--unroll", "loop")),
        "steps": (CNN, ("--unroll", "steps")),
        "hard": (CNN, ("--reset", "hard", "--samples", "256")),
        "plain": (CNN, ("--correction", "none", "--readout", "mean")),
    }
    made = {}
    for name, (model, options) in wanted.items():
        made[name] = folder / f"{name}.snn.onnx"
        good("compile", model, "-o", made[name], "-T", 16, *CALIBRATED, *options)
    return made


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the first 20 test images and their labels."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    with np.load(TEST) as archive:
        np.savez(path, x=archive["x"][:20], y=archive["y"][:20])
    return path


# --- the commands in a process of their own ---


def test_commands_in_a_child_keep_results_apart_from_the_rest(few: Path, tmp_path: Path) -> None:
    snn = tmp_path / "a.snn.onnx"
    compiled = child("compile", RESNET, "-o", snn, "-T", 8)
    assert compiled.code == 0
    assert compiled.out.splitlines() == [
        f"{snn}: 5 spiking layers, T = 8, fold, {snn.stat().st_size:,} bytes"
    ]
    assert "warning SNNC304" in compiled.err
    evaluated = child("eval", RESNET, snn, "--data", few)
    assert evaluated.code == 0
    assert "T = 8" in evaluated.out and "firing rate" in evaluated.out
    # The data is uint8 and no --scale was given: that is a note, not a result.
    assert "SNNC307" in evaluated.err and "SNNC" not in evaluated.out
    ran = child("run", snn, "--input", few, *SCALED)
    assert (ran.code, ran.err) == (0, "")
    assert "logits [20, 10] float32" in ran.out
    refused = child("check", tmp_path / "missing.onnx")
    assert (refused.code, refused.out) == (2, "")
    assert "missing.onnx does not exist" in refused.err


def test_version_and_help() -> None:
    assert child("--version") == Ran(0, f"snnc {__version__}\n", "")
    names = ("check", "compile", "run", "eval", "verify", "info")
    whole = good("--help").out
    for name in names:
        assert name in whole
        assert "Usage: snnc" in good(name, "--help").out


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("snnc")
    if not script.exists():
        pytest.skip("the package is not installed with its console script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"snnc {__version__}\n"


def test_two_compiles_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for seed in ("1", "2"):
        made.append(tmp_path / f"{seed}.onnx")
        ran = child("compile", RESNET, "-o", made[-1], *CALIBRATED, PYTHONHASHSEED=seed)
        assert ran.code == 0, ran.err
    assert made[0].read_bytes() == made[1].read_bytes()


# --- JSON ---


def test_json_of_every_command(built: dict[str, Path], few: Path, tmp_path: Path) -> None:
    snn = built["resnet"]
    calls: dict[str, tuple[Sequence[object], set[str]]] = {
        "check": ((RESNET,), {"rectifiers", "linear_layers", "pooling", "findings"}),
        "compile": ((RESNET, "-o", tmp_path / "j.onnx"), {"output", "bytes", "layers", "findings"}),
        "run": ((snn, "--input", few, *SCALED), {"logits"}),
        "eval": ((RESNET, snn, "--data", few, "--limit", 8), {"samples", "results"}),
        "verify": ((RESNET, snn), {"passed", "checks", "layers"}),
        "info": ((snn,), {"steps", "unroll", "source_sha256", "layers"}),
    }
    for name, (args, keys) in calls.items():
        content = good(name, *args, "--json").json()
        assert keys <= set(content), name
    assert len(calls) == 6


def test_json_on_a_refusal_of_every_command(built: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"")
    calls: list[Sequence[object]] = [
        ("check", broken),
        ("compile", broken),
        ("run", broken, "--input", TEST),
        ("eval", CNN, broken, "--data", TEST),
        ("verify", CNN, broken),
        ("info", broken),
    ]
    for args in calls:
        ran = snnc(*args, "--json")
        content = ran.json()
        assert ran.code == content["exit_code"] == 1, args
        assert [finding["code"] for finding in content["findings"]] == ["SNNC101"], args
        assert len(errors(ran)) == 1, args
    assert len(calls) == 6


def test_json_of_a_usage_error_names_the_option() -> None:
    ran = snnc("compile", CNN, "-T", 0, "--json")
    assert ran.code == ran.json()["exit_code"] == 2
    assert "-T 0" in ran.json()["findings"][0]["message"]


# --- check ---


def test_check_tells_bias_and_folding_layer_by_layer() -> None:
    cnn = good("check", CNN, "--json").json()
    assert cnn["paper_constraints_met"] and cnn["any_batch"]
    assert len(cnn["rectifiers"]) == 4 and len(cnn["linear_layers"]) == 5
    assert not any(layer["bias"] or layer["folded"] for layer in cnn["linear_layers"])
    resnet = good("check", RESNET, "--json").json()
    assert not resnet["paper_constraints_met"]
    assert len(resnet["rectifiers"]) == 5 and len(resnet["linear_layers"]) == 7
    folded = [layer for layer in resnet["linear_layers"] if layer["folded"]]
    assert len(folded) == 6
    # Folding is exact but for float32 roundings of 2^-24 = 6e-8, some dozens of which add up.
    assert all(layer["relative_change"] < 5e-6 for layer in folded)


def test_strict_passes_the_paper_network_and_names_every_layer_of_the_other(tmp_path: Path) -> None:
    good("check", CNN, "--strict")
    good("compile", CNN, "-o", tmp_path / "cnn.onnx", "--strict")
    model = onnx.load(RESNET)
    linear = {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    normed = {
        producer.name
        for producer in model.graph.node
        for reader in model.graph.node
        if reader.op_type == "BatchNormalization" and reader.input[0] in producer.output
    }
    assert (len(linear), len(normed)) == (7, 6)
    for command in ("check", "compile"):
        ran = snnc(command, RESNET, "--strict", "--json")
        assert ran.code == 1
        named: dict[str, set[str]] = {}
        for finding in ran.json()["findings"]:
            named.setdefault(finding["code"], set()).add(finding["node"])
        assert named == {"SNNC203": linear, "SNNC204": normed}, command
    assert not (RESNET.parent / "digits-resnet.snn.onnx").exists()


# --- compile ---


def test_default_output_is_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(CNN.read_bytes())
    ran = good("compile", model, "-q")
    assert set(listing(tmp_path)) == {"net.onnx", "net.snn.onnx"}
    assert ran.out.startswith(f"{tmp_path / 'net.snn.onnx'}: 4 spiking layers, T = 64, fold, ")
    assert model.read_bytes() == CNN.read_bytes()


def described(tmp_path: Path, *options: object, model: Path = CNN) -> dict[str, Any]:
    """What `info` says of a network compiled with these options."""
    target = tmp_path / "described.onnx"
    good("compile", model, "-o", target, *CALIBRATED, "--samples", 32, *options)
    content: dict[str, Any] = good("info", target, "--json").json()
    return content


def test_options_end_up_in_the_file(tmp_path: Path) -> None:
    cases: list[tuple[Sequence[object], dict[str, object]]] = [
        ((), {"steps": 64, "unroll": "fold", "reset": "soft", "initial": 0.5, "alpha": 1.0}),
        ((), {"threshold": "balance", "percentile": None, "per_channel": True}),
        ((), {"task": "classification", "neuron": "binary", "tau": 500.0, "maxpool": "exact"}),
        (("--task", "regression"), {"threshold": "max", "task": "regression", "tau": None}),
        (("--neuron", "burst:4"), {"neuron": "burst:4"}),
        (("-T", 7), {"steps": 7}),
        (("--steps", 9), {"steps": 9}),
        (("--unroll", "fold", "--chunk", 5), {"unroll": "fold", "chunk": 5}),
        (("--chunk", 99, "-T", 12), {"chunk": 12}),
        (("--unroll", "loop"), {"unroll": "loop", "chunk": None}),
        (("--unroll", "steps", "-T", 3), {"unroll": "steps", "steps_input": None}),
        (("--reset", "hard"), {"reset": "hard"}),
        (("--initial", 0), {"initial": 0.0}),
        (("--threshold", "max"), {"threshold": "max", "percentile": None}),
        (
            ("--threshold", "percentile", "--percentile", 90),
            {"threshold": "percentile", "percentile": 90.0},
        ),
        (("--threshold", "vin-max"), {"threshold": "vin-max", "per_channel": True}),
        (("--per-channel", "--paper"), {"per_channel": True, "encode": "poisson", "initial": 0.0}),
        (("--per-layer",), {"per_channel": False}),
        (("--alpha", 1.5), {"alpha": 1.5}),
        (("--samples", 10), {"calibration_samples": 10}),
        (("--samples", 0), {"calibration_samples": 1297}),
        (("--seed", 3), {"seed": 3}),
        (("--encode", "constant"), {"encode": "constant"}),
    ]
    for options, expected in cases:
        found = described(tmp_path, "--correction", "none", *options)
        assert {key: found[key] for key in expected} == expected, options
        assert found["calibrated_on"] == "data"
    assert len(cases) == 23


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--samples", 10), "--samples 10 belongs to --calibration (give"),
        (("--scale", 16), "preprocessing is for calibration data, and none was given"),
        (("--correction", "schedule"), "--correction schedule needs calibration data"),
    ],
)
def test_what_needs_data_is_refused_without(
    tmp_path: Path, options: Sequence[object], said: str
) -> None:
    ran = snnc("compile", CNN, "-o", tmp_path / "x.onnx", *options)
    assert ran.code == 2 and said in ran.err and not listing(tmp_path)


def compiled(tmp_path: Path, *options: object, model: Path = CNN) -> CompiledFile:
    """The file that is written with these options, read back."""
    target = tmp_path / "compiled.onnx"
    good("compile", model, "-o", target, *CALIBRATED, "--samples", 24, *options)
    return read_compiled(target)


ACCURACY: dict[str, tuple[Sequence[object], dict[str, Any]]] = {
    "nothing": ((), {
        "task": "classification", "threshold": "balance", "correction": "schedule",
        "readout": "mean", "neuron": "binary", "encode": "constant", "paper": False,
        "initial": 0.5}),
    "task": (("--task", "regression"), {
        "task": "regression", "threshold": "max", "correction": "schedule", "readout": "mean"}),
    "threshold": (("--threshold", "mmse"), {"threshold": "mmse"}),
    "correction": (("--correction", "none"), {"correction": "none"}),
    "bias": (("--correction", "bias"), {"correction": "bias"}),
    "potential": (("--correction", "potential"), {"correction": "potential"}),
    "readout": (("--readout", "delay:3"), {"readout": "delay:3"}),
    "burst": (("--neuron", "burst:4"), {"neuron": "burst:4"}),
    "signed": (("--neuron", "signed:2"), {"neuron": "signed:2"}),
    "encode": (("--encode", "poisson"), {"encode": "poisson", "seed_input": "snnc_seed",
        "image_input": "snnc_first_image"}),
    "paper": (("--paper",), {"paper": True, "strict": True, "threshold": "vin-max",
        "correction": "none", "readout": "mean", "encode": "poisson", "initial": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCURACY)
def test_options_of_the_accuracy_end_up_in_the_file(name: str, tmp_path: Path) -> None:
    options, expected = ACCURACY[name]
    found = compiled(tmp_path, "-T", 8, *options)
    assert {key: told(found.model)[key] for key in expected} == expected
    assert [found.options.correction, str(found.options.readout)] == [
        told(found.model)[key] for key in ("correction", "readout")
    ]
    assert bool(found.calibration.schedules) == (found.options.correction != "none")
    target = tmp_path / "compiled.onnx"
    assert good("verify", CNN, target, "--json").json()["passed"]


def test_the_length_of_a_schedule_and_tau_are_those_that_were_asked_for(tmp_path: Path) -> None:
    steady = ("--samples", 40, "--growth", "none")
    found = compiled(tmp_path, *steady, "--schedule-steps", 5, "--tau", 3)
    assert {len(charges) for charges in found.calibration.schedules.values()} == {6}
    assert found.calibration.tau == found.options.tau == 3.0
    later = compiled(tmp_path, *steady, "--tau", 300)
    assert {len(charges) for charges in later.calibration.schedules.values()} == {33}
    for layer, theta in found.calibration.thresholds.items():
        assert (theta <= later.calibration.thresholds[layer]).all()
        assert (theta < later.calibration.thresholds[layer]).any()
    bias = compiled(tmp_path, "--correction", "bias").calibration
    assert {len(charges) for charges in bias.schedules.values()} == {1}


def test_thresholds_grow_as_asked_for(tmp_path: Path) -> None:
    """θ is what it has become, and the charges go on until then."""
    steady = compiled(tmp_path, "--samples", 40, "--growth", "none").calibration
    found = compiled(tmp_path, "--samples", 40, "--growth", "1.5@9,2@41")
    assert str(found.options.growth) == str(found.calibration.growth) == "1.5@9,2@41"
    assert {len(charges) for charges in found.calibration.schedules.values()} == {42}
    for layer, theta in found.calibration.thresholds.items():
        assert np.array_equal(theta, 2 * steady.thresholds[layer])
    refused = snnc("compile", CNN, *CALIBRATED, "--growth", "1.5@9,1.2@41", "-o", tmp_path / "no")
    assert refused.code == 2 and "steps and factors rise" in refused.err


@pytest.mark.slow
def test_alpha_is_searched_if_it_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    ran = good(
        "compile",
        CNN,
        "-o",
        target,
        *CALIBRATED,
        "--samples",
        24,
        "-T",
        4,
        "--alpha",
        "auto",
        "--json",
    )
    (note,) = [f for f in ran.json()["findings"] if f["code"] == "SNNC308"]
    alpha = read_compiled(target).calibration.alpha
    assert f"α = {alpha:g} was chosen of 0.4, " in note["message"] and 0.4 <= alpha <= 1.2
    # 18 samples are left for the thresholds, 6 judged.
    assert "6 held-out samples" in note["message"]
    assert read_compiled(target).calibration.samples == 18


WRONG: list[tuple[Sequence[object], str]] = [
    (("--task", "ranking"), "--task"),
    (("--threshold", "mean"), "--threshold"),
    (("--correction", "all"), "--correction"),
    (("--encode", "rate"), "--encode"),
    (("--tau", 0), "--tau"),
    (("--tau", "nan"), "--tau"),
    (("--alpha", "best"), "--alpha"),
    (("--alpha", 0), "--alpha"),
    (("--schedule-steps", 0), "--schedule-steps"),
    (("--schedule-steps", 2000), "--schedule-steps"),
    (("--readout", "last"), "--readout"),
    (("--readout", "delay:8", "-T", 8), "--readout"),
    (("--neuron", "burst:0"), "--neuron"),
    (("--neuron", "signed"), "--neuron"),
    (("--neuron", "burst:4", "--reset", "hard"), "--reset"),
    (("--correction", "schedule", "--reset", "hard"), "--reset"),
    (("--encode", "poisson", "--emit", "step"), "--encode"),
    (("--alpha", "auto"), "--alpha"),
]


@pytest.mark.parametrize(("options", "named"), WRONG, ids=str)
def test_a_wrong_option_of_the_accuracy_is_named(
    options: Sequence[object], named: str, tmp_path: Path
) -> None:
    target = tmp_path / "never.onnx"
    ran = snnc("compile", CNN, "-o", target, *options)
    assert ran.code == 2 and named in ran.err and "Traceback" not in ran.err
    assert not target.exists()


def test_a_paper_network_with_biases_is_refused(tmp_path: Path) -> None:
    ran = snnc("compile", RESNET, "-o", tmp_path / "r.onnx", "--paper", *CALIBRATED)
    assert ran.code == 1 and "SNNC203" in ran.err and "SNNC204" in ran.err
    assert not (tmp_path / "r.onnx").exists()


def test_thresholds_are_the_maxima_of_the_ann(tmp_path: Path) -> None:
    found = described(tmp_path, "--threshold", "max", "--per-layer", "--samples", 0)
    model = onnx.load(CNN)
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    for name in relus:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    with np.load(TRAIN) as archive:
        images = (archive["x"].astype(np.float32) / 16).transpose(0, 3, 1, 2)
    values = create_session(model).run(relus, {"input": images})
    assert len(found["layers"]) == len(relus) == 4
    for layer, activations in zip(found["layers"], values, strict=True):
        assert layer["thresholds"] == 1
        # Other batch sizes may sum in another order: some dozens of float32 roundings of 6e-8.
        assert layer["largest"] == pytest.approx(float(activations.max()), rel=1e-5)


def test_percentile_alpha_and_channels_move_thresholds(tmp_path: Path) -> None:
    def layers(*options: object) -> list[dict[str, Any]]:
        options = ("--correction", "none", "--samples", 256, *options)
        rows: list[dict[str, Any]] = described(tmp_path, *options)["layers"]
        return rows

    top = layers("--threshold", "max")
    for percent in (99, 90):
        lower = layers("--threshold", "percentile", "--percentile", percent)
        assert len(lower) == 4
        for low, high in zip(lower, top, strict=True):
            assert low["largest"] < high["largest"]
        top = lower
    maxima = layers("--threshold", "max")
    assert [row["thresholds"] for row in maxima] == [16, 32, 32, 64]
    whole = layers("--threshold", "max", "--per-layer")
    assert [row["thresholds"] for row in whole] == [1, 1, 1, 1]
    # The maximum of a layer is that of its channels; a power of two scales float32 exactly.
    assert [row["largest"] for row in whole] == [row["largest"] for row in maxima]
    doubled = layers("--threshold", "max", "--alpha", 2)
    assert [row["largest"] for row in doubled] == [2 * row["largest"] for row in maxima]


def test_hard_reset_loses_what_the_residual_keeps(built: dict[str, Path]) -> None:
    error = {}
    for name in ("cnn", "hard"):
        found = good("eval", CNN, built[name], "--data", TEST, *SCALED, "--json").json()
        error[name] = found["results"][0]["relative_error"]
    # The point of RMP-SNN: a hard reset throws the residual potential away at every spike.
    assert error["hard"] > 1.5 * error["cnn"]


def test_a_failed_compile_leaves_an_old_output_and_a_good_one_replaces_it(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    target.chmod(0o640)
    assert snnc("compile", RESNET, "-o", target, "--strict").code == 1
    assert target.read_bytes() == b"old"
    good("compile", CNN, "-o", target)
    assert target.read_bytes() != b"old" and target.stat().st_mode & 0o777 == 0o640
    assert set(listing(tmp_path)) == {"out.onnx"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_output(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step of the write fails, the last one included."""
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    ran = snnc("compile", CNN, "-o", target)
    (message,) = errors(ran)
    assert ran.code == 2 and "SNNC502" in message and os.strerror(errno.ENOSPC) in message
    assert target.read_bytes() == b"old" and set(listing(tmp_path)) == {"out.onnx"}


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    behind, link = tmp_path / "behind.onnx", tmp_path / "link.onnx"
    behind.write_bytes(b"old")
    link.symlink_to(behind)
    good("compile", CNN, "-o", link)
    assert link.is_symlink() and good("info", behind).code == 0


def test_an_output_that_is_no_regular_file_survives(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    ran = snnc("compile", CNN, "-o", pipe)
    assert pipe.is_fifo()
    assert ran.code == 2 and "SNNC502" in ran.err
    assert set(listing(tmp_path)) == {"pipe.onnx"}


# --- run ---


def test_run_prints_writes_and_takes_other_steps(built: dict[str, Path], tmp_path: Path) -> None:
    snn, outputs = built["cnn"], tmp_path / "o.npz"
    assert good("run", snn, "--input", TEST, *SCALED, "-o", outputs).out == f"{outputs}\n"
    printed = good("run", snn, "--input", TEST, *SCALED, "--json").json()
    with np.load(outputs) as archive:
        assert archive.files == ["logits"]
        written = archive["logits"]
    assert written.shape == (500, 10) and written.dtype == np.float32
    assert np.array_equal(np.array(printed["logits"], np.float32), written)
    with np.load(TEST) as archive:
        labels = archive["y"]
    # models/README.md: the ANN reads 99.6 %; T = 16 costs it at most two points.
    assert (written.argmax(axis=1) == labels).mean() > 0.976


def test_steps_at_run_time_are_those_of_a_compile(few: Path, tmp_path: Path) -> None:
    """With chunks of one step, both files run the very same nodes: the bytes are equal."""
    made = {}
    for steps in (5, 32):
        made[steps] = tmp_path / f"{steps}.onnx"
        good("compile", CNN, "-o", made[steps], "-T", steps, "--chunk", 1, *CALIBRATED)
    own = good("run", made[5], "--input", few, *SCALED, "--json").json()
    asked = good("run", made[32], "-T", 5, "--input", few, *SCALED, "--json").json()
    other = good("run", made[32], "--input", few, *SCALED, "--json").json()
    assert own == asked != other


def test_run_refuses_absurd_steps(built: dict[str, Path]) -> None:
    ran = snnc("run", built["cnn"], "--input", TEST, "-T", 10**20)
    assert ran.code == 2 and "SNNC501" in ran.err


# --- eval ---


def test_eval_counts_what_it_says(built: dict[str, Path]) -> None:
    found = good(
        *("eval", CNN, built["cnn"], "--data", TEST, *SCALED),
        *("--steps", "2,16,64", "--limit", 100, "--json"),
    ).json()
    logits, labels = ann_logits(100)
    assert found["samples"] == 100
    assert found["ann_accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert [result["steps"] for result in found["results"]] == [2, 16, 64]
    errors_at = [result["relative_error"] for result in found["results"]]
    assert errors_at == sorted(errors_at, reverse=True) and errors_at[-1] < 0.1
    for result in found["results"]:
        assert len(result["layers"]) == 4
        for layer in result["layers"]:
            assert 0 <= layer["saturated"] <= layer["firing_rate"] <= 1
            assert 0 <= layer["silent"] < 1
    # T = 16 against the outputs themselves.
    ran = good("run", built["cnn"], "--input", TEST, *SCALED, "--json").json()
    outputs = np.array(ran["logits"][:100])
    expected = (outputs.argmax(axis=1) == logits.argmax(axis=1)).mean()
    assert found["results"][1]["agreement"] == expected
    error = np.linalg.norm(outputs - logits) / np.linalg.norm(logits)
    # The ANN's logits come from batches of another size, 6e-8 a rounding.
    assert errors_at[1] == pytest.approx(error, rel=1e-3)


def test_eval_without_labels(built: dict[str, Path], tmp_path: Path) -> None:
    with np.load(TEST) as archive:
        np.savez(tmp_path / "x.npz", x=archive["x"][:20])
    args = ("eval", CNN, built["cnn"], "--data", tmp_path / "x.npz", *SCALED)
    found = good(*args, "--json").json()
    (result,) = found["results"]
    assert found["ann_accuracy"] is None and result["accuracy"] is None
    assert 0.8 < result["agreement"] <= 1 and 0 < result["relative_error"] < 1
    table = good(*args).out
    assert "  ANN  " not in table and "T = 16" in table


# --- verify ---


def test_verify_passes_for_every_form(built: dict[str, Path], few: Path) -> None:
    for name, snn in built.items():
        model = RESNET if name == "resnet" else CNN
        for data in ((), ("--data", few, *SCALED)):
            found = good("verify", model, snn, *data, "--json").json()
            assert found["passed"] and all(check["passed"] for check in found["checks"])
            names = [check["name"].split(" at ")[0] for check in found["checks"]]
            assert names[:4] == [
                "valid ONNX, own rules",
                "emits the same bytes again",
                "this file = loop",
                "steps = loop",
            ]
            assert ("soft-reset identity" in names) == (name != "hard")
            assert len(found["layers"]) == {"hard": 0, "resnet": 5}.get(name, 4)
            for layer in found["layers"]:
                assert layer["holds"] and layer["deviation"] <= layer["bound"] < 1e-4
    assert len(built) == 6
    table = good("verify", CNN, built["cnn"]).out
    assert "FAILED" not in table and "soft-reset identity" in table


def _edit_calibration(model: onnx.ModelProto) -> None:
    content = json.loads(told(model)["calibration"])
    next(iter(content["thresholds"].values()))[0] *= 1.5
    tell(model, calibration=json.dumps(content))


def _edit_calibration_and_its_hash(model: onnx.ModelProto) -> None:
    _edit_calibration(model)
    text = told(model)["calibration"]
    tell(model, calibration_sha256=hashlib.sha256(text.encode()).hexdigest())


def _fire_above(model: onnx.ModelProto) -> None:
    """Fire on > instead of >=, in the function bodies and their subgraphs."""
    pending = [node for function in model.functions for node in function.node]
    changed = 0
    while pending:
        node = pending.pop()
        pending += [inner for a in node.attribute if a.HasField("g") for inner in a.g.node]
        if node.op_type == "GreaterOrEqual":
            node.op_type = "Greater"
            changed += 1
    assert changed


def charge_more(model: onnx.ModelProto) -> None:
    """Add an ulp or so of θ to the first charge of the first layer."""
    nodes, values = neurons_and_values(model)
    tensor = values[nodes[0].input[3]]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += np.float32(1e-6)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


TAMPERED: dict[str, tuple[str, Callable[[onnx.ModelProto], object], str]] = {
    "threshold": ("cnn", scale_threshold(0.5), "FAILED"),
    "threshold by an ulp": ("cnn", scale_threshold(1 + 2e-7), "FAILED"),
    "threshold in a loop body": ("loop", scale_threshold(2), "FAILED"),
    "threshold in steps": ("steps", scale_threshold(0.9), "FAILED"),
    "hard": ("hard", scale_threshold(0.9), "FAILED"),
    "firing rule": ("cnn", _fire_above, "FAILED"),
    "calibration": ("cnn", _edit_calibration, "SNNC401"),
    "calibration and hash": ("cnn", _edit_calibration_and_its_hash, "FAILED"),
    "initial": ("cnn", lambda m: tell(m, initial=0.25), "FAILED"),
    "reset": ("plain", lambda m: tell(m, reset="hard"), "FAILED"),
    "reset beside a schedule": ("cnn", lambda m: tell(m, reset="hard"), "SNNC401"),
    "correction": ("plain", lambda m: tell(m, correction="schedule"), "FAILED"),
    "no correction": ("cnn", lambda m: tell(m, correction="none"), "FAILED"),
    "read-out": ("cnn", lambda m: tell(m, readout="ramp"), "FAILED"),
    "neuron": ("plain", lambda m: tell(m, neuron="burst:2"), "FAILED"),
    "a charge": ("cnn", lambda m: charge_more(m), "FAILED"),
    "steps": ("cnn", lambda m: tell(m, steps=17), "FAILED"),
    "no steps": ("cnn", lambda m: tell(m, steps=0), "SNNC401"),
    "steps are text": ("cnn", lambda m: tell(m, steps="many"), "SNNC401"),
    "other source": ("cnn", lambda m: tell(m, source_sha256="0" * 64), "SNNC402"),
    "other network": ("resnet", lambda m: None, "SNNC402"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_verify_fails_on_a_tampered_file(name: str, built: dict[str, Path], tmp_path: Path) -> None:
    which, change, seen = TAMPERED[name]
    snn = edit(built[which], tmp_path / "t.onnx", change)
    ran = snnc("verify", CNN, snn, "--json")
    assert ran.code == 1 and "Traceback" not in ran.err, ran
    found = ran.json()
    assert found.get("passed", False) is False
    if seen == "FAILED":
        failed = [check for check in found["checks"] if not check["passed"]]
        assert failed or not all(layer["holds"] for layer in found["layers"])
    else:
        assert seen in [finding["code"] for finding in found["findings"]]


def test_verify_refuses_a_threshold_that_is_not_positive(
    built: dict[str, Path], tmp_path: Path
) -> None:
    ran = snnc("verify", CNN, edit(built["cnn"], tmp_path / "t.onnx", scale_threshold(-1)))
    assert ran.code == 1 and "positive" in ran.out + ran.err


def test_verify_fails_on_a_tampered_file_of_another_version(
    built: dict[str, Path], tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale_threshold(0.5)(model)
        tell(model, version="0.0.9")

    snn = edit(built["cnn"], tmp_path / "t.onnx", change)
    ran = snnc("verify", CNN, snn)
    assert ran.code == 1 and "FAILED" in ran.out


# --- info ---


def test_info_tells_what_was_compiled(built: dict[str, Path]) -> None:
    for name, snn in built.items():
        source = RESNET if name == "resnet" else CNN
        found = good("info", snn, "--json").json()
        assert found["source"] == source.name
        assert found["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert found["inputs"] == [{"name": "input", "shape": ["N", 1, 8, 8]}]
        assert found["outputs"] == ["logits"]
        assert (found["version"], found["steps"], found["opset"]) == (__version__, 16, 17)
        assert (found["steps_input"] is None) == (name == "steps")
        assert all(0 < row["smallest"] <= row["largest"] for row in found["layers"])
        assert source.name in good("info", snn).out
    assert len(built) == 6


# --- refusals ---


def _network(text: str) -> bytes:
    raw: bytes = parse(text).SerializeToString()
    return raw


SIGMOIDS = """agraph (float[N,4] x) => (float[N,4] y) {
    a = Relu (x)
    b = Sigmoid (a)
    c = Relu (b)
    d = Tanh (c)
    e = Relu (d)
    f = Erf (e)
    y = Relu (f)
}"""
NO_RELU = "agraph (float[N,4] x) => (float[N,4] y) { y = Add (x, x) }"


def prepare_folder(folder: Path, built: dict[str, Path]) -> None:
    """Good and bad models and data."""
    raw = CNN.read_bytes()
    files = {
        "cnn.onnx": raw,
        "resnet.onnx": RESNET.read_bytes(),
        "cnn.snn.onnx": built["cnn"].read_bytes(),
        "steps.snn.onnx": built["steps"].read_bytes(),
        "old.onnx": b"an existing file",
        "empty.onnx": b"",
        "truncated.onnx": raw[: len(raw) // 2],
        "page.onnx": b"<!DOCTYPE html><html></html>",
        "random.onnx": np.random.default_rng(0).bytes(1000),
        "sigmoids.onnx": _network(SIGMOIDS),
        "norelu.onnx": _network(NO_RELU),
        "empty.npz": b"",
        "text.csv": b"1,2,3",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.onnx").mkdir()
    x = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    hole = x.copy()
    hole[1, 0, 2, 3] = np.nan
    np.savez(folder / "good.npz", x=x)
    np.savez(folder / "nan.npz", x=hole)
    np.savez(folder / "inf.npz", x=np.where(np.isnan(hole), np.inf, hole))
    np.savez(folder / "objects.npz", x=np.array([{}], object))
    np.savez(folder / "names.npz", pictures=x)
    np.savez(folder / "shape.npz", x=x[..., :7])
    np.savez(folder / "text.npz", x=np.array(["a", "b"]))
    np.savez(folder / "none.npz", x=x[:0])
    np.savez(folder / "labels.npz", x=x, y=np.zeros(3, np.int64))
    np.save(folder / "objects.npy", np.array([{}], object))


COMPILE = "compile cnn.onnx -o old.onnx"
#: Arguments -> exit code, finding codes, a part of the first message.
REFUSALS: dict[str, tuple[int, list[str], str]] = {
    # the network
    "compile sigmoids.onnx -o old.onnx": (1, ["SNNC202"] * 3, "Sigmoid"),
    "check sigmoids.onnx": (1, ["SNNC202"] * 3, "Sigmoid"),
    "compile norelu.onnx -o old.onnx": (1, ["SNNC201"], "no ReLU"),
    "check norelu.onnx": (1, ["SNNC201"], "Add x1"),
    # the file
    "compile empty.onnx -o old.onnx": (1, ["SNNC101"], "0 bytes"),
    "compile truncated.onnx -o old.onnx": (1, ["SNNC101"], "cut off"),
    "compile page.onnx -o old.onnx": (1, ["SNNC101"], "HTML"),
    "compile random.onnx -o old.onnx": (1, ["SNNC101"], "1,000 bytes"),
    "compile cnn.snn.onnx -o old.onnx": (1, ["SNNC114"], "already compiled by snnc"),
    "check cnn.snn.onnx": (1, ["SNNC114"], "already compiled by snnc"),
    "compile missing.onnx -o old.onnx": (2, ["SNNC501"], "missing.onnx does not exist"),
    "compile folder.onnx -o old.onnx": (2, ["SNNC501"], "folder.onnx is not a file"),
    # the output
    "compile cnn.onnx -o nowhere/out.onnx": (2, ["SNNC502"], "nowhere does not exist"),
    "compile cnn.onnx -o cnn.onnx": (2, ["SNNC502"], "is the input"),
    "compile cnn.onnx -o folder.onnx": (2, ["SNNC502"], "folder.onnx is a folder"),
    "compile cnn.onnx -o good.npz --calibration good.npz": (2, ["SNNC502"], "is the input"),
    "run cnn.snn.onnx --input good.npz -o good.npz": (2, ["SNNC502"], "is the input"),
    "run cnn.snn.onnx --input good.npz -o cnn.snn.onnx": (2, ["SNNC502"], "is the input"),
    "run cnn.snn.onnx --input good.npz -o nowhere/o.npz": (2, ["SNNC502"], "does not exist"),
    # the data
    f"{COMPILE} --calibration shape.npz": (1, ["SNNC302"], "[4, 1, 8, 7]"),
    f"{COMPILE} --calibration nan.npz": (1, ["SNNC303"], "nan at [1, 0, 2, 3]"),
    f"{COMPILE} --calibration inf.npz": (1, ["SNNC303"], "inf at [1, 0, 2, 3]"),
    f"{COMPILE} --calibration objects.npz": (1, ["SNNC301"], "Object arrays"),
    f"{COMPILE} --calibration objects.npy": (1, ["SNNC301"], "Object arrays"),
    f"{COMPILE} --calibration names.npz": (1, ["SNNC302"], "['pictures']"),
    f"{COMPILE} --calibration text.npz": (1, ["SNNC302"], "type <U1"),
    f"{COMPILE} --calibration none.npz": (1, ["SNNC303"], "no samples"),
    f"{COMPILE} --calibration labels.npz": (1, ["SNNC302"], "different numbers"),
    f"{COMPILE} --calibration empty.npz": (1, ["SNNC301"], "cannot be read"),
    f"{COMPILE} --calibration text.csv": (2, ["SNNC301"], "no kind that is known"),
    f"{COMPILE} --calibration missing.npz": (2, ["SNNC301"], "missing.npz does not exist"),
    "run cnn.snn.onnx --input shape.npz": (1, ["SNNC302"], "[4, 1, 8, 7]"),
    "eval cnn.onnx cnn.snn.onnx --data nan.npz": (1, ["SNNC303"], "nan at"),
    "verify cnn.onnx cnn.snn.onnx --data names.npz": (1, ["SNNC302"], "pictures"),
    # options
    f"{COMPILE} -T 0": (2, ["SNNC501"], "-T 0 is out of range"),
    f"{COMPILE} -T -5": (2, ["SNNC501"], "-T -5 is out of range"),
    f"{COMPILE} -T 1000000000": (2, ["SNNC501"], "-T 1000000000 is out of range"),
    f"{COMPILE} --unroll loop --chunk 4": (2, ["SNNC501"], "--chunk belongs to --unroll fold"),
    f"{COMPILE} --unroll steps --chunk 4": (2, ["SNNC501"], "--chunk belongs to --unroll fold"),
    f"{COMPILE} --unroll steps -T 1000000": (1, ["SNNC209"], "1,000,000 steps"),
    f"{COMPILE} --chunk 0": (2, ["SNNC501"], "--chunk 0 is out of range"),
    f"{COMPILE} --percentile 0": (2, ["SNNC501"], "--percentile 0"),
    f"{COMPILE} --percentile 101": (2, ["SNNC501"], "--percentile 101"),
    f"{COMPILE} --percentile nan": (2, ["SNNC501"], "--percentile nan"),
    f"{COMPILE} --alpha 0": (2, ["SNNC501"], "--alpha 0"),
    f"{COMPILE} --alpha nan": (2, ["SNNC501"], "--alpha nan"),
    f"{COMPILE} --alpha inf": (2, ["SNNC501"], "--alpha inf"),
    f"{COMPILE} --initial 1": (2, ["SNNC501"], "--initial 1"),
    f"{COMPILE} --seed -1": (2, ["SNNC501"], "--seed -1"),
    f"{COMPILE} --samples -1": (2, ["SNNC501"], "--samples -1"),
    f"{COMPILE} --scale 0": (2, ["SNNC501"], "--scale 0"),
    f"{COMPILE} --scale nan": (2, ["SNNC501"], "--scale nan"),
    f"{COMPILE} --mean a,b": (2, ["SNNC501"], "--mean a,b"),
    f"{COMPILE} --std 0": (2, ["SNNC501"], "--std 0"),
    f"{COMPILE} --size 8": (2, ["SNNC501"], "--size 8"),
    f"{COMPILE} --calibration good.npz --mean 1,2,3": (2, ["SNNC501"], "--mean has 3 values"),
    "run cnn.snn.onnx --input good.npz -T 0": (2, ["SNNC501"], "-T 0"),
    "run steps.snn.onnx --input good.npz -T 8": (2, ["SNNC501"], "steps = 16 baked in"),
    "eval cnn.onnx cnn.snn.onnx --data good.npz --limit 0": (2, ["SNNC501"], "--limit 0"),
    "eval cnn.onnx cnn.snn.onnx --data good.npz --steps 0": (2, ["SNNC501"], "--steps 0"),
    "eval cnn.onnx cnn.snn.onnx --data good.npz --steps 4,x": (2, ["SNNC501"], "--steps 4,x"),
    "eval cnn.onnx cnn.snn.onnx --data good.npz --steps 1000000000": (2, ["SNNC501"], "--steps"),
    "eval cnn.onnx steps.snn.onnx --data good.npz --steps 8": (2, ["SNNC501"], "baked in"),
    # the compiled file
    "info cnn.onnx": (1, ["SNNC401"], "was not compiled by snnc"),
    "run cnn.onnx --input good.npz": (1, ["SNNC401"], "was not compiled by snnc"),
    "eval resnet.onnx cnn.snn.onnx --data good.npz": (1, ["SNNC402"], "is not the network"),
    "verify resnet.onnx cnn.snn.onnx": (1, ["SNNC402"], "is not the network"),
    "info truncated.onnx": (1, ["SNNC101"], "cut off"),
}
#: Found by the option parser: exit code 2, its own layout.
MISUSES = {
    "": "Usage",
    "nothing": "nothing",
    "compile": "Missing argument",
    "compile cnn.onnx --nothing": "--nothing",
    "compile cnn.onnx -T many": "--steps",
    "compile cnn.onnx --threshold mean": "mean",
    "compile cnn.onnx --unroll twice": "twice",
    "compile cnn.onnx --reset gentle": "gentle",
    "compile cnn.onnx --encode morse": "morse",
    "compile cnn.onnx --alpha much": "--alpha",
    "run cnn.snn.onnx": "--input",
    "eval cnn.onnx cnn.snn.onnx": "--data",
}


def test_refusals(built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, built)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    for line, (code, found, part) in REFUSALS.items():
        ran = snnc(*line.split())
        assert (ran.code, ran.out) == (code, ""), (line, ran)
        messages = errors(ran)
        assert [message.split()[1].rstrip(":") for message in messages] == found, (line, ran.err)
        assert part in messages[0], (line, ran.err)
        assert listing(tmp_path) == before, line
    assert len(REFUSALS) == 68
    assert {code for _, codes, _ in REFUSALS.values() for code in codes} <= set(CODES)


def test_every_offender_is_named_at_once(tmp_path: Path) -> None:
    model = tmp_path / "sigmoids.onnx"
    model.write_bytes(_network(SIGMOIDS))
    messages = errors(snnc("compile", model))
    assert [
        [word in message for word in ("Sigmoid", "Tanh", "Erf")] for message in messages
    ] == np.eye(3, dtype=bool).tolist()
    assert set(listing(tmp_path)) == {"sigmoids.onnx"}


def test_a_message_is_one_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    ran = snnc("check", tmp_path / ("long" * 50 + ".onnx"))
    assert len(ran.err.splitlines()) == 1


def test_misuses(built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, built)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    for line, part in MISUSES.items():
        ran = snnc(*line.split())
        assert ran.code == 2, (line, ran)
        assert part in ran.out + ran.err, (line, ran)
        assert "Traceback" not in ran.err, line
        assert ran.out == "" or not line, line
        assert listing(tmp_path) == before, line
    assert len(MISUSES) == 12


def test_a_usage_error_beats_the_file_and_costs_no_time(tmp_path: Path) -> None:
    """Options are checked before anything is read."""
    ran = snnc("compile", tmp_path / "missing.onnx", "-T", 0)
    assert ran.code == 2 and "-T 0" in errors(ran)[0]


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    nasty = "re\x1b[31mlu\r\x07"
    escaped = "re\\x1b[31mlu\\r\\x07"

    def rename(model: onnx.ModelProto) -> None:
        relus = [node for node in model.graph.node if node.op_type == "Relu"]
        relus[0].name = nasty

    source = edit(CNN, tmp_path / "nasty.onnx", rename)
    snn = tmp_path / "nasty.snn.onnx"
    bad = parse(SIGMOIDS)
    bad.graph.node[1].name = nasty
    refused = tmp_path / "bad.onnx"
    refused.write_bytes(bad.SerializeToString())
    calls: list[tuple[int, Sequence[object]]] = [
        (1, ("check", refused)),
        (1, ("check", refused, "--json")),
        (0, ("check", source)),
        (0, ("compile", source, "-o", snn, "--calibration", TEST, *SCALED)),
        (0, ("info", snn)),
        (0, ("eval", source, snn, "--data", TEST, "--limit", 4)),
        (0, ("verify", source, snn)),
        (2, ("check", tmp_path / f"{nasty}.onnx")),
    ]
    for code, args in calls:
        ran = snnc(*args)
        assert ran.code == code, ran
        text = (ran.out + ran.err).replace("\n", "")
        assert text.isprintable(), (args, text)
        if args[0] not in ("compile",):
            assert escaped in text.replace("\\\\", "\\").replace("\\u001b", "\\x1b"), (args, text)
    assert len(calls) == 8


# --- tracebacks, interrupts, a missing package ---


def test_debug_shows_the_traceback() -> None:
    ran = child("compile", CNN, "-T", 0, "--debug")
    assert ran.code != 0
    assert "Traceback (most recent call last)" in ran.err and "UsageError" in ran.err


def test_debug_keeps_the_exit_code() -> None:
    assert child("compile", CNN, "-T", 0, "--debug").code == 2


def test_a_fault_of_ours_is_code_4_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("snncompiler.cli.check.constraints", fail)
    ran = snnc("check", CNN)
    assert (ran.code, ran.out) == (4, "")
    (message,) = errors(ran)
    assert "SNNC504" in message and "boom" in message and "report" in message


#: Runs the command line and interrupts itself, as Ctrl-C does, when `where` is called.
INTERRUPT = """
import os, signal, sys
import snncompiler.calibration.calibrate as calibrating
from snncompiler.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
owner, name = {"calibration": (calibrating, "observe"), "write": (os, "fsync")}[sys.argv[1]]
real = getattr(owner, name)
def interrupted(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*args, **options)
setattr(owner, name, interrupted)
sys.argv = ["snnc", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("where", ["calibration", "write"])
def test_an_interrupt_gives_130_and_leaves_nothing(where: str, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    arguments = [where, "compile", str(CNN), "-o", str(target), *CALIBRATED]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert (done.stdout, done.stderr) == ("", "interrupted\n")
    assert target.read_bytes() == b"old" and set(listing(tmp_path)) == {"out.onnx"}


def test_without_onnxruntime(built: dict[str, Path], tmp_path: Path) -> None:
    stub = tmp_path / "stub" / "onnxruntime"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('no onnxruntime here')\n")
    path = os.pathsep.join([str(stub.parent), str(ROOT), str(ROOT / "tests")])
    work = tmp_path / "work"
    work.mkdir()
    snn = built["cnn"]
    calls: list[Sequence[object]] = [
        ("compile", CNN, "-o", work / "o.onnx", *CALIBRATED),
        ("run", snn, "--input", TEST, "-o", work / "o.npz"),
        ("eval", CNN, snn, "--data", TEST),
        ("verify", CNN, snn),
        ("check", CNN, "--json"),
        ("info", snn),
    ]
    *needing, checked, info = children(calls, cwd=work, PYTHONPATH=path)
    assert len(needing) == 4 and listing(work) == {}
    for ran in needing:
        assert (ran.code, ran.out) == (3, ""), ran
        assert 'pip install "snnc[cpu]"' in ran.err and "Traceback" not in ran.err
        assert len([line for line in ran.err.splitlines() if line.startswith("error")]) == 1
    assert checked.code == 0, checked.err
    found = checked.json()
    assert len(found["rectifiers"]) == 4
    assert "SNNC503" in {finding["code"] for finding in found["findings"]}
    assert info.code == 0 and "digits-cnn.onnx" in info.out


# --- what check and compile refuse ---

#: Networks that are refused by one pass or another, and the options for both commands.
REFUSED_BY_BOTH: dict[str, tuple[str, tuple[str, ...]]] = {
    "no rectifier": ("{ y = Neg (x) }", ()),
    "not linear": ("{ a = Relu (x)  b = Exp (a)  y = Relu (b) }", ()),
    "several": ("{ a = Relu (x)  b = Exp (a)  c = Mul (a, b)  y = Relu (c) }", ()),
    "random": ("{ a = Relu (x)  e = RandomNormalLike (a)  y = Add (a, e) }", ()),
    "bias": ("{ b = Add (x, x)  c = Gemm (x, w, v)  y = Relu (c) }", ("--strict",)),
    "analog and not a float": (
        "{ a = Relu (x)  i = Cast <to = 7> (a)  j = Cast <to = 1> (i)  y = Relu (j) }",
        ("--allow-analog",)),
    "analog and a choice": (
        "{ a = Relu (x)  i = ArgMax <axis = 1> (a)  j = Cast <to = 1> (i)  b = Add (a, j)"
        "  y = Relu (b) }",
        ("--allow-analog",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED_BY_BOTH)
def test_check_refuses_what_compile_refuses_with_the_same_findings(
    kind: str, tmp_path: Path
) -> None:
    body, options = REFUSED_BY_BOTH[kind]
    arrays = {
        "w": np.eye(3, dtype=np.float32), "v": np.ones(3, np.float32),
    }  # fmt: skip
    used = {n: a for n, a in arrays.items() if re.search(rf"\b{n}\b", body)}
    model = tmp_path / "net.onnx"
    onnx.save(parse(f"g (float[N,3] x) => (float[N,M] y) {body}", used), model)
    checked = snnc("check", model, *options, "--json")
    compiled = snnc("compile", model, "-o", tmp_path / "snn.onnx", *options, "--json")
    assert checked.code == compiled.code == 1
    wanted, found = (
        [f for f in ran.json()["findings"] if f["severity"] == "error"]
        for ran in (checked, compiled)
    )
    assert found == wanted and wanted
