"""What holds for every pass: a sound graph behind it, and nothing left to do when it runs again."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from helpers import parse, random

import snncompiler.passes
from snncompiler import models, pipeline
from snncompiler.errors import InternalError
from snncompiler.ir.check import Snapshot, faults
from snncompiler.ir.graph import Graph, import_model
from snncompiler.ir.grids import grids_of
from snncompiler.ir.growth import Growth
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.ir.settings import Coding, Options
from snncompiler.network.load import load
from snncompiler.network.prepare import normalization_passes
from snncompiler.network.prepared import imported
from snncompiler.passes.base import Context, Pass, run_passes
from snncompiler.passes.lower.lower_precision import LowerPrecision
from snncompiler.passes.lower.lower_windows import LowerWindows
from snncompiler.passes.lower.spell_rounding import SpellRounding
from snncompiler.passes.normalize.track_batch import TrackBatch
from snncompiler.passes.source.keep_rounding import KeepRounding
from snncompiler.passes.source.verify_input import verify_input
from snncompiler.passes.spike.correct_layers import CorrectLayers
from snncompiler.passes.spike.encode_poisson import EncodePoisson
from snncompiler.passes.spike.fold_amplitude import FoldAmplitude
from snncompiler.passes.spike.insert_neurons import InsertNeurons
from snncompiler.passes.spike.whole_numbers import WholeNumbers
from snncompiler.passes.spike.whole_sums import WholeSums
from snncompiler.passes.time.drive_input import DriveInput
from snncompiler.passes.time.layer_time import LayerTime
from snncompiler.passes.time.sink_time_mean import SinkTimeMean
from snncompiler.passes.time.telescope_analog import TelescopeAnalog
from snncompiler.passes.time.whole_read_out import WholeReadOut

FOLDER = Path(snncompiler.passes.__file__).parent
STORED = sorted((Path(__file__).parents[1] / "zoo" / "stored").glob("*.onnx"))
BUNDLED = ("digits-cnn", "digits-resnet")

#: Quantized, with a batch-norm in front of a max pooling, a LeakyReLU, a Reshape and a Sigmoid.
MIXED = """g (float[N,2,8,8] x) => (float[N,3] y) {
    h = Conv <pads = [1, 1, 1, 1]> (x, w)  b = BatchNormalization (h, g, beta, m, v)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)  r = Relu (p)
    q = QuantizeLinear (r, s, z)  d = DequantizeLinear (q, s, z)  k = Conv (d, u)
    l = LeakyRelu <alpha = 0.125> (k)  f = Reshape (l, to)  e = Gemm (f, a)
    o = Relu (e)  c = Gemm (o, t)  y = Sigmoid (c) }"""


@cache
def mixed() -> onnx.ModelProto:
    return parse(
        MIXED,
        {
            "s": np.float32(0.05), "z": np.int8(0), "w": random(1, 4, 2, 3, 3), "g": random(2, 4),
            "beta": random(3, 4), "m": random(4, 4), "v": abs(random(5, 4)) + 1,
            "u": random(6, 3, 4, 2, 2), "to": np.array([0, 27]), "a": random(7, 27, 5),
            "t": random(8, 5, 3),
        },
    )  # fmt: skip


NETWORKS = ["mixed", *BUNDLED, *(path.stem for path in STORED)]


def source(name: str) -> onnx.ModelProto:
    if name == "mixed":
        return mixed()
    if name in BUNDLED:
        return load(models.path(name)).model
    return load(next(path for path in STORED if path.stem == name)).model


def all_passes() -> list[type[Pass]]:
    found = []
    for path in sorted(FOLDER.glob("*/*.py")):
        module = import_module(f"snncompiler.passes.{path.parent.name}.{path.stem}")
        found += [
            entry
            for _, entry in inspect.getmembers(module, inspect.isclass)
            if issubclass(entry, Pass) and entry.__module__ == module.__name__ and entry is not Pass
        ]
    return found


def run_twice(step: Pass, graph: Graph, context: Context) -> bool:
    """Run a pass and run it again: whether it changed anything, once it is known to be idempotent."""
    changed = run_passes([step], graph, context)
    assert step.again or run_passes([step], graph, context) == []
    return bool(changed)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("maxpool", ["exact", "average"])
def test_normalization_passes_are_idempotent(name: str, maxpool: str) -> None:
    checked, findings = verify_input(source(name))
    graph, context = imported(checked, findings)
    changed = set()
    for step in normalization_passes(allow_analog=True, maxpool=maxpool, pure=True):  # type: ignore[arg-type]
        if run_twice(step, graph, context):
            changed.add(step.name)
    if name == "mixed" and maxpool == "exact":
        expected = {"drop-fake-quant", "spell-rectifiers", "swap-max-pool", "fold-batch-norm"}
        assert expected <= changed


def test_the_passes_that_keep_rounding_leave_a_sound_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one says why it is not idempotent, and that is true."""
    monkeypatch.setenv("SNNC_CHECK_PASSES", "1")
    checked, findings = verify_input(source("mixed"))
    graph, context = imported(checked, findings)
    for step in normalization_passes(allow_analog=True, keep_rounding=True):
        changed = run_twice(step, graph, context)
        if isinstance(step, KeepRounding):
            assert changed and step.again
            assert run_passes([step], graph.copy(), context.apart()) == ["keep-rounding"]
    spelled = graph.copy()
    assert run_twice(SpellRounding(), spelled, context)
    assert not any("Quantize" in node.op for node in spelled.nodes)
    grids = grids_of(graph)
    assert grids
    thetas = {
        node.name: grids[node.name].scale if node.name in grids else np.float32([1])
        for node in rectifiers_of(graph)
    }
    neurons = InsertNeurons(thetas, 0.5, layered="radix", levels=255)
    changed = {
        step.name
        for step in (neurons, FoldAmplitude(layered=True), WholeSums())
        if run_twice(step, graph, context)
    }
    assert changed == {"insert-neurons", "fold-amplitude"}  # these weights are of no scale
    assert not any("Quantize" in node.op for node in graph.nodes)


