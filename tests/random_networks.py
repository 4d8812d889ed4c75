"""Random networks of all the supported operators, and how far a converted one may be off.

The bound.  Let a neuron's current sum to S(s) after s steps, |S(s) - s·m| <= D for every s, where m is
the ANN's value, m <= θ.  It starts at θ/2 and fires at most once a step, when its membrane is at θ.
    It fires for the n-th time only when θ/2 + S reached n·θ:   θ·n(s) <= s·relu(m) + D + θ/2.
    Since the last step at which it did not fire, it fired at every one, and θ >= m:
                                                                θ·n(s) >= s·m - D - θ/2.
So E = D + θ/2 bounds what a neuron may be off by at any time, in units of its sum; a layer that
reads it has D = |W|·E, element by element, and the decoded output is off by at most E/T.  `error_bound`
computes E by running the network with absolute weights, no biases, and θ/2 added at every rectifier.
Nothing but m <= θ is asked of the data: a neuron that clips is off from min(relu(m), θ) by as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.printer
from helpers import Array, assert_close, run_model
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from snncompiler import pipeline
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.calibration.record import Calibration
from snncompiler.errors import Refused
from snncompiler.ir.settings import Coding, Options
from snncompiler.network.data import Dataset
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import create_session, library_path

#: What the bound is for: no charges, and every step counts alike.
PLAIN: dict[str, Any] = {"threshold": "max", "correction": "none", "readout": "mean"}
STEPS = (16, 64, 256)
#: Folding and the SNN's sums reorder at most some hundred float32 products a layer, and a network
#: has at most 20 layers; large positive and negative terms may cancel.
ROUNDING = 4000 * 2.0**-24
#: By events once more, with so many steps that the bound leaves no room for a layer that is wrong.
FAR = 2048
#: The three ways of running a compiled network.
WAYS: dict[str, dict[str, bool]] = {
    "events": {},
    "dense": {"events": False},
    "bodies": {"native": False},
}
#: Sizes of a free axis, beside the one that a network was grown at; the second is what the compiler
#: takes where it needs some size.
OTHER_SIZES = (9, 32)

Shape = tuple[int, ...]


@dataclass
class Builder:
    """Grows a network from an input, drawing every choice; `pick` draws from a sequence."""

    pick: Callable[[Sequence[Any]], Any]
    rng: np.random.Generator
    #: The size of all layers and axes, 0 where they differ.
    even: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    #: Shapes without the batch, of everything that depends on the input.
    shapes: dict[str, Shape] = field(default_factory=dict)
    #: Comparisons, which are no numbers.
    tests: set[str] = field(default_factory=set)
    used: Counter[str] = field(default_factory=Counter)

    def choose(self, *options: Any) -> Any:
        return self.pick(options)

    def width(self, *options: int) -> int:
        """The size of a layer."""
        return self.even or int(self.choose(*options))

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
        same = [o for o, s in self.shapes.items() if s == self.shapes[name] and o != name]
        same = [other for other in same if other not in self.tests]
        return self.choose(*same) if same else None

    def model(self, output: str, free: Sequence[int] = ()) -> onnx.ModelProto:
        """The network; the sizes of its input along the axes `free` are names."""
        given: list[int | str | None] = ["N", *self.shapes["x"]]
        made: list[int | str | None] = ["N", *self.shapes[output]]
        for axis in free:
            given[axis] = f"S{axis}"
            made[1:] = [None] * (len(made) - 1)
        kinds = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", given), (output, made))
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
    outputs = groups * b.choose(1, 2) if groups > 1 else b.width(2, 3, 4)
    kernel = [b.choose(1, min(3, size)) for size in space]
    dilations = [
        b.choose(1, 2) if k > 1 and s > 5 else 1 for k, s in zip(kernel, space, strict=True)
    ]
    attrs: dict[str, Any] = {"group": groups, "dilations": dilations}
    attrs["strides"] = [b.choose(1, 1, 2) for _ in space]
    if b.even and b.choose(True, True, True, False):
        # As many places as before.
        attrs["strides"] = [1] * len(space)
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        attrs["pads"] = [n // 2 for n in reach] + [n - n // 2 for n in reach]
    elif b.choose(True, False):
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
        wide = b.width(3, 5)
        transposed = b.choose(0, 1)
        weights = b.normal(features, wide, fan_in=features)
        inputs = [x, b.constant(weights.T if transposed else weights)]
        if b.choose(True, False):
            inputs.append(b.constant(0.3 * b.normal(wide)))
        return b.node(
            "Gemm", inputs, transB=transposed, alpha=b.choose(1.0, 0.7), beta=b.choose(1.0, 2.0)
        )
    if len(shape) == 1 or b.choose(True, False):
        weights = b.normal(features, b.width(4), fan_in=features)
        return b.node("MatMul", [x, b.constant(weights)])
    rows = shape[-2] if len(shape) > 1 else features
    return b.node("MatMul", [b.constant(b.normal(b.width(3), rows, fan_in=rows)), x])


def _affine(b: Builder, x: str, ops: Sequence[str] = ("Add", "Sub", "Mul", "Div")) -> str | None:
    shape = b.shapes[x]
    # A number, a value along one axis, or one for every place; leading ones or none.
    axis = b.choose(*range(len(shape)))
    one = tuple(size if axis == place else 1 for place, size in enumerate(shape))
    spread = b.choose((), one, *[one[axis:]] * 3, (1, *one), (1, *shape), (shape[0], *one[1:]))
    op = b.choose(*ops)
    values = b.normal(*spread)
    values = np.sign(values) * (np.abs(values) + 0.5) if op in ("Mul", "Div") else values
    name = b.constant(values)
    swapped = op in ("Add", "Sub", "Mul") and b.choose(True, False)
    return b.node(op, [name, x] if swapped else [x, name])


def _residual(b: Builder, x: str) -> str | None:
    other = b.other(x)
    if other is None:
        return None
    op = b.choose("Add", "Add", "Sub", "Sum", "Mean")
    return b.node(op, [x, other])


def _broadcast(b: Builder, x: str) -> str | None:
    """A sum in which one side has a single channel, row, column or place."""
    shape = b.shapes[x]
    fitting = [
        name
        for name, other in b.shapes.items()
        if name not in b.tests
        and len(other) == len(shape)
        and all(one == two or 1 in (one, two) for one, two in zip(shape, other, strict=True))
    ]
    small = b.choose(*fitting)
    kind = b.choose("axis", "axis", "places", "channel")
    if len(shape) == 1 or kind == "axis":
        axis = b.choose(*range(1, len(shape) + 1))
        small = b.node("ReduceMean", [small, b.constant([axis], np.int64)], keepdims=1)
    elif kind == "places":
        small = b.node("GlobalAveragePool", [small])
    else:
        channels, *space = b.shapes[small]
        weights = b.normal(1, channels, *[1] * len(space), fan_in=channels)
        small = b.node("Conv", [small, b.constant(weights)])
    if b.choose(True, False):
        small = b.node("Relu", [small])
    return b.node(b.choose("Add", "Add", "Sub", "Sum"), b.choose([x, small], [small, x]))


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
    left, order = list(range(1, len(b.shapes[x]) + 1)), [0]
    while left:
        order.append(left.pop(left.index(b.choose(*left))))
    return b.node("Transpose", [x], perm=order)


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
    _conv, _conv, _conv, _conv_transpose, _matrix, _matrix, _affine, _affine, _residual, _residual,
    _broadcast, _broadcast, _concat, _split,
    _slice, _gather, _pad, _transpose, _reshape, _reshape, _average, _average, _max_pool, _max_pool,
    _batch_norm, _resize, _depth_to_space, _depth_to_space, _tile, _plain, _plain,
)  # fmt: skip


def _shift(b: Builder, x: str) -> str | None:
    return _affine(b, x, ("Add",))


def _scale(b: Builder, x: str) -> str | None:
    return _affine(b, x, ("Mul",))


def _ordinary(b: Builder, x: str) -> str:
    """A layer as ordinary networks have it, or what looks like one where sizes coincide."""
    between = (*[None] * 6, _max_pool, _average, _slice, _pad, _concat, _scale, _scale)
    linear = (_conv, _conv, _conv, _matrix)
    behind = (None, None, _shift, _shift, _residual, _residual, _broadcast)
    for options in (between, linear, behind):
        step = b.choose(*options)
        made = step(b, x) if step is not None else None
        if made is not None and 0 < prod(b.shapes[made]) <= 400:
            x = made
    return x


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
    #: The same with sizes left open, and an input of other sizes; where there are such.
    free: tuple[onnx.ModelProto, Array] | None = None
    #: How it is compiled.
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Short enough for a report: the nodes, and the shape of the input."""
        nodes = [onnx.printer.to_text(node) for node in self.model.graph.node]
        return f"x {self.x.shape} {self.options}\n" + "\n".join(nodes)


