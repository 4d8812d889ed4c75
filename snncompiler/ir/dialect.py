"""The operator domain `ai.snnc`, version 1: the executable specification of every operator.

Each operator is a model-local function of standard ONNX operators, written here in ONNX text.  A
compiled file carries the bodies of the operators that it uses, so it runs in any onnxruntime; where
our native library is registered, its kernels take their place and give the same bits.

Conventions of all operators
    *Folded time.*  A temporal tensor holds `steps` time-steps of `N` samples as `[steps*N, ...]`,
    the time-steps outermost: step t of sample n is row `t*N + n`.  A static tensor is `[N, ...]`.
    *State.*  State goes in and comes out as a tensor; nothing is kept inside.  A state input is
    broadcast to `[N, ...]`, so a sequence can start from a scalar.
    *Types.*  Currents and spikes are float32 or float16 (`T`); thresholds, membrane potentials and
    counts are float32; `steps` and `start` are int64 scalars.

Operators used by the bodies mean the same in every opset from `BASE_OPSET` on, so that a body takes
the opset of the model it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import onnx
import onnx.parser

DOMAIN = "ai.snnc"
VERSION = 1
#: Models below this opset are converted up to it.
BASE_OPSET = 17
#: Older onnxruntimes (1.20) refuse newer ones.
MAX_IR_VERSION = 10


@dataclass(frozen=True)
class Port:
    """An input or an output: its name, type, shape and meaning."""

    name: str
    type: str
    shape: str
    text: str


@dataclass(frozen=True)
class Attribute:
    name: str
    type: str
    text: str


@dataclass(frozen=True)
class Operator:
    """One operator of the domain with its documentation and its body."""

    name: str
    summary: str
    equation: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: tuple[Attribute, ...]
    body: str
    #: Which inputs are states and which outputs carry them on (by position); none: no state.
    states: tuple[tuple[int, int], ...]


# Shared openings of the bodies: `held` steps in the input, samples `batch`, sample shape `sample`
# of `size` elements.  The input may be empty (N = 0), so no shape is left to a -1.
_LAYOUT = """
  one = Constant <value_ints = [1]> ()
  k = Reshape (steps, one)
  {held}
  lead = Shape <start = 0, end = 1> ({input})
  rest = Shape <start = 1> ({input})
  batch = Div (lead, held)
  sample = Concat <axis = 0> (batch, rest)
  elements = Size ({input})
  size = Div (elements, held)
  held_size = Concat <axis = 0> (held, size)
  wide = Cast <to = 1> ({input})
  flat = Reshape <allowzero = 1> (wide, held_size)
