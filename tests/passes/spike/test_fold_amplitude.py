"""fold-amplitude: where amplitudes go, what reaches the layers, and what whole networks decode to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from helpers import Array, after, compile_text, op_counts, ops, parse, random, run_model
from hypothesis import given, settings
from hypothesis import strategies as st

from snncompiler.ir.graph import Graph, export_model, with_outputs
from snncompiler.passes.base import run_passes
from snncompiler.passes.spike.fold_amplitude import FoldAmplitude
from snncompiler.passes.spike.insert_neurons import InsertNeurons

#: A neuron's decoded value is off by |v(T) - v(0)|/T, exactly; v stays within some θ of its start,
#: as the ANN's activation, which the current converges to, is at most θ (thresholds are the maxima).
#: Through the layers these add up to C/T of the largest output; C was at most 6 for the networks of
#: the table, and more for deep random ones, whose outputs may be small beside their activations.
TABLE, RANDOM = 10.0, 60.0


#: Body between the first rectifier's spikes s [N,4,6,6] and the second one's current c; then the
#: weights of the layers in it; then the Muls that must be left in the temporal region.
BETWEEN: dict[str, tuple[str, dict[str, tuple[int, ...]], int]] = {
    "conv": ("c = Conv <pads = [1, 1, 1, 1]> (s, w)", {"w": (3, 4, 3, 3)}, 0),
    "grouped": ("c = Conv <group = 2> (s, w)", {"w": (6, 2, 3, 3)}, 0),
    "depthwise": ("c = Conv <group = 4> (s, w)", {"w": (8, 1, 3, 3)}, 0),
    "transposed": ("c = ConvTranspose (s, w)", {"w": (4, 3, 3, 3)}, 0),
    "transposed, grouped": ("c = ConvTranspose <group = 2> (s, w)", {"w": (4, 3, 3, 3)}, 0),
    "average": (
        "p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)  c = Conv (p, w)",
        {"w": (3, 4, 1, 1)}, 0),
    "average, padded": (
        "p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)  c = Conv (p, w)",
        {"w": (3, 4, 1, 1)}, 0),
    "global average": (
        "p = GlobalAveragePool (s)  c = Conv (p, w)", {"w": (3, 4, 1, 1)}, 0),
    "flatten": ("f = Flatten (s)  c = Gemm (f, w)", {"w": (144, 5)}, 0),
    "reshape": ("f = Reshape (s, flat)  c = Gemm <transB = 1> (f, w)", {"w": (5, 144)}, 0),
    "reshape and transpose": (
        "f = Reshape (s, rows)  t = Transpose <perm = [0, 2, 1]> (f)  c = MatMul (t, w)",
        {"w": (4, 5)}, 0),
    "transpose to rows": (
        "t = Transpose <perm = [0, 2, 3, 1]> (s)  f = Flatten (t)  c = Gemm (f, w)",
        {"w": (144, 5)}, 0),
    "slice": ("p = Slice (s, one, three, one)  c = Conv (p, w)", {"w": (3, 2, 3, 3)}, 0),
    "strided slice": ("p = Slice (s, zero, four, one, two)  c = Conv (p, w)", {"w": (3, 2, 3, 3)}, 0),
    "slice of space": ("p = Slice (s, one, three, two)  c = Conv (p, w)", {"w": (3, 4, 1, 1)}, 0),
    "pad": ("p = Pad (s, pads)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 0),
    "pad of channels": ("p = Pad (s, more)  c = Conv (p, w)", {"w": (3, 7, 3, 3)}, 0),
    "pad with a value": ("p = Pad (s, pads, half)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 1),
    "concat": ("p = Concat <axis = 1> (s, s2)  c = Conv (p, w)", {"w": (3, 8, 3, 3)}, 0),
    "concat in space": ("p = Concat <axis = 2> (s, s2)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 1),
    "concat with itself": ("p = Concat <axis = 1> (s, s)  c = Conv (p, w)", {"w": (3, 8, 3, 3)}, 1),
    "concat with the input": ("p = Concat <axis = 1> (s, x)  c = Conv (p, w)", {"w": (3, 6, 3, 3)}, 1),
    "max": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)  c = Conv (p, w)",
        {"w": (3, 4, 3, 3)}, 0),
    "max, padded, overlapping": (
        "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (s)"
        "  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 0),
    "max of a concat": (
        "q = Concat <axis = 1> (s, s2)  p = MaxPool <kernel_shape = [2, 2]> (q)  c = Conv (p, w)",
        {"w": (3, 8, 3, 3)}, 0),
    "resize": ("p = Resize (s, , scales)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 0),
    "residual": ("q = Conv <pads = [1, 1, 1, 1]> (s, w)  c = Add (q, s)", {"w": (4, 4, 3, 3)}, 1),
    "two readers": (
        "q = Conv <pads = [1, 1, 1, 1]> (s, w)  p = Conv (s, w2)  c = Sub (q, p)",
        {"w": (4, 4, 3, 3), "w2": (4, 4, 1, 1)}, 0),
    "squeeze and excite of the input": (
        "q = Sigmoid (x1)  p = Mul (s, q)  c = Conv (p, w)", {"w": (3, 4, 3, 3)}, 2),
}  # fmt: skip


CONSTANTS = """int64[2] flat = {0, -1}, int64[3] rows = {0, 4, 36}, int64[1] zero = {0},
int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4},
int64[8] pads = {0, 0, 1, 2, 0, 0, 2, 1}, int64[8] more = {0, 1, 0, 0, 0, 2, 0, 0}, float half = {0.5},
float[4] scales = {1, 1, 2, 2}"""


def between(case: str) -> onnx.ModelProto:
    """Conv, ReLU, the body, ReLU, read-out: global mean and a Gemm (or a Gemm alone)."""
    body, shapes, _ = BETWEEN[case]
    weights = {
        name: random(10 + i, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, (name, shape) in enumerate(shapes.items())
    }
    weights |= {"first": random(1, 4, 2, 3, 3), "second": random(2, 4, 2, 3, 3)}
    # Channels that differ a lot, so that thresholds per channel do.
    weights["first"] *= np.array([0.2, 1, 3, 0.5], np.float32)[:, None, None, None]
    last = body.rsplit("c = ", 1)[1]
    if "Gemm" in last:
        out = "m = Identity (r)"
    else:
        axes = "[1]" if "MatMul" in last else "[2, 3]"
        out = f"m = ReduceMean <axes = {axes}, keepdims = 0> (r)"
    text = f"""g (float[N,2,6,6] x) => (float[N,?] y)
    <{CONSTANTS}>
    {{
      x1 = Conv <pads = [1, 1, 1, 1]> (x, first)
      s = Relu (x1)
      i2 = Conv <pads = [1, 1, 1, 1]> (x, second)
      s2 = Relu (i2)
      {body}
      r = Relu (c)
      {out}
      y = Neg (m)
    }}"""
    return parse(text, weights)


def converges(model: onnx.ModelProto, snn: onnx.ModelProto, x: Array, constant: float) -> None:
    """The decoded outputs are within `constant`/T of the ANN's, at two T."""
    (wanted,) = run_model(model, x=x)
    scale = float(np.abs(wanted).max())
    assert scale > 0
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        error = float(np.abs(decoded - wanted).max())
        assert error <= constant / steps * scale, f"T = {steps}: {error * steps / scale:.1f}/T"


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", BETWEEN)
def test_decoded_outputs_converge(case: str, per_channel: bool) -> None:
    model = between(case)
    x = random(0, 2, 2, 6, 6)
    snn = compile_text(model, x, per_channel=per_channel)
    converges(model, snn, x, TABLE)


