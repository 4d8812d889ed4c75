"""The accuracy benches: statistics, settings, tables, data, and ONNX networks as torch modules."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from bench import accuracy, accuracy_spikingjelly, calibration, networks  # noqa: E402
from snncompiler.analysis.tally import paired_interval  # noqa: E402
from snncompiler.network.data import Dataset  # noqa: E402
from snncompiler.runtime.session import create_session  # noqa: E402

Array = NDArray[Any]


# --- statistics ---


def test_an_snn_that_never_differs_still_has_an_interval() -> None:
    low, high = accuracy.paired_interval(np.zeros(98))
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1.959964 * np.sqrt(2) / 100)  # 98 + 2 images


def test_the_interval_is_that_of_the_package() -> None:
    # 40 images, of which only the ANN has 8 right and only the SNN 3.
    d = np.array([1.0] * 8 + [-1.0] * 3 + [0.0] * 29)
    middle, n = (9 - 4) / 42, 42
    half = 1.959964 * np.sqrt(9 + 4 - (9 - 4) ** 2 / n) / n
    assert accuracy.paired_interval(d) == pytest.approx((middle - half, middle + half))
    assert accuracy.paired_interval(d) == pytest.approx(paired_interval(d >= 0, d <= 0))


def test_the_interval_holds_the_true_drop_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    shares, values = [0.06, 0.02, 0.92], np.array([1.0, -1.0, 0.0])
    held = 0
    for _ in range(2000):
        low, high = accuracy.paired_interval(rng.choice(values, 370, p=shares))
        held += low <= 0.04 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_figures_of_draws() -> None:
    labels, ann = [0, 1, 2, 3], [0, 1, 2, 0]
    found = accuracy.figures(labels, ann, [[0, 1, 0, 0], [0, 1, 2, 3]], [0.1, 0.3])
    assert (found.ann, found.snn, found.drop) == (75.0, 75.0, 0.0)
    assert found.spread == pytest.approx(np.std([25.0, -25.0], ddof=1))
    assert found.agreement == 75.0
    assert found.firing == pytest.approx(20.0)
    assert found.low < 0 < found.high
    one = accuracy.figures(labels, ann, [[0, 1, 0, 0]], [None])
    assert one.spread is None and one.firing is None and one.drop == 25.0


def test_two_settings_are_compared_on_the_same_images_and_draws() -> None:
    """Draw 1 is of the first setting alone."""

    def row(setting: str, draw: int, predictions: list[int]) -> dict[str, Any]:
        results = {"8": {"predictions": predictions}}
        return {"case": "kws", "setting": setting, "draw": draw, "results": results}

    rows = [row("default", 0, [0, 1, 2, 0]), row("default", 1, [0, 0, 0, 0])]
    rows.append(row("weights=int8", 0, [0, 1, 0, 3]))
    cases = {"kws": {"labels": [0, 1, 2, 3], "ann": [0, 1, 2, 0]}}
    content = {"rows": rows, "cases": cases}
    found = accuracy.beside(content, "kws", "weights=int8", "default", "8")
    assert found is not None and (found.drop, found.agreement) == (0.0, 50.0)
    low, high = accuracy.paired_interval(np.array([0.0, 0.0, 1.0, -1.0]))
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))
    assert "| kws | weights=int8 | 0.00 [" in accuracy.beside_table(content)
    assert accuracy.beside_table({"rows": rows[:2], "cases": cases}) == ""


def test_divergence_of_scores_and_of_probabilities() -> None:
    p, q = (
        np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]),
        np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]]),
    )
    wanted = (0.5 * np.log(2) - 0.25 * np.log(2)) / 2
    assert accuracy.divergence(p, q) == pytest.approx(wanted)
    assert accuracy.divergence(np.log(p) + 3, q) == pytest.approx(wanted)  # scores, any offset
    assert accuracy.divergence(np.log(p), np.log(p)) == 0
    # What is certain of another class is wrong by a finite amount.
    one = np.eye(2)
    assert accuracy.divergence(one, one[::-1]) == pytest.approx(-np.log(1e-5), rel=1e-3)
    found = accuracy.figures([0], [0], [[0], [0]], divergence=[0.01, 0.03])
    assert found.divergence == pytest.approx(2.0) and found.firing is None


def test_area_under_the_curve() -> None:
    positive = np.array([True, True, False, False])
    assert accuracy.area_under_curve(np.array([3.0, 2.0, 1.0, 0.0]), positive) == 1.0
    assert accuracy.area_under_curve(np.array([1.0, 1.0, 1.0, 1.0]), positive) == 0.5
    assert accuracy.area_under_curve(np.array([3.0, 0.0, 1.0, 2.0]), positive) == 0.5


# --- settings ---


def test_settings_by_name_and_as_options() -> None:
    assert accuracy.setting("default") == ("default", {})
    text = "threshold=max,per_channel=false,alpha=0.9,readout=delay:8"
    wanted = {"threshold": "max", "per_channel": False, "alpha": 0.9, "readout": "delay:8"}
    assert accuracy.setting(text) == (text, wanted)
    with pytest.raises(ValueError, match=r"no setting 'fast'.*default"):
        accuracy.setting("fast")


def test_an_option_that_compile_lacks_is_named() -> None:
    accuracy.check_options("mine", {"threshold": "max"})
    with pytest.raises(ValueError, match="needs warp, which snncompiler"):
        accuracy.check_options("mine", {"threshold": "max", "warp": 9})


def test_targets_name_networks_and_settings_that_there_are() -> None:
    for names, given, figure, bounds in accuracy.TARGETS:
        assert set(names) <= set(networks.CLASSIFIERS) and given in accuracy.SETTINGS
        assert figure in ("drop", "agreement") and bounds


def test_networks_by_name_and_by_part() -> None:
    names = [case.name for case in accuracy.chosen("resnet20", networks.CLASSIFIERS)]
    assert names == ["resnet20"]
    names = [case.name for case in accuracy.chosen("digits,vgg16slim", networks.CLASSIFIERS)]
    assert names == ["vgg16slim", "digits-mlp", "digits-cnn", "digits-resnet"]
    assert accuracy.chosen("digits,toycar", networks.CLASSIFIERS) == []
    assert len(accuracy.chosen(None, networks.REGRESSORS)) == len(networks.REGRESSORS)


# --- tables ---


def content() -> dict[str, Any]:
    images = 20
    labels = [0] * images
    worse = [1, 1] + [0] * (images - 2)

    def row(draw: int, predictions: list[int]) -> dict[str, Any]:
        results = {
            "8": {"predictions": worse, "firing": 0.1},
            "16": {"predictions": predictions, "firing": 0.2},
        }
        named = {"case": "resnet20", "setting": "default", "options": {}, "draw": draw}
        return {**named, "results": results}

    toycar = {"8": {"errors": [4.0, 0.0], "auc": 0.7}}
    failed = {"case": "kws", "setting": "a|b", "options": {}, "draw": 0, "failed": "Refused: no"}
    return {
        "command": "python bench/accuracy.py",
        "environment": {"snnc": "0"},
        "asked": {},
        "cases": {
            "resnet20": {
                "images": images,
                "test": "sets/x.npz",
                "calibration_set": "sets/y.npz",
                "labels": labels,
                "ann": labels,
            },
            "toycar": {
                "images": 2,
                "test": "sets/z.npz",
                "calibration_set": "1 others",
                "norms": [8.0, 8.0],
                "auc": 0.9,
            },
        },
        "rows": [
            row(0, labels),
            row(1, worse),
            {"case": "toycar", "setting": "default", "options": {}, "draw": 0, "results": toycar},
            failed,
        ],
    }


def test_the_page_has_all_tables_and_what_failed() -> None:
    text = accuracy.page(content(), "Accuracy")
    assert "| resnet20 | default | 20 | 2 | 100.00 | 10.00 ± 0.00 [" in text
    assert "| 5.00 ± 7.07 [" in text
    assert "| toycar | default | 2 | 1 | error | 0.5 |" in text
    assert "| toycar | default | 2 | 1 | AUC (ANN 0.9000) | 0.7000 |" in text
    assert "- kws, a|b: Refused: no" in text
    assert "MISSED: resnet20, default, agreement at T = 16: 95.00" not in text
    assert "reached: resnet20, default, agreement at T = 16: 95.00 (at least 94), 20 images" in text
    assert "- resnet20: 20 of `sets/x.npz`; calibrated on sets/y.npz" in text


def test_cells_are_escaped_and_columns_fit() -> None:
    text = accuracy.markdown(["a", "b"], [["1|2", "x\ny"]])
    assert text == "| a | b |\n|---|---|\n| 1\\|2 | x y |\n"


def test_what_is_written_is_read_and_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    accuracy.write_json(file, content())
    assert accuracy.read_json(file) == content()
    assert accuracy.same(content()["rows"][0], "resnet20", "default", 0, {})
    assert not accuracy.same(content()["rows"][0], "resnet20", "default", 0, {"alpha": 1})
    assert not accuracy.same(content()["rows"][3], "kws", "a|b", 0, {})
    asked = argparse.Namespace(
        json=file, keep=True, limit=5, samples=256, steps=None, held_out=False
    )
    with pytest.raises(SystemExit, match="was measured with"):
        accuracy.begin(asked, "accuracy.py", {})
    # Files from before held-out samples do not name them.
    for more in ({}, {"held_out": False}):
        old = {**content(), "asked": {"limit": 5, "samples": 256, "steps": None, **more}}
        accuracy.write_json(file, old)
        assert accuracy.begin(asked, "accuracy.py", {})["rows"] == old["rows"]
    asked.held_out = True
    with pytest.raises(SystemExit, match="was measured with"):
        accuracy.begin(asked, "accuracy.py", {})


def test_the_command_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["x", "--only", "kws", "--json", "a/b.json", "--write=c/d.md", "--keep", "--draws", "5"]
    monkeypatch.setattr(sys, "argv", given)
    assert accuracy.command_line("accuracy.py") == "python bench/accuracy.py --only kws --draws 5"


# --- data ---


def test_calibration_and_test_samples_are_never_the_same(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "sets").mkdir()
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "models" / "net.onnx")
    listed = [{"model": "models/net.onnx", "preprocess": {}}]
    (tmp_path / "material.json").write_text(json.dumps(listed), encoding="utf-8")
    values = np.arange(90, dtype=np.float32)[:, None]
    np.savez(tmp_path / "sets" / "all.npz", x=values, y=np.arange(90))
    data = networks.Data(networks.Case("net", "models/net.onnx", "sets/all.npz"), tmp_path)
    test = data.test(None)
    draws = [set(data.calibration(seed, 256).feeds["x"].ravel()) for seed in range(3)]
    assert len(test) == 60 and [len(draw) for draw in draws] == [24, 24, 24]
    assert draws[0] != draws[1] and not draws[0] & set(test.feeds["x"].ravel())
    assert test.labels is not None and (test.labels == test.feeds["x"].ravel()).all()
    assert (data.test(7).feeds["x"] == test.feeds["x"][:7]).all()
    assert (data.tests, data.calibrates) == ("sets/all.npz", "30 others of sets/all.npz")

    held = networks.Data(networks.Case("net", "models/net.onnx", "sets/all.npz"), tmp_path, True)
    chosen = held.test(None)
    assert chosen.labels is not None and (chosen.labels == chosen.feeds["x"].ravel()).all()
    calibrating = set().union(
        *(held.calibration(seed, 256).feeds["x"].ravel() for seed in range(9))
    )
    assert len(chosen) == 15 and len(calibrating) == 15
    assert not calibrating & set(chosen.feeds["x"].ravel())
    assert not (calibrating | set(chosen.feeds["x"].ravel())) & set(test.feeds["x"].ravel())
    assert held.tests == "the held-out half of 30 others of sets/all.npz"


def test_classes_from_names_and_folders() -> None:
    assert networks.classes(["0007_a.jpg", "0002_b.jpg"]).tolist() == [7, 2]
    assert networks.classes(["t/cat/0.jpg", "t/ant/0.jpg", "t/cat/1.jpg"]).tolist() == [1, 0, 1]


def test_windows_of_a_recording_overlap() -> None:
    frames = networks.WINDOWS + networks.FRAMES - 1
    recording = np.arange(frames, dtype=np.float32)[None, :, None]
    cut = networks.windows(recording)
    assert cut.shape == (networks.WINDOWS, networks.FRAMES)
    assert cut[1].tolist() == [1, 2, 3, 4, 5]


def test_one_network_from_its_data_to_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits that come with the compiler, with two settings, one of which is refused."""
    options = argparse.Namespace(
        settings=[("default", {}), ("mine", {"threshold": "no such"})],
        draws=2, limit=30, samples=40, steps=(4, 64), threads=1, device="cpu",
        json=tmp_path / "found.json", keep=False, root=tmp_path, held_out=False,
    )  # fmt: skip
    empty = accuracy.begin(options, "accuracy.py", {"snnc": "0"})
    bench = accuracy.Bench(options, empty, print)
    bench.case(networks.CLASSIFIERS["digits-cnn"])
    found = accuracy.read_json(options.json)
    assert [row["draw"] for row in found["rows"]] == [0, 1, 0, 1]
    assert all("no such" in row["failed"] for row in found["rows"][2:])
    assert len(found["rows"][0]["results"]["64"]["predictions"]) == 30
    figures = accuracy.all_figures(found)["digits-cnn", "default"][64]
    assert figures.agreement >= 90 and figures.firing is not None and 0 < figures.firing < 100
    assert "digits-cnn default draw 1 T=64: drop" in capsys.readouterr().out
    before = list(bench.content["rows"][:2])
    bench.case(networks.CLASSIFIERS["digits-cnn"])  # what is there is not measured again
    assert bench.content["rows"][:2] == before


