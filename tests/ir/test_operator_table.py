"""Every operator that may stand between spiking layers, with its attributes, against onnxruntime.

Each case stands between two spiking layers and is tried on spikes (a rectifier's output, whose
amplitude moves behind or into the operator) and on currents (a convolution of it, of both signs).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from helpers import Array, assert_close, compile_text, op_counts, parse, random, refused, run_model

from snncompiler import pipeline
from snncompiler.ir import graph
from snncompiler.ir.linear import CONDITIONS
from snncompiler.ir.operators import (
    _TABLE,
    OPERATORS,
    Amplitude,
    Batch,
    Integers,
    Linear,
    Operator,
    Outputs,
    Sign,
    Span,
    Weights,
)
from snncompiler.passes import amplitudes
from snncompiler.passes.normalize import track_batch
from snncompiler.passes.source import drop_fake_quant, spell_rectifiers
from snncompiler.passes.spike import fold_amplitude

#: Folding reorders sums of at most a hundred float32 products: a hundred roundings of 2^-24.
ROUNDING = 100 * 2.0**-24
#: |SNN - ANN| <= UNITS/T of the largest output.  A neuron is off by at most θ/T, and each of the two
#: or three layers here sums a few dozen of these with weights whose absolute sum is a few units.
UNITS = 30.0

#: The shape of the temporal value `s` of each kind of network, without the batch.
SHAPES = {"image": (4, 6, 6), "vector": (8,), "line": (4, 9), "volume": (4, 4, 4, 4)}
FIRST = {
    "image": "Conv <pads = [1, 1, 1, 1]> (x, first)",
    "vector": "MatMul (x, first)",
    "line": "Conv <pads = [1, 1]> (x, first)",
    "volume": "Conv <pads = [1, 1, 1, 1, 1, 1]> (x, first)",
}
SECOND = {"image": "Conv", "vector": "MatMul", "line": "Conv", "volume": "Conv"}


@dataclass(frozen=True)
class Case:
    """Statements that make `p` of `s`, and of `r`, a second temporal value of the same shape."""

    text: str
    kind: str = "image"
    opset: int = 17
    weights: Mapping[str, Any] = field(default_factory=dict)
    rounding: float = ROUNDING
    #: The network was exported for one sample.
    static: bool = False


def w(seed: int, *shape: int) -> Array:
    """Weights, scaled so that a sum over the inputs stays near one."""
    return random(seed, *shape) / np.float32(max(np.sqrt(np.prod(shape[1:])), 1.0))


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


CHANNELS = random(11, 4, 1, 1)
SWAP = "<perm = [1, 0, 2, 3]>"
#: Places along an axis of four, for GatherElements; no two are the same along any axis.
PICKS = (np.arange(4).reshape(4, 1, 1) + np.arange(6) + np.arange(6)[:, None]) % 4 * 1
PICKS = np.asarray(PICKS, np.int64)[None]
CONV = {"k": w(1, 4, 4, 3, 3)}
BIAS = {**CONV, "b": random(2, 4)}

CASES: dict[str, list[Case]] = {
    "Conv": [
        Case("p = Conv (s, k)", weights=CONV),
        Case("p = Conv (s, k, b)", weights=BIAS),
        Case("p = Conv <pads = [0, 1, 2, 1]> (s, k, b)", weights=BIAS),
        Case("p = Conv <strides = [2, 1]> (s, k, b)", weights=BIAS),
        Case("p = Conv <dilations = [2, 1], pads = [2, 1, 2, 1]> (s, k)", weights=CONV),
        *[
            Case(f'p = Conv <auto_pad = "{pad}", strides = [2, 2]> (s, k)', weights=CONV)
            for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ],
        Case("p = Conv <group = 2> (s, k)", weights={"k": w(1, 6, 2, 3, 3)}),
        Case("p = Conv <group = 4> (s, k, b)", weights={"k": w(1, 4, 1, 3, 3), "b": random(2, 4)}),
        Case("p = Conv <group = 4> (s, k)", weights={"k": w(1, 8, 1, 3, 3)}),
        Case("p = Conv <kernel_shape = [3, 3]> (s, k)", weights=CONV),
        Case("p = Conv <pads = [1, 2]> (s, k)", "line", weights={"k": w(1, 5, 4, 3)}),
        Case("p = Conv <strides = [1, 1, 2]> (s, k)", "volume", weights={"k": w(1, 5, 4, 2, 2, 2)}),
    ],
    "ConvTranspose": [
        Case("p = ConvTranspose (s, k)", weights={"k": w(1, 4, 3, 3, 3)}),
        Case(
            "p = ConvTranspose <strides = [2, 2], output_padding = [1, 0]> (s, k, b)",
            weights={"k": w(1, 4, 3, 3, 3), "b": random(2, 3)},
        ),
        Case(
            "p = ConvTranspose <group = 2, pads = [1, 0, 1, 2]> (s, k)",
            weights={"k": w(1, 4, 3, 3, 3)},
        ),
        Case("p = ConvTranspose <group = 4> (s, k)", weights={"k": w(1, 4, 1, 2, 2)}),
        Case("p = ConvTranspose <dilations = [2, 2]> (s, k)", weights={"k": w(1, 4, 3, 2, 2)}),
        Case(
            'p = ConvTranspose <auto_pad = "SAME_UPPER", strides = [2, 2]> (s, k)',
            weights={"k": w(1, 4, 3, 3, 3)},
        ),
        Case(
            "p = ConvTranspose <output_shape = [12, 13], strides = [2, 2]> (s, k)",
            weights={"k": w(1, 4, 3, 3, 3)},
        ),
        Case("p = ConvTranspose <strides = [3]> (s, k)", "line", weights={"k": w(1, 4, 3, 3)}),
        Case("p = ConvTranspose (s, k)", "volume", weights={"k": w(1, 4, 3, 2, 2, 2)}),
    ],
    "Gemm": [
        Case("p = Gemm (s, k)", "vector", weights={"k": w(1, 8, 5)}),
        Case("p = Gemm (s, k, b)", "vector", weights={"k": w(1, 8, 5), "b": random(2, 5)}),
        Case("p = Gemm (s, k, b)", "vector", weights={"k": w(1, 8, 5), "b": random(2, 1)}),
        Case(
            "p = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (s, k, b)",
            "vector",
            weights={"k": w(1, 5, 8), "b": random(2, 1, 5)},
        ),
        Case("q = MatMul (r, k)  p = Gemm (s, k, q)", "vector", weights={"k": w(1, 8, 5)}),
        Case(
            "t = Transpose (s)  p = Gemm <transA = 1> (t, k)", "vector", weights={"k": w(1, 8, 5)}
        ),
    ],
    "MatMul": [
        Case("p = MatMul (s, k)", "vector", weights={"k": w(1, 8, 5)}),
        Case("p = MatMul (s, k)", weights={"k": w(1, 6, 5)}),
        Case("p = MatMul (k, s)", weights={"k": w(1, 5, 6)}),
        Case("p = MatMul (s, k)", weights={"k": w(1, 4, 6, 5)}),
        Case("p = MatMul (k, s)", weights={"k": w(1, 1, 4, 5, 6)[0]}),
        Case("p = MatMul (s, k)", weights={"k": w(1, 6)}),
        Case("t = Transpose (s)  p = MatMul (k, t)", "vector", weights={"k": w(1, 5, 8)}),
    ],
    "Add": [
        Case("p = Add (s, k)", weights={"k": CHANNELS}),
        Case("p = Add (k, s)", weights={"k": floats(-0.5)}),
        Case("p = Add (s, k)", weights={"k": random(1, 1, 4, 6, 6)}),
        Case("p = Add (s, k)", weights={"k": random(1, 6)}),
        Case("p = Add (s, r)"),
        Case("p = Add (s, s)"),
        Case("q = Conv (x, k)  p = Add (s, q)", weights={"k": w(1, 4, 3, 1, 1)}),
        Case("p = Add (s, k)", "vector", weights={"k": random(1, 8)}),
    ],
    "Sub": [
        Case("p = Sub (s, k)", weights={"k": CHANNELS}),
        Case("p = Sub (k, s)", weights={"k": floats(1.5)}),
        Case("p = Sub (s, r)"),
    ],
    "Sum": [
        Case("p = Sum (s)"),
        Case("p = Sum (s, r)"),
        Case("p = Sum (s, k, r, s)", weights={"k": CHANNELS}),
    ],
    "Mean": [
        Case("p = Mean (s)"),
        Case("p = Mean (s, r)"),
        Case("p = Mean (s, r, k)", weights={"k": CHANNELS}),
    ],
    "Concat": [
        Case("p = Concat <axis = 1> (s, r)"),
        Case("p = Concat <axis = -1> (s, r)"),
        Case("p = Concat <axis = 2> (s, s, r)"),
        Case(
            "a = Relu (x)  c = Conv (a, k)  p = Concat <axis = 1> (s, c)",
            weights={"k": w(1, 2, 3, 1, 1)},
        ),
        Case("p = Concat <axis = 1> (s)"),
    ],
    "Neg": [Case("n = Neg (s)  p = Add (n, k)", weights={"k": floats(1)})],
    "Mul": [
        Case("p = Mul (s, k)", weights={"k": CHANNELS}),
        Case("n = Mul (k, s)  p = Add (n, o)", weights={"k": floats(-1.5), "o": floats(1)}),
        Case("p = Mul (s, k)", weights={"k": random(1, 1, 4, 6, 6)}),
        Case("g = GlobalAveragePool (x)  m = ReduceMean <axes = [1]> (g)  p = Mul (s, m)"),
    ],
    "Div": [
        Case("p = Div (s, k)", weights={"k": np.abs(CHANNELS) + 1}),
        Case("g = GlobalAveragePool (x)  m = ReduceL2 <axes = [1]> (g)  p = Div (s, m)"),
        Case("n = Div (s, k)  p = Add (n, o)", weights={"k": floats(-3), "o": floats(1)}),
    ],
    "AveragePool": [
        Case("p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)"),
        Case("p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)"),
        Case("p = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 2], count_include_pad = 1> (s)"),
        Case("p = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (s)"),
        *[
            Case(f'p = AveragePool <kernel_shape = [3, 3], auto_pad = "{pad}", strides = [2, 2]> (s)')
            for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        ],
        Case("p = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (s)", opset=19),
        Case("p = AveragePool <kernel_shape = [3]> (s)", "line"),
        Case("p = AveragePool <kernel_shape = [2, 2, 2]> (s)", "volume"),
    ],
    "GlobalAveragePool": [Case("p = GlobalAveragePool (s)"), Case("p = GlobalAveragePool (s)", "line")],
    "ReduceMean": [
        Case("p = ReduceMean <axes = [2, 3]> (s)"),
        Case("p = ReduceMean <axes = [-1], keepdims = 0> (s)"),
        Case("p = ReduceMean <axes = [1]> (s)"),
        Case("p = ReduceMean (s, k)", opset=18, weights={"k": ints(2, 3)}),
        Case("p = ReduceMean <noop_with_empty_axes = 1> (s)", opset=18),
    ],
    "ReduceSum": [
        Case("p = ReduceSum (s, k)", weights={"k": ints(3)}),
        Case("p = ReduceSum <keepdims = 0> (s, k)", weights={"k": ints(-1, 1)}),
        Case("p = ReduceSum <noop_with_empty_axes = 1> (s)"),
        Case("p = ReduceSum <axes = [2]> (s)", opset=11),
    ],
    "Pad": [
        Case("p = Pad (s, k)", weights={"k": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
        Case("p = Pad (s, k)", weights={"k": ints(0, 1, 0, 0, 0, 3, 0, 0)}),
        Case("p = Pad (s, k, v)", weights={"k": ints(0, 1, 1, 0, 0, 0, 0, 1), "v": np.float32(1.5)}),
        Case("p = Pad (s, k)", weights={"k": ints(0, 0, -1, 0, 0, 0, 0, -2)}),
        Case("p = Pad (s, k)", weights={"k": ints(0, -1, 0, 0, 0, 0, 0, 0)}),
        Case("p = Pad <pads = [0, 0, -1, 0, 0, 0, 1, -2]> (s)", opset=10),
        Case("p = Pad <pads = [0, -1, 0, 2, 0, 0, 0, -1]> (s)", opset=9),
        *[
            Case(
                f'p = Pad <mode = "{mode}"> (s, k)',
                opset=19,
                weights={"k": ints(0, 1, 1, 2, 0, 0, 1, 0)},
            )
            for mode in ("edge", "reflect", "wrap")
        ],
        Case("p = Pad (s, k, , a)", opset=18, weights={"k": ints(1, 2), "a": ints(-1)}),
        Case('p = Pad <mode = "constant", pads = [0, 0, 1, 1, 0, 0, 1, 1]> (s)', opset=9),
    ],
    "Slice": [
        Case("p = Slice (s, a, b)", weights={"a": ints(0, 1), "b": ints(1 << 40, 3)}),
        Case("p = Slice (s, a, b, c)", weights={"a": ints(1, 2), "b": ints(3, 6), "c": ints(1, -1)}),
        Case(
            "p = Slice (s, a, b, c, d)",
            weights={"a": ints(0, 0), "b": ints(4, 6), "c": ints(1, 2), "d": ints(2, 3)},
        ),
        Case(
            "p = Slice (s, a, b, c, d)",
            weights={"a": ints(-1), "b": ints(-100), "c": ints(1), "d": ints(-1)},
        ),
        Case("p = Slice <axes = [1], starts = [-3], ends = [1000]> (s)", opset=9),
    ],
    "Split": [
        Case("a, b = Split <axis = 1> (s)  p = Sub (a, b)"),
        Case("a, p = Split <axis = -3> (s, k)", weights={"k": ints(1, 3)}),
        Case("a, p = Split <axis = 3, num_outputs = 2> (s)", opset=18),
        Case("p, a = Split <axis = 2, split = [4, 2]> (s)", opset=11),
    ],
    "Gather": [
        Case("p = Gather <axis = 1> (s, k)", weights={"k": ints(3, 0, 0)}),
        Case("p = Gather <axis = -1> (s, k)", weights={"k": ints(-1, 2)}),
        Case("p = Gather <axis = 2> (s, k)", weights={"k": np.int64(1)}),
        Case("p = Gather <axis = 3> (s, k)", weights={"k": ints(0, 1, 2, 3).reshape(2, 2)}),
    ],
    "Transpose": [
        Case("p = Transpose <perm = [0, 2, 3, 1]> (s)"),
        Case("p = Transpose <perm = [0, 3, 1, 2]> (s)"),
        Case("p = Transpose <perm = [1, 0, 2, 3]> (s)"),
        Case("p = Transpose (s)"),
    ],
    "Reshape": [
        Case("p = Reshape (s, k)", weights={"k": ints(0, -1)}),
        Case("p = Reshape (s, k)", weights={"k": ints(0, 2, 2, 36)}),
        Case("p = Reshape (s, k)", weights={"k": ints(-1, 4, 36)}),
        Case("p = Reshape <allowzero = 1> (s, k)", weights={"k": ints(-1, 144)}),
    ],
    "Flatten": [Case("p = Flatten (s)"), Case("p = Flatten <axis = -3> (s)")],
    "Squeeze": [
        Case("u = Unsqueeze (s, k)  p = Squeeze (u, k)", weights={"k": ints(2)}),
        Case("g = GlobalAveragePool (s)  p = Squeeze (g, k)", weights={"k": ints(-1, 2)}),
        Case("g = GlobalAveragePool (s)  p = Squeeze <axes = [2, 3]> (g)", opset=11),
    ],
    "Unsqueeze": [
        Case("p = Unsqueeze (s, k)", weights={"k": ints(1)}),
        Case("p = Unsqueeze (s, k)", weights={"k": ints(-1, 2)}),
        Case("p = Unsqueeze <axes = [2]> (s)", opset=11),
    ],
    "Expand": [
        Case("g = GlobalAveragePool (s)  p = Expand (g, k)", weights={"k": ints(1, 4, 3, 2)}),
        Case("g = GlobalAveragePool (s)  p = Expand (g, k)", weights={"k": ints(5, 1)}),
    ],
    "Tile": [Case("p = Tile (s, k)", weights={"k": ints(1, 2, 1, 3)})],
    "Identity": [Case("p = Identity (s)")],
    "Cast": [
        Case("p = Cast <to = 1> (s)"),
        Case("d = Cast <to = 11> (s)  p = Cast <to = 1> (d)"),
        Case("d = Cast <to = 10> (s)  p = Cast <to = 1> (d)", rounding=4 * 2.0**-11),
    ],
    "Resize": [
        *[
            Case(
                f'p = Resize <mode = "{mode}", coordinate_transformation_mode = "{place}"> (s, , k)',
                weights={"k": floats(1, 1, 2, 2)},
            )
            for mode in ("nearest", "linear", "cubic")
            for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        ],
        *[
            Case(
                f'p = Resize <mode = "nearest", nearest_mode = "{mode}"> (s, , k)',
                weights={"k": floats(1, 1, 1.5, 0.5)},
            )
            for mode in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")
        ],
        Case("p = Resize (s, , , k)", weights={"k": ints(1, 4, 12, 9)}, static=True),
        Case(
            'p = Resize <mode = "linear"> (s, , , k)', weights={"k": ints(1, 4, 9, 5)}, static=True
        ),
        Case('p = Resize <mode = "linear"> (s, k)', opset=10, weights={"k": floats(1, 1, 2, 2)}),
        Case('p = Resize <mode = "nearest"> (s, k)', opset=10, weights={"k": floats(1, 1, 1.5, 0.5)}),
        Case("p = Resize <axes = [2, 3]> (s, , k)", opset=18, weights={"k": floats(2, 2)}),
        Case("p = Resize <axes = [2, 3]> (s, , , k)", opset=18, weights={"k": ints(12, 18)}),
        Case(
            'p = Resize <mode = "linear", antialias = 1> (s, , k)',
            opset=18,
            weights={"k": floats(1, 1, 0.5, 0.5)},
        ),
        Case(
            'p = Resize <mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1> (s, , k)',
            weights={"k": floats(1, 1, 2, 2)},
        ),
    ],
    "Upsample": [
        Case(f'p = Upsample <mode = "{mode}"> (s, k)', opset=9, weights={"k": floats(1, 1, 2, 3)})
        for mode in ("nearest", "linear")
    ],
    "Einsum": [
        Case('p = Einsum <equation = "nchw,cd->ndhw"> (s, k)', weights={"k": w(1, 4, 5)}),
        Case('p = Einsum <equation = "...hw, wk -> ...hk"> (s, k)', weights={"k": w(1, 6, 5)}),
        Case('p = Einsum <equation = "dc,nc...->nd..."> (k, s)', weights={"k": w(1, 5, 4)}),
        Case('p = Einsum <equation = "nchw->nhc"> (s)'),
        Case('p = Einsum <equation = "ij,jk"> (s, k)', "vector", weights={"k": w(1, 8, 5)}),
        Case(
            "m = ReduceMean <axes = [3], keepdims = 0> (x)"
            '  p = Einsum <equation = "nchw,nkh->nckw"> (s, m)'
        ),
        Case(
            "m = ReduceMean <axes = [3], keepdims = 0> (x)  t = Transpose <perm = [1, 2, 0]> (m)"
            '  p = Einsum <equation = "nchw,khn->nckw"> (s, t)'
        ),
        Case('q = Einsum <equation = "bc,dc->bd"> (s, k)  p = Add (q, r)', "vector",
             weights={"k": w(1, 8, 8)}),
    ],
    "GatherND": [
        Case(f"t = Transpose {SWAP} (s)  g = GatherND (t, k)  p = Transpose {SWAP} (g)",
             weights={"k": ints(0, 2).reshape(2, 1)}),
        Case(f"t = Transpose {SWAP} (s)  g = GatherND (t, k)  p = Transpose {SWAP} (g)",
             weights={"k": ints(3, -1, 0).reshape(3, 1)}),
        Case("p = GatherND <batch_dims = 1> (s, k)", static=True,
             weights={"k": ints(0, 1, 3, -1, 2, 2).reshape(1, 3, 2)}),
        Case("p = GatherND (s, k)", static=True,
             weights={"k": ints(0, 3, 1, 0, 1, 1).reshape(1, 2, 3)}),
    ],
    "GatherElements": [
        Case("p = GatherElements <axis = 1> (s, k)", static=True, weights={"k": PICKS}),
        Case("p = GatherElements <axis = -1> (s, k)", static=True, weights={"k": PICKS}),
        Case("p = GatherElements <axis = 1> (s, k)", "vector", static=True,
             weights={"k": ints(7, 0, -2).reshape(1, 3)}),
    ],
    "ScatterND": [
        Case(f"t = Transpose {SWAP} (s)  u = Transpose {SWAP} (r)  v = Slice (u, zero, two)"
             f"  g = ScatterND (t, k, v)  p = Transpose {SWAP} (g)",
             weights={"k": ints(0, 2).reshape(2, 1), "zero": ints(0), "two": ints(2)}),
        *[
            Case(f"t = Transpose {SWAP} (s)  u = Transpose {SWAP} (r)  v = Slice (u, zero, two)"
                 f'  g = ScatterND <reduction = "add"> (t, k, v)  p = Transpose {SWAP} (g)',
                 weights={"k": ints(*at).reshape(2, 1), "zero": ints(0), "two": ints(2)})
            for at in ((0, 2), (1, 1))
        ],
        *[
            Case(f"p = ScatterND {how} (s, k, u)", static=True,
                 weights={"k": ints(0, 3, 0, 1).reshape(1, 2, 2), "u": random(3, 1, 2, 6, 6)})
            for how in ("", '<reduction = "add">')
        ],
        *[
            Case(f"v = Slice (r, zero, two, one)  p = ScatterND {how} ({data}, k, v)", static=True,
                 weights={"k": ints(0, 3, 0, 1).reshape(1, 2, 2), "zero": ints(0), "one": ints(1),
                          "two": ints(2), "fixed": random(3, 1, 4, 6, 6)})
            for how in ("", '<reduction = "add">') for data in ("s", "fixed")
        ],
    ],
    "ScatterElements": [
        Case("v = Slice (r, zero, two, one)  p = ScatterElements <axis = 2> (s, k, v)", static=True,
             weights={"k": PICKS[:, :2], "zero": ints(0), "one": ints(1), "two": ints(2)}),
        Case('p = ScatterElements <axis = 1, reduction = "add"> (s, k, u)', static=True,
             weights={"k": PICKS[:, :2], "u": random(3, *PICKS[:, :2].shape)}),
        Case("p = ScatterElements <axis = 1> (s, k, u)", "vector", static=True,
             weights={"k": ints(7, 0, 2).reshape(1, 3), "u": random(3, 1, 3)}),
    ],
    "CumSum": [
        Case("p = CumSum (s, k)", weights={"k": np.int64(1)}),
        Case("p = CumSum <exclusive = 1> (s, k)", weights={"k": np.int64(-1)}),
        Case("p = CumSum <reverse = 1> (s, k)", "vector", weights={"k": np.int32(1)}),
    ],
    "Trilu": [
        Case("p = Trilu (s)"),
        Case("p = Trilu <upper = 0> (s, k)", weights={"k": np.int64(-1)}),
    ],
    "CenterCropPad": [
        Case("p = CenterCropPad <axes = [2, 3]> (s, k)", opset=18, weights={"k": ints(4, 9)})
    ],
    "Compress": [
        Case("p = Compress <axis = 1> (s, k)", weights={"k": np.array([True, False, True, True])}),
        Case("p = Compress <axis = -1> (s, k)", weights={"k": np.array([False, True])}),
    ],
    "ReverseSequence": [
        Case("p = ReverseSequence <batch_axis = 0, time_axis = 1> (s, k)", static=True,
             weights={"k": ints(3)}),
    ],
    "Col2Im": [
        Case("g = Reshape (s, to)  p = Col2Im (g, image, block)", opset=18,
             weights={"to": ints(0, 4, -1), "image": ints(7, 7), "block": ints(2, 2)}),
    ],
    "DFT": [
        Case("u = Unsqueeze (s, last)  p = DFT <axis = 2> (u)", weights={"last": ints(4)}),
        Case("u = Unsqueeze (s, last)  p = DFT <axis = 3, onesided = 1> (u, size)",
             weights={"last": ints(4), "size": np.int64(8)}),
        Case("u = Unsqueeze (s, last)  p = DFT (u, , axis)", opset=20,
             weights={"last": ints(4), "axis": np.int64(1)}),
    ],
    "STFT": [
        Case("u = Unsqueeze (s, last)  p = STFT (u, step, window)", "vector",
             weights={"last": ints(2), "step": np.int64(2), "window": random(5, 4)}),
    ],
    "GridSample": [
        Case("u = Slice (x, zero, two, one)  v = Transpose <perm = [0, 2, 3, 1]> (u)  g = Tanh (v)"
             f'  p = GridSample <mode = "{mode}", padding_mode = "{padding}"> (s, g)',
             weights={"zero": ints(0), "one": ints(1), "two": ints(2)})
        for mode, padding in (("bilinear", "zeros"), ("nearest", "border"), ("bicubic", "reflection"))
    ],
    "CastLike": [Case("t = CastLike (s, x)  p = CastLike (t, k)", weights={"k": floats(0)})],
    "Where": [
        Case("p = Where (k, s, o)", weights={"k": CHANNELS > 0, "o": floats(0.5)}),
        Case("p = Where (k, r, s)", weights={"k": np.arange(6) % 2 == 0}),
        Case("m = ReduceMean <axes = [1]> (x)  t = Greater (m, o)  p = Where (t, s, r)",
             weights={"o": floats(0)}),
    ],
    "DepthToSpace": [
        Case("p = DepthToSpace <blocksize = 2> (s)"),
        Case('p = DepthToSpace <blocksize = 2, mode = "CRD"> (s)'),
    ],
    "SpaceToDepth": [Case("p = SpaceToDepth <blocksize = 2> (s)")],
}  # fmt: skip

#: Linear operators that say how many samples there are: the network takes one at a time.
ONE_BY_ONE = {
    "AffineGrid": Case(
        "m = MatMul (s, k)  t = Reshape (m, to)  p = AffineGrid (t, size)", "vector", opset=20,
        weights={"k": w(1, 8, 6), "to": ints(1, 2, 3), "size": ints(1, 3, 4, 5)},
    ),
    "DeformConv": Case(
        "p = DeformConv (s, k, offset)", opset=19,
        weights={"k": w(1, 3, 4, 2, 2), "offset": random(5, 1, 8, 5, 5)},
    ),
    "GridSample": Case("p = GridSample (s, grid)", weights={"grid": w(6, 1, 3, 5, 2)}),
    "MaxUnpool": Case(
        "c = Conv (x, k)  m, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)"
        "  a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s)"
        "  p = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (a, i)",
        weights={"k": w(1, 4, 3, 1, 1)},
    ),
    "RoiAlign": Case(
        "p = RoiAlign <output_height = 2, output_width = 3> (s, regions, which)",
        weights={"regions": floats(0, 0, 3, 4, 1, 2, 5, 5).reshape(2, 4), "which": ints(0, 0)},
    ),
    "RotaryEmbedding": Case(
        "p = RotaryEmbedding (s, cosines, sines)", opset=23,
        weights={"cosines": random(1, 1, 6, 3), "sines": random(2, 1, 6, 3)},
    ),
}  # fmt: skip

#: Max pooling of spikes; of all else in passes/normalize/test_spell_max_pool.py.
POOLINGS = [
    Case("p = MaxPool <kernel_shape = [2, 2]> (s)"),
    Case("p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]> (s)"),
    Case("p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (s)"),
    Case("p = MaxPool <kernel_shape = [2, 2], dilations = [2, 3]> (s)"),
    *[
        Case(f'p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "{pad}"> (s)')
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ],
    Case("p = MaxPool <kernel_shape = [3], strides = [2]> (s)", "line"),
    Case("p = MaxPool <kernel_shape = [2, 2, 2]> (s)", "volume"),
    Case("p = GlobalMaxPool (s)"),
    Case("m = MaxPool <kernel_shape = [2, 2]> (s)  p = MaxPool <kernel_shape = [2, 2]> (m)"),
    Case("c = Concat <axis = 1> (s, s)  p = MaxPool <kernel_shape = [2, 2]> (c)"),
]

#: Spellings of rectifiers, and of what is a sum of rectifiers; with the neurons that each becomes.
SPELLINGS: dict[str, list[tuple[str, int]]] = {
    "Relu": [("p = Relu (s)", 1), ("c = Clip (s, low, high)  p = Relu (c)", 1)],
    "Clip": [
        ("p = Clip (s, zero, high)", 1),
        ("p = Clip (s, zero)", 1),
        ("p = Clip (s, zero, huge)", 1),
        ("p = Clip (s, low, high)", 1),
        ("p = Clip (s, low)", 1),
        ("p = Clip (s, , high)", 1),
        ("p = Clip (s)", 0),
        ("p = Clip (s, zero, endless)", 1),
    ],
    "Max": [
        ("p = Max (s, zero)", 1),
        ("p = Max (zero, s)", 1),
        ("p = Max (s, r)", 1),
        ("p = Max (s, r, low)", 2),
        ("p = Max (s)", 0),
    ],
    "Min": [
        ("a = Relu (s)  p = Min (a, high)", 1),
        ("a = Relu (s)  p = Min (high, a)", 1),
        ("p = Min (s, r)", 1),
        ("p = Min (s, high)", 1),
    ],
    "LeakyRelu": [
        ("p = LeakyRelu (s)", 2),
        ("p = LeakyRelu <alpha = 0.3> (s)", 2),
        ("p = LeakyRelu <alpha = 0.0> (s)", 1),
        ("p = LeakyRelu <alpha = -0.5> (s)", 2),
    ],
    "PRelu": [("p = PRelu (s, slopes)", 2), ("p = PRelu (s, high)", 2), ("p = PRelu (s, zero)", 1)],
    "ThresholdedRelu": [("p = ThresholdedRelu <alpha = 0.0> (s)", 1)],
    "Where": [
        ("t = Greater (s, zero)  p = Where (t, s, zero)", 1),
        ("t = GreaterOrEqual (s, zero)  p = Where (t, s, zero)", 1),
        ("t = Less (s, zero)  p = Where (t, zero, s)", 1),
        ("t = LessOrEqual (s, zero)  p = Where (t, zero, s)", 1),
        ("t = Less (zero, s)  p = Where (t, s, zero)", 1),
        ("t = Greater (zero, s)  p = Where (t, zero, s)", 1),
        ("m = Mul (s, high)  t = Greater (s, zero)  p = Where (t, s, m)", 2),
    ],
    "HardSigmoid": [("p = HardSigmoid (s)", 1), ("p = HardSigmoid <alpha = 0.5, beta = 0.1> (s)", 1)],
    "Abs": [("p = Abs (s)", 2)],
    "Mul": [("t = Greater (s, zero)  c = Cast <to = 1> (t)  p = Mul (c, s)", 1)],
    "Add": [("b = Abs (s)  p = Add (b, s)", 1)],
    "Sub": [("b = Abs (s)  m = Sub (s, high)  c = Abs (m)  p = Sub (b, c)", 1)],
    "Shrink": [("p = Shrink <lambd = 0.2, bias = 0.2> (s)", 2)],
    "ReduceL1": [
        ("p = ReduceL1 <axes = [2]> (s)", 2),
        ("f2 = Relu (s)  p = ReduceL1 <axes = [3]> (f2)", 1),
    ],
    "GlobalLpPool": [
        ("p = GlobalLpPool <p = 1> (s)", 2),
        ("f2 = Relu (s)  p = GlobalLpPool <p = 1> (f2)", 1),
    ],
    "LpPool": [
        ("p = LpPool <kernel_shape = [2, 2], p = 1, pads = [1, 0, 0, 1]> (s)", 2),
        ("f2 = Relu (s)  p = LpPool <kernel_shape = [3, 2], p = 1, strides = [2, 1]> (f2)", 1),
    ],
    "GlobalMaxPool": [("f2 = Relu (s)  p = GlobalMaxPool (f2)", 1)],
}  # fmt: skip


def network(case: Case, source: str) -> tuple[str, dict[str, Array]]:
    """Relu, `s` and `r` from it, the case, Relu; and the constants."""
    sizes = SHAPES[case.kind]
    dims = ",".join(map(str, (3, *sizes[1:]) if len(sizes) > 1 else (5,)))
    space, batch = len(sizes) - 1, 1 if case.static else "N"
    channels = sizes[0]
    inputs = 3 if space else 5
    taps = (3,) * space
    constants = {
        "first": w(21, channels, inputs, *taps) if space else w(21, inputs, channels),
        "second": w(22, channels, channels, *[1] * space),
        "third": w(23, channels, channels, *[1] * space),
        **{name: np.asarray(values) for name, values in case.weights.items()},
    }
    step = SECOND[case.kind]
    made_of = {"spikes": "s = Identity (fired)", "currents": f"s = {step} (fired, second)"}[source]
    text = f"""g (float[{batch},{dims}] x) => (float[M] y)
    {{ current = {FIRST[case.kind]}  fired = Relu (current)
       {made_of}  other = {step} (fired, third)  r = Relu (other)
       {case.text}
       y = Relu (p) }}"""
    return text, constants


def check(text: str, case: Case, constants: dict[str, Array], neurons: int | None) -> None:
    """The folds keep the outputs, the SNN converges to them; `neurons` is counted in the file."""
    used = {name: array for name, array in constants.items() if name in text}
    # ONNX text wants a shape on outputs; onnxruntime wants none that is wrong.
    model = parse(text, used, opset=case.opset, ir=8)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    sizes = SHAPES[case.kind]
    x = random(31, 4, *((3, *sizes[1:]) if len(sizes) > 1 else (5,)))
    size = 1 if case.static else len(x)
    runs = [run_model(model, x=x[i : i + size])[0] for i in range(0, len(x), size)]
    wanted = np.concatenate(runs)
    assert np.ptp(wanted) > 0
    (folded,) = run_model(pipeline.prepare(model).ann, x=x)
    assert_close(folded, wanted, relative=case.rounding)
    snn = compile_text(model, x)
    if neurons is not None:
        assert op_counts(snn)["RMPNeuron"] == neurons
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        assert_close(decoded, wanted, relative=UNITS / steps)


def cases(table: Mapping[str, list[Case]]) -> list[object]:
    return [
        pytest.param(
            case,
            source,
            id=f"{op}-{index}-{source}",
            marks=[pytest.mark.slow] * (source != "spikes"),
        )
        for op, listed in table.items()
        for index, case in enumerate(listed)
        for source in ("spikes", "currents")
    ]


@pytest.mark.parametrize(("case", "source"), cases(CASES))
def test_linear_operators_between_spiking_layers(case: Case, source: str) -> None:
    text, constants = network(case, source)
    check(text, case, constants, None)


@pytest.mark.parametrize("source", ["spikes", "currents"])
@pytest.mark.parametrize("op", ONE_BY_ONE)
def test_linear_operators_that_count_the_samples(op: str, source: str) -> None:
    case = replace(ONE_BY_ONE[op], static=True)
    text, constants = network(case, source)
    model = parse(text, {n: a for n, a in constants.items() if n in text}, opset=case.opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = random(31, 1, *((3, *SHAPES[case.kind][1:]) if case.kind != "vector" else (5,)))
    (wanted,) = run_model(model, x=x)
    assert np.ptp(wanted) > 0 and not pipeline.prepare(model).any_batch
    snn = compile_text(model, x)
    for steps in (64, 1024):
        (decoded,) = run_model(snn, x=x, snnc_steps=np.array(steps))
        assert_close(decoded, wanted, relative=UNITS / steps)


@pytest.mark.parametrize("case", POOLINGS, ids=range(len(POOLINGS)))
def test_max_pooling_of_spikes(case: Case) -> None:
    text, constants = network(case, "spikes")
    check(text, case, constants, None)


@pytest.mark.parametrize(
    ("step", "neurons"), [pair for listed in SPELLINGS.values() for pair in listed]
)
def test_rectifiers_in_every_spelling(step: str, neurons: int) -> None:
    case = Case(
        step,
        weights={
            "low": np.float32(-0.5),
            "high": np.float32(0.75),
            "zero": np.float32(0),
            "huge": np.finfo(np.float32).max,
            "endless": np.float32(np.inf),
            "slopes": np.array([0.1, 0, 2, -0.5], np.float32).reshape(4, 1, 1),
        },
    )
    text, constants = network(case, "currents")
    last = text.index("y = Relu")
    text = f"{text[:last]}q = Conv (p, second)  y = Relu (q) }}"
    others = 3 if "r)" in step or "r," in step else 2
    check(text, case, constants, others + neurons)


#: What breaks the conditions of the table, and a word of the reason.
BROKEN = {
    "p = Mul (s, r)": "product",
    "p = MatMul (s, r)": "product",
    "p = Div (k, s)": "divides by a value",
    "p = Div (s, m)": "divides by a value",
    "t = Greater (s, m)  p = Where (t, s, m)": "chooses by a value",
    'p = Einsum <equation = "nchw,nkhw->nchw"> (s, m)': "product",
    'p = ScatterND <reduction = "mul"> (s, at, m)': "mul of values",
    "q = SequenceConstruct (s, s)  p = ConcatFromSequence <axis = 1> (q)": "no rule",
    "p = Conv (s, m)": "product",
    "i = Cast <to = 7> (s)  p = Cast <to = 1> (i)": "rounds or cuts",
    'p = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (s, region, scales)': "region",
    "p = Tanh (s)": "not linear",
    "p = ReduceMax (s)": "batch axis",
    "p = LRN <size = 3> (s)": "not linear",
    "p = Softmax (s)": "not linear",
    "p = InstanceNormalization (s, o, o)": "not linear",
    "p = ThresholdedRelu (s)": "not linear",
    "p = Elu (s)": "not linear",
    "i, j = MaxPool <kernel_shape = [2, 2]> (s)  q = Cast <to = 1> (j)  p = Add (i, q)": "indices",
}


@pytest.mark.parametrize("step", BROKEN)
def test_what_breaks_the_conditions_is_refused(step: str) -> None:
    constants = {
        "k": floats(2),
        "w": w(1, 4, 4, 3, 3),
        "o": np.ones(4, np.float32),
        "at": ints(0).reshape(1, 1),
        "region": floats(0, 0, 0, 0, 1, 1, 1, 1),
        "scales": floats(1, 1, 2, 2),
    }
    case = Case(
        f"m = Slice (r, a, b, a)  {step}", weights={**constants, "a": ints(0), "b": ints(1)}
    )
    text, all_constants = network(case, "currents")
    model = parse(text, {name: a for name, a in all_constants.items() if name in text})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = refused(model)
    assert {finding.code for finding in found} == {"SNNC202"}
    reason = next(reason for broken, reason in BROKEN.items() if broken == step)
    assert any(reason in finding.message for finding in found), [f.message for f in found]


#: Operators without a record, by the reason.
WITHOUT = {
    "refused by verify_input: its body is a graph of its own": ("If", "Loop", "Scan", "SequenceMap"),
    "a constant, which folds; no rule where what it reads depends on time": (
        "BlackmanWindow", "Constant", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix",
        "Range",
    ),
    "rewritten before a pass asks (spell_quantized, spell_ml)": (
        "QLinearMatMul", "Binarizer", "FeatureVectorizer", "Scaler",
    ),
    "sequences, optional values, texts, files and maps: no rule": (
        "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
        "SequenceInsert", "SequenceLength", "SplitToSequence",
        "Optional", "OptionalGetElement", "OptionalHasElement",
        "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
        "ImageDecoder", "CastMap", "DictVectorizer", "ZipMap",
    ),
    "no rule yet, linear or not": (
        "CausalConvWithState", "CategoryMapper", "LinearAttention", "NegativeLogLikelihoodLoss",
        "Scatter", "TensorScatter", "TreeEnsemble",
    ),
}  # fmt: skip

_HISTORY: dict[str, list[onnx.defs.OpSchema]] = defaultdict(list)
for _schema in onnx.defs.get_all_schemas_with_history():
    _HISTORY[_schema.name].append(_schema)


def test_every_operator_of_onnx_has_a_record_or_a_reason() -> None:
    known = {
        schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx.ml")
    }
    without = [name for names in WITHOUT.values() for name in names]
    assert len(without) == len(set(without))
    assert known - OPERATORS.keys() - set(without) == set()
    assert not OPERATORS.keys() & set(without)
    assert {*OPERATORS, *without} <= _HISTORY.keys()
    assert len(_TABLE) == len(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_what_a_record_says_of_inputs_and_attributes(operator: Operator) -> None:
    """Against onnx's own description of the operator."""
    versions = _HISTORY[operator.name]
    inputs = max(schema.max_input for schema in versions)
    attributes = {name: a for schema in versions for name, a in schema.attributes.items()}
    places = [operator.bias, operator.shape_input, operator.factors, *(operator.infinite or ())]
    if operator.weights is not None:
        places.append(1)
    if operator.batch == "along-input":
        places.append(operator.axis_input)
    assert all(place < inputs for place in places if place is not None)
    if operator.batch == "along":
        assert attributes["axis"].default_value.i == operator.axis
    if operator.over == "window":
        assert {"kernel_shape", "strides", "pads"} <= attributes.keys()
    if operator.random:
        assert "seed" in attributes
    assert not (operator.random and operator.linear)


