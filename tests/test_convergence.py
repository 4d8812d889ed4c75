"""The SNN converges to the ANN as 1/T, on random networks of all the supported operators.

The bound.  Let a neuron's current sum to S(s) after s steps, |S(s) - s·m| <= D for every s, where m is
the ANN's value, m <= θ.  It starts at θ/2 and fires at most once a step, when its membrane is at θ.
    It fires for the n-th time only when θ/2 + S reached n·θ:   θ·n(s) <= s·relu(m) + D + θ/2.
    Since the last step at which it did not fire, it fired at every one, and θ >= m:
                                                                θ·n(s) >= s·m - D - θ/2.
So E = D + θ/2 bounds what a neuron may be off by at any time, in units of its sum; a layer that
reads it has D = |W|·E, element by element, and the decoded output is off by at most E/T.  `error_bound`
computes E by running the network with absolute weights, no biases, and θ/2 added at every rectifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.printer
from helpers import Array, assert_close, run_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from snncompiler import pipeline
from snncompiler.calibration import Calibration
from snncompiler.data import Dataset
from snncompiler.options import Options
from snncompiler.watch import Watched, watch

GRAPHS = 180
#: What the bound is for: no clipping, no charges, and every step counts alike.
PLAIN: dict[str, Any] = {"threshold": "max", "correction": "none", "readout": "mean"}
STEPS = (16, 64, 256)
#: Folding and the SNN's sums reorder at most some hundred float32 products a layer, and a network
#: has at most 20 layers; large positive and negative terms may cancel.
ROUNDING = 4000 * 2.0**-24
#: The share of neurons whose spike counts may differ between `fold` and `loop`: a current within a
#: rounding of θ moves a spike.
MOVED = 2e-3

Shape = tuple[int, ...]


@dataclass
class Builder:
    """Grows a network from an input, drawing every choice."""

    draw: Callable[[Any], Any]
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    #: Shapes without the batch, of everything that depends on the input.
    shapes: dict[str, Shape] = field(default_factory=dict)
    #: Comparisons, which are no numbers.
    tests: set[str] = field(default_factory=set)
    used: Counter[str] = field(default_factory=Counter)

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(array, dtype)
        return name

    def normal(self, *shape: int, fan_in: int = 1) -> Array:
        drawn = self.rng.standard_normal(shape) * np.sqrt(1.5 / max(fan_in, 1))
        return np.asarray(drawn, np.float32)

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attrs: Any) -> str:
        """Add a node and read its output's shape off onnx's own inference; the name of the first."""
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        self.used[op] += 1
        known = {name: self.shapes[name] for name in inputs if name in self.shapes}
        self.shapes |= _inferred(self.nodes[-1], known, self.weights)
        return names[0]

    def other(self, name: str) -> str | None:
        """Another value of the same shape."""
        same = [
            o for o, s in self.shapes.items() if s == self.shapes[name] and o not in ("x", name)
        ]
        return self.choose(*same) if same else None

    def model(self, output: str) -> onnx.ModelProto:
        kinds = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *self.shapes[name]])
            for name in ("x", output)
        ]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", kinds[:1], kinds[1:], tensors)
        opset = helper.make_opsetid("", 18)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _inferred(
    node: onnx.NodeProto, known: dict[str, Shape], weights: dict[str, Array]
) -> dict[str, Shape]:
    given = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, *shape])
        for name, shape in known.items()
    ]
    tensors = [numpy_helper.from_array(weights[n], n) for n in set(node.input) if n in weights]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "one", given, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {}
    for entry in (*found.output, *found.value_info):
        dims = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        if entry.name in node.output and all(dims):
            shapes[entry.name] = tuple(dims[1:])
    return shapes


# --- the operators; each returns the name of its output, or None where it does not apply ---


def _conv(b: Builder, x: str) -> str | None:
    channels, *space = b.shapes[x]
    if not space:
        return None
    groups = b.choose(1, 1, channels, *[2] * (channels % 2 == 0))
    outputs = groups * b.choose(1, 2) if groups > 1 else b.choose(2, 3, 4)
    kernel = [b.choose(1, min(3, size)) for size in space]
    dilations = [
        b.choose(1, 2) if k > 1 and s > 5 else 1 for k, s in zip(kernel, space, strict=True)
    ]
    attrs: dict[str, Any] = {"group": groups, "dilations": dilations}
    attrs["strides"] = [b.choose(1, 1, 2) for _ in space]
    if b.choose(True, False):
        attrs["pads"] = [b.choose(0, 1, k // 2) for k in kernel * 2]
    elif dilations == [1] * len(space):
        attrs["auto_pad"] = b.choose("SAME_UPPER", "SAME_LOWER", "VALID")
    fan_in = channels // groups * prod(kernel)
    inputs = [x, b.constant(b.normal(outputs, channels // groups, *kernel, fan_in=fan_in))]
    if b.choose(True, False):
        inputs.append(b.constant(0.3 * b.normal(outputs)))
    return b.node("Conv", inputs, **attrs)


def _conv_transpose(b: Builder, x: str) -> str | None:
    channels, *space = b.shapes[x]
    if not space or prod(space) > 40:
        return None
    groups = b.choose(1, *[2] * (channels % 2 == 0))
    strides = [b.choose(1, 2) for _ in space]
    kernel = [b.choose(1, 2, 3) for _ in space]
    weights = b.normal(channels, 2, *kernel, fan_in=channels // groups * prod(kernel))
    extra = [b.choose(0, stride - 1) for stride in strides]
    inputs = [x, b.constant(weights)]
    return b.node("ConvTranspose", inputs, group=groups, strides=strides, output_padding=extra)


def _matrix(b: Builder, x: str) -> str | None:
    shape = b.shapes[x]
    features = shape[-1]
    if len(shape) == 1 and b.choose(True, False):
        wide = b.choose(3, 5)
        transposed = b.choose(0, 1)
        weights = b.normal(features, wide, fan_in=features)
        inputs = [x, b.constant(weights.T if transposed else weights)]
        if b.choose(True, False):
            inputs.append(b.constant(0.3 * b.normal(wide)))
        return b.node(
            "Gemm", inputs, transB=transposed, alpha=b.choose(1.0, 0.7), beta=b.choose(1.0, 2.0)
        )
    if len(shape) == 1 or b.choose(True, False):
        return b.node("MatMul", [x, b.constant(b.normal(features, 4, fan_in=features))])
    rows = shape[-2] if len(shape) > 1 else features
    return b.node("MatMul", [b.constant(b.normal(3, rows, fan_in=rows)), x])


def _affine(b: Builder, x: str) -> str | None:
    shape = b.shapes[x]
    spread = b.choose((), (shape[0], *[1] * (len(shape) - 1)), (1, *shape), (shape[-1],))
    op = b.choose("Add", "Sub", "Mul", "Div")
    values = b.normal(*spread)
    values = np.sign(values) * (np.abs(values) + 0.5) if op in ("Mul", "Div") else values
    name = b.constant(values)
    swapped = op in ("Add", "Sub", "Mul") and b.choose(True, False)
    return b.node(op, [name, x] if swapped else [x, name])


def _residual(b: Builder, x: str) -> str | None:
    other = b.other(x)
    if other is None:
        return None
    op = b.choose("Add", "Sub", "Sum", "Mean")
    return b.node(op, [x, other])


def _concat(b: Builder, x: str) -> str | None:
    other = b.other(x) or x
    axis = b.choose(*range(1, len(b.shapes[x]) + 1))
    return b.node("Concat", [x, other], axis=b.choose(axis, axis - 1 - len(b.shapes[x])))


def _split(b: Builder, x: str) -> str | None:
    axes = [axis for axis, size in enumerate(b.shapes[x], 1) if size > 1]
    if not axes:
        return None
    axis = b.choose(*axes)
    size = b.shapes[x][axis - 1]
    first = b.choose(1, size // 2)
    parts = b.constant([first, size - first], np.int64)
    half = b.node("Split", [x, parts], outputs=2, axis=axis)
    return half.replace("_0", "_1") if b.choose(True, False) else half


def _slice(b: Builder, x: str) -> str | None:
    axes = [axis for axis, size in enumerate(b.shapes[x], 1) if size > 1]
    if not axes:
        return None
    axis = b.choose(*axes)
    start, stop, step = b.choose((1, 1000, 1), (0, -1, 1), (-1, -1000, -1), (0, 1000, 2))
    values = [b.constant([number], np.int64) for number in (start, stop, axis, step)]
    return b.node("Slice", [x, *values])


def _gather(b: Builder, x: str) -> str | None:
    axis = b.choose(*range(1, len(b.shapes[x]) + 1))
    chosen = b.choose([0, -1], [0], [0, 0, -1])
    return b.node("Gather", [x, b.constant(chosen, np.int64)], axis=axis)


def _pad(b: Builder, x: str) -> str | None:
    shape = b.shapes[x]
    mode = b.choose("constant", "constant", "edge", "reflect")
    pads = [[0, *(b.choose(0, 1) if size > 2 else 0 for size in shape)] for _ in range(2)]
    inputs = [x, b.constant(pads[0] + pads[1], np.int64)]
    if mode == "constant" and b.choose(True, False):
        inputs.append(b.constant(0.5))
    return b.node("Pad", inputs, mode=mode)


def _transpose(b: Builder, x: str) -> str | None:
    order = b.draw(st.permutations(range(1, len(b.shapes[x]) + 1)))
    return b.node("Transpose", [x], perm=[0, *order])


def _reshape(b: Builder, x: str) -> str | None:
    shape = b.shapes[x]
    if len(shape) == 1:
        return b.node("Unsqueeze", [x, b.constant([b.choose(1, 2)], np.int64)])
    if b.choose(True, False):
        return b.node("Reshape", [x, b.constant([0, shape[0], -1], np.int64)])
    return b.node("Flatten", [x]) if prod(shape) < 100 else None


def _average(b: Builder, x: str) -> str | None:
    _, *space = b.shapes[x]
    if not space:
        return None
    kind = b.choose("AveragePool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum")
    if kind == "GlobalAveragePool":
        return b.node(kind, [x])
    if kind != "AveragePool":
        keep = b.choose(1, 0) if len(space) > 1 else 1
        return b.node(kind, [x, b.constant([-1], np.int64)], keepdims=keep)
    attrs = _window(b, space)
    return b.node(kind, [x], count_include_pad=b.choose(0, 1), **attrs)


def _window(b: Builder, space: list[int]) -> dict[str, Any]:
    kernel = [b.choose(1, min(2, size), min(3, size)) for size in space]
    # With SAME and strides above the kernel, onnxruntime computes negative pads and refuses.
    attrs: dict[str, Any] = {"kernel_shape": kernel}
    attrs["strides"] = [b.choose(1, min(2, size)) for size in kernel]
    if b.choose(True, False):
        attrs["auto_pad"] = b.choose("SAME_UPPER", "SAME_LOWER", "VALID")
    else:
        attrs["pads"] = [b.choose(0, k // 2) for k in kernel * 2]
    return attrs


def _max_pool(b: Builder, x: str) -> str | None:
    _, *space = b.shapes[x]
    kind = b.choose("MaxPool", "MaxPool", "GlobalMaxPool", "ReduceMax")
    if kind == "ReduceMax":
        axes = [b.choose(*range(1, len(space) + 2))]
        return b.node("ReduceMax", [x, b.constant(axes, np.int64)])
    if not space:
        return None
    if kind == "GlobalMaxPool":
        return b.node("GlobalMaxPool", [x])
    return b.node("MaxPool", [x], **_window(b, space))


def _batch_norm(b: Builder, x: str) -> str | None:
    channels = b.shapes[x][0]
    values = [
        b.rng.uniform(0.5, 1.5, channels) * b.rng.choice([-1, 1], channels),
        0.3 * b.normal(channels),
        0.3 * b.normal(channels),
        b.rng.uniform(0.5, 1.5, channels),
    ]
    return b.node("BatchNormalization", [x, *map(b.constant, values)], epsilon=1e-3)


def _resize(b: Builder, x: str) -> str | None:
    channels, *space = b.shapes[x]
    if len(space) != 2 or channels * prod(space) > 80:
        return None
    scales = b.constant([1, 1, b.choose(1, 2, 1.5), b.choose(2, 1)])
    mode = b.choose("nearest", "linear")
    place = b.choose("half_pixel", "asymmetric", "align_corners")
    return b.node("Resize", [x, "", scales], mode=mode, coordinate_transformation_mode=place)


def _depth_to_space(b: Builder, x: str) -> str | None:
    channels, *space = b.shapes[x]
    if len(space) != 2:
        return None
    if channels % 4 == 0:
        return b.node("DepthToSpace", [x], blocksize=2, mode=b.choose("DCR", "CRD"))
    if all(size % 2 == 0 for size in space):
        return b.node("SpaceToDepth", [x], blocksize=2)
    return None


def _tile(b: Builder, x: str) -> str | None:
    shape = b.shapes[x]
    if prod(shape) > 60:
        return None
    if shape[-1] == 1:
        return b.node("Expand", [x, b.constant([*[1] * len(shape), 2], np.int64)])
    return b.node("Tile", [x, b.constant([1, *[1] * (len(shape) - 1), 2], np.int64)])


def _plain(b: Builder, x: str) -> str | None:
    if b.choose(True, False):
        return b.node(b.choose("Neg", "Identity"), [x])
    return b.node("Cast", [x], to=onnx.TensorProto.FLOAT)


STEPS_BETWEEN = (
    _conv, _conv, _conv, _conv_transpose, _matrix, _affine, _residual, _residual, _concat, _split,
    _slice, _gather, _pad, _transpose, _reshape, _reshape, _average, _average, _max_pool, _max_pool,
    _batch_norm, _resize, _depth_to_space, _depth_to_space, _tile, _plain, _plain,
)  # fmt: skip


def _rectified(b: Builder, x: str) -> str:
    """A rectifier, or what is a sum of rectifiers, in one of its spellings."""
    zero, high = (b.constant(value) for value in (0.0, 0.8))
    kind = b.choose(
        *["Relu"] * 4, "Clip", "Clip", "LeakyRelu", "PRelu", "Max", "Abs", "Bounded", "Min",
        "Largest", "Where", "HardSigmoid", "ThresholdedRelu",
    )  # fmt: skip
    other = b.other(x)
    if kind == "Clip":
        result = b.node("Clip", [x, zero, high])
    elif kind == "Max":
        result = b.node("Max", b.choose([x, zero], [zero, x]))
    elif kind == "Where":
        test = b.node("Greater", [x, zero])
        b.tests.add(test)
        result = b.node("Where", [test, x, zero])
    elif kind == "ThresholdedRelu":
        result = b.node(kind, [x], alpha=0.0)
    elif kind == "LeakyRelu":
        return b.node(kind, [x], alpha=b.choose(0.1, 0.5))
    elif kind == "PRelu":
        channels, *space = b.shapes[x]
        return b.node(kind, [x, b.constant(np.abs(0.3 * b.normal(channels, *[1] * len(space))))])
    elif kind == "Abs":
        return b.node(kind, [x])
    elif kind == "Bounded":
        return b.node("Clip", [x, b.constant(-0.4), high])
    elif kind == "HardSigmoid":
        return b.node(kind, [x], alpha=0.3)
    elif kind in ("Min", "Largest") and other is not None:
        return b.node({"Min": "Min", "Largest": "Max"}[kind], [x, other])
    else:
        result = b.node("Relu", [x])
    return result


@dataclass(frozen=True)
class Network:
    model: onnx.ModelProto
    x: Array
    used: Counter[str]

    def __repr__(self) -> str:
        """Short enough for a report: the nodes, and the shape of the input."""
        nodes = [onnx.printer.to_text(node) for node in self.model.graph.node]
        return f"x {self.x.shape}\n" + "\n".join(nodes)


@st.composite
def networks(draw: Callable[[Any], Any]) -> Network:
    """A random network: a first layer and a rectifier, then operators and rectifiers, then scores."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    b = Builder(draw, rng)
    shape = b.choose((3, 6, 6), (3, 6, 6), (4, 5, 7), (2, 9), (2, 4, 3, 4), (6,))
    b.shapes["x"] = shape
    current = (_conv if len(shape) > 1 else _matrix)(b, "x")
    assert current is not None
    current = b.node("Relu", [current])
    for _ in range(b.choose(1, 2, 3)):
        for _ in range(b.choose(1, 2, 3, 4, 5)):
            step = b.draw(st.sampled_from(STEPS_BETWEEN))
            made = step(b, current)
            if made is not None and made in b.shapes and 0 < prod(b.shapes[made]) <= 400:
                current = made
        current = _rectified(b, current)
    end = b.choose("rectifier", "linear", "Softmax")
    if end != "rectifier":
        if len(b.shapes[current]) > 1:
            current = b.node("Flatten", [current])
        features = b.shapes[current][0]
        current = b.node("Gemm", [current, b.constant(b.normal(features, 5, fan_in=features))])
    if end == "Softmax":
        current = b.node("Softmax", [current], axis=-1)
    return Network(b.model(current), b.normal(4, *shape), b.used)


