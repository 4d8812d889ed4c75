"""verify, of files in whole numbers: what it proves, and that it notices what is not so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import random, told
from onnx import numpy_helper
from random_networks import seeded

import snncompiler
from snncompiler import models
from snncompiler.analysis import whole
from snncompiler.analysis.whole import Way, bits_of, layered_ways, off_grid, ways
from snncompiler.emission.metadata import grid_of

NETWORK = models.path("digits-resnet")
X = random(1, 16, 1, 8, 8)


@pytest.fixture(scope="module")
def compiled() -> onnx.ModelProto:
    return snncompiler.compile(NETWORK, calibration=X, weights="int8", steps=5)


@pytest.mark.parametrize(
    "form",
    [
        {},
        pytest.param({"target": "cpu"}, marks=pytest.mark.slow),
        pytest.param({"emit": "step"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_file_in_whole_numbers_is_verified(form: dict[str, str]) -> None:
    made = snncompiler.compile(NETWORK, calibration=X, weights="int8", steps=3, **form)
    result = snncompiler.verify(NETWORK, made, data=X[:3])
    assert result.passed, result
    names = [check.name for check in result.checks]
    assert "the same bits in every way" in names
    assert "all weights and charges lie on their grid" in names


def tampered(model: onnx.ModelProto, part: str, change: float) -> onnx.ModelProto:
    """One number of the first constant with `part` in its name is changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loop = next(node for node in copy.graph.node if node.op_type == "Loop")
    tensors = [*copy.graph.initializer, *loop.attribute[0].g.initializer]
    tensor = next(one for one in tensors if part in one.name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] += change
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.mark.parametrize(
    ("part", "change"),
    [("weight_folded_whole", 0.5), ("weight_folded_whole", 256), ("threshold_whole", 1),
     ("schedule_whole", 0.25), ("coefficient_whole", 1 << 15)],
)  # fmt: skip
def test_what_is_not_on_the_grid_is_noticed(
    compiled: onnx.ModelProto, part: str, change: float
) -> None:
    grid = grid_of(compiled)
    assert off_grid(compiled, grid) == []
    assert len(off_grid(tampered(compiled, part, change), grid)) == 1


def test_other_bits_are_noticed(compiled: onnx.ModelProto) -> None:
    feeds = {"input": X[:2]}
    wanted = bits_of(Way("", compiled), feeds, ["logits"])
    assert bits_of(Way("", compiled, threads=2, events=True), feeds, ["logits"]) == wanted
    other = tampered(compiled, "threshold_whole", -50_000)
    assert bits_of(Way("", other), feeds, ["logits"]) != wanted


def test_every_form_is_run_on_cuda_where_there_is_one(
    compiled: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_cuda(lowered: bool) -> list[str]:
        every = ways(compiled, lambda **_: compiled, 5, folds=True, own=True, lowered=lowered)
        return [way.name.partition(", ")[2] for way in every if way.device == "cuda"]

    monkeypatch.setattr(whole, "runs_on_cuda", lambda: False)
    assert on_cuda(lowered=False) == []
    monkeypatch.setattr(whole, "runs_on_cuda", lambda: True)
    forms = ["steps", "loop", *(f"fold with K = {chunk}" for chunk in (1, 4, 5))]
    assert list(dict.fromkeys(on_cuda(lowered=True))) == forms
    assert list(dict.fromkeys(on_cuda(lowered=False))) == ["this file", *forms]
    assert [way.device for way in layered_ways(compiled)][-1] == "cuda"


def test_info_tells_the_grid(compiled: onnx.ModelProto, tmp_path: Path) -> None:
    grid = grid_of(compiled)
    assert [layer.bits for layer in grid.layers] == [8] * 5
    assert grid.read_out == "all"
    assert all(np.isfinite(layer.scale).all() and layer.exact_steps > 5 for layer in grid.layers)
    assert told(compiled)["weights"] == "int8"


@pytest.mark.parametrize("seed", [10, 15, 84, 165])
def test_what_is_rounded_further_on_may_be_multiplied_by_any_number(seed: int) -> None:
    """Between such a Mul and its Round these networks split, slice, average, or sum over time; in the
    third one a sum is rounded, and rounded again, before it reaches a neuron, in the last one another
    layer reads it."""
    network = seeded(seed)
    for form in ({}, {"timing": "layered", "coding": "radix"}):
        snn = snncompiler.compile(
            network.model, calibration=network.x, weights="int8", steps=6, **form
        )
        assert off_grid(snn, grid_of(snn)) == []
