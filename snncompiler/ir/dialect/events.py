"""The event-driven operators, which `passes/lower` makes of a layer for the CPU.

Spikes are bytes, channels last, and a convolution and its neuron are one operator.  A body is the layer
as it was, between transposes.
"""

from __future__ import annotations

from snncompiler.ir.dialect.core import DOMAIN, START, STEPS, Attribute, Operator, Port

_EVENT_CONV = """
  {name}_wide = Cast <to = 1> ({spikes})
  {name}_planes = Transpose <perm = [0, 3, 1, 2]> ({name}_wide)
  {name}_kernel = Transpose <perm = [3, 2, 0, 1]> ({weights})
  {name}_conv = Conv <{references}> ({name}_planes, {name}_kernel)
  {name}_moved = Transpose <perm = [0, 2, 3, 1]> ({name}_conv)"""

# Time apart, so that a static current has a place beside it.
_EVENT_STEPS = """
  one = Constant <value_ints = [1]> ()
  k = Reshape (steps, one)
  folded_shape = Shape (main_moved)
  lead = Shape <start = 0, end = 1> (main_moved)
  rest = Shape <start = 1> (main_moved)
  batch = Div (lead, k)
  by_step = Concat <axis = 0> (k, batch, rest)
  main = Reshape <allowzero = 1> (main_moved, by_step)
  charged = Add (main, current)"""

_EVENT_NEURON = f"""
  wide_spikes, membrane_out = {DOMAIN}.ScheduledRMPNeuron <static_current = {{static}}>
    ({{current}}, threshold, membrane, schedule, start, steps)
  spikes_out = Cast <to = 2> (wide_spikes)
}}}}"""

_WINDOW = ("dilations", "pads", "strides")


def _event_layer(name: str, more: str, inputs: str, middle: str, total: str) -> str:
    """The body of an operator that convolves; `more` names its further attributes."""
    attributes = ", ".join(["group", "levels", *_WINDOW, *([more] if more else [])])
    window = ", ".join(f"{key}: ints = @{key}" for key in _WINDOW)
    conv = _EVENT_CONV.format(
        name="main",
        spikes="spikes",
        weights="weights",
        references=f"{window}, group: int = @group",
    )
    return (
        f"{name} <{attributes}> (spikes, weights, {inputs}current, threshold, membrane, schedule, "
        f"start, steps) => (spikes_out, membrane_out)\n{{"
        + conv
        + _EVENT_STEPS
        + middle
        + f"""
  currents = Reshape <allowzero = 1> ({total}, folded_shape)"""
        + _EVENT_NEURON.format(static=0, current="currents")
    )


_EVENT_BODIES = {
    "EventNeuron": "EventNeuron (current, drive, threshold, membrane, schedule, start, steps) "
    "=> (spikes_out, membrane_out)\n{"
    f"\n  currents = {DOMAIN}.Drive (current, drive, start, steps)"
    + _EVENT_NEURON.format(static=0, current="currents"),
    "EventConv": _event_layer("EventConv", "", "", "", "charged"),
    "EventConvAdd": _event_layer(
        "EventConvAdd",
        "",
        "residual, amplitude, ",
        """
  fired = Cast <to = 1> (residual)
  fired_by_step = Reshape <allowzero = 1> (fired, by_step)
  scaled = Mul (fired_by_step, amplitude)
  total = Add (charged, scaled)""",
        "total",
    ),
    "EventConvPair": _event_layer(
        "EventConvPair",
        ", ".join(f"more_{key}" for key in _WINDOW),
        "more_spikes, more_weights, ",
        _EVENT_CONV.format(
            name="more",
            spikes="more_spikes",
            weights="more_weights",
            references=", ".join(f"{key}: ints = @more_{key}" for key in _WINDOW),
        )
        + """
  more = Reshape <allowzero = 1> (more_moved, by_step)
  total = Add (charged, more)""",
        "total",
    ),
    "EventSum": """EventSum (spikes, weights, total, steps) => (total_out)
{
  values = Cast <to = 1> (spikes)
"""
    f"  total_out = {DOMAIN}.WeightedTimeSum (values, weights, total, steps)"
    """
}""",
}

