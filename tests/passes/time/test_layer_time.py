"""Layered time: the spiking network gives what the ANN with quantised activations gives.

Weights, inputs and thresholds are whole numbers of a power of 2, small enough for float32 to add them
without rounding, so the two are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import Array, op_counts, parse, random, run_model
from onnx import helper, numpy_helper
from random_networks import seeded

from snncompiler import UsageError, pipeline
from snncompiler.calibration.record import Calibration
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.rectifiers import rectified_channels, rectifier, rectifiers_of
from snncompiler.ir.settings import Options
from snncompiler.network.prepared import Prepared
from snncompiler.runtime import Stream, create_session, library_path

CODES = [("rate", 5), ("radix", 4)]


def fractions(seed: int, *shape: int) -> Array:
    """Multiples of 1/4 from -2 to 2."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


def options_of(coding: Any, steps: int, **more: Any) -> Options:
    return Options(timing="layered", coding=coding, steps=steps, **more)


def calibration_of(prepared: Prepared, options: Options, per_channel: bool = True) -> Calibration:
    """Values of one level that are powers of 2, another one in every channel; the bound of a rectifier
    that has one is L of them."""
    thresholds = {}
    for number, node in enumerate(rectifiers_of(prepared.graph)):
        found = rectifier(node)
        channels = rectified_channels(node) if per_channel else 1
        theta = 2.0 ** (np.arange(channels) % 3 + number % 2 - 2)
        if found is not None and found.cap is not None:
            theta = np.full(channels, found.cap / options.levels)
        thresholds[node.name] = theta.astype(np.float32)
    return Calibration(
        thresholds=thresholds,
        method="max",
        percentile=99.9,
        per_channel=per_channel,
        alpha=1.0,
        source="data",
        samples=1,
        seed=0,
        model_sha256=prepared.source.sha256,
        levels=options.levels,
    )


