"""No name that a user can write means anything to us: networks that are called as we call things.

A network is compiled, every name that we made is collected, in every scope, and then the network's own
tensors, nodes, inputs and outputs are called so.  It must compute the same, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random

import snncompiler
from snncompiler import pipeline
from snncompiler.analysis.diagnose import quantised_ann
from snncompiler.analysis.instrument import watch
from snncompiler.analysis.walk import Walk
from snncompiler.calibration.window import window_of
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.runtime import Stream
from snncompiler.runtime.session import create_session

#: Pooled spikes, a residual, a static branch beside temporal values, a mean behind.
NETWORK = """g (float[N,2,6,6] x) => (float[N,3] y, float[N,4,3,3] z)
{
  [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
  [norm] n1 = BatchNormalization (c1, g, b, m, v)  [relu1] r1 = Relu (n1)
  [pool] p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
  [side] a1 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  [cat] k1 = Concat <axis = 1> (p1, a1)  [conv2] c2 = Conv <pads = [1, 1, 1, 1]> (k1, w2)
  [add] s2 = Add (c2, p1)  [six] z = Clip (s2, low, high)
  [mean] m2 = ReduceMean <axes = [2, 3], keepdims = 0> (z)  [fc] f2 = Gemm (m2, w3)
  [last] y = Softmax (f2)
}"""


def network() -> onnx.ModelProto:
    norm = {"g": 1 + random(1, 4) ** 2, "b": random(2, 4), "m": random(3, 4), "v": np.ones(4, "f4")}
    weights = {"w1": random(4, 4, 2, 3, 3), "w2": random(5, 4, 6, 3, 3), "w3": random(6, 4, 3)}
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    return parse(NETWORK, {**norm, **weights, **bounds})


X = random(9, 6, 2, 6, 6)
#: The tensors and nodes of the network.
SLOTS = 23 + 12
FORMS: dict[str, dict[str, Any]] = {
    "fold": {"readout": "ramp:3"},
    "loop": {"unroll": "loop", "readout": "delay:2"},
    "steps": {"unroll": "steps", "readout": "ramp:2", "steps": 3},
    "one step": {"emit": "step", "readout": "ramp"},
    "cuda-graph": {"emit": "cuda-graph", "batch": 6, "readout": "ramp"},
    "cpu": {"target": "cpu", "readout": "delay:1"},
    "poisson": {"encode": "poisson", "threshold": "vin-max", "correction": "none"},
    "burst": {"neuron": "burst:2"},
    "signed": {"neuron": "signed:2", "correction": "bias"},
    "hard reset": {"reset": "hard"},
    "float16": {"precision": "fp16"},
}


def compiled(model: onnx.ModelProto, form: str) -> pipeline.Compiled:
    return pipeline.compile_model(model, Options(**{"steps": 7, **FORMS[form]}), X)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [model.graph]
    while pending:
        yield (graph := pending.pop())
        pending += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def names_in(model: onnx.ModelProto) -> set[str]:
    """The names of all tensors and nodes, in the graph and its subgraphs."""
    found: set[str] = set()
    for graph in graphs(model):
        found.update(entry.name for entry in (*graph.input, *graph.output, *graph.initializer))
        for node in graph.node:
            found.update((node.name, *node.input, *node.output))
    return found - {""}


def made_by_us(made: pipeline.Compiled, form: str) -> list[str]:
    """Every name in the compiled file and in the copies that look into it, but the network's own."""
    given = network()
    found = names_in(made.model)
    options = Options(**{"steps": 7, **FORMS[form]})
    if options.emit != "step":
        found |= names_in(watch(made.model, arrivals=True, resume=True).model)
        layers = Walk(read_compiled(made.model)).layers
        if options.target == "portable":
            found |= names_in(watch(made.model, currents=True, events=True).model)
            found |= names_in(quantised_ann(made.prepared, layers))
    found |= names_in(made.prepared.ann) | names_in(made.prepared.checked_model)
    window = window_of(made.prepared, made.calibration, options, 7)
    found |= names_in(onnx.helper.make_model(window.graph))
    return sorted(found - names_in(given))


def called(model: onnx.ModelProto, names: Iterator[str]) -> onnx.ModelProto:
    """The network with its tensors, and then its nodes, called by the next names."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    entries = (*graph.input, *graph.output, *graph.initializer)
    own = [entry.name for entry in entries]
    own += [name for node in graph.node for name in node.output if name not in own]
    new = {name: next(names, f"{name}/of the user") for name in own}
    for entry in entries:
        entry.name = new[entry.name]
    for node in graph.node:
        node.input[:] = [new[name] for name in node.input]
        node.output[:] = [new[name] for name in node.output]
        node.name = next(names, f"{node.name}/of the user")
    return renamed


def runs(snn: onnx.ModelProto) -> list[list[Array]]:
    """What a compiled network gives, in every way of running."""
    name = snn.graph.input[0].name
    if read_compiled(snn).options.emit == "step":
        stream = Stream(snn)
        return [list(stream.step({name: X}).values()) for _ in range(3)]
    ways: list[dict[str, Any]] = [{}, {"events": False}, {"native": False}]
    return [create_session(snn, threads=1, **way).run(None, {name: X}) for way in ways]


def assert_same(found: list[list[Array]], wanted: list[list[Array]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


#: The others take the same ways through the code that writes names.
QUICK = ("fold", "steps", "one step", "cpu")


@pytest.mark.parametrize(
    "form",
    [form if form in QUICK else pytest.param(form, marks=pytest.mark.slow) for form in FORMS],
)
def test_a_network_that_is_called_as_we_call_things_computes_the_same(form: str) -> None:
    model, made = network(), compiled(network(), form)
    wanted, names = runs(made.model), made_by_us(made, form)
    assert len(names) > 30
    # Every name is a tensor's or a node's once; every other time nodes come before tensors.
    for number, at in enumerate(range(0, len(names), SLOTS)):
        some = names[at : at + SLOTS]
        again = compiled(called(model, iter(some[:: -1 if number % 2 else 1])), form)
        assert_same(runs(again.model), wanted)


def looks_inside(model: onnx.ModelProto, snn: onnx.ModelProto) -> list[Any]:
    """What evaluation, diagnosis and trace say of a file, without the names in it."""
    result = snncompiler.evaluate(model, snn, X, diagnose=True)
    checked = snncompiler.verify(model, snn, data=X)
    assert checked.passed, checked
    (at,) = result.results
    rates = [(layer.firing_rate, layer.saturated, layer.silent) for layer in at.layers]
    counted = [(one.done, one.dense) for one in at.synops]
    assert at.diagnosis is not None
    return [at.relative_error, at.firing_rate, rates, counted, result.macs.ann]


@pytest.mark.parametrize("form", ["fold", pytest.param("steps", marks=pytest.mark.slow)])
def test_looking_inside_such_a_network_shows_the_same(form: str) -> None:
    model, made = network(), compiled(network(), form)
    wanted = looks_inside(model, made.model)
    names = [name for name in made_by_us(made, form) if "watch" in name or "quantised" in name]
    for at in range(0, len(names), SLOTS):
        other = called(model, iter(names[at : at + SLOTS]))
        assert looks_inside(other, compiled(other, form).model) == wanted


@pytest.mark.parametrize("form", ["fold", "loop", "steps", "cuda-graph"])
def test_layers_that_are_called_like_copies_of_a_step_or_like_each_other(form: str) -> None:
    text = """g (float[N,4] x) => (float[N,3] y)
    { a = MatMul (x, w1)  r = Relu (a)  b = MatMul (r, w2)  q = Relu (b)  y = MatMul (q, w3) }"""
    weights = {"w1": random(1, 4, 5), "w2": random(2, 5, 4), "w3": random(3, 4, 3)}
    x = random(4, 6, 4)
    results = []
    for names in (
        ("l1", "one", "l2", "two", "l3"),
        ("t0/one", "t1/one", "one", "t0/t0/one", "t1/t0/one"),
        ("a", "count", "b", "count/count", "c"),
        ("in/a", "of/a", "of", "in/of/a", "of/in/a"),
        ("snnc_time", "y/mean", "q/mean", "q", "r"),
    ):
        model = parse(text, weights)
        for node, name in zip(model.graph.node, names, strict=True):
            node.name = name
        options = Options(**{"steps": 5, **FORMS[form]})
        made = pipeline.compile_model(model, options, x)
        found = read_compiled(made.model)
        assert list(found.calibration.thresholds) == [names[1], names[3]]
        assert [layer.name for layer in Walk(found).layers] == [names[1], names[3]]
        (at,) = snncompiler.evaluate(model, made.model, x).results
        assert [layer.layer for layer in at.layers] == [names[1], names[3]]
        rates = [layer.firing_rate for layer in at.layers]
        results.append((at.relative_error, rates, [one.done for one in at.synops]))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("spelling", ["relu/cut", "c/cut", "c/cut/pads", "c/cut/starts"])
def test_what_is_written_anew_at_the_door_gets_free_names(spelling: str) -> None:
    """A Pad with negative pads becomes a Pad and a Slice."""
    text = "g (float[2,6] x) => (float[2,4] y) { c = Pad (x, pads)  r = Relu (c)  y = Neg (r) }"
    model = parse(text, {"pads": np.array([0, -1, 0, -1])})
    for node in model.graph.node:
        node.input[:] = [spelling if name == "r" else name for name in node.input]
        node.output[:] = [spelling if name == "r" else name for name in node.output]
    prepared = pipeline.prepare(model)
    x = random(1, 2, 6)
    (found,) = create_session(prepared.ann, threads=1).run(None, {"x": x})
    assert np.array_equal(found, -np.maximum(x[:, 1:-1], 0))


def test_the_scales_that_sizes_stand_for_get_a_free_name() -> None:
    text = """g (float[N,1,2,2] x) => (float[N,1,4,4] y)
    { d = Resize <mode = "nearest"> (x, "", "", sizes)  u = Relu (d)  y = Neg (u) }"""
    model = parse(text, {"sizes": np.array([1, 1, 4, 4])})
    model.graph.node[0].name = "up"
    for node in model.graph.node:
        node.input[:] = ["up/sizes_as_scales" if name == "d" else name for name in node.input]
        node.output[:] = ["up/sizes_as_scales" if name == "d" else name for name in node.output]
    x = random(1, 3, 1, 2, 2)
    (found,) = create_session(pipeline.prepare(model).ann, threads=1).run(None, {"x": x})
    assert np.array_equal(found, -np.maximum(x.repeat(2, axis=2).repeat(2, axis=3), 0))
