"""The committed networks and data are what models/README.md says they are."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from snncompiler import models
from snncompiler.models import data
from snncompiler.models.registry import NETWORKS

README = (Path(models.__file__).parent / "README.md").read_text(encoding="utf-8")
IMAGES = {"digits-train": 1297, "digits-test": 500}
names = pytest.mark.parametrize("name", NETWORKS)


def documented(name: str) -> tuple[int, float, int]:
    """Parameters, test accuracy in percent and bytes, from the table in README.md."""
    row = re.search(rf"^\| `{name}\.onnx` .*\| (\d+) \| ([\d.]+) % \| (\d+) \|", README, re.M)
    assert row, f"README.md has no row for {name}"
    return int(row[1]), float(row[2]), int(row[3])


def run_onnx(file: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": images})
    return np.asarray(logits)


def run_cli(*args: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python -m snncompiler.models`, as if the package `without` were not installed."""
    code = (
        "import runpy, sys\n"
        f"if {without!r}: sys.modules[{without!r}] = None\n"
        "runpy.run_module('snncompiler.models', run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=Path(models.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_path_names_what_exists() -> None:
    assert models.path("digits-cnn").name == "digits-cnn.onnx"
    with pytest.raises(ValueError, match=r"'nothing'.*digits-cnn, digits-resnet, digits-train"):
        models.path("nothing")


@names
def test_file_is_small_and_as_documented(name: str) -> None:
    parameters, _, size = documented(name)
    file = models.path(name)
    assert file.stat().st_size == size < 200_000
    graph = onnx.load(file).graph
    # PyTorch counts the running mean and variance of a batch normalisation as buffers.
    buffers = {i for n in graph.node if n.op_type == "BatchNormalization" for i in n.input[3:]}
    trained = [tensor for tensor in graph.initializer if tensor.name not in buffers]
    assert sum(int(np.prod(tensor.dims)) for tensor in trained) == parameters


@names
def test_interface(name: str) -> None:
    model = onnx.load(models.path(name))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]
    }
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert shapes["input"] == ["N", 1, 8, 8]
    assert shapes["logits"] == ["N", 10]
    made = {output for node in model.graph.node for output in node.output}
    assert made <= shapes.keys(), "shape inference left some values without a shape"


def test_cnn_keeps_to_the_limits_of_the_paper() -> None:
    nodes = onnx.load(models.path("digits-cnn")).graph.node
    kinds = Counter(node.op_type for node in nodes)
    layers = [node for node in nodes if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert kinds["Conv"] == 3 and len(layers) == 5
    assert all(len(node.input) == 2 for node in layers)
    assert kinds["AveragePool"] == 2
    assert not kinds.keys() & {"Add", "BatchNormalization", "MaxPool", "Dropout"}


def test_resnet_has_biases_batch_norm_and_shortcuts() -> None:
    graph = onnx.load(models.path("digits-resnet")).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    kinds = Counter(node.op_type for node in graph.node)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert kinds["Conv"] == kinds["BatchNormalization"] == 6
    for node in convolutions:
        assert np.any(weights[node.input[2]] != 0)
        assert readers[node.output[0]].op_type == "BatchNormalization"
    assert [weights[node.input[1]].shape[2:] for node in convolutions].count((1, 1)) == 1
    assert kinds["Add"] == 2 and kinds["GlobalAveragePool"] == 1
    (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
    assert len(gemm.input) == 3


@names
def test_accuracy_as_documented(name: str) -> None:
    _, percent, _ = documented(name)
    images, labels = data.load("digits-test")
    right = (run_onnx(models.path(name), images).argmax(1) == labels).mean() * 100
    assert percent >= 97.5
    # One digit of 500 may tip over where another CPU rounds differently.
    assert right == pytest.approx(percent, abs=0.21)


@names
@pytest.mark.parametrize("batch", [1, 7])
def test_any_batch_size(name: str, batch: int) -> None:
    images, _ = data.load("digits-test")
    together = run_onnx(models.path(name), images)
    alone = run_onnx(models.path(name), images[:batch])
    np.testing.assert_allclose(alone, together[:batch], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "count"), IMAGES.items())
def test_data_as_stored(name: str, count: int) -> None:
    with np.load(models.path(name)) as file:
        assert set(file.files) == {"x", "y"}
        x, y = file["x"], file["y"]
    assert x.dtype == np.uint8 and x.shape == (count, 8, 8, 1)
    assert x.min() == 0 and x.max() == 16
    assert y.dtype == np.int64 and y.shape == (count,)


def test_load_scales_and_moves_channels() -> None:
    with np.load(models.path("digits-test")) as file:
        stored = file["x"]
    images, _ = data.load("digits-test")
    assert images.dtype == np.float32 and images.shape == (500, 1, 8, 8)
    np.testing.assert_array_equal(images[:, 0] * 16, stored[..., 0])


def test_split_is_stratified() -> None:
    counts = {name: np.bincount(data.load(name)[1], minlength=10) for name in IMAGES}
    total = sum(counts.values())
    for name, images in IMAGES.items():
        assert np.abs(counts[name] - total * images / 1797).max() < 1


def test_both_parts_together_are_the_digits_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    x, y = datasets.load_digits(return_X_y=True)
    source = Counter(zip(map(bytes, x.astype(np.uint8)), map(int, y), strict=True))
    stored: Counter[tuple[bytes, int]] = Counter()
    for name in IMAGES:
        with np.load(models.path(name)) as file:
            x, y = file["x"].reshape(-1, 64), file["y"]
        stored.update(zip(map(bytes, x), map(int, y), strict=True))
    assert stored == source


def test_data_can_be_made_again(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for file in data.write_digits(tmp_path):
        committed = Path(models.__file__).parent / file.name
        with np.load(file) as new, np.load(committed) as old:
            np.testing.assert_array_equal(new["x"], old["x"])
            np.testing.assert_array_equal(new["y"], old["y"])


def test_unknown_network_exits_2() -> None:
    done = run_cli("train", "nothing")
    assert done.returncode == 2
    assert "nothing" in done.stderr and "digits-resnet" in done.stderr


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("torch", ["train", "digits-cnn"]),
        ("torch", ["export", "resnet20", "--out", "never-written.onnx"]),
        ("sklearn", ["digits"]),
    ],
)
def test_missing_package_exits_3(package: str, command: list[str]) -> None:
    done = run_cli(*command, without=package)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {package} is not installed; run: pip install torch scikit-learn\n"
    )


@pytest.mark.slow
@names
def test_training_is_repeatable(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from snncompiler.models import export, train

    images, _ = data.load("digits-test")
    twins = [train.train(name, seed=1, epochs=1) for _ in range(2)]
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for network, file in zip(twins, files, strict=True):
        export.export(network, torch.from_numpy(images[:1]), file)
    for first, second in zip(*(network.state_dict().values() for network in twins), strict=True):
        assert torch.equal(first, second)
    assert files[0].read_bytes() == files[1].read_bytes()

    other = train.train(name, seed=2, epochs=1)
    assert not torch.equal(next(other.parameters()), next(twins[0].parameters()))
    for batch in (1, 7):
        with torch.no_grad():
            expected = twins[0](torch.from_numpy(images[:batch])).numpy()
        actual = run_onnx(files[0], images[:batch])
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import snncompiler.models, snncompiler.models.data, snncompiler.models.registry\n"
        "import snncompiler.models.__main__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