def test_every_case_ran() -> None:
    assert len(BETWEEN) == 29


def layer_inputs(model: onnx.ModelProto, steps: int) -> Iterator[tuple[str, str]]:
    """(operator, its temporal input) of every linear layer in a `steps` model."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and (
            node.input[0].startswith("t") and "/" in node.input[0]
        ):
            yield node.op_type, node.input[0]


def spikes_of(snn: onnx.ModelProto, x: Array, steps: int) -> dict[str, Array]:
    """What reaches every linear layer after the first neurons, at every step."""
    names = sorted({name for _, name in layer_inputs(snn, steps)})
    watched = with_outputs(snn, names)
    outputs = run_model(watched, x=x)
    order = [output.name for output in watched.graph.output]
    return {name: outputs[order.index(name)] for name in names}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", [c for c in BETWEEN if "average" not in c])
def test_what_reaches_a_layer_is_binary(case: str, per_channel: bool) -> None:
    _, _, muls = BETWEEN[case]
    snn = compile_text(between(case), x := random(0, 2, 2, 6, 6), steps=5,
                       unroll="steps", per_channel=per_channel)  # fmt: skip
    spikes = spikes_of(snn, x, 5)
    assert len(spikes) >= 5
    fired = 0.0
    for name, values in spikes.items():
        fired += float(values.sum())
        if not muls or case == "residual":
            assert set(np.unique(values)) <= {0.0, 1.0}, name
    assert fired > 0


@pytest.mark.parametrize("case", BETWEEN)
def test_amplitudes_disappear_where_they_can(case: str) -> None:
    _, _, muls = BETWEEN[case]
    snn = compile_text(between(case), random(0, 2, 2, 6, 6), unroll="loop")
    (loop,) = (node for node in snn.graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert sum(node.op_type == "Mul" for node in body.node) == muls


def test_max_pooling_becomes_its_spiking_form() -> None:
    counts = op_counts(compile_text(between("max"), random(0, 2, 2, 6, 6)))
    assert counts["SpikeMaxPool"] == 1 and counts["MaxPool"] == 0
    # After the last rectifier nothing fires: the pooling is applied to the decoded values.
    text = """g (float[N,2,6,6] x) => (float[N,2,3,3] y)
    { r = Relu (x)  y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) }"""
    counts = op_counts(compile_text(parse(text), random(0, 2, 2, 6, 6)))
    assert counts["SpikeMaxPool"] == 0 and counts["MaxPool"] == 1


# --- where an amplitude may go, axis by axis ---


@dataclass(frozen=True)
class Move:
    """Statements that make `y` of the spiking value `s`, which has `shape`; the Muls left of it."""

    text: str
    muls: int
    shape: str = "N,4,6,8"
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int = 17


ONE = {"w": (3, 4, 1, 1)}


MOVES: dict[str, Move] = {
    # The axis of the channels is gone, or another one, when the weights are met.
    "sum of axis 0": Move("g = ReduceSum <keepdims = 0> (s, i0)  y = MatMul (g, w)", 1, "6,4,16",
        {"w": (16, 3)}),
    "mean of axis 0, kept": Move("g = ReduceMean <axes = [0]> (s)  y = MatMul (g, w)", 1, "8,4,16",
        {"w": (16, 3)}),
    "sum of axis -3, rows as many": Move("g = ReduceSum <keepdims = 0> (s, m3)  y = MatMul (g, w)",
        1, "6,4,4", {"w": (4, 3)}),
    "sum of axis 2": Move("g = ReduceSum <keepdims = 0> (s, i2)  y = MatMul (g, w)", 0, "N,4,16",
        {"w": (4, 3)}),
    "sum of the channels": Move("g = ReduceSum <keepdims = 0> (s, i1)  y = MatMul (g, w)", 1,
        "N,4,16", {"w": (16, 3)}),
    "sum of axes 0 and 2": Move("g = ReduceSum <keepdims = 0> (s, i02)  y = Unsqueeze (g, i0)", 1,
        "4,4,4"),
    "sum of all": Move("y = ReduceSum (s)", 1, "2,4,4"),
    "sum of all, no axes given": Move("y = ReduceSum (s, none)", 1, "2,4,4"),
    "sum of nothing": Move("g = ReduceSum <noop_with_empty_axes = 1> (s, none)  y = Conv (g, w)", 0,
        weights=ONE),
    "rows of another axis": Move("y = MatMul (s, w)", 1, "N,4,4", {"w": (4, 3)}),
    "columns": Move("y = MatMul (s, w)", 0, "N,4", {"w": (4, 3)}),
    "on the left": Move("y = MatMul (w, s)", 1, "N,4,4", {"w": (3, 4)}),
    "a product of axis 1 by Gemm": Move("t = Transpose <perm = [1, 0]> (s)  y = Gemm (t, w)", 1, "4,4",
        {"w": (4, 3)}),
    "a product of axis 1 without an order": Move("t = Transpose (s)  y = Gemm (t, w)", 1, "4,4",
        {"w": (4, 3)}),
    # Sampling along the channels mixes them, along space it does not.
    "resize channels": Move('y = Resize <mode = "nearest"> (s, , double1)', 1),
    "resize channels, linear": Move('y = Resize <mode = "linear"> (s, , double1)', 1, "2,4,4"),
    "resize space": Move('g = Resize <mode = "nearest"> (s, , double2)  y = Conv (g, w)', 0,
        weights=ONE),
    "resize to sizes": Move("g = Resize (s, , , sizes)  y = Conv (g, w)", 0, weights=ONE),
    "resize to sizes, axes": Move("g = Resize <axes = [-1, 2]> (s, , , six)  y = Conv (g, w)", 0,
        weights=ONE, opset=18),
    "resize to sizes, as many": Move("g = Resize <axes = [1, 2]> (s, , , six)  y = Conv (g, w)", 0,
        weights=ONE, opset=18),
    "resize to sizes, more channels": Move("y = Resize <axes = [1]> (s, , , i9)", 1, opset=18),
    "resize to sizes, channels": Move("y = Resize <axes = [1]> (s, , , two)", 1, opset=18),
    "resize channels by name": Move("y = Resize <axes = [-3]> (s, , double)", 1, opset=18),
    "resize beyond the edge": Move("""y = Resize <coordinate_transformation_mode = "tf_crop_and_resize",
        extrapolation_value = 2.0> (s, roi, double2)""", 1),
    "upsample space": Move("g = Upsample (s, double2)  y = Conv (g, w)", 0, weights=ONE, opset=9),
    "upsample channels": Move("y = Upsample (s, double1)", 1, opset=9),
    # Axes that move.
    "transposed, then a line": Move("t = Transpose <perm = [0, 2, 1]> (s)  y = Conv (t, w)", 1,
        "N,4,4", {"w": (3, 4, 1)}),
    "transposed twice": Move("t = Transpose <perm = [0, 2, 1]> (s)"
        "  u = Transpose <perm = [0, 2, 1]> (t)  y = Conv (u, w)", 0, "N,4,4", {"w": (3, 4, 1)}),
    "transposed without an order": Move("t = Transpose (s)  y = MatMul (t, w)", 1, "4,4,4",
        {"w": (4, 3)}),
    "the batch behind": Move("t = Transpose <perm = [1, 0, 2]> (s)  u = ReduceSum (t, i2)"
        "  y = Transpose <perm = [1, 0, 2]> (u)", 1, "N,4,6"),
    "pooled where rows are channels": Move(
        "t = Transpose <perm = [0, 2, 1]> (s)  p = AveragePool <kernel_shape = [2]> (t)"
        "  y = Conv (p, w)", 1, "N,4,4", {"w": (3, 4, 1)}),
    "pooled along a line": Move(
        "p = AveragePool <kernel_shape = [2], strides = [2]> (s)  y = Conv (p, w)", 0,
        "N,4,8", {"w": (3, 4, 1)}),
    "pooled, padded": Move("""p = AveragePool <kernel_shape = [2, 2], pads = [0, 1, 1, 0],
        count_include_pad = 1> (s)  y = Conv (p, w)""", 0, weights=ONE),
    "averaged where rows are channels": Move(
        "t = Transpose <perm = [0, 2, 1, 3]> (s)  p = GlobalAveragePool (t)  y = Conv (p, w)", 1,
        "N,4,4,4", {"w": (3, 4, 1, 1)}),
    # Axes that are joined, split, added, removed.
    "unsqueezed in front": Move("u = Unsqueeze (s, i0)  q = Squeeze (u, i0)  y = Conv (q, w)", 0,
        weights=ONE),
    "unsqueezed behind the batch": Move("u = Unsqueeze (s, m2)  y = MatMul (u, w)", 0, "N,4",
        {"w": (4, 3)}),
    "unsqueezed between": Move("u = Unsqueeze (s, i1)  q = Squeeze (u, m4)  y = Conv (q, w)", 0,
        weights=ONE),
    "squeezed batch": Move("q = Squeeze (s, i0)  y = MatMul (q, w)", 1, "1,4,4", {"w": (4, 3)}),
    "squeezed batch of a row": Move("q = Squeeze (s, i0)  y = MatMul (q, w)", 0, "1,4", {"w": (4, 3)}),
    "squeezed, all of one": Move("q = Squeeze (s)  y = MatMul (q, w)", 0, "2,4,1,1", {"w": (4, 3)}),
    "flattened": Move("f = Flatten (s)  y = Gemm (f, w)", 0, "N,4,2,2", {"w": (16, 3)}),
    "flattened from the end": Move("f = Flatten <axis = -2> (s)  y = Gemm (f, w)", 0, "N,4,2",
        {"w": (8, 3)}),
    "flattened to one row": Move("f = Flatten <axis = 0> (s)  y = Gemm (f, w)", 0, "2,4,2",
        {"w": (16, 3)}),
    "flattened at -rank": Move("f = Flatten <axis = -3> (s)  y = Gemm (f, w)", 0, "2,4,2",
        {"w": (16, 3)}),
    "reshaped over rows": Move("f = Reshape (s, t_rows)  y = MatMul (f, w)", 1, "2,4,2",
        {"w": (2, 3)}),
    "reshaped into groups": Move("f = Reshape (s, t_groups)  y = ReduceSum (f, i2)", 1, "N,4,6"),
    "groups and back": Move("f = Reshape (s, t_groups)  r = Reshape (f, t_back)  y = Conv (r, w)", 0,
        "N,4,6", {"w": (3, 4, 1)}),
    # Parts.
    "every second channel from the end": Move("c = Slice (s, m1, m9, i1, m2)  y = Conv (c, w)", 1,
        weights={"w": (3, 2, 1, 1)}),
    "channels up to the last": Move("c = Slice (s, i1, m1, m3)  y = Conv (c, w)", 0,
        weights={"w": (3, 2, 1, 1)}),
    "space from the end": Move("c = Slice (s, m2, i9, m1)  y = Conv (c, w)", 0, weights=ONE),
    "picked": Move("c = Gather <axis = 1> (s, pick)  y = Conv (c, w)", 1, weights=ONE),
    "one picked": Move("c = Gather <axis = -2> (s, zero)  y = Conv (c, w)", 1,
        weights={"w": (3, 4, 1)}),
    "split": Move("a, b = Split <axis = 1> (s)  c = Concat <axis = -3> (b, a)  y = Conv (c, w)", 1,
        weights=ONE),
    "tiled": Move("c = Tile (s, double1i)  y = Conv (c, w)", 1, weights={"w": (3, 8, 1, 1)}),
    "expanded": Move("c = Expand (s, wide)  y = Conv (c, w)", 1, "N,4,1,1", ONE),
    "expanded by an axis": Move("c = Expand (s, deep)  y = MatMul (c, w)", 1, "1,4,4", {"w": (4, 3)}),
    "depth to space": Move("c = DepthToSpace <blocksize = 2> (s)  y = Conv (c, w)", 1,
        weights={"w": (3, 1, 1, 1)}),
    "space to depth": Move("c = SpaceToDepth <blocksize = 2> (s)  y = Conv (c, w)", 1,
        weights={"w": (3, 16, 1, 1)}),
    "joined along rows": Move("c = Concat <axis = 2> (s, x)  y = Conv (c, w)", 1, weights=ONE),
    # Borders.
    "zeros around the channels": Move("p = Pad (s, pad1)  y = Conv (p, w)", 0,
        weights={"w": (3, 7, 1, 1)}),
    "zeros, one axis": Move("p = Pad (s, pad2, , m3)  y = Conv (p, w)", 0,
        weights={"w": (3, 7, 1, 1)}, opset=18),
    "cropped channels": Move("p = Pad (s, crop)  y = Conv (p, w)", 0, weights={"w": (3, 3, 1, 1)}),
    "mirrored space": Move('p = Pad <mode = "reflect"> (s, pad3)  y = Conv (p, w)', 0, weights=ONE),
    "mirrored channels": Move('p = Pad <mode = "reflect"> (s, pad1)  y = Conv (p, w)', 1,
        weights={"w": (3, 7, 1, 1)}),
    "repeated edge": Move('p = Pad <mode = "edge"> (s, pad3)  y = Conv (p, w)', 0, weights=ONE),
    "around": Move('p = Pad <mode = "wrap"> (s, pad3)  y = Conv (p, w)', 0, weights=ONE, opset=19),
    "ones around": Move("p = Pad (s, pad3, half)  y = Conv (p, w)", 1, weights=ONE),
    # Weights in groups.
    "grouped": Move("y = Conv <group = 2> (s, w)", 0, weights={"w": (6, 2, 1, 1)}),
    "grouped line": Move("y = Conv <group = 4> (s, w)", 0, "N,4,6", {"w": (8, 1, 2)}),
    "transposed and grouped": Move("y = ConvTranspose <group = 2> (s, w)", 0,
        weights={"w": (4, 3, 1, 1)}),
    "in three dimensions": Move("y = Conv (s, w)", 0, "N,4,2,2,2", {"w": (3, 4, 1, 1, 1)}),
}  # fmt: skip


MOVED_BY = """int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i9 = {9},
int64 zero = {0},
int64[1] m1 = {-1}, int64[1] m2 = {-2}, int64[1] m3 = {-3}, int64[1] m4 = {-4}, int64[1] m9 = {-9},
int64[2] i02 = {0, 2}, int64[0] none = {}, int64[4] sizes = {1, 4, 3, 4}, int64[2] six = {4, 3},
int64[1] two = {2}, float[1] double = {2}, float[4] double2 = {1, 1, 2, 2},
float[8] roi = {0, 0, 0, 0, 1, 1, 2, 2},
int64[2] t_rows = {8, 2}, int64[4] t_groups = {0, 2, -1, 6}, int64[3] t_back = {0, 4, 6},
int64[4] pick = {3, 0, -2, 0}, int64[4] double1i = {1, 2, 1, 1}, int64[4] wide = {1, 1, 3, 2},
int64[4] deep = {3, 1, 4, 4}, int64[8] pad1 = {0, 1, 0, 0, 0, 2, 0, 0}, int64[2] pad2 = {1, 2},
int64[8] pad3 = {0, 0, 1, 2, 0, 0, 1, 0},
int64[8] crop = {0, -1, 0, 0, 0, 0, 0, 0}, float half = {0.5}"""


@pytest.mark.parametrize("case", MOVES)
def test_amplitudes_follow_their_own_axis(case: str) -> None:
    """The graph computes the same of the same spikes before and after its amplitudes move.

    Weights are small integers and thresholds powers of two: every product and sum is exact.
    """
    move = MOVES[case]
    size = move.shape.count(",") + 1
    constants = MOVED_BY + f", float[{size}] double1 = {{1, 2{', 1' * (size - 2)}}}"
    weights = {n: np.round(3 * random(1, *shape)) for n, shape in move.weights.items()}
    text = f"""g (float[{move.shape}] x) => (float y) <{constants}>
    {{ [act] s = Relu (x)  {move.text} }}"""
    model = parse(text, weights, opset=move.opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph, context = after(model)
    channels = int(graph.inputs[0].shape[1])
    theta = np.float32([1 / 8, 1, 16, 1024, 2, 64, 1 / 2, 256])[:channels]
    run_passes([InsertNeurons({"act": theta}, 0.5)], graph, context)
    moved = graph.copy()
    run_passes([FoldAmplitude()], moved, replace(context))
    shape = [2 if dim == "N" else int(dim) for dim in move.shape.split(",")]
    spikes = (np.random.default_rng(2).random(shape) < 0.8).astype(np.float32)
    feeds = {"act/spikes": spikes, "x": np.round(random(3, *shape))}
    wanted, found = (run_model(cut(g), **feeds)[0] for g in (graph, moved))
    assert np.any(wanted) and np.array_equal(found, wanted)
    assert ops(moved).count("Mul") == move.muls


def cut(graph: Graph) -> onnx.ModelProto:
    """The model that takes the spikes of the only neuron as an input."""
    copy = graph.copy()
    (neuron,) = (node for node in copy.nodes if node.op == "RMPNeuron")
    spikes = neuron.outputs[0]
    neuron.outputs.clear()
    copy.nodes.remove(neuron)
    copy.inputs.append(spikes)
    model = export_model(copy)
    model.ir_version = 8
    return model


def test_every_move_ran() -> None:
    assert len(MOVES) == 71


# --- at random ---


@st.composite
def networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, Array]:
    """Two to four layers of convolutions and poolings, with biases, residuals and a read-out."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    weights: dict[str, Array] = {}
    body: list[str] = []
    current, channels = "x", 2

    def conv(source: str, features: int, size: int, name: str) -> None:
        scale = np.sqrt(2 / (channels * size * size))
        weights[f"{name}w"] = (
            scale * rng.standard_normal((features, channels, size, size))
        ).astype(np.float32)
        weights[f"{name}b"] = (0.1 * rng.standard_normal(features)).astype(np.float32)
        pad = size // 2
        body.append(
            f"{name} = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> ({source}, {name}w, {name}b)"
        )

    depth = draw(st.integers(2, 4))
    for i in range(depth):
        kind = draw(st.sampled_from(["plain", "residual", "max", "average"]))
        features = channels if kind == "residual" else draw(st.sampled_from([2, 3]))
        conv(current, features, draw(st.sampled_from([1, 3])), f"c{i}")
        if kind == "residual":
            body.append(f"a{i} = Add (c{i}, {current})")
        body.append(f"r{i} = Relu ({'a' if kind == 'residual' else 'c'}{i})")
        current, channels = f"r{i}", features
        if kind in ("max", "average") and i < 2:
            pool = "MaxPool" if kind == "max" else "AveragePool"
            body.append(f"p{i} = {pool} <kernel_shape = [2, 2], strides = [2, 2]> (r{i})")
            current = f"p{i}"
    weights["out"] = rng.standard_normal((channels, 3)).astype(np.float32)
    body.append(f"m = ReduceMean <axes = [2, 3], keepdims = 0> ({current})  y = Gemm (m, out)")
    lines = "\n".join(body)
    model = parse(f"g (float[N,2,4,4] x) => (float[N,3] y) {{ {lines} }}", weights)
    return model, rng.standard_normal((2, 2, 4, 4)).astype(np.float32)


@settings(max_examples=15)
@given(networks(), st.booleans())
def test_random_networks_converge(case: tuple[onnx.ModelProto, Array], per_channel: bool) -> None:
    model, x = case
    if float(np.abs(run_model(model, x=x)[0]).max()) > 1e-3:
        converges(model, compile_text(model, x, per_channel=per_channel), x, RANDOM)
