"""The operators around neurons: sums, means and factors over time, pooling of spikes, random spikes."""

from __future__ import annotations

from snncompiler.ir.dialect.core import (
    HELD_TEMPORAL,
    LAYOUT,
    START,
    STEPS,
    Attribute,
    Operator,
    Port,
)

_TIME_SUM = (
    "TimeSum (values, total, steps) => (total_out)\n{"
    + LAYOUT.format(held=HELD_TEMPORAL, input="values")
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
    + LAYOUT.format(held=HELD_TEMPORAL, input="values")
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
    + LAYOUT.format(held=HELD_TEMPORAL, input="values")
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
    + LAYOUT.format(held=HELD_TEMPORAL, input="values")
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
    + LAYOUT.format(held=HELD_TEMPORAL, input="spikes")
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

TIME_OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="TimeSum",
            summary="Running sum over time; the read-out divides it by the number of steps.",
            equation="y = (...((total + x_1) + x_2) + ...) + x_steps, in float32, in this order",
            inputs=(
                Port("values", "T", "[steps*N, ...]", "spikes or currents"),
                Port("total", "float32", "broadcasts to [N, ...]", "sum before the call"),
                STEPS,
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
                STEPS,
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
                STEPS,
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
                START,
                STEPS,
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
                START,
                STEPS,
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
            "thresholds that grow with time come to.",
            equation="out_t = d_min(t, D-1) * x, with t counted from 0",
            inputs=(
                Port("values", "T", "[N, ...]", "x, the same at every step"),
                Port("drive", "float32", "[D]", "d; its last element holds for all later steps"),
                START,
                STEPS,
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
                START,
                STEPS,
            ),
            outputs=(Port("spikes", "T", "[steps*N, ...]", "-1, 0 or 1"),),
            attributes=(),
            body=_POISSON_ENCODER,
            states=(),
        ),
    )
}