def test_held_out_samples_take_the_place_of_the_test_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    given = ["x", "--only", "digits-cnn", "--held-out", "--limit", "40", "--samples", "40"]
    monkeypatch.setattr(
        sys, "argv", [*given, "--steps", "4,32", "--threads", "1", "--write", str(page)]
    )
    monkeypatch.setenv("SNNC_MATERIAL", str(tmp_path))
    accuracy.main()
    text = page.read_text(encoding="utf-8")
    assert "run on the same held-out samples" in text and "--held-out" in text
    assert (
        "40 of `the held-out half of models/digits_train.npz`; calibrated on the other half" in text
    )
    assert "## Targets" not in text
    rows = [line for line in text.splitlines() if line.startswith("| digits-cnn")]
    assert len(rows) == 5
    early, late = (float(cell) for cell in rows[-1].split("|")[-3:-1])
    assert 0 <= late < early  # the SNN converges to the ANN
    assert "divergence" in capsys.readouterr().out


def measured(
    root: Path, name: str, given: dict[str, Any], steps: tuple[int, ...], held_out: bool = False
) -> dict[str, Any]:
    """The results of one draw on 40 test samples."""
    options = argparse.Namespace(
        draws=1, limit=40, samples=40, steps=steps, threads=1, device="cpu", held_out=held_out,
        root=root,
    )  # fmt: skip
    case = networks.CLASSIFIERS[name]
    data = networks.Data(case, root)
    test = data.test(40)
    ann = accuracy.reference(data.model, test, 1, "cpu")
    row = accuracy.Bench(options, {"rows": []}, print).draw(case, data, test, ann, given, 0)
    found: dict[str, Any] = row["results"]
    return found


