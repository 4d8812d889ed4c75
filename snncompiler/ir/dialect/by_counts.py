"""The operators by counts, which `passes/lower/collapse_time.py` makes of a layered network.

A layered neuron has received all of its window before it fires, so one number says what it sends: the
worth of its spikes.  Such counts are bytes, channels last; a convolution and its neuron are one
operator, which has no time axis.  Weights and thresholds are whole numbers.
"""

from __future__ import annotations

from snncompiler.ir.dialect.core import Attribute, Operator, Port

_WINDOW = ("dilations", "pads", "strides")

_CONV = """
  {name}_wide = Cast <to = 1> ({counts}){origin}
  {name}_planes = Transpose <perm = [0, 3, 1, 2]> ({name}_{last})
  {name}_floats = Cast <to = 1> ({weights})
  {name}_kernel = Transpose <perm = [3, 2, 0, 1]> ({name}_floats)
  {name}_conv = Conv <{references}> ({name}_planes, {name}_kernel)
  {name}_moved = Transpose <perm = [0, 2, 3, 1]> ({name}_conv)
  {name} = Cast <to = 6> ({name}_moved)"""

_ORIGIN = """
  whole_origin = Constant <value_int: int = @origin> ()
  origin = Cast <to = 1> (whole_origin)
  main_values = Sub (main_wide, origin)"""

_NEURON = """
  potential = Add ({total}, membrane)
  none = Constant <value_int = 0> ()
  nothing = Cast <to = 6> (none)
  above = Max (potential, nothing)
  whole = Div (above, threshold)
  most = Cast <to = 6> (levels)
  fired = Min (whole, most)
  counts_out = Cast <to = 2> (fired)
}}"""


def _layer(name: str, more: tuple[str, ...], inputs: str, middle: str, total: str) -> str:
    """The body of an operator that convolves; `more` names its further attributes."""
    attributes = ", ".join(["group", "levels_in", "origin", "top", *_WINDOW, *more])
    window = ", ".join(f"{key}: ints = @{key}" for key in _WINDOW)
    conv = _CONV.format(
        name="main",
        origin=_ORIGIN,
        last="values",
        counts="counts",
        weights="weights",
        references=f"{window}, group: int = @group",
    )
    return (
        f"{name} <{attributes}> (counts, weights, {inputs}membrane, threshold, levels) "
        "=> (counts_out)\n{" + conv + middle + _NEURON.format(total=total)
    )