def grow(pick: Callable[[Sequence[Any]], Any], seed: int) -> Network:
    """A random network: a first layer and a rectifier, then operators and rectifiers, then scores."""
    b = Builder(pick, np.random.default_rng(seed))
    shape = b.choose(
        (3, 6, 6), (4, 5, 7), *[(4, 4, 4)] * 5, (2, 9), (4, 4), (2, 4, 3, 4), (4, 4, 4, 4), (6,),
        (4,),
    )  # fmt: skip
    b.shapes["x"] = shape
    b.even = shape[0] if set(shape) == {4} else 0
    current = (b.choose(_conv, _conv, _matrix) if len(shape) > 1 else _matrix)(b, "x")
    assert current is not None
    current = b.node("Relu", [current])
    for _ in range(b.choose(1, 2, 3, *[4] * bool(b.even))):
        if b.even and b.choose(True, False):
            current = b.node("Relu", [_ordinary(b, current)])
            continue
        for _ in range(b.choose(1, 2, 3, 4, 5)):
            made = b.choose(*STEPS_BETWEEN)(b, current)
            if made is not None and made in b.shapes and 0 < prod(b.shapes[made]) <= 400:
                current = made
        current = _rectified(b, current)
    end = b.choose("rectifier", "rectifier", "linear", "Softmax")
    if end != "rectifier":
        if len(b.shapes[current]) > 1:
            current = b.node(b.choose("Flatten", "GlobalAveragePool"), [current])
        if len(b.shapes[current]) > 1:
            current = b.node("Flatten", [current])
        features = b.shapes[current][0]
        current = b.node("Gemm", [current, b.constant(b.normal(features, 5, fan_in=features))])
    if end == "Softmax":
        current = b.node("Softmax", [current], axis=-1)
    options = {
        "unroll": b.choose("fold", "fold", "loop"),
        "per_channel": b.choose(True, True, False),
    }
    free = _freed(b, current) if len(shape) > 1 and b.choose(True, False) else None
    return Network(b.model(current), b.normal(4, *shape), b.used, free, options)