@pytest.mark.parametrize(
    "neuron",
    ["burst:2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("binary", "signed:2"))],
)
def test_both_ways_to_measure_find_the_same(tmp_path: Path, neuron: str) -> None:
    """`evaluate`, and all outputs beside the ANN's, which held-out samples need."""
    one, two = (
        measured(tmp_path, "digits-resnet", {"neuron": neuron}, (4, 16), held_out)
        for held_out in (False, True)
    )
    for steps in ("4", "16"):
        assert one[steps]["predictions"] == two[steps]["predictions"]
        assert one[steps]["firing"] == pytest.approx(two[steps]["firing"], rel=1e-6)
        assert two[steps]["divergence"] >= 0


def test_steps_within_a_delay_are_left_out(tmp_path: Path) -> None:
    found = measured(tmp_path, "digits-cnn", {"readout": "delay:8"}, (4, 8, 16))
    assert list(found) == ["16"]


@pytest.mark.slow
def test_what_a_compilation_with_data_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SNNC_MATERIAL", str(tmp_path))
    given = ["x", "--only", "digits-cnn", "--samples", "8,16"]
    monkeypatch.setattr(sys, "argv", given)
    calibration.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "digits-cnn" in line]
    assert [(row[1], row[-1]) for row in rows] == [("8", "yes"), ("16", "yes")]
    assert all(float(row[2]) > 0 and float(row[3]) > 20 for row in rows)
    monkeypatch.setattr(sys, "argv", [*given[:-1], "99999"])
    with pytest.raises(SystemExit, match="99999 samples, there are 1297"):
        calibration.main()
    monkeypatch.setattr(sys, "argv", ["x", "--only", "resnet18"])
    with pytest.raises(SystemExit):
        calibration.main()
    assert "set SNNC_MATERIAL" in capsys.readouterr().err