_BODIES = {
    "CountConv": _layer("CountConv", (), "", "", "main"),
    "CountConvAdd": _layer(
        "CountConvAdd",
        (),
        "residual, coefficient, ",
        """
  past = Cast <to = 6> (residual)
  charged = Mul (past, coefficient)
  total = Add (main, charged)""",
        "total",
    ),
    "CountConvPair": _layer(
        "CountConvPair",
        ("more_levels_in", *(f"more_{key}" for key in _WINDOW)),
        "more_counts, more_weights, ",
        _CONV.format(
            name="more",
            origin="",
            last="wide",
            counts="more_counts",
            weights="more_weights",
            references=", ".join(f"{key}: ints = @more_{key}" for key in _WINDOW),
        )
        + """
  total = Add (main, more)""",
        "total",
    ),
    "CountConvScaled": _layer(
        "CountConvScaled",
        ("highest", "lowest"),
        "bias, factor, ",
        """
  begun = Add (main, bias)
  sums = Cast <to = 1> (begun)
  products = Mul (sums, factor)
  whole_lowest = Constant <value_int: int = @lowest> ()
  lowest = Cast <to = 1> (whole_lowest)
  above_it = Max (products, lowest)
  whole_highest = Constant <value_int: int = @highest> ()
  highest = Cast <to = 1> (whole_highest)
  bounded = Min (above_it, highest)
  rounded = Round (bounded)
  total = Cast <to = 6> (rounded)""",
        "total",
    ),
    "CountInput": """CountInput <highest, lowest, origin> (values, factor) => (counts)
{
  last = Transpose <perm = [0, 2, 3, 1]> (values)
  products = Mul (last, factor)
  whole_lowest = Constant <value_int: int = @lowest> ()
  lowest = Cast <to = 1> (whole_lowest)
  above = Max (products, lowest)
  whole_highest = Constant <value_int: int = @highest> ()
  highest = Cast <to = 1> (whole_highest)
  bounded = Min (above, highest)
  rounded = Round (bounded)
  whole_origin = Constant <value_int: int = @origin> ()
  origin = Cast <to = 1> (whole_origin)
  moved = Add (rounded, origin)
  counts = Cast <to = 2> (moved)
}""",
    # The quotient is rounded; the products are not, and put it right.
    "CountNeuron": """CountNeuron <top> (current, membrane, threshold, levels) => (counts_out)
{
  last = Transpose <perm = [0, 2, 3, 1]> (current)
  v = Add (last, membrane)
  quotient = Div (v, threshold)
  floor = Floor (quotient)
  none = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  most = Cast <to = 1> (levels)
  least = Max (floor, none)
  guess = Min (least, most)
  worth = Mul (guess, threshold)
  high = Greater (worth, v)
  less = Cast <to = 1> (high)
  lower = Sub (guess, less)
  next = Add (lower, one)
  next_worth = Mul (next, threshold)
  low = LessOrEqual (next_worth, v)
  more = Cast <to = 1> (low)
  upper = Add (lower, more)
  above = Max (upper, none)
  fired = Min (above, most)
  counts_out = Cast <to = 2> (fired)
}""",
    # The quotient of float32 numbers is in float64 on the right side of every whole number.
    "LevelNeuron": """LevelNeuron (current, membrane, threshold, levels) => (counts)
{
  v = Add (membrane, current)
  potential = Cast <to = 11> (v)
  charge = Cast <to = 11> (threshold)
  quotient = Div (potential, charge)
  none = Constant <value_float = 0.0> ()
  nothing = Cast <to = 11> (none)
  unknown = IsNaN (quotient)
  known = Where (unknown, nothing, quotient)
  floor = Floor (known)
  most = Cast <to = 11> (levels)
  least = Max (floor, nothing)
  fired = Min (least, most)
  counts = Cast <to = 1> (fired)
}""",
    "CountMaxPool": """CountMaxPool <dilations, kernel_shape, pads, strides> (counts) => (pooled)
{
  planes = Transpose <perm = [0, 3, 1, 2]> (counts)
  largest = MaxPool <auto_pad = "NOTSET", ceil_mode = 0, dilations: ints = @dilations,
    kernel_shape: ints = @kernel_shape, pads: ints = @pads, strides: ints = @strides> (planes)
  pooled = Transpose <perm = [0, 2, 3, 1]> (largest)
}""",
}

_COUNTS = Port("counts", "uint8", "[N, H, W, C]", "0 to `levels_in`")
_WEIGHTS = Port("weights", "int8", "[KH, KW, C/group, M]", "constant, to be packed once")
_NEURONS = (
    Port("membrane", "int32", "[M]", "membrane potential at the start: bias and half a threshold"),
    Port("threshold", "int32", "[M]", "θ, at least 1"),
    Port("levels", "int64", "[]", "L, the largest count that goes out: 1 to `top`"),
)
_OUT = (Port("counts_out", "uint8", "[N, OH, OW, M]", "0 to L"),)
_TOP = Attribute("top", "int", "the largest L for which sums are exact: 1 to 255")
_ATTRIBUTES = (
    Attribute("group", "int", "as in Conv"),
    _TOP,
    Attribute("levels_in", "int", "the largest value of `counts`: 1 to 255; 0: it is L"),
    Attribute("origin", "int", "the count that stands for zero, in the padding, too: 0 to 255"),
    *(Attribute(key, "ints", "as in Conv, of two axes") for key in _WINDOW),
)
_EQUATION = "n = min(max(floor((x + membrane) / θ), 0), L)   with x = "
_SUMS = "  The native kernel sums in int32, the body in float32: below 2^24 they are the same."

