"""Real networks through `bench/zoo.py`: each converts and converges, or is refused for its reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from networks import bench, errors

from snncompiler import pipeline

pytestmark = pytest.mark.material

#: Small ones, and the relative error at T = 512 that is allowed: twice what was measured.
SMALL = {
    "c10_tutorialcnn_pytorch_winml": 0.02,
    "digits_mlp128x64_skl2onnx": 0.005,
    "iris_mlp_pytorch_winml": 0.005,
    "kws_dscnn_tflite13": 0.1,
    "mnist_cnn_digitrecognizer_pth17": 0.005,
    "mnist_cntk_winml": 0.005,
    "mnist_vnn21_Convnet_maxpool": 0.005,
    "rl_cartpole": 0.005,
    "toycar_fcae_keras_tf13": 0.02,
}
REFUSED = {
    "mnist_vnn21_ffnnSIGMOID__Point_6x200": ["SNNC201"],
    "style_candy_winml": ["SNNC106"],
}
#: How many there were when this was written: the material grows, and doesn't shrink.
AT_LEAST = 32


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_converge(root: Path, name: str) -> None:
    entry = bench.entries(root)[name]
    model = onnx.load(root / entry["model"])
    data = bench.samples_of(entry, root, pipeline.prepare(model)).test.head(8)
    coarse, fine = errors(model, data, (32, 512))
    print(f"{name}: relative error {coarse:.4f} {fine:.4f}")
    assert fine <= SMALL[name]
    assert fine < coarse / 4


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_relu_or_of_unknown_operators_are_refused(root: Path, name: str) -> None:
    row = bench.measure(name, root, [32], 1, 10)
    assert row["result"] == "refused" and row["codes"] == REFUSED[name]
    assert not row["relu"]


def test_the_rows_are_those_of_the_material(root: Path) -> None:
    listed = bench.entries(root)
    assert len(listed) >= AT_LEAST
    assert set(REFUSED) <= {name for name, entry in listed.items() if "must_refuse" in entry}
    assert set(SMALL) <= set(listed)


@pytest.mark.slow
def test_all_networks_convert(root: Path) -> None:
    rows = {name: bench.measure(name, root, [32, 512], 2, 60) for name in bench.entries(root)}
    converted = {name: row for name, row in rows.items() if row["result"] == "converted"}
    assert list(converted) == [name for name, row in rows.items() if row["relu"]]
    # None converts wrongly: without clipping the error falls with T.
    assert [name for name, row in converted.items() if not row["converged"]] == []