def _freed(b: Builder, output: str) -> tuple[onnx.ModelProto, Array] | None:
    """The network with sizes left open: all axes of space, or one axis; None where none can be."""
    shape = b.shapes["x"]
    for axes in (tuple(range(2, len(shape) + 1)), *((a,) for a in range(len(shape), 0, -1))):
        model = b.model(output, axes)
        inputs = []
        for number in OTHER_SIZES:
            sizes = [number if axis in axes else size for axis, size in enumerate(shape, 1)]
            inputs.append(b.normal(2, *sizes))
        try:
            for x in inputs:
                run_model(model, x=x)
        except Exception:  # onnxruntime's own classes have no common base
            continue
        return model, inputs[0]
    return None


def seeded(seed: int) -> Network:
    """The network of a seed."""
    rng = np.random.default_rng([seed, 1])
    return grow(lambda options: options[int(rng.integers(len(options)))], seed)


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


def clipped(ann: onnx.ModelProto, thresholds: dict[str, Array]) -> onnx.ModelProto:
    """The network with every rectifier cut off at its threshold, as a neuron is."""
    model = onnx.ModelProto()
    model.CopyFrom(ann)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in thresholds:
            theta = np.asarray(thresholds[node.name], np.float32)
            axes = len(_shape(ann, node.output[0])) - 2
            theta = theta.reshape(-1, *[1] * axes) if theta.size > 1 else theta.reshape(())
            result, name = node.output[0], f"{node.name}/cut"
            node.output[0] = f"{result}/free"
            model.graph.initializer.append(numpy_helper.from_array(theta, name))
            nodes.append(helper.make_node("Min", [node.output[0], name], [result]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(copies)
    return model


# --- what is checked of a network ---


@dataclass
class Checked:
    """A network that kept the bound in all its runs."""

    #: Whether the sizes that the network leaves open were left open.
    freed: bool
    refused: tuple[str, ...]
    #: Layers, and those of them that run by events.
    layers: int
    by_events: int
    #: Of the network at its own sizes: T -> the largest error, relative to the largest result.
    errors: dict[int, float]
    #: The largest error over the bound, at the smallest T.
    tightness: float | None
    compiled: tuple[pipeline.Prepared, Calibration]


def check(network: Network, ways: Sequence[str] = tuple(WAYS)) -> Checked:
    """Compile a network, and run it in several ways: AssertionError where one leaves the bound."""
    model, x = network.model, network.x
    refused: tuple[str, ...] = ()
    freed = False
    prepared = None
    if network.free is not None:
        try:
            prepared, freed = pipeline.prepare(network.free[0]), True
        except Refused as error:
            refused = tuple(finding.code for finding in error.findings)
    prepared = prepared or pipeline.prepare(model)
    (wanted,) = run_model(model, x=x)
    (folded,) = run_model(prepared.ann, x=x)
    assert_close(folded, wanted, relative=ROUNDING)

    options = Options(**PLAIN, **network.options, steps=STEPS[0])
    calibration: Calibration = pipeline.calibrated(prepared, options, Dataset({"x": x}))
    snn = pipeline.emit(prepared, calibration, options)
    notes = lower_events(snn).layers
    assert not any("cannot be read" in note.reason for note in notes), notes
    sessions = {way: create_session(snn, threads=1, **WAYS[way]) for way in ways}
    thresholds = dict(calibration.thresholds)
    errors, tightness = _run(sessions, prepared.ann, thresholds, x, wanted, STEPS)
    if any(note.operator for note in notes) and "events" in sessions and library_path() is not None:
        by_events = {"events": sessions["events"]}
        _run(by_events, prepared.ann, thresholds, x, wanted, (FAR,))
    if freed and network.free is not None:
        other = network.free[1]
        (cut,) = run_model(clipped(prepared.ann, thresholds), x=other)
        _run(sessions, prepared.ann, thresholds, other, cut, STEPS[:2])
    lowered = sum(bool(note.operator) for note in notes)
    done = (prepared, calibration)
    return Checked(freed, refused, len(notes), lowered, errors, tightness, done)


def _run(
    sessions: dict[str, Any],
    ann: onnx.ModelProto,
    thresholds: dict[str, Array],
    x: Array,
    wanted: Array,
    times: Sequence[int],
) -> tuple[dict[int, float], float | None]:
    """Relative errors and the tightness at the first T, of the first way; see `Checked`."""
    bound = error_bound(ann, thresholds, x)
    scale = max(float(np.abs(wanted).max()), 1e-6)
    errors: dict[int, float] = {}
    tightness = None
    for way, session in sessions.items():
        # The bodies take long, and give what the dense kernels give.
        for steps in times[:2] if way == "bodies" else times:
            feeds = {"x": x, "snnc_steps": np.array(steps)}
            (decoded,) = session.run(None, feeds)
            assert decoded.shape == wanted.shape == bound.shape, (way, decoded.shape, wanted.shape)
            error = np.abs(decoded - wanted.astype(np.float64))
            slack = ROUNDING * (scale + float(bound.max()) / steps)
            most = bound / steps + slack
            assert (error <= most).all(), f"{way}, T = {steps}: {(error / most).max()} of the bound"
            if way != next(iter(sessions)):
                continue
            if scale > 1e-3 * bound.max():
                errors[steps] = float(error.max()) / scale
            if steps == times[0] and bound.max() > 0:
                tightness = float((error * steps).max() / bound.max())
    return errors, tightness


@st.composite
def networks(draw: Callable[[Any], Any]) -> Network:
    """One that hypothesis grows."""
    seed = draw(st.integers(0, 1 << 16))
    return grow(lambda options: draw(st.sampled_from(options)), seed)


# --- layered time ---

#: Coding and T.
CODES: tuple[tuple[Coding, int], ...] = (("rate", 6), ("radix", 8))


@dataclass
class CheckedLayers:
    """A network that kept the bound in layered time."""

    layers: int
    #: Coding -> the largest error, relative to the largest result.
    errors: dict[str, float]


def check_layers(network: Network, ways: Sequence[str] = ("dense", "bodies")) -> CheckedLayers:
    """Compile a network in layered time: AssertionError where it leaves the bound.

    Nothing depends on time there: a neuron rounds its complete value to the next level, so it is off by
    at most θ/2 more than its current is, and `error_bound` bounds the output itself.  All ways of
    running give the same bits where there is no layer of weights, and may sum in another order else.
    """
    prepared = pipeline.prepare(network.model)
    (wanted,) = run_model(network.model, x=network.x)
    scale = max(float(np.abs(wanted).max()), 1e-6)
    errors, layers = {}, 0
    for coding, steps in CODES:
        options = Options(
            timing="layered",
            coding=coding,
            steps=steps,
            threshold="max",
            per_channel=network.options["per_channel"],
        )
        calibration = pipeline.calibrated(prepared, options, Dataset({"x": network.x}))
        snn = pipeline.emit(prepared, calibration, options)
        layers = len(calibration.thresholds)
        bound = error_bound(prepared.ann, dict(calibration.thresholds), network.x)
        most = bound + ROUNDING * (scale + float(bound.max()))
        for way in ways:
            session = create_session(snn, threads=1, **WAYS[way])
            for samples in (len(network.x), 1, 0):
                (decoded,) = session.run(None, {"x": network.x[:samples]})
                error = np.abs(decoded - wanted[:samples].astype(np.float64))
                assert decoded.shape == wanted[:samples].shape
                where = f"{coding}, {way}: {(error / most[:samples]).max(initial=0)} of the bound"
                assert (error <= most[:samples]).all(), where
                if samples == len(network.x) and scale > 1e-3 * bound.max():
                    errors[coding] = float(error.max()) / scale
    return CheckedLayers(layers, errors)
