"""Small networks of the literature as `generate.py` wrote them: each converts and converges."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from networks import bench, errors

from snncompiler import Refused, pipeline

STORED = Path(__file__).with_name("stored")
#: The relative error at T = 512 that is allowed: twice what was measured, or more.
CONVERTED = {
    "dcgan_ts17": 0.02,
    "gcn_adjacency_given_dynamo20": 0.01,
    "gcn_ts17": 0.01,
    "mtcnn_dynamo20": 0.02,
    "pointnet_dynamo20": 0.05,
    "pointnet_tnet_ts17": 0.05,
    "stgcn_dynamo20": 0.02,
    "stgcn_ts17": 0.02,
    "tiny_yolo_ts17": 0.04,
    "unet3d_ts17": 0.02,
    "wavenet_relu_ts17": 0.01,
}
REFUSED = ["pointnet_feature_tnet_ts17"]


@pytest.mark.parametrize("name", CONVERTED)
def test_stored_networks_converge(name: str) -> None:
    coarse, fine = errors(onnx.load(STORED / f"{name}.onnx"), None, (32, 512))
    print(f"{name}: relative error {coarse:.4f} {fine:.4f}")
    assert fine <= CONVERTED[name]
    # Sixteen times the steps: the error falls by that, or at least by four.
    assert fine < coarse / 4


def test_a_product_of_two_values_that_change_is_refused() -> None:
    model = onnx.load(STORED / f"{REFUSED[0]}.onnx")
    with pytest.raises(Refused) as caught:
        pipeline.prepare(model)
    (finding,) = [one for one in caught.value.findings if one.severity == "error"]
    assert finding.code == "SNNC202" and "two values that depend on time" in finding.message
    assert finding.node.startswith("MatMul")


def test_the_folder_holds_what_is_tested() -> None:
    listed = bench.generated(STORED)
    assert sorted(listed) == sorted([*CONVERTED, *REFUSED])
    assert [name for name, row in listed.items() if "must_refuse" in row] == REFUSED
    assert sum(path.stat().st_size for path in STORED.iterdir()) < 500_000


def test_one_of_a_folder_is_measured(tmp_path: Path) -> None:
    row = bench.measure("gcn_ts17", tmp_path, [8, 64], 2, 60, STORED)
    assert row["result"] == "converted" and row["exporter"].startswith("pytorch ")
    assert row["results"]["64"]["error"] < row["results"]["8"]["error"] / 2
    assert row["converged"] and row["family"] == "seeded weights, PyTorch by TorchScript"
    refused = bench.measure(REFUSED[0], tmp_path, [8], 2, 60, STORED)
    assert refused["codes"] == ["SNNC202"] and not refused["relu"]