def quantised(prepared: Prepared, thresholds: dict[str, Array], levels: int) -> onnx.ModelProto:
    """The normalized ANN with θ·clip(floor(x/θ + 1/2), 0, L) for every rectifier."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared.ann)
    ranks = {node.name: len(node.outputs[0].shape) for node in rectifiers_of(prepared.graph)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name not in ranks:
            nodes.append(node)
            continue
        theta = thresholds[node.name]
        spread = [1] * max(ranks[node.name] - 2, 0)
        theta = theta.reshape(-1, *spread) if theta.size > 1 else theta.reshape(())
        name = f"q/{node.name}"
        values = {"theta": theta, "half": 0.5, "none": 0.0, "most": float(levels)}
        for what, number in values.items():
            tensor = numpy_helper.from_array(np.asarray(number, np.float32), f"{name}/{what}")
            model.graph.initializer.append(tensor)
        constants = {tensor.name for tensor in model.graph.initializer}
        current = next(one for one in node.input if one not in constants)
        whole = [f"{name}/{what}" for what in ("ratio", "raised", "floor", "clipped")]
        nodes += [
            helper.make_node("Div", [current, f"{name}/theta"], [whole[0]]),
            helper.make_node("Add", [whole[0], f"{name}/half"], [whole[1]]),
            helper.make_node("Floor", [whole[1]], [whole[2]]),
            helper.make_node("Clip", [whole[2], f"{name}/none", f"{name}/most"], [whole[3]]),
            helper.make_node("Mul", [whole[3], f"{name}/theta"], [node.output[0]]),
        ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    return model


def same(found: list[Array], wanted: list[Array]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


#: Text, weights, and shapes of the inputs.
Case = tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]
IMAGE = {"x": (2, 6, 6)}
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)"
W, B = fractions(1, 4, 2, 3, 3), fractions(2, 4)
END = "m = GlobalAveragePool (last)  y = Flatten (m)"


def image(text: str, **weights: Any) -> Case:
    """Behind a first layer of 4 channels that makes `r` [N, 4, 6, 6]; `last` is averaged over places
    of which there are 4, 16 or 64, so that nothing is rounded."""
    return (
        f"g (float[N,2,6,6] x) => (y) {{ {CONV} {text} }}",
        {"w": W, "b": B, **weights},
        IMAGE,
    )


SUM = "s = ReduceSum <keepdims = 0> (last, axes)  y = MatMul (s, z)"
ENDS = {"axes": np.array([2, 3]), "z": fractions(9, 4, 3)}

NETWORKS: dict[str, Case] = {
    "mlp": (
        "g (float[N,5] x) => (float[N,3] y) { a = Gemm (x, w, b)  r = Relu (a)  c = Gemm (r, v, d)"
        "  q = Relu (c)  y = Gemm (q, z) }",
        {
            "w": fractions(1, 5, 6), "b": fractions(2, 6), "v": fractions(3, 6, 4),
            "d": fractions(4, 4), "z": fractions(5, 4, 3),
        },
        {"x": (5,)},
    ),
    "one rectifier alone": (
        "g (float[N,3,4] x) => (float[N,3,4] y) { y = Relu (x) }", {}, {"x": (3, 4)}
    ),
    "residual": image(
        "d = Conv <pads = [1, 1, 1, 1]> (r, v, e)  q = Relu (d)"
        "  f = Conv <pads = [1, 1, 1, 1]> (q, u)  a = Add (f, r)  last = Relu (a)" + SUM,
        v=fractions(3, 4, 4, 3, 3), e=fractions(4, 4), u=fractions(5, 4, 4, 3, 3), **ENDS,
    ),
    "difference with a static value": image(
        "p = Conv (x, k)  d = Conv <pads = [1, 1, 1, 1]> (r, v, e)  a = Sub (p, d)  q = Relu (a)"
        "  t = Sub (d, p)  n = Relu (t)  last = Add (q, n)" + SUM,
        k=fractions(6, 4, 2, 1, 1), v=fractions(3, 4, 4, 3, 3), e=fractions(4, 4), **ENDS,
    ),
    "depthwise": image(
        "d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, v, e)  q = Relu (d)"
        "  f = Conv (q, u)  last = Relu (f)" + SUM,
        v=fractions(3, 4, 1, 3, 3), e=fractions(4, 4), u=fractions(5, 4, 4, 1, 1), **ENDS,
    ),
    "a linear layer behind a linear layer": image(
        "d = Conv (r, v, e)  f = Conv <pads = [1, 1, 1, 1]> (d, u)  q = Relu (f)"
        "  h = Conv (q, k, e)  t = Add (h, d)  o = Conv (t, v)  last = Relu (o)" + SUM,
        v=fractions(3, 4, 4, 1, 1), e=fractions(4, 4), u=fractions(5, 4, 4, 3, 3),
        k=fractions(6, 4, 4, 1, 1), **ENDS,
    ),
    "max pooling": image(
        "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)"
        "  d = Conv (p, v, e)  last = Relu (d)" + SUM,
        v=fractions(3, 4, 4, 2, 2), e=fractions(4, 4), **ENDS,
    ),
    "max pooling of what others read": image(
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)"
        "  o = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)"
        "  d = Conv (p, v)  t = Conv (o, v)  h = Conv <strides = [4, 4]> (r, v)"
        "  a = Add (d, t)  i = Add (a, h)  last = Relu (i)" + SUM,
        v=fractions(3, 4, 4, 2, 2), **ENDS,
    ),
    "max pooling of several layers": image(
        "d = Conv (r, v)  q = Relu (d)  k = Concat <axis = 1> (r, q)"
        "  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (k)  f = Conv (p, u)"
        "  last = Relu (f)" + SUM,
        v=fractions(3, 3, 4, 1, 1), u=fractions(4, 4, 7, 2, 2), **ENDS,
    ),
    "max pooling of a LeakyReLU": image(
        "d = Conv (r, v, e)  l = LeakyRelu <alpha = 0.25> (d)"
        "  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (l)  f = Conv (p, v)"
        "  last = Relu (f)" + SUM,
        v=fractions(3, 4, 4, 1, 1), e=fractions(4, 4), **ENDS,
    ),
    "average pooling": image(
        "p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r)  d = Conv (p, v, e)"
        "  last = Relu (d)" + SUM,
        v=fractions(3, 4, 4, 2, 2), e=fractions(4, 4), **ENDS,
    ),
    "average pooling of currents": image(
        "d = Conv (r, v, e)  p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (d)"
        "  q = Relu (p)  f = Conv (q, v)  last = Relu (f)" + SUM,
        v=fractions(3, 4, 4, 1, 1), e=fractions(4, 4), **ENDS,
    ),
    "concat": image(
        "d = Conv (r, v)  q = Relu (d)  k = Concat <axis = 1> (r, q, d)  f = Conv (k, u)"
        "  last = Relu (f)" + SUM,
        v=fractions(3, 3, 4, 1, 1), u=fractions(4, 4, 10, 1, 1), **ENDS,
    ),
    "clip": image(
        "d = Conv (r, v)  q = Clip (d, lo, hi)  f = Conv (q, u)  last = Relu (f)" + SUM,
        v=fractions(3, 4, 4, 1, 1), u=fractions(4, 4, 4, 1, 1), lo=np.float32(0),
        hi=np.float32(3.75), **ENDS,
    ),
    "PReLU": image(
        "d = Conv (r, v, e)  q = PRelu (d, a)  f = Conv (q, u)  last = Relu (f)" + SUM,
        v=fractions(3, 4, 4, 1, 1), e=fractions(6, 4), u=fractions(4, 4, 4, 1, 1),
        a=np.float32([0.25, 0.5, 0, -0.25]).reshape(4, 1, 1), **ENDS,
    ),
    "pre-activation": image(
        "a = Mul (r, k)  h = Add (a, e)  q = Relu (h)  d = Conv (q, v)  t = Add (d, r)"
        "  i = Mul (t, k)  j = Add (i, e)  last = Relu (j)" + SUM,
        k=fractions(5, 4, 1, 1), e=fractions(6, 4, 1, 1), v=fractions(3, 4, 4, 1, 1), **ENDS,
    ),
    "transposed convolution": image(
        "d = ConvTranspose <strides = [2, 2]> (r, v, e)  q = Relu (d)  f = Conv (q, u)"
        "  last = Relu (f)" + SUM,
        v=fractions(3, 4, 3, 2, 2), e=fractions(6, 3), u=fractions(4, 4, 3, 1, 1), **ENDS,
    ),
    "upsampling and pixel shuffle": image(
        "d = Resize <mode = \"nearest\"> (r, , sc)  f = Conv (d, v)  q = Relu (f)"
        "  i = DepthToSpace <blocksize = 2> (q)  k = Conv (i, u)  last = Relu (k)" + SUM,
        sc=np.float32([1, 1, 2, 2]), v=fractions(3, 8, 4, 1, 1), u=fractions(4, 4, 2, 1, 1),
        **ENDS,
    ),
    "slices, pads and transposes": image(
        "a, d = Split <axis = 1> (r)  k = Concat <axis = 1> (d, a)  p = Pad (k, pads)"
        "  s1 = Slice (p, st, en, ax)  t = Transpose <perm = [0, 1, 3, 2]> (s1)  f = Conv (t, u)"
        "  last = Relu (f)" + SUM,
        pads=np.array([0, 0, 1, 0, 0, 0, 0, 2]), st=np.array([1]), en=np.array([5]),
        ax=np.array([3]), u=fractions(4, 4, 4, 1, 1), **ENDS,
    ),
    "a matrix behind a reshape": image(
        "f = Reshape (r, to)  d = Gemm (f, v, e)  q = Relu (d)  y = Gemm (q, u)",
        to=np.array([0, -1]), v=fractions(3, 144, 5), e=fractions(4, 5), u=fractions(5, 5, 3),
    ),
    "products on rows": (
        "g (float[N,3,4] x) => (float[N,3,2] y) { a = MatMul (x, w)  r = Relu (a)"
        "  b = MatMul (k, r)  c = Add (b, d)  q = Relu (c)  y = MatMul (q, z) }",
        {
            "w": fractions(1, 4, 6), "k": fractions(2, 3, 3), "d": fractions(3, 6),
            "z": fractions(4, 6, 2),
        },
        {"x": (3, 4)},
    ),
    "a signal": (
        "g (float[N,2,12] x) => (float[N,3] y) { c = Conv <strides = [2]> (x, w, b)  r = Relu (c)"
        "  p = MaxPool <kernel_shape = [2], strides = [1]> (r)  d = Conv (p, v)  q = Relu (d)"
        "  s = ReduceSum <keepdims = 0> (q, axes)  y = MatMul (s, z) }",
        {
            "w": fractions(1, 4, 2, 3), "b": fractions(2, 4), "v": fractions(3, 4, 4, 2),
            "axes": np.array([2]), "z": fractions(4, 4, 3),
        },
        {"x": (2, 12)},
    ),
    "two inputs and two outputs": (
        "g (float[N,4] x, float[N,3] t) => (float[N,2] y, float[N,5] u) { a = Gemm (x, w, b)"
        "  r = Relu (a)  h = Gemm (t, v)  q = Relu (h)  s = Add (r, q)  k = Gemm (s, z)"
        "  y = Add (k, d)  e = Gemm (r, w2)  u = Relu (e) }",
        {
            "w": fractions(1, 4, 5), "b": fractions(2, 5), "v": fractions(3, 3, 5),
            "z": fractions(4, 5, 2), "d": fractions(5, 2), "w2": fractions(6, 5, 5),
        },
        {"x": (4,), "t": (3,)},
    ),
    "a batch that is not in front": (
        "g (float[N,3,4] x) => (float[3,N,2] y) { t = Transpose <perm = [1, 0, 2]> (x)"
        "  a = MatMul (t, w)  r = Relu (a)  b = MatMul (r, v)  q = Relu (b)  y = MatMul (q, z) }",
        {"w": fractions(1, 4, 6), "v": fractions(2, 6, 6), "z": fractions(4, 6, 2)},
        {"x": (3, 4)},
    ),
    "sums of more than the batch": (
        "g (float[N,3,4] x) => (float[N,3,4] y) { a = MatMul (x, w)  r = Relu (a)"
        "  m = ReduceSum <keepdims = 1> (r, axes)  s = Add (r, m)  d = Sub (m, r)  q = Relu (s)"
        "  p = Relu (d)  y = Add (q, p) }",
        {"w": fractions(1, 4, 4), "axes": np.array([1])},
        {"x": (3, 4)},
    ),
}  # fmt: skip


def network(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    text, weights, inputs = NETWORKS[name]
    text = text.replace("=> (y)", "=> (float[N,M] y)")
    feeds = {one: fractions(20 + n, 3, *shape) for n, (one, shape) in enumerate(inputs.items())}
    return parse(text, weights), feeds


@pytest.mark.parametrize(("coding", "steps"), CODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_the_quantised_one(name: str, coding: str, steps: int) -> None:
    model, feeds = network(name)
    options = options_of(coding, steps)
    prepared = pipeline.prepare(model)
    calibration = calibration_of(prepared, options)
    snn = pipeline.emit(prepared, calibration, options)
    assert "Loop" not in op_counts(snn)
    assert op_counts(snn)["LayeredRMPNeuron"] >= len(calibration.thresholds)
    expected = quantised(prepared, dict(calibration.thresholds), options.levels)
    # Without our package: the function bodies in the file.
    sessions = [onnxruntime.InferenceSession(snn.SerializeToString(), _silent())]
    if library_path() is not None:
        sessions.append(create_session(snn, threads=1, native=True))
    for samples in (3, 1, 0):
        part = {key: array[:samples] for key, array in feeds.items()}
        wanted = run_model(expected, **part)
        for session in sessions:
            same(session.run(None, part), wanted)


def _silent() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


#: Where ways of different depths meet, or something else than a neuron is complete.
MEETING = ("residual", "difference with a static value", "a linear layer behind a linear layer",
           "max pooling of several layers", "pre-activation", "two inputs and two outputs",
           "a batch that is not in front")  # fmt: skip
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in MEETING else slow) for name in NETWORKS]
)
def test_a_pipeline_of_layers_gives_what_the_window_gives(name: str) -> None:
    """Image behind image, each with its answer after as many windows as there are layers, and one.
    Every other network with radix spikes."""
    coding, steps = CODES[list(NETWORKS).index(name) % 2]
    model, feeds = network(name)
    options = options_of(coding, steps)
    prepared = pipeline.prepare(model)
    calibration = calibration_of(prepared, options)
    stepped = pipeline.emit(prepared, calibration, replace(options, emit="step"))
    compiled = read_compiled(stepped)
    session = create_session(pipeline.emit(prepared, calibration, options), threads=1)
    assert not {"Loop", "LayeredRMPNeuron"} & set(op_counts(stepped))
    stream = Stream(stepped, threads=1)
    images = [{key: array[[n, 2 - n]] for key, array in feeds.items()} for n in (0, 1, 2)]
    done = []
    for image, outputs in zip(images, stream.answers(images), strict=True):
        done.append(stream.steps_done)
        same([outputs[key] for key in compiled.outputs], session.run(compiled.outputs, image))
    assert done == [compiled.latency(steps) + n * steps for n in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_networks_as_pipelines_of_layers(seed: int) -> None:
    """Sums of floats may be added in another order for one step than for a window: 1e-4 of the largest
    output is far above that, and far below what a wrong delay changes."""
    drawn = seeded(seed)
    coding, steps = CODES[seed % 2]
    options = options_of(coding, steps, correct="none", allow_analog=seed % 3 == 0)
    compiled = pipeline.compile_model(drawn.model, options, drawn.x)
    stepped = pipeline.emit(compiled.prepared, compiled.calibration, replace(options, emit="step"))
    session, stream = create_session(compiled.model, events=False), Stream(stepped)
    (entry,) = read_compiled(stepped).inputs
    images = [{entry.name: drawn.x[:2]}, {entry.name: drawn.x[-2:]}]
    for image, answer in zip(images, stream.answers(images), strict=True):
        for name, found in answer.items():
            (wanted,) = session.run([name], image)
            np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(initial=0))


def test_a_pipeline_of_layers_answers_at_the_end_of_a_window_alone() -> None:
    """Before the first answer nothing fires that has no image yet, and no input may change within a
    window, of which the file reads the last step."""
    model, feeds = network("residual")
    options = options_of("rate", 3)
    prepared = pipeline.prepare(model)
    snn = pipeline.emit(prepared, calibration_of(prepared, options), replace(options, emit="step"))
    deepest = [n.output[0] for n in snn.graph.node if n.op_type == "RMPNeuron"][-1]
    snn.graph.output.append(onnx.ValueInfoProto(name=deepest))
    compiled = read_compiled(snn)
    assert (compiled.depth, compiled.latency(3)) == (3, 12)
    stream, answered, fired = Stream(snn), [], []
    for step in range(1, 16):
        # The last output is what the third layer sends.
        fired += [step] if _spikes(stream, feeds, deepest).any() else []
        answered += [step] if stream.step(feeds) else []
    assert answered == [12, 15]
    assert min(fired) > 9
    stream.step(feeds)
    with pytest.raises(UsageError, match="changes within a window of 3 steps"):
        stream.step({key: array + 1 for key, array in feeds.items()})


def _spikes(stream: Stream, feeds: dict[str, Array], name: str) -> Array:
    """What a layer sends at the next step of a stream, which stays where it is."""
    held = {key: value.numpy() for key, value in stream._held.items()}
    found: Array = stream._session.run([name], {**feeds, **held})[0]
    return found


@pytest.mark.parametrize("name", ["residual", "max pooling", "two inputs and two outputs"])
def test_more_steps_at_run_time_are_more_levels(name: str) -> None:
    model, feeds = network(name)
    prepared = pipeline.prepare(model)
    calibration = calibration_of(prepared, options_of("rate", 3))
    snn = pipeline.emit(prepared, calibration, options_of("rate", 3))
    session = create_session(snn, threads=1)
    for steps in (1, 3, 7):
        wanted = run_model(quantised(prepared, dict(calibration.thresholds), steps), **feeds)
        same(session.run(None, {**feeds, "snnc_steps": np.array(steps)}), wanted)


@pytest.mark.parametrize(("name", "coding"), [("clip", "rate"), ("residual", "radix")])
def test_what_bakes_its_steps_in_says_so(name: str, coding: str) -> None:
    """A bound of a rectifier is L levels for one T, and digits have their places."""
    options = options_of(coding, 4)
    prepared = pipeline.prepare(network(name)[0])
    snn = pipeline.emit(prepared, calibration_of(prepared, options), options)
    assert [entry.name for entry in snn.graph.input] == ["x"]
    compiled = read_compiled(snn)
    assert compiled.overrides(steps=4) == {}
    with pytest.raises(Exception, match="steps = 4 baked in, so it cannot run with 5"):
        compiled.overrides(steps=5)


def test_weights_read_spikes_where_there_are_any() -> None:
    """Of the convolutions, the one behind a bias alone multiplies complete values; nothing is completed
    but for it and for the read-out."""
    options = options_of("rate", 4)
    prepared = pipeline.prepare(network("a linear layer behind a linear layer")[0])
    snn = pipeline.emit(prepared, calibration_of(prepared, options), options)
    made = {name: node for node in snn.graph.node for name in node.output}
    behind = [
        made[node.input[0]].op_type if node.input[0] in made else "input"
        for node in snn.graph.node
        if node.op_type == "Conv"
    ]
    assert behind == ["input", "LayeredRMPNeuron", "TimeSum", "LayeredRMPNeuron", "TimeSum"]
    read_out = next(node for node in snn.graph.node if node.op_type == "ReduceSum")
    assert made[read_out.input[0]].op_type == "TimeSum"


def test_one_threshold_for_a_layer_and_one_step() -> None:
    model, feeds = network("max pooling of several layers")
    for coding, steps in [*CODES, ("rate", 1), ("radix", 1)]:
        options = options_of(coding, steps)
        prepared = pipeline.prepare(model)
        calibration = calibration_of(prepared, options, per_channel=False)
        snn = pipeline.emit(prepared, calibration, options)
        expected = quantised(prepared, dict(calibration.thresholds), options.levels)
        same(run_model(snn, **feeds), run_model(expected, **feeds))


GATED = """g (float[N,2,6,6] x) => (float[N,3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)  m = GlobalAveragePool (r)
    e = Conv (m, v)  k = Sigmoid (e)  a = Mul (r, k)  h = HardSwish (a)  d = Conv (h, v)
    q = Relu (d)  f = Flatten (q)  l = Softmax (f)  t = Gemm (l, z)  u = Relu (t)  y = Gemm (u, z2)
}"""


@pytest.mark.parametrize(("coding", "steps"), CODES)
def test_other_operators_compute_on_complete_values(coding: str, steps: int) -> None:
    """A gate, a HardSwish and a Softmax between spiking layers.  The two networks compute them of the
    same values; those behind them are rounded alike, but for a level at most where a value is half-way
    between two, and 1e-5 is far above what the order of sums can do to the rest."""
    weights = {
        "w": W, "b": B, "v": fractions(3, 4, 4, 1, 1), "z": fractions(4, 144, 3),
        "z2": fractions(5, 3, 3),
    }  # fmt: skip
    prepared = pipeline.prepare(parse(GATED, weights), allow_analog=True)
    options = options_of(coding, steps, allow_analog=True)
    calibration = calibration_of(prepared, options)
    snn = pipeline.emit(prepared, calibration, options)
    assert not {"RunningMean", "Telescope"} & set(op_counts(snn))
    x = random(7, 3, 2, 6, 6)
    expected = quantised(prepared, dict(calibration.thresholds), options.levels)
    (found,), (wanted,) = run_model(snn, x=x), run_model(expected, x=x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    stepped = pipeline.emit(prepared, calibration, replace(options, emit="step"))
    (answer,) = Stream(stepped, threads=1).answers([x])
    np.testing.assert_allclose(answer["y"], wanted, atol=1e-5)