_EVENT_BODIES |= {
    "EventSumPool": """EventSumPool <dilations, kernel_shape, pads, strides> (spikes) => (sums)
{
  wide = Cast <to = 1> (spikes)
  planes = Transpose <perm = [0, 3, 1, 2]> (wide)
  means = AveragePool <count_include_pad = 1, kernel_shape: ints = @kernel_shape,
    pads: ints = @pads, strides: ints = @strides> (planes)
  kernel = Constant <value_ints: ints = @kernel_shape> ()
  extents = Cast <to = 1> (kernel)
  size = ReduceProd <keepdims = 0> (extents)
  scaled = Mul (means, size)
  whole = Round (scaled)
  moved = Transpose <perm = [0, 2, 3, 1]> (whole)
  sums = Cast <to = 2> (moved)
}""",
    "EventMaxPool": """EventMaxPool <dilations, kernel_shape, pads, strides>
  (spikes, counts, steps) => (pooled, counts_out)
{
  one = Constant <value_ints = [1]> ()
  k = Reshape (steps, one)
  lead = Shape <start = 0, end = 1> (spikes)
  rest = Shape <start = 1> (spikes)
  batch = Div (lead, k)
  sample = Concat <axis = 0> (batch, rest)
  wide = Cast <to = 1> (spikes)
  planes = Transpose <perm = [0, 3, 1, 2]> (wide)
  counts_full = Expand (counts, sample)
  counts_planes = Transpose <perm = [0, 3, 1, 2]> (counts_full)
"""
    f"  pooled_planes, counts_after = {DOMAIN}.SpikeMaxPool "
    """<auto_pad = "NOTSET", ceil_mode = 0,
    dilations: ints = @dilations, kernel_shape: ints = @kernel_shape, pads: ints = @pads,
    strides: ints = @strides> (planes, counts_planes, steps)
  pooled_last = Transpose <perm = [0, 2, 3, 1]> (pooled_planes)
  pooled = Cast <to = 2> (pooled_last)
  counts_out = Transpose <perm = [0, 2, 3, 1]> (counts_after)
}""",
}

_EVENT_SPIKES = Port("spikes", "uint8", "[steps*N, H, W, C]", "0 or 1, or 0 to `levels`")
_EVENT_WEIGHTS = Port("weights", "float32", "[KH, KW, C/group, M]", "constant, to be packed once")
_EVENT_NEURON_INPUTS = (
    Port("current", "float32", "[M] or [N, OH, OW, M]", "bias or static current"),
    Port("threshold", "float32", "[M]", "θ, positive"),
    Port("membrane", "float32", "[M] or [N, OH, OW, M]", "membrane potential before the call"),
    Port("schedule", "float32", "[S, M]", "b_t, S at least 1; zeros where there is none"),
    START,
    STEPS,
)
_EVENT_OUTPUTS = (
    Port("spikes_out", "uint8", "[steps*N, OH, OW, M]", "0 or 1"),
    Port("membrane_out", "float32", "[N, OH, OW, M]", "membrane potential after the call"),
)
_EVENT_ATTRIBUTES = (
    Attribute("group", "int", "as in Conv"),
    Attribute("levels", "int", "the largest value of `spikes`"),
    *(Attribute(key, "ints", "as in Conv, of two axes") for key in _WINDOW),
)
_EVENT_POOL_ATTRIBUTES = tuple(
    Attribute(key, "ints", "as in MaxPool, of two axes")
    for key in ("dilations", "kernel_shape", "pads", "strides")
)
_EVENT_EQUATION = "u = (v + x) + b_t;  s = 1 if u >= θ else 0;  v = u - θ·s   with x = "