"""

_HELD_BY_FLAG = """flag = Constant <value_int: int = @static_current> ()
  static = Cast <to = 9> (flag)
  held = Where (static, one, k)"""

_HELD_TEMPORAL = "held = Identity (k)"

_NEURON = (
    "{name} <static_current> (current, threshold, membrane, steps) => (spikes, membrane_out)\n{{"
    + _LAYOUT.format(held=_HELD_BY_FLAG, input="current").replace("{", "{{").replace("}", "}}")
    + """
  k_size = Concat <axis = 0> (k, size)
  currents = Expand (flat, k_size)
  threshold_full = Expand (threshold, sample)
  theta = Reshape <allowzero = 1> (threshold_full, size)
  membrane_full = Expand (membrane, sample)
  start = Reshape <allowzero = 1> (membrane_full, size)
  stop, fired = Scan <num_scan_inputs = 1, body = step (float[?] v, float[?] x)
    => (float[?] v_next, float[?] s) {{
    u = Add (v, x)
    fires = GreaterOrEqual (u, theta)
    {reset}
  }}> (start, currents)
  lead_out = Mul (k, batch)
  shape_out = Concat <axis = 0> (lead_out, rest)
  wide_spikes = Reshape <allowzero = 1> (fired, shape_out)
  spikes = CastLike (wide_spikes, current)
  membrane_out = Reshape <allowzero = 1> (stop, sample)
}}"""
)

_SOFT_RESET = """s = Cast <to = 1> (fires)
    drop = Mul (s, theta)
    v_next = Sub (u, drop)"""

_HARD_RESET = """s = Cast <to = 1> (fires)
    zero = Constant <value_float = 0.0> ()
    v_next = Where (fires, zero, u)"""

# Neurons with a schedule: b_t is row min(t, S-1) of it, t counted from the very first step.
_SCHEDULED_NEURON = (
    "{name} <{attributes}> (current, threshold, membrane, {more_in}schedule, start, steps) "
    "=> (spikes, membrane_out{more_out})\n{{"
    + _LAYOUT.format(held=_HELD_BY_FLAG, input="current").replace("{", "{{").replace("}", "}}")
    + """
  k_size = Concat <axis = 0> (k, size)
  currents = Expand (flat, k_size)
  threshold_full = Expand (threshold, sample)
  theta = Reshape <allowzero = 1> (threshold_full, size)
  membrane_full = Expand (membrane, sample)
  before = Reshape <allowzero = 1> (membrane_full, size)
  done = Reshape (start, one)
  rows = Shape <start = 0, end = 1> (schedule)
  last = Sub (rows, one)
  first = Min (done, last){prepare}
  stop, {stopped}held_row, fired = Scan <num_scan_inputs = 1,
    body = step (float[?] v, {state}int64[1] t, float[?] x)
    => (float[?] v_next, {state_next}int64[1] t_next, float[?] s) {{
    row = Gather (schedule, t)
    row_full = Expand (row, sample)
    b = Reshape <allowzero = 1> (row_full, size)
    charged = Add (v, x)
    u = Add (charged, b)
    {fire}
    drop = Mul (s, theta)
    v_next = Sub (u, drop)
    following = Add (t, one)
    t_next = Min (following, last)
  }}> (before, {began}first, currents)
  lead_out = Mul (k, batch)
  shape_out = Concat <axis = 0> (lead_out, rest)
  wide_spikes = Reshape <allowzero = 1> (fired, shape_out)
  spikes = CastLike (wide_spikes, current)
  membrane_out = Reshape <allowzero = 1> (stop, sample){finish}
}}"""
)

_NO_BALANCE = dict.fromkeys(
    ("more_in", "more_out", "prepare", "stopped", "state", "state_next", "began", "finish"), ""
)

_SCHEDULED_RMP_NEURON = _SCHEDULED_NEURON.format(
    name="ScheduledRMPNeuron",
    attributes="static_current",
    fire="""fires = GreaterOrEqual (u, theta)
    s = Cast <to = 1> (fires)""",
    **_NO_BALANCE,
)

_LEVELS = """
  zero = Constant <value_float = 0.0> ()
  levels_int = Constant <value_int: int = @levels> ()
  most = Cast <to = 1> (levels_int)"""

# Bounded before it is rounded down: the bounds are whole numbers.
_BURST_NEURON = _SCHEDULED_NEURON.format(
    name="BurstNeuron",
    attributes="static_current, levels",
    fire="""quanta = Div (u, theta)
    above = Greater (quanta, zero)
    at_least = Where (above, quanta, zero)
    below = Less (at_least, most)
    bounded = Where (below, at_least, most)
    s = Floor (bounded)""",
    **{**_NO_BALANCE, "prepare": _LEVELS},
)

# The last Where makes every zero a positive one.
_SIGNED_NEURON = _SCHEDULED_NEURON.format(
    name="SignedNeuron",
    attributes="static_current, levels",
    more_in="balance, ",
    more_out=", balance_out",
    prepare=_LEVELS
    + """
  least = Neg (most)
  balance_full = Expand (balance, sample)
  sent_before = Reshape <allowzero = 1> (balance_full, size)""",
    stopped="sent, ",
    state="float[?] n, ",
    state_next="float[?] n_next, ",
    fire="""quanta = Div (u, theta)
    above = Greater (quanta, least)
    at_least = Where (above, quanta, least)
    below = Less (at_least, most)
    bounded = Where (below, at_least, most)
    whole = Floor (bounded)
    owed = Sub (zero, n)
    short = Less (whole, owed)
    repaid = Where (short, owed, whole)
    silent = Equal (repaid, zero)
    s = Where (silent, zero, repaid)
    n_next = Add (n, s)""",
    began="sent_before, ",
    finish="""
  balance_out = Reshape <allowzero = 1> (sent, sample)""",
)

_TIME_SUM = (
    "TimeSum (values, total, steps) => (total_out)\n{"
    + _LAYOUT.format(held=_HELD_TEMPORAL, input="values")
    + """
  total_full = Expand (total, sample)
  start = Reshape <allowzero = 1> (total_full, size)
  stop = Scan <num_scan_inputs = 1, body = step (float[?] y, float[?] x) => (float[?] y_next) {
    y_next = Add (y, x)
  }> (start, flat)
  total_out = Reshape <allowzero = 1> (stop, sample)
}"""
)

_WEIGHTED_TIME_SUM = (
    "WeightedTimeSum (values, weights, total, steps) => (total_out)\n{"
    + _LAYOUT.format(held=_HELD_TEMPORAL, input="values")
    + """
  total_full = Expand (total, sample)
  start = Reshape <allowzero = 1> (total_full, size)
  column = Concat <axis = 0> (k, one)
  by_step = Reshape (weights, column)
  stop = Scan <num_scan_inputs = 2, body = step (float[?] y, float[?] x, float[1] w)
    => (float[?] y_next) {
    weighted = Mul (w, x)
    y_next = Add (y, weighted)
  }> (start, flat, by_step)
  total_out = Reshape <allowzero = 1> (stop, sample)
}"""
)

_COUNTING = """
  done = Cast <to = 1> (start)
  before = Reshape (done, one)"""

_RUNNING_MEAN = (
    "RunningMean (values, total, start, steps) => (means, total_out)\n{"
    + _LAYOUT.format(held=_HELD_TEMPORAL, input="values")
    + _COUNTING
    + """
  total_full = Expand (total, sample)
  first = Reshape <allowzero = 1> (total_full, size)
  stop, last, seen = Scan <num_scan_inputs = 1, body = step (float[?] y, float[1] t, float[?] x)
    => (float[?] y_next, float[1] t_next, float[?] mean) {
    unit = Constant <value_floats = [1.0]> ()
    t_next = Add (t, unit)
    y_next = Add (y, x)
    mean = Div (y_next, t_next)
  }> (first, before, flat)
  shape = Shape (values)
  wide_means = Reshape <allowzero = 1> (seen, shape)
  means = CastLike (wide_means, values)
  total_out = Reshape <allowzero = 1> (stop, sample)
}"""
)

_TELESCOPE = (
    "Telescope (values, previous, start, steps) => (increments, previous_out)\n{"
    + _LAYOUT.format(held=_HELD_TEMPORAL, input="values")
    + _COUNTING
    + """
  previous_full = Expand (previous, sample)
  first = Reshape <allowzero = 1> (previous_full, size)
  stop, last, seen = Scan <num_scan_inputs = 1, body = step (float[?] p, float[1] t, float[?] x)
    => (float[?] p_next, float[1] t_next, float[?] out) {
    unit = Constant <value_floats = [1.0]> ()
    t_next = Add (t, unit)
    now = Mul (t_next, x)
    then = Mul (t, p)
    out = Sub (now, then)
    p_next = Identity (x)
  }> (first, before, flat)
  shape = Shape (values)
  wide_out = Reshape <allowzero = 1> (seen, shape)
  increments = CastLike (wide_out, values)
  previous_out = Reshape <allowzero = 1> (stop, sample)
}"""
)

# d_t is element min(t, D-1) of it, t counted from the very first step.
_DRIVE = """Drive (values, drive, start, steps) => (currents)
{
  zero = Constant <value_int = 0> ()
  unit = Constant <value_int = 1> ()
  one = Constant <value_ints = [1]> ()
  k = Reshape (steps, one)
  limit = Squeeze (k)
  times = Range (zero, limit, unit)
  length = Size (drive)
  last = Sub (length, unit)
  done = Reshape (start, one)
  first = Min (done, last)
  counted = Add (times, first)
  places = Min (counted, last)
  factors = Gather (drive, places)
  column = Concat <axis = 0> (k, one)
  by_step = Reshape (factors, column)
  lead = Shape <start = 0, end = 1> (values)
  rest = Shape <start = 1> (values)
  elements = Size (values)
  size = Reshape (elements, one)
  row = Concat <axis = 0> (one, size)
  wide = Cast <to = 1> (values)
  flat = Reshape <allowzero = 1> (wide, row)
  driven = Mul (flat, by_step)
  lead_out = Mul (k, lead)
  shape_out = Concat <axis = 0> (lead_out, rest)
  wide_currents = Reshape <allowzero = 1> (driven, shape_out)
  currents = CastLike (wide_currents, values)
}"""

_POOL_ATTRIBUTES = (
    Attribute("auto_pad", "string", "as in MaxPool"),
    Attribute("ceil_mode", "int", "as in MaxPool"),
    Attribute("dilations", "ints", "as in MaxPool"),
    Attribute("kernel_shape", "ints", "as in MaxPool"),
    Attribute("pads", "ints", "as in MaxPool"),
    Attribute("strides", "ints", "as in MaxPool"),
)

_POOL_REFERENCES = (
    "auto_pad: string = @auto_pad, ceil_mode: int = @ceil_mode, dilations: ints = @dilations, "
    "kernel_shape: ints = @kernel_shape, pads: ints = @pads, strides: ints = @strides"
)

_SPIKE_MAX_POOL = (
    "SpikeMaxPool <auto_pad, ceil_mode, dilations, kernel_shape, pads, strides> "
    "(spikes, counts, steps) => (pooled, counts_out)\n{"
    + _LAYOUT.format(held=_HELD_TEMPORAL, input="spikes")
    + f"""
  counts_full = Expand (counts, sample)
  start = Reshape <allowzero = 1> (counts_full, size)
  stop, running = Scan <num_scan_inputs = 1, body = step (float[?] c, float[?] s)
    => (float[?] c_next, float[?] c_seen) {{
    c_next = Add (c, s)
    c_seen = Identity (c_next)
  }}> (start, flat)
  shape = Shape (spikes)
  seen = Reshape <allowzero = 1> (running, shape)
  after = MaxPool <{_POOL_REFERENCES}> (seen)
  first = MaxPool <{_POOL_REFERENCES}> (counts_full)
  zero = Constant <value_ints = [0]> ()
  last = Sub (lead, batch)
  earlier = Slice (after, zero, last, zero)
  before = Concat <axis = 0> (first, earlier)
  wide_pooled = Sub (after, before)
  pooled = CastLike (wide_pooled, spikes)
  counts_out = Reshape <allowzero = 1> (stop, sample)
}}"""
)

# Random numbers from a counter, in integers that int64 holds.  The state is two words of 32 bits;
# seed, image, step and element are added to it one after the other, each followed by six rounds of a
# Feistel network whose function is the middle of a square.  A round is a bijection, so no two seeds,
# and of one seed no two images, lead to the same state; nor of one image two steps, and so on.
_MIX_ROUNDS = 6
_MIX_KEY = 0x9E3779B9


def _mixed(what: str, low: str, high: str) -> str:
    """The rounds after adding `what` to the words `low` and `high`: `{what}_low`, `{what}_high`."""
    return f"""
  {what}_low, {what}_high = Scan <num_scan_inputs = 1, body = {what}_round
    (int64[?, ?, ?] a, int64[?, ?, ?] b, int64[1] key)
    => (int64[?, ?, ?] a_next, int64[?, ?, ?] b_next) {{
    keyed = Add (a, key)
    signed = Cast <to = 6> (keyed)
    root = Cast <to = 7> (signed)
    square = Mul (root, root)
    part = Div (square, shift)
    sum = Add (b, part)
    word = Cast <to = 12> (sum)
    a_next = Cast <to = 7> (word)
    b_next = Identity (a)
  }}> ({low}, {high}, keys)"""


def _words(number: str, axes: str) -> str:
    """The two words of int64 numbers, as int64, with more axes; the high one keeps its sign."""
    return f"""
  {number}_low_word = Cast <to = 12> ({number})
  {number}_low_flat = Cast <to = 7> ({number}_low_word)
  {number}_low = Unsqueeze ({number}_low_flat, {axes})
  {number}_rest = Sub ({number}, {number}_low_flat)
  {number}_high_flat = Div ({number}_rest, words)
  {number}_high = Unsqueeze ({number}_high_flat, {axes})"""


_MIX_KEYS = ", ".join(str((r + 1) * _MIX_KEY % 2**32) for r in range(_MIX_ROUNDS))

_POISSON_ENCODER = (
    """PoissonEncoder (values, scale, seed, first_image, start, steps) => (spikes)
{
  one = Constant <value_ints = [1]> ()
  ends = Constant <value_ints = [0, 1]> ()
  outer = Constant <value_ints = [0, 2]> ()
  inner = Constant <value_ints = [1, 2]> ()
  none = Constant <value_int = 0> ()
  unit = Constant <value_int = 1> ()
  words = Constant <value_int = 4294967296> ()
  shift = Constant <value_int = 65536> ()
  key_list = Constant <value_ints = ["""
    + _MIX_KEYS
    + """]> ()
  keys = Unsqueeze (key_list, one)
  k = Reshape (steps, one)
  lead = Shape <start = 0, end = 1> (values)
  rest = Shape <start = 1> (values)
  all = Size (values)
  divisor = Max (lead, one)
  size = Div (all, divisor)
  key_number = Reshape (seed, one)"""
    + _words("key_number", "ends")
    + _mixed("seeded", "key_number_low", "key_number_high")
    + """
  image_limit = Squeeze (lead)
  image_range = Range (none, image_limit, unit)
  images_before = Reshape (first_image, one)
  image = Add (image_range, images_before)"""
    + _words("image", "outer")
    + """
  image_a = Add (seeded_low, image_low)
  image_b = Add (seeded_high, image_high)"""
    + _mixed("pictured", "image_a", "image_b")
    + """
  step_limit = Squeeze (k)
  step_range = Range (none, step_limit, unit)
  done = Reshape (start, one)
  step = Add (step_range, done)"""
    + _words("step", "inner")
    + """
  step_a = Add (pictured_low, step_low)
  step_b = Add (pictured_high, step_high)"""
    + _mixed("timed", "step_a", "step_b")
    + """
  element_limit = Squeeze (size)
  element_range = Range (none, element_limit, unit)
  element = Unsqueeze (element_range, ends)
  element_a = Add (timed_low, element)
  element_shape = Shape (element_a)
  element_b = Expand (timed_high, element_shape)"""
    + _mixed("final", "element_a", "element_b")
    + """
  dropped = Constant <value_int = 256> ()
  number = Div (final_low, dropped)
  wide_number = Cast <to = 1> (number)
  spacing = Constant <value_float = 5.9604644775390625e-8> ()
  uniform = Mul (wide_number, spacing)
  wide = Cast <to = 1> (values)
  sample = Concat <axis = 0> (lead, size)
  analog = Reshape <allowzero = 1> (wide, sample)
  magnitude = Abs (analog)
  scale_one = Reshape (scale, one)
  probability = Div (magnitude, scale_one)
  fires = Less (uniform, probability)
  zero = Constant <value_float = 0.0> ()
  plus = Constant <value_float = 1.0> ()
  minus = Constant <value_float = -1.0> ()
  negative = Less (analog, zero)
  sign = Where (negative, minus, plus)
  fired = Where (fires, sign, zero)
  lead_out = Mul (k, lead)
  shape_out = Concat <axis = 0> (lead_out, rest)
  wide_spikes = Reshape <allowzero = 1> (fired, shape_out)
  spikes = CastLike (wide_spikes, values)
}"""
)

_STEPS = Port("steps", "int64", "[]", "time-steps in this call, at least 1")
_START = Port("start", "int64", "[]", "time-steps before this call")

_NEURON_INPUTS = (
    Port(
        "current",
        "T",
        "[steps*N, ...] or [N, ...]",
        "input current, static if `static_current` = 1",
    ),
    Port("threshold", "float32", "broadcasts to [N, ...]", "θ, positive; often [C, 1, 1]"),
    Port("membrane", "float32", "broadcasts to [N, ...]", "membrane potential before the call"),
    _STEPS,
)
_SCHEDULE = Port(
    "schedule",
    "float32",
    "[S, ...]",
    "b_t, each row broadcasts to [N, ...], S at least 1; often [S, C, 1, 1]",
)
_BALANCE = Port("balance", "float32", "broadcasts to [N, ...]", "sum of all k before the call")
_NEURON_OUTPUTS = (
    Port("spikes", "T", "[steps*N, ...]", "0 or 1"),
    Port("membrane_out", "float32", "[N, ...]", "membrane potential after the call"),
)
_NEURON_ATTRIBUTES = (
    Attribute("static_current", "int", "1: `current` is [N, ...] and is injected at every step"),
)
_LEVELS_ATTRIBUTE = Attribute("levels", "int", "the largest k, 1 to 2^24")
_SCHEDULED_INPUTS = (*_NEURON_INPUTS[:3], _SCHEDULE, _START, _STEPS)

OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="RMPNeuron",
            summary="Residual-membrane-potential neuron: integrate and fire with soft reset.",
            equation="u = v + x;  s = 1 if u >= θ else 0;  v = u - θ·s"
            "   (Han, Srinivasan, Roy, RMP-SNN, CVPR 2020)",
            inputs=_NEURON_INPUTS,
            outputs=_NEURON_OUTPUTS,
            attributes=_NEURON_ATTRIBUTES,
            body=_NEURON.format(name="RMPNeuron", reset=_SOFT_RESET),
            states=((2, 1),),
        ),
        Operator(
            name="HardResetNeuron",
            summary="Integrate-and-fire neuron with hard reset: the paper's baseline.",
            equation="u = v + x;  s = 1 if u >= θ else 0;  v = 0 if s else u",
            inputs=_NEURON_INPUTS,
            outputs=_NEURON_OUTPUTS,
            attributes=_NEURON_ATTRIBUTES,
            body=_NEURON.format(name="HardResetNeuron", reset=_HARD_RESET),
            states=((2, 1),),
        ),
        Operator(
            name="ScheduledRMPNeuron",
            summary="RMPNeuron with a schedule of currents: one row of it is added at every step, the "
            "last row at all later ones.",
            equation="u = (v + x) + b_t;  s = 1 if u >= θ else 0;  v = u - θ·s"
            "   with b_t = schedule[min(t, S-1)], t = start, start + 1, ...",
            inputs=_SCHEDULED_INPUTS,
            outputs=_NEURON_OUTPUTS,
            attributes=_NEURON_ATTRIBUTES,
            body=_SCHEDULED_RMP_NEURON,
            states=((2, 1),),
        ),
        Operator(
            name="BurstNeuron",
            summary="Neuron with soft reset that sends up to `levels` spikes at a step, as one number.",
            equation="u = (v + x) + b_t;  k = min(max(floor(u / θ), 0), levels);  v = u - θ·k"
            "   with b_t as in ScheduledRMPNeuron",
            inputs=_SCHEDULED_INPUTS,
            outputs=(Port("spikes", "T", "[steps*N, ...]", "k, 0 to levels"), _NEURON_OUTPUTS[1]),
            attributes=(*_NEURON_ATTRIBUTES, _LEVELS_ATTRIBUTE),
            body=_BURST_NEURON,
            states=((2, 1),),
        ),
        Operator(
            name="SignedNeuron",
            summary="Burst neuron that also sends negative spikes, which take back earlier ones: the "
            "sum n of all that it has sent is never negative.",
            equation="u = (v + x) + b_t;  k = max(min(max(floor(u / θ), -levels), levels), -n);  "
            "v = u - θ·k;  n = n + k   with b_t as in ScheduledRMPNeuron",
            inputs=(*_NEURON_INPUTS[:3], _BALANCE, _SCHEDULE, _START, _STEPS),
            outputs=(
                Port("spikes", "T", "[steps*N, ...]", "k, -levels to levels"),
                _NEURON_OUTPUTS[1],
                Port("balance_out", "float32", "[N, ...]", "sum of all k after the call"),
            ),
            attributes=(*_NEURON_ATTRIBUTES, _LEVELS_ATTRIBUTE),
            body=_SIGNED_NEURON,
            states=((2, 1), (3, 2)),
        ),
        Operator(
            name="TimeSum",
            summary="Running sum over time; the read-out divides it by the number of steps.",
            equation="y = (...((total + x_1) + x_2) + ...) + x_steps, in float32, in this order",
            inputs=(
                Port("values", "T", "[steps*N, ...]", "spikes or currents"),
                Port("total", "float32", "broadcasts to [N, ...]", "sum before the call"),
                _STEPS,
            ),
            outputs=(Port("total_out", "float32", "[N, ...]", "sum after the call"),),
            attributes=(),
            body=_TIME_SUM,
            states=((1, 0),),
        ),
        Operator(
            name="WeightedTimeSum",
            summary="Running sum over time with a weight for each step.",
            equation="y = y + w_t·x_t, in float32, in this order, the product rounded before the sum",
            inputs=(
                Port("values", "T", "[steps*N, ...]", "spikes or currents"),
                Port("weights", "float32", "[steps]", "w_t of the steps of this call"),
                Port("total", "float32", "broadcasts to [N, ...]", "sum before the call"),
                _STEPS,
            ),
            outputs=(Port("total_out", "float32", "[N, ...]", "sum after the call"),),
            attributes=(),
            body=_WEIGHTED_TIME_SUM,
            states=((2, 0),),
        ),
        Operator(
            name="SpikeMaxPool",
            summary="Exact max pooling of spike trains: passes on the increments of the pooled "
            "running spike counts, which are 0 or 1 where a window shares one threshold.",
            equation="c_t = c_{t-1} + s_t;  out_t = maxpool(c_t) - maxpool(c_{t-1})",
            inputs=(
                Port("spikes", "T", "[steps*N, C, ...]", "0 or 1"),
                Port("counts", "float32", "broadcasts to [N, C, ...]", "spikes before the call"),
                _STEPS,
            ),
            outputs=(
                Port("pooled", "T", "[steps*N, C, ...]", "0 or 1"),
                Port("counts_out", "float32", "[N, C, ...]", "spikes after the call"),
            ),
            attributes=_POOL_ATTRIBUTES,
            body=_SPIKE_MAX_POOL,
            states=((1, 1),),
        ),
        Operator(
            name="RunningMean",
            summary="Mean over all time-steps so far, at every step; what a nonlinear operator that is "
            "kept analog computes on.",
            equation="y_t = y_{t-1} + x_t;  mean_t = y_t / t, with t counted from the first step",
            inputs=(
                Port("values", "T", "[steps*N, ...]", "spikes or currents"),
                Port("total", "float32", "broadcasts to [N, ...]", "sum before the call"),
                _START,
                _STEPS,
            ),
            outputs=(
                Port("means", "T", "[steps*N, ...]", "mean of steps 1 to t"),
                Port("total_out", "float32", "[N, ...]", "sum after the call"),
            ),
            attributes=(),
            body=_RUNNING_MEAN,
            states=((1, 1),),
        ),
        Operator(
            name="Telescope",
            summary="Turns a function of the running mean into a current whose time-mean it is.",
            equation="out_t = t·x_t - (t-1)·x_{t-1}, with t counted from the first step",
            inputs=(
                Port("values", "T", "[steps*N, ...]", "f(mean_t) at every step"),
                Port("previous", "float32", "broadcasts to [N, ...]", "f(mean) before the call"),
                _START,
                _STEPS,
            ),
            outputs=(
                Port("increments", "T", "[steps*N, ...]", "their mean over t steps is x_t"),
                Port("previous_out", "float32", "[N, ...]", "f(mean) after the call"),
            ),
            attributes=(),
            body=_TELESCOPE,
            states=((1, 1),),
        ),
        Operator(
            name="Drive",
            summary="A static current, multiplied by another factor at each of the first steps: what "
            "thresholds that grow with time come to (ir/growth.py).",
            equation="out_t = d_min(t, D-1) * x, with t counted from 0",
            inputs=(
                Port("values", "T", "[N, ...]", "x, the same at every step"),
                Port("drive", "float32", "[D]", "d; its last element holds for all later steps"),
                _START,
                _STEPS,
            ),
            outputs=(Port("currents", "T", "[steps*N, ...]", "currents"),),
            attributes=(),
            body=_DRIVE,
            states=(),
        ),
        Operator(
            name="PoissonEncoder",
            summary="Spikes at random, whose mean over time is x / scale; each is a function of seed, "
            "image, step and element alone, so neither batches nor chunks of steps change it.",
            equation="s = sign(x) if r·2^-24 < |x| / scale else 0   with r the upper 24 bits of the "
            "word that seed, first_image + n, start + t and element are mixed into",
            inputs=(
                Port("values", "T", "[N, ...]", "x, the same at every step"),
                Port("scale", "float32", "[]", "positive; largest |x| that is not cut off"),
                Port("seed", "int64", "[]", "any"),
                Port(
                    "first_image", "int64", "[]", "number of sample 0 of this call in all samples"
                ),
                _START,
                _STEPS,
            ),
            outputs=(Port("spikes", "T", "[steps*N, ...]", "-1, 0 or 1"),),
            attributes=(),
            body=_POISSON_ENCODER,
            states=(),
        ),
    )
}

# --- event-driven layers ---
#
# What `passes/lower/lower_events.py` makes of a layer for the CPU: spikes are bytes, channels last, and
# a convolution and its neuron are one operator.  A body is the layer as it was, between transposes.

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
    _START,
    _STEPS,
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
                _STEPS,
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
                _STEPS,
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

# --- counting time ---
#
# One node reads each number, and reads it once: onnxruntime on CUDA makes two of an initializer that is
# read on the GPU and by the host, and a value that overrides it reaches one of them only.
_TIME_STEPS = """TimeSteps (iteration, done, total, chunk) => (start, steps, end, going)
{
  none = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  units = Constant <value_ints = [1]> ()
  chunks = Max (iteration, none)
  before = Max (done, none)
  total_given = Max (total, none)
  total_low = Less (total_given, one)
  total_place = Cast <to = 7> (total_low)
  total_must_be_at_least_1 = Gather (units, total_place)
  window = Mul (total_given, total_must_be_at_least_1)
  chunk_given = Max (chunk, none)
  chunk_low = Less (chunk_given, one)
  chunk_place = Cast <to = 7> (chunk_low)
  chunk_must_be_at_least_1 = Gather (units, chunk_place)
  size = Mul (chunk_given, chunk_must_be_at_least_1)
  here = Mul (chunks, size)
  start = Add (before, here)
  left = Sub (window, start)
  steps = Min (size, left)
  end = Add (start, steps)
  going = Less (end, window)
}"""

#: Operators that only count.  Their numbers are the host's on every device: on CUDA, too, they run on
#: the CPU, and what they give is read there (`steps` and `start` of the others).
COUNTING_OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="TimeSteps",
            summary="The time-steps of one trip through a loop over chunks of time, and whether one "
            "follows.",
            equation="start = done + iteration·chunk;  steps = min(chunk, total - start);  "
            "end = start + steps;  going = end < total",
            inputs=(
                Port("iteration", "int64", "[]", "trips before this one"),
                Port("done", "int64", "[]", "time-steps before the first trip"),
                Port("total", "int64", "[]", "T, at least 1; past it there is no trip"),
                Port("chunk", "int64", "[]", "K, at least 1"),
            ),
            outputs=(
                Port("start", "int64", "[]", "time-steps before this trip"),
                Port("steps", "int64", "[]", "time-steps in this trip"),
                Port("end", "int64", "[]", "time-steps after this trip"),
                Port("going", "bool", "[]", "whether any are left"),
            ),
            attributes=(),
            body=_TIME_STEPS,
            states=(),
        ),
    )
}

#: Every operator of the domain.
ALL_OPERATORS = {**OPERATORS, **EVENT_OPERATORS, **COUNTING_OPERATORS}

#: The operators that a body is made of, beside those of ONNX.
_BODY_NEEDS = {
    "EventNeuron": ("Drive", "ScheduledRMPNeuron"),
    "EventConv": ("ScheduledRMPNeuron",),
    "EventConvAdd": ("ScheduledRMPNeuron",),
    "EventConvPair": ("ScheduledRMPNeuron",),
    "EventSum": ("WeightedTimeSum",),
    "EventMaxPool": ("SpikeMaxPool",),
}

#: The operators that fire: one per rectifier of the source network.
NEURONS = (
    "RMPNeuron",
    "HardResetNeuron",
    "ScheduledRMPNeuron",
    "BurstNeuron",
    "SignedNeuron",
)
#: What they, with what flows into them, are by events.
EVENT_NEURONS = ("EventNeuron", "EventConv", "EventConvAdd", "EventConvPair")


@cache
def _function(name: str, opset: int) -> bytes:
    operator = ALL_OPERATORS[name]
    ours = f', "{DOMAIN}" : {VERSION}' if name in _BODY_NEEDS else ""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}{ours}]>\n'
    function = onnx.parser.parse_function(header + operator.body)
    function.doc_string = f"{operator.summary}\n{operator.equation}"
    if name in COUNTING_OPERATORS:
        # An error tells the node by its name.
        for node in function.node:
            node.name = node.output[0]
    return bytes(function.SerializeToString(deterministic=True))


def function(name: str, opset: int) -> onnx.FunctionProto:
    """The body of operator `name` for a model of the given opset.

    Raises KeyError for an operator that is not of this domain.
    """
    body = onnx.FunctionProto()
    body.ParseFromString(_function(name, opset))
    return body


def functions(names: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """The bodies of several operators and of those that they are made of, in the order of names."""
    wanted = set(names)
    wanted |= {needed for name in wanted for needed in _BODY_NEEDS.get(name, ())}
    return [function(name, opset) for name in sorted(wanted)]