@pytest.mark.parametrize("name", ["mixed", "digits-resnet"])
def test_spiking_passes_are_idempotent(name: str) -> None:
    x = random(0, 8, 2, 8, 8) if name == "mixed" else random(0, 8, 1, 8, 8)
    options = Options(steps=4, encode="poisson", allow_analog=True)
    compiled = pipeline.compile_model(source(name), options, x)
    calibration = compiled.calibration
    prepared = compiled.prepared.apart()
    graph, context = prepared.graph.copy(), prepared.context
    neurons = InsertNeurons(calibration.thresholds, 0.5, "soft", schedules=calibration.schedules)
    steps = [
        EncodePoisson(calibration.input_scales), neurons, FoldAmplitude(), TelescopeAnalog(),
        SinkTimeMean(), LowerPrecision(),
    ]  # fmt: skip
    changed = {step.name for step in steps if run_twice(step, graph, context)}
    assert {"encode-poisson", "insert-neurons", "sink-time-mean", "lower-precision"} <= changed


@pytest.mark.parametrize("name", ["mixed", "digits-resnet"])
@pytest.mark.parametrize("coding", ["rate", "radix"])
def test_passes_of_layered_time_are_idempotent(name: str, coding: Coding) -> None:
    x = random(0, 8, 2, 8, 8) if name == "mixed" else random(0, 8, 1, 8, 8)
    options = Options(steps=4, timing="layered", coding=coding)
    compiled = pipeline.compile_model(source(name), options, x)
    prepared = compiled.prepared.apart()
    graph, context = prepared.graph.copy(), prepared.context
    neurons = InsertNeurons(compiled.calibration.thresholds, 0.5, layered=coding)
    first = rectifiers_of(graph)[0]
    corrections = CorrectLayers(biases={first.name: np.float32([0.5])})
    steps = [corrections, neurons, FoldAmplitude(layered=True), LayerTime(coding == "radix")]
    changed = {step.name for step in steps if run_twice(step, graph, context)}
    assert changed == {step.name for step in steps}


def test_what_a_pass_says_of_a_second_run_is_true() -> None:
    """Each of those with `again` does change its own result."""
    compiled = pipeline.compile_model(
        source("digits-resnet"), Options(steps=4), random(0, 16, 1, 8, 8)
    )
    calibration = compiled.calibration
    neurons = InsertNeurons(calibration.thresholds, 0.5, "soft", schedules=calibration.schedules)
    growth = Growth.parse("0.5@1,1@3")
    whole = [WholeNumbers(8, {"input": 1.0}), SinkTimeMean(), WholeReadOut(8)]
    again = set()
    for further in ([SinkTimeMean(), DriveInput(growth), LowerPrecision()], whole):
        prepared = compiled.prepared.apart()
        graph, context = prepared.graph.copy(), prepared.context
        for step in (neurons, FoldAmplitude(), *further):
            assert run_passes([step], graph, context) == [step.name]
            if step.again:
                assert run_passes([step], graph.copy(), context.apart()) == [step.name]
                again.add(step.name)
    assert again == {
        "sink-time-mean", "whole-read-out", "drive-input", "lower-precision",
    }  # fmt: skip