def test_every_rule_that_a_record_names_exists_and_is_named() -> None:
    def named(fact: str) -> set[str]:
        return {getattr(operator, fact) for operator in OPERATORS.values()} - {None}

    rules: dict[str, tuple[object, set[str]]] = {
        "linear": (Linear, set(CONDITIONS)),
        # These two also write down the new target of a Reshape.
        "batch": (Batch, {*track_batch._RULES, "reshape", "flatten"}),
        "amplitude": (Amplitude, set(amplitudes._RULES)),
        "weights": (Weights, set(fold_amplitude._INTO)),
        "integers": (Integers, set(drop_fake_quant._ON_INTEGERS)),
        "span": (Span, set(drop_fake_quant._SPANS)),
        "outputs": (Outputs, set(graph._OUTPUTS)),
    }
    for fact, (names, functions) in rules.items():
        assert set(get_args(names)) == functions == named(fact), fact
    assert set(get_args(Sign)) == named("sign")


def test_an_operator_is_added_by_its_record_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its record Trilu is refused, and one says all that the compiler needs to know of it."""
    text, constants = network(CASES["Trilu"][0], "currents")
    model = parse(text, {name: a for name, a in constants.items() if name in text})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    monkeypatch.delitem(OPERATORS, "Trilu")
    found = refused(model)
    assert [(one.code, "no rule" in one.message) for one in found] == [("SNNC202", True)]
    monkeypatch.setitem(OPERATORS, "Trilu", Operator("Trilu", linear="first", batch="matrices"))
    prepared = pipeline.prepare(model)
    assert prepared.any_batch and "Trilu" in {node.op for node in prepared.graph.nodes}


def test_every_operator_of_the_records_was_tested() -> None:
    linear = {o.name for o in OPERATORS.values() if o.linear not in (None, "never")}
    assert set(CASES) | set(ONE_BY_ONE) == linear
    spelled = {"Relu", "Clip", "Max", *spell_rectifiers._ALWAYS, *spell_rectifiers._BETWEEN}
    assert set(SPELLINGS) == spelled == {o.name for o in OPERATORS.values() if o.becomes}
    assert sum(map(len, CASES.values())) == 212
    assert len(BROKEN) == 19
    assert (len(POOLINGS), sum(map(len, SPELLINGS.values()))) == (12, 48)