# --- the bound ---


def error_bound(ann: onnx.ModelProto, thresholds: dict[str, Array], x: Array) -> Array:
    """E of the output, element by element: what T·(SNN - ANN) may be."""
    model = onnx.ModelProto()
    model.CopyFrom(ann)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    #: Values that depend on time.
    temporal: set[str] = set()
    written: list[onnx.NodeProto] = []

    def fresh(array: Array) -> str:
        name = f"bound_{len(constants)}"
        constants[name] = np.asarray(array)
        return name

    def still(name: str) -> str:
        """Zero in the shape of a value that does not depend on time."""
        if name in constants:
            return fresh(np.zeros_like(constants[name]))
        written.append(helper.make_node("Sub", [name, name], [f"{name}/still{len(written)}"]))
        return str(written[-1].output[0])

    for node in graph.node:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        data = [name for name in node.input if name]
        if node.name in thresholds:
            live = next(name for name in data if name not in constants)
            theta = np.asarray(thresholds[node.name], np.float32)
            space = [1] * (len(_shape(ann, live)) - 2)
            theta = theta.reshape(-1, *space) if theta.size > 1 else theta.reshape(())
            spread = live if live in temporal else still(live)
            written.append(helper.make_node("Add", [spread, fresh(theta / 2)], node.output))
            temporal |= set(node.output)
            continue
        if not temporal & set(data):
            written.append(node)
            continue
        temporal |= set(node.output)
        op = node.op_type
        if op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            for index, name in enumerate(node.input):
                if name in constants:
                    array = constants[name]
                    node.input[index] = fresh(np.abs(array) if index < 2 else 0 * array)
        elif op in ("Mul", "Div"):
            for index, name in enumerate(node.input):
                if name in constants:
                    node.input[index] = fresh(np.abs(constants[name]))
        elif op in ("Add", "Sub", "Sum", "Mean", "Concat", "Max", "Min"):
            node.op_type = {"Sub": "Add", "Min": "Max"}.get(op, op)
            for index, name in enumerate(node.input):
                if name not in temporal:
                    node.input[index] = still(name)
        elif op in ("Neg", "Abs", "Clip", "Softmax", "HardSigmoid"):
            # Their slopes are at most 1; Softmax's rows sum to 1/2 at most in absolute value.
            del node.input[1:], node.attribute[:]
            node.op_type = "Identity"
        elif op == "Pad" and len(node.input) > 2 and node.input[2]:
            node.input[2] = fresh(np.zeros((), np.float32))
        written.append(node)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(written)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    bound: Array = run_model(model, x=x)[0]
    if ann.graph.node[-1].op_type == "Softmax":
        return np.broadcast_to(bound.max(axis=-1, keepdims=True) / 2, bound.shape)
    return bound