#: Operators of sessions.  Only LevelNeuron has a CUDA kernel, too; of the others the bodies run there.
COUNT_OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="CountConv",
            summary="Convolution of counts and neurons in one, in whole numbers." + _SUMS,
            equation=_EQUATION + "conv(counts - origin)",
            inputs=(_COUNTS, _WEIGHTS, *_NEURONS),
            outputs=_OUT,
            attributes=_ATTRIBUTES,
            body=_BODIES["CountConv"],
            states=(),
        ),
        Operator(
            name="CountConvAdd",
            summary="CountConv with a residual: counts that go past the convolution.",
            equation=_EQUATION + "conv(counts - origin) + coefficient·residual",
            inputs=(
                _COUNTS,
                _WEIGHTS,
                Port("residual", "uint8", "[N, OH, OW, M]", "counts"),
                Port("coefficient", "int32", "[M]", "the charge of one, of 16 bits"),
                *_NEURONS,
            ),
            outputs=_OUT,
            attributes=_ATTRIBUTES,
            body=_BODIES["CountConvAdd"],
            states=(),
        ),
        Operator(
            name="CountConvPair",
            summary="Two convolutions of counts into one layer of neurons.",
            equation=_EQUATION + "conv(counts - origin) + conv(more_counts)",
            inputs=(
                _COUNTS,
                _WEIGHTS,
                Port("more_counts", "uint8", "[N, H2, W2, C2]", "0 to `more_levels_in`"),
                Port("more_weights", "int8", "[KH2, KW2, C2, M]", "constant"),
                *_NEURONS,
            ),
            outputs=_OUT,
            attributes=(
                *_ATTRIBUTES,
                Attribute("more_levels_in", "int", "the same of `more_counts`"),
                *(Attribute(f"more_{key}", "ints", "of the second one") for key in _WINDOW),
            ),
            body=_BODIES["CountConvPair"],
            states=(),
        ),
        Operator(
            name="CountConvScaled",
            summary="CountConv whose sums are on another grid than its neurons, such as that of an "
            "input with a sign." + _SUMS,
            equation=_EQUATION
            + "round(min(max(factor·(conv(counts - origin) + bias), lowest), highest)), in float32",
            inputs=(
                _COUNTS,
                _WEIGHTS,
                Port("bias", "int32", "[M]", "of the sums"),
                Port(
                    "factor", "float32", "[M]", "from the grid of the sums to that of the neurons"
                ),
                *_NEURONS,
            ),
            outputs=_OUT,
            attributes=(
                *_ATTRIBUTES,
                Attribute("lowest", "int", "-2^23 to 2^23"),
                Attribute("highest", "int", "-2^23 to 2^23"),
            ),
            body=_BODIES["CountConvScaled"],
            states=(),
        ),
        Operator(
            name="CountInput",
            summary="An input that is rounded to a grid of 8 bits, channels last.",
            equation="counts = round(min(max(factor·values, lowest), highest)) + origin",
            inputs=(
                Port("values", "float32", "[N, C, H, W]", "real numbers"),
                Port("factor", "float32", "[C]", "places of the grid for one"),
            ),
            outputs=(Port("counts", "uint8", "[N, H, W, C]", "`origin` stands for zero"),),
            attributes=(
                Attribute("highest", "int", "plus `origin`: 0 to 255"),
                Attribute("lowest", "int", "plus `origin`: 0 to 255"),
                Attribute("origin", "int", "0 to 255"),
            ),
            body=_BODIES["CountInput"],
            states=(),
        ),
        Operator(
            name="CountNeuron",
            summary="Neurons of a current that is complete, for thresholds that are whole numbers "
            "((L + 1)·θ at most 2^24), which send counts, channels last.",
            equation=_EQUATION + "current",
            inputs=(
                Port("current", "float32", "[N, M, H, W]", "the sum of the window"),
                Port("membrane", "float32", "[M]", "membrane potential at the start"),
                Port("threshold", "float32", "[M]", "θ, at least 1"),
                _NEURONS[2],
            ),
            outputs=(Port("counts_out", "uint8", "[N, H, W, M]", "0 to L"),),
            attributes=(_TOP,),
            body=_BODIES["CountNeuron"],
            states=(),
        ),
        Operator(
            name="LevelNeuron",
            summary="Layered neurons of real weights, whose current is complete; they send counts.",
            equation="n = min(max(floor((membrane + current) / θ), 0), L), the sum in float32",
            inputs=(
                Port("current", "float32", "[N, C, ...]", "the sum of the window"),
                Port("membrane", "float32", "[C, 1, ...]", "membrane potential at the start"),
                Port("threshold", "float32", "[C, 1, ...]", "θ, positive"),
                Port("levels", "int64", "[]", "L, at least 1; the kernel takes up to 2^20"),
            ),
            outputs=(Port("counts", "float32", "[N, C, ...]", "0 to L"),),
            attributes=(),
            body=_BODIES["LevelNeuron"],
            states=(),
        ),
        Operator(
            name="CountMaxPool",
            summary="Max pooling of counts: their window is complete.",
            equation="out = maxpool(counts)",
            inputs=(Port("counts", "uint8", "[N, H, W, C]", "counts"),),
            outputs=(Port("pooled", "uint8", "[N, OH, OW, C]", "counts"),),
            attributes=tuple(
                Attribute(key, "ints", "as in MaxPool, of two axes")
                for key in ("dilations", "kernel_shape", "pads", "strides")
            ),
            body=_BODIES["CountMaxPool"],
            states=(),
        ),
    )
}