def test_every_pass_is_in_one_of_these_tests() -> None:
    names = {entry.name for entry in all_passes()}
    normal = normalization_passes(allow_analog=True, maxpool="average", pure=True, layered=True)
    normalizing = {step.name for step in normal}
    spiking = {
        entry.name
        for entry in (
            EncodePoisson, InsertNeurons, FoldAmplitude, TelescopeAnalog, SinkTimeMean,
            LowerPrecision, LowerWindows, DriveInput, LayerTime, CorrectLayers, KeepRounding,
            SpellRounding, WholeSums, WholeNumbers, WholeReadOut,
        )
    }  # fmt: skip
    assert names == normalizing | spiking


def test_a_pass_is_called_as_its_file_is() -> None:
    for entry in all_passes():
        assert entry.name == entry.__module__.rpartition(".")[2].replace("_", "-")


class Breaking(TrackBatch):
    """Does to a graph whatever it is told to."""

    name = "breaking"
    requires = frozenset()
    how = staticmethod(lambda graph: None)

    def run(self, graph: Graph, context: Context) -> None:
        type(self).how(graph)


def rename(graph: Graph) -> None:
    graph.nodes[1].name = graph.nodes[0].name


def twin(graph: Graph) -> None:
    graph.nodes[0].outputs[0].name = graph.inputs[0].name


def lose(graph: Graph) -> None:
    del graph.nodes[0]


def reshape(graph: Graph) -> None:
    graph.nodes[0].outputs[0].shape = ["N", 5]


def retype(graph: Graph) -> None:
    graph.nodes[0].outputs[0].dtype = np.dtype(np.float64)


def tangle(graph: Graph) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]


def end(graph: Graph) -> None:
    graph.outputs[0] = gs.Variable("lost", np.float32, ["N", 3])


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (rename, "2 nodes are called"),
        (twin, "2 tensors are called 'x'"),
        (lose, "reads 'h', which nothing makes"),
        (reshape, "has the shape ['N', 3], not ['N', 5]"),
        (retype, "is float32, not float64"),
        (tangle, "in a circle"),
        (end, "the output 'lost' is made by nothing"),
    ],
)
def test_what_a_pass_breaks_is_seen(
    how: object, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "g (float[N,2] x) => (float[N,3] y) { h = MatMul (x, w)  y = Relu (h) }"
    monkeypatch.setattr(Breaking, "how", staticmethod(how))

    def broken() -> list[str]:
        graph = import_model(parse(text, {"w": random(0, 2, 3)}))
        graph.nodes[0].outputs[0].shape = ["N", 3]
        graph.nodes[0].outputs[0].dtype = np.dtype(np.float32)
        return run_passes([Breaking()], graph, Context(facts=frozenset({"shapes"})))

    monkeypatch.setenv("SNNC_CHECK_PASSES", "1")
    with pytest.raises(InternalError, match="pass breaking leaves a graph") as caught:
        broken()
    assert fault in str(caught.value)
    monkeypatch.setenv("SNNC_CHECK_PASSES", "0")
    assert broken() == ["breaking"]


def test_a_sound_graph_has_no_faults_and_equals_itself() -> None:
    graph = import_model(source("digits-resnet"))
    assert faults(graph) == []
    assert Snapshot(graph) == Snapshot(graph)


def test_the_observer_sees_every_pass_and_is_not_handed_on() -> None:
    seen: list[str] = []
    checked, findings = verify_input(source("digits-cnn"))
    graph, context = imported(checked, findings)
    context = replace(context, observer=lambda name, graph: seen.append(name))
    passes = normalization_passes()
    run_passes(passes, graph, context)
    assert seen == [step.name for step in passes]
    assert context.apart().observer is None


def test_what_passes_add_has_names_that_the_user_did_not_take() -> None:
    """A batch-norm that becomes a Mul and an Add, whose names are those of two nodes behind it."""
    text = """g (float[N,2] x) => (float[N,2] y) {
        [b] t = BatchNormalization (x, s, o, m, v)  [b_mul] r = Relu (t)  [b_add] y = Relu (r) }"""
    ones = np.ones(2, np.float32)
    model = parse(text, {"s": ones * 2, "o": ones, "m": ones * 0, "v": ones})
    graph, context = imported(*verify_input(model))
    run_passes(normalization_passes(), graph, context)
    assert faults(graph) == []
    assert {node.name: node.op for node in graph.nodes}["b_mul"] == "Relu"