def _shape(model: onnx.ModelProto, name: str) -> list[Any]:
    for entry in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if entry.name == name:
            return list(entry.type.tensor_type.shape.dim)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    entry = next(entry for entry in inferred.value_info if entry.name == name)
    return list(entry.type.tensor_type.shape.dim)


def spike_counts(snn: onnx.ModelProto, x: Array, steps: int) -> Array:
    watched = watch(snn)
    values = run_model(watched.model, x=x, snnc_steps=np.array(steps))
    names = [entry.name for entry in watched.model.graph.output]
    wanted = [Watched.output(layer, "count") for layer in watched.layers]
    return np.concatenate([values[names.index(name)].ravel() for name in wanted])


@dataclass
class Tally:
    """What the graphs had in common."""

    graphs: int = 0
    used: Counter[str] = field(default_factory=Counter)
    errors: dict[int, list[float]] = field(default_factory=lambda: {steps: [] for steps in STEPS})
    #: The error over the bound.
    tightness: list[float] = field(default_factory=list)
    moved: int = 0
    neurons: int = 0


TALLY = Tally()


@settings(max_examples=GRAPHS, suppress_health_check=list(HealthCheck))
@given(network=networks())
def test_random_networks_converge_within_the_bound(network: Network) -> None:
    model, x = network.model, network.x
    (wanted,) = run_model(model, x=x)
    options = Options(**PLAIN, steps=16)
    prepared = pipeline.prepare(model)
    (folded,) = run_model(prepared.ann, x=x)
    assert_close(folded, wanted, relative=ROUNDING)

    calibration: Calibration = pipeline.calibrated(prepared, options, Dataset({"x": x}))
    snn = pipeline.emit(prepared, calibration, options)
    bound = error_bound(prepared.ann, dict(calibration.thresholds), x)
    scale = max(float(np.abs(wanted).max()), 1e-6)
    for steps in STEPS:
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        assert decoded.shape == wanted.shape == bound.shape
        error = np.abs(decoded - wanted.astype(np.float64))
        slack = ROUNDING * (scale + float(bound.max()) / steps)
        assert (error <= bound / steps + slack).all(), (
            f"T = {steps}: {(error * steps / bound).max()}"
        )
        if scale > 1e-3 * bound.max():
            TALLY.errors[steps].append(float(error.max()) / scale)
        if steps == STEPS[0] and bound.max() > 0:
            TALLY.tightness.append(float((error * steps).max() / bound.max()))

    loop = pipeline.emit(prepared, calibration, Options(**PLAIN, unroll="loop", steps=16))
    counts = [spike_counts(form, x, 16) for form in (snn, loop)]
    TALLY.moved += int((counts[0] != counts[1]).sum())
    TALLY.neurons += counts[0].size
    TALLY.graphs += 1
    TALLY.used += network.used


