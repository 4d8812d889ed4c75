"""The structural networks inside the `onnx` package: each converts and converges, or is refused.

Their weights are seeded random ones.  By default the layers are narrower (depth, kernels, joins and
shapes stay), so that all nine take seconds; the slow tests take them as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import bench, errors

from snncompiler import Refused, pipeline
from snncompiler.runtime.session import create_session

#: How each is made smaller, and the relative error at T = 512 that is allowed: twice what was measured.
CONVERTED: dict[str, tuple[dict[str, int], float]] = {
    "light_densenet121": ({"width": 4, "size": 64}, 0.01),
    "light_inception_v2": ({"width": 8}, 0.006),
    "light_resnet50": ({"width": 8}, 0.01),
    "light_shufflenet": ({}, 0.006),
    "light_squeezenet": ({"width": 8, "size": 64}, 0.05),
    "light_vgg19": ({"width": 16}, 0.03),
}
#: Those that the default suite runs, beside the stored ones; `make test-slow` runs them all.
QUICK = ("light_inception_v2", "light_squeezenet")
#: They hold LRN, by node; with the error at T = 128 where it is kept analog.
REFUSED: dict[str, tuple[list[str], float]] = {
    "light_bvlc_alexnet": (["LRN"] * 2, 0.04),
    "light_inception_v1": (["LRN"] * 2, 0.1),
    "light_zfnet512": (["LRN"] * 2, 0.04),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CONVERTED],
)
def test_structural_networks_converge(name: str) -> None:
    smaller, allowed = CONVERTED[name]
    coarse, fine = errors(bench.light(name, **smaller), None, (32, 512))
    print(f"{name}: relative error {coarse:.4f} {fine:.4f}")
    assert fine <= allowed
    # Sixteen times the steps: the error falls by that, or at least by four.
    assert fine < coarse / 4


@pytest.mark.parametrize("name", REFUSED)
def test_lrn_is_refused_by_name_or_kept_analog(name: str) -> None:
    model = bench.light(name, width=8)
    operators, allowed = REFUSED[name]
    nodes = {node.name: node.op_type for node in model.graph.node}
    with pytest.raises(Refused) as caught:
        pipeline.prepare(model)
    found = [f for f in caught.value.findings if f.severity == "error"]
    lrn = [f for f in found if "LRN stands between spiking layers" in f.message]
    assert {f.code for f in found} == {"SNNC202"}
    assert sorted(nodes[finding.node.split("'")[1]] for finding in lrn) == operators
    # What else is refused follows from LRN: a max pooling whose input is no rectifier's output.
    others = [finding.message for finding in found if finding not in lrn]
    assert all(message.startswith("MaxPool") for message in others)
    coarse, fine = errors(model, None, (32, 128), analog=True)
    print(f"{name}: relative error {coarse:.4f} {fine:.4f}")
    assert fine <= allowed and fine < coarse / 2


def test_every_structural_network_is_tested() -> None:
    assert sorted([*CONVERTED, *REFUSED]) == bench.light_names()
    assert (len(CONVERTED), len(REFUSED)) == (6, 3)


def test_seeded_weights_make_outputs_depend_on_inputs() -> None:
    model: Any = bench.light("light_squeezenet", width=8, size=64)
    feeds = pipeline.synthetic_feeds(pipeline.prepare(model), 2, 0)
    first, second = (
        create_session(model, threads=1).run(None, {n: a[i : i + 1] for n, a in feeds.items()})[0]
        for i in (0, 1)
    )
    assert float(np.abs(first - second).max()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTED)
def test_structural_networks_converge_at_full_width(name: str) -> None:
    # Below some 32 steps the deep layers of these networks are silent, and the error does not fall yet.
    coarse, fine = errors(bench.light(name), None, (32, 128))
    print(f"{name}: relative error {coarse:.4f} {fine:.4f}")
    # Four times the steps: the error falls by that, or at least by two.
    assert fine < coarse / 2
