"""The trained networks of the paper that come with the compiler are what models/README.md says."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from snncompiler import models
from snncompiler.models import images
from snncompiler.models.registry import DATASETS

README = (Path(models.__file__).parent / "README.md").read_text(encoding="utf-8")
RMP = ["rmp-resnet20-cifar10", "rmp-vgg16-eighth-cifar10"]
MATERIAL = Path(os.environ.get("SNNC_MATERIAL", ""))
names = pytest.mark.parametrize("name", RMP)


def documented(name: str) -> tuple[float, int, int]:
    """Test accuracy in percent, parameters and bytes, from the table in README.md."""
    row = re.search(rf"^\| `{name}\.onnx` .*\| ([\d.]+) % \| (\d+) \| (\d+) \|", README, re.M)
    assert row, f"README.md has no row for {name}"
    return float(row[1]), int(row[2]), int(row[3])


@names
def test_file_is_small_and_as_documented(name: str) -> None:
    _, parameters, size = documented(name)
    file = models.path(name)
    assert file.stat().st_size == size < 1_100_000
    graph = onnx.load(file).graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert sum(int(np.prod(tensor.dims)) for tensor in weights) == parameters


@names
def test_keeps_to_the_limits_of_the_paper(name: str) -> None:
    model = onnx.load(models.path(name))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    kinds = Counter(node.op_type for node in model.graph.node)
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert all(len(node.input) == 2 for node in layers)
    assert not kinds.keys() & {"BatchNormalization", "MaxPool", "Dropout"}
    if "resnet20" in name:
        assert kinds["Conv"] == 19 + 2 and kinds["Add"] == 9 and kinds["GlobalAveragePool"] == 1
    else:
        assert kinds["Conv"] == 13 and kinds["AveragePool"] == 5 and len(layers) == 16


@names
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size(name: str, batch: int) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = ort.InferenceSession(models.path(name), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    (together,) = session.run(["logits"], {"input": x})
    (alone,) = session.run(["logits"], {"input": x[:batch]})
    assert alone.shape == (batch, 10) and np.isfinite(alone).all()
    np.testing.assert_allclose(alone, together[:batch], rtol=1e-4, atol=1e-4)


@names
@pytest.mark.slow
@pytest.mark.material
def test_accuracy_as_documented(name: str) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    found = sorted(MATERIAL.rglob("cifar10_test_jpegq75.zip")) if str(MATERIAL) != "." else []
    if not found:
        pytest.skip("SNNC_MATERIAL names no folder with cifar10_test_jpegq75.zip")
    pictures, dataset = images.load(found[0], "test")
    assert isinstance(pictures, images.Stored) and len(pictures) == 10000
    known = DATASETS[dataset]
    session = ort.InferenceSession(models.path(name), providers=["CPUExecutionProvider"])
    right = 0
    for part in np.array_split(np.arange(len(pictures)), 40):
        x = (pictures.pixels[part] / 255 - known.mean) / known.std
        x = x.transpose(0, 3, 1, 2).astype(np.float32)
        (logits,) = session.run(["logits"], {"input": x})
        right += int((logits.argmax(1) == pictures.labels[part]).sum())
    # A few pictures of 10000 may tip over where another CPU rounds differently.
    assert right / 100 == pytest.approx(documented(name)[0], abs=0.05)