def test_all_of_them_together() -> None:
    """After the test above: errors fall as 1/T, `fold` is `loop`, and every operator was drawn."""
    if not TALLY.graphs:
        test_random_networks_converge_within_the_bound()
    medians = {steps: float(np.median(errors)) for steps, errors in TALLY.errors.items()}
    print(f"{TALLY.graphs} graphs, median of the largest relative errors {medians}")
    print(f"error over bound at T = 16: median {np.median(TALLY.tightness):.3f}, ")
    print(f"largest {max(TALLY.tightness):.3f}; {TALLY.moved} of {TALLY.neurons} counts differ")
    print(dict(TALLY.used))
    assert TALLY.graphs >= 150
    # Four times the steps: a quarter of the error, or at least less than half.
    assert medians[64] < medians[16] / 2 and medians[256] < medians[64] / 2
    # The bound is not empty: some network comes within a factor of ten of it.
    assert max(TALLY.tightness) > 0.1
    assert TALLY.moved <= MOVED * TALLY.neurons
    # Each has a test of its own in test_operator_table.py; a draw may miss a few.
    missing = EVERY - set(TALLY.used)
    assert len(missing) <= 4, missing


#: All that the generator can write.
EVERY = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv",
    "ConvTranspose", "DepthToSpace", "Div", "Expand", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "Identity", "LeakyRelu", "MatMul", "Max",
    "MaxPool", "Mean", "Min", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean", "ReduceSum",
    "Relu",
    "Reshape", "Resize", "Slice", "Softmax", "SpaceToDepth", "Split", "Sub", "Sum",
    "ThresholdedRelu", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