#: Operators of the CPU target (`--target cpu`, or a session on the CPU).  They have no CUDA kernels.
EVENT_OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="EventNeuron",
            summary="Drive and its neurons, which send bytes, channels last.",
            equation=_EVENT_EQUATION + "d_min(t, D-1) * current",
            inputs=(
                Port("current", "float32", "[N, H, W, M]", "static current"),
                Port("drive", "float32", "[D]", "d; one element of 1 where nothing is driven"),
                *_EVENT_NEURON_INPUTS[1:],
            ),
            outputs=_EVENT_OUTPUTS,
            attributes=(),
            body=_EVENT_BODIES["EventNeuron"],
            states=((3, 1),),
        ),
        Operator(
            name="EventConv",
            summary="Convolution of spikes and neurons in one.",
            equation=_EVENT_EQUATION + "current + conv(spikes)",
            inputs=(_EVENT_SPIKES, _EVENT_WEIGHTS, *_EVENT_NEURON_INPUTS),
            outputs=_EVENT_OUTPUTS,
            attributes=_EVENT_ATTRIBUTES,
            body=_EVENT_BODIES["EventConv"],
            states=((4, 1),),
        ),
        Operator(
            name="EventConvAdd",
            summary="EventConv with a residual: spikes that go past the convolution.",
            equation=_EVENT_EQUATION + "(current + conv(spikes)) + amplitude·residual",
            inputs=(
                _EVENT_SPIKES,
                _EVENT_WEIGHTS,
                Port("residual", "uint8", "[steps*N, OH, OW, M]", "0 or 1"),
                Port("amplitude", "float32", "[M]", "the current of a residual spike"),
                *_EVENT_NEURON_INPUTS,
            ),
            outputs=_EVENT_OUTPUTS,
            attributes=_EVENT_ATTRIBUTES,
            body=_EVENT_BODIES["EventConvAdd"],
            states=((6, 1),),
        ),
        Operator(
            name="EventConvPair",
            summary="Two convolutions of spikes into one layer of neurons.",
            equation=_EVENT_EQUATION + "(current + conv(spikes)) + conv(more_spikes)",
            inputs=(
                _EVENT_SPIKES,
                _EVENT_WEIGHTS,
                Port("more_spikes", "uint8", "[steps*N, H2, W2, C2]", "0 or 1"),
                Port("more_weights", "float32", "[KH2, KW2, C2, M]", "constant"),
                *_EVENT_NEURON_INPUTS,
            ),
            outputs=_EVENT_OUTPUTS,
            attributes=(
                *_EVENT_ATTRIBUTES,
                *(Attribute(f"more_{key}", "ints", "of the second one") for key in _WINDOW),
            ),
            body=_EVENT_BODIES["EventConvPair"],
            states=((6, 1),),
        ),
        Operator(
            name="EventSum",
            summary="WeightedTimeSum of bytes.",
            equation="y = y + w_t·s_t",
            inputs=(
                Port("spikes", "uint8", "[steps*N, ...]", "0 or 1, or counts"),
                Port("weights", "float32", "[steps]", "w_t of the steps of this call"),
                Port("total", "float32", "one number or [N, ...]", "sum before the call"),
                STEPS,
            ),
            outputs=(Port("total_out", "float32", "[N, ...]", "sum after the call"),),
            attributes=(),
            body=_EVENT_BODIES["EventSum"],
            states=((2, 0),),
        ),
        Operator(
            name="EventSumPool",
            summary="Sums of bytes over a window: average pooling, but for a factor that the next "
            "weights take.",
            equation="out = k·averagepool(s), for a window of k places, padding counted",
            inputs=(Port("spikes", "uint8", "[steps*N, H, W, C]", "0 or 1, or counts"),),
            outputs=(Port("sums", "uint8", "[steps*N, OH, OW, C]", "at most 255"),),
            attributes=_EVENT_POOL_ATTRIBUTES,
            body=_EVENT_BODIES["EventSumPool"],
            states=(),
        ),
        Operator(
            name="EventMaxPool",
            summary="SpikeMaxPool of bytes, channels last.",
            equation="c_t = c_{t-1} + s_t;  out_t = maxpool(c_t) - maxpool(c_{t-1})",
            inputs=(
                Port("spikes", "uint8", "[steps*N, H, W, C]", "0 or 1"),
                Port("counts", "float32", "one number or [N, H, W, C]", "spikes before the call"),
                STEPS,
            ),
            outputs=(
                Port("pooled", "uint8", "[steps*N, OH, OW, C]", "0 or 1"),
                Port("counts_out", "float32", "[N, H, W, C]", "spikes after the call"),
            ),
            attributes=_EVENT_POOL_ATTRIBUTES,
            body=_EVENT_BODIES["EventMaxPool"],
            states=((1, 1),),
        ),
    )
}

#: What neurons, with what flows into them, are by events.
EVENT_NEURONS = ("EventNeuron", "EventConv", "EventConvAdd", "EventConvPair")