# --- ONNX to torch ---


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], shape: list[Any], output: str = "y"
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def residual() -> onnx.ModelProto:
    """Uneven padding, batch-norm, a strided shortcut with more channels, shape arithmetic, Softmax."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    one = np.array([1], np.int64)
    constants = {
        "mean": normal(1, 3, 8, 8),
        "w1": normal(4, 3, 3, 3), "b1": normal(4),
        "scale": normal(4), "shift": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 1,
        "w2": normal(6, 4, 3, 2),
        "start": np.array([0, 0], np.int64), "stop": np.array([99, 99], np.int64),
        "axes": np.array([2, 3], np.int64), "step": np.array([2, 2], np.int64),
        "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0], np.int64),
        "w3": normal(6, 5), "b3": normal(5), "zero": np.array([0], np.int64), "minus": -one,
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Sub", ["x", "mean"], ["x0"]),
        make("Conv", ["x0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["c1", "scale", "shift", "m", "v"], ["n1"]),
        make("Relu", ["n1"], ["r1"]),
        make("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], pads=[1, 0, 0, 1]),
        make("Slice", ["r1", "start", "stop", "axes", "step"], ["cut"]),
        make("Pad", ["cut", "pads"], ["wide"]),
        make("Add", ["c2", "wide"], ["sum"]),
        make("Relu", ["sum"], ["r2"]),
        make("MaxPool", ["r2"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        make("AveragePool", ["p1"], ["p2"], kernel_shape=[2, 2]),
        make("Shape", ["p2"], ["shape"]),
        make("Gather", ["shape", "zero"], ["batch"]),
        make("Concat", ["batch", "minus"], ["flat"], axis=0),
        make("Reshape", ["p2", "flat"], ["f"]),
        make("Gemm", ["f", "w3", "b3"], ["scores"], alpha=0.5),
        make("Softmax", ["scores"], ["shares"]),
        make("Identity", ["shares"], ["y"]),
    ]
    return model_of(nodes, constants, ["N", 3, 8, 8])


def test_a_residual_network_is_the_same_in_torch() -> None:
    torch = pytest.importorskip("torch")
    model = residual()
    x = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)
    wanted = run_all(model, "scores", x)
    network = accuracy_spikingjelly.torch_network(model, {"x": x[:4]}, "y")
    assert network.softmax
    with torch.inference_mode():
        found = network(torch.from_numpy(x)).numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    data = Dataset({"x": x})
    shares = run_all(model, "y", x)
    assert accuracy_spikingjelly.check_outputs(network, data, shares) < 1e-5
    with pytest.raises(accuracy_spikingjelly.CannotConvert, match="differs from the ANN"):
        accuracy_spikingjelly.check_outputs(network, data, shares + 0.1)
    relus = [m for m in network.modules() if isinstance(m, torch.nn.ReLU)]
    assert len(relus) == 2
    torch.fx.symbolic_trace(network)


def run_all(model: onnx.ModelProto, output: str, x: Array) -> Array:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=output))
    return np.asarray(create_session(copy).run(None, {"x": x})[0])


def test_the_same_padding_of_a_strided_convolution() -> None:
    for mode in ("SAME_UPPER", "SAME_LOWER"):
        for stride in (1, 2, 3):
            weight = np.ones((1, 1, 4, 2), np.float32)
            node = helper.make_node(
                "Conv", ["x", "w"], ["y"], auto_pad=mode, strides=[stride, stride]
            )
            model = model_of([node], {"w": weight}, ["N", 1, 7, 6])
            x = np.random.default_rng(0).standard_normal((4, 1, 7, 6)).astype(np.float32)
            torch = pytest.importorskip("torch")
            network = accuracy_spikingjelly.torch_network(model, {"x": x}, "y")
            with torch.inference_mode():
                found = network(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(found, run_all(model, "y", x), rtol=1e-5, atol=1e-5)


def test_an_operator_without_a_module_is_named() -> None:
    pytest.importorskip("torch")
    model = model_of([helper.make_node("Tanh", ["x"], ["y"])], {}, ["N", 3])
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(accuracy_spikingjelly.CannotConvert, match="operator Tanh"):
        accuracy_spikingjelly.torch_network(model, {"x": x}, "y")


def test_a_network_of_one_sample_takes_many_in_torch() -> None:
    torch = pytest.importorskip("torch")
    weight = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    shape = np.array([1, 6], np.int64)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    model = model_of(nodes, {"w": weight, "shape": shape}, [1, 2, 3])
    x = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)
    network = accuracy_spikingjelly.torch_network(model, {"x": x}, "y")
    with torch.inference_mode():
        found = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, x.reshape(4, 6) @ weight, rtol=1e-4, atol=1e-5)


def test_calibration_batches_once_or_over_and_over() -> None:
    pytest.importorskip("torch")
    x = np.arange(40, dtype=np.float32)[:, None]
    once = np.concatenate([batch.numpy() for batch in accuracy_spikingjelly.loader(x, None)])
    assert (once == x).all()
    many = list(accuracy_spikingjelly.loader(x, 7))
    assert [len(batch) for batch in many] == [16, 16, 8, 16, 16, 8, 16]
    second = np.concatenate([batch.numpy() for batch in many[3:6]])
    assert (np.sort(second, axis=0) == x).all() and (second != x).any()
