"""The operators that fire, of which every rectifier of the source network becomes one."""

from __future__ import annotations

from snncompiler.ir.dialect.core import (
    HELD_BY_FLAG,
    LAYOUT,
    START,
    STEPS,
    Attribute,
    Operator,
    Port,
)

_NEURON = (
    "{name} <static_current> (current, threshold, membrane, steps) => (spikes, membrane_out)\n{{"
    + LAYOUT.format(held=HELD_BY_FLAG, input="current").replace("{", "{{").replace("}", "}}")
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
    + LAYOUT.format(held=HELD_BY_FLAG, input="current").replace("{", "{{").replace("}", "}}")
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

# The first Scan completes the current, the second one fires.  A static current is complete, and weighs
# what the last step weighs: 1.  BitShift makes exact powers of 2 on every device, which Pow need not.
_LAYERED_NEURON = (
    "LayeredRMPNeuron <static_current, radix> (current, threshold, membrane, steps) => (spikes)\n{"
    + LAYOUT.format(held=HELD_BY_FLAG, input="current")
    + """
  last_place = Sub (k, one)
  first_digit = Squeeze (last_place)
  down = Constant <value_int = -1> ()
  digits = Range (first_digit, down, down)
  radix_int = Constant <value_int: int = @radix> ()
  shifts = Mul (digits, radix_int)
  places = Cast <to = 13> (shifts)
  unit = Cast <to = 13> (one)
  powers = BitShift <direction = "LEFT"> (unit, places)
  numbers = Cast <to = 1> (powers)
  column = Concat <axis = 0> (k, one)
  weights = Reshape (numbers, column)
  unheld = Sub (k, held)
  axis = Constant <value_ints = [0]> ()
  held_weights = Slice (weights, unheld, k, axis)
  zero = Constant <value_float = 0.0> ()
  nothing = Expand (zero, size)
  complete = Scan <num_scan_inputs = 2, body = receive (float[?] y, float[?] x, float[1] w)
    => (float[?] y_next) {
    weighted = Mul (w, x)
    y_next = Add (y, weighted)
  }> (nothing, flat, held_weights)
  threshold_full = Expand (threshold, sample)
  theta = Reshape <allowzero = 1> (threshold_full, size)
  membrane_full = Expand (membrane, sample)
  before = Reshape <allowzero = 1> (membrane_full, size)
  potential = Add (before, complete)
  stop, fired = Scan <num_scan_inputs = 1, body = fire (float[?] v, float[1] w)
    => (float[?] v_next, float[?] s) {
    level = Mul (w, theta)
    fires = GreaterOrEqual (v, level)
    s = Cast <to = 1> (fires)
    drop = Mul (s, level)
    v_next = Sub (v, drop)
  }> (potential, weights)
  lead_out = Mul (k, batch)
  shape_out = Concat <axis = 0> (lead_out, rest)
  wide_spikes = Reshape <allowzero = 1> (fired, shape_out)
  spikes = CastLike (wide_spikes, current)
}"""
)

_NEURON_INPUTS = (
    Port(
        "current",
        "T",
        "[steps*N, ...] or [N, ...]",
        "input current, static if `static_current` = 1",
    ),
    Port("threshold", "float32", "broadcasts to [N, ...]", "θ, positive; often [C, 1, 1]"),
    Port("membrane", "float32", "broadcasts to [N, ...]", "membrane potential before the call"),
    STEPS,
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
NEURON_ATTRIBUTES = (
    Attribute("static_current", "int", "1: `current` is [N, ...] and is injected at every step"),
)
_LEVELS_ATTRIBUTE = Attribute("levels", "int", "the largest k, 1 to 2^24")
_SCHEDULED_INPUTS = (*_NEURON_INPUTS[:3], _SCHEDULE, START, STEPS)

NEURON_OPERATORS: dict[str, Operator] = {
    op.name: op
    for op in (
        Operator(
            name="RMPNeuron",
            summary="Residual-membrane-potential neuron: integrate and fire with soft reset.",
            equation="u = v + x;  s = 1 if u >= θ else 0;  v = u - θ·s"
            "   (Han, Srinivasan, Roy, RMP-SNN, CVPR 2020)",
            inputs=_NEURON_INPUTS,
            outputs=_NEURON_OUTPUTS,
            attributes=NEURON_ATTRIBUTES,
            body=_NEURON.format(name="RMPNeuron", reset=_SOFT_RESET),
            states=((2, 1),),
        ),
        Operator(
            name="HardResetNeuron",
            summary="Integrate-and-fire neuron with hard reset: the paper's baseline.",
            equation="u = v + x;  s = 1 if u >= θ else 0;  v = 0 if s else u",
            inputs=_NEURON_INPUTS,
            outputs=_NEURON_OUTPUTS,
            attributes=NEURON_ATTRIBUTES,
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
            attributes=NEURON_ATTRIBUTES,
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
            attributes=(*NEURON_ATTRIBUTES, _LEVELS_ATTRIBUTE),
            body=_BURST_NEURON,
            states=((2, 1),),
        ),
        Operator(
            name="SignedNeuron",
            summary="Burst neuron that also sends negative spikes, which take back earlier ones: the "
            "sum n of all that it has sent is never negative.",
            equation="u = (v + x) + b_t;  k = max(min(max(floor(u / θ), -levels), levels), -n);  "
            "v = u - θ·k;  n = n + k   with b_t as in ScheduledRMPNeuron",
            inputs=(*_NEURON_INPUTS[:3], _BALANCE, _SCHEDULE, START, STEPS),
            outputs=(
                Port("spikes", "T", "[steps*N, ...]", "k, -levels to levels"),
                _NEURON_OUTPUTS[1],
                Port("balance_out", "float32", "[N, ...]", "sum of all k after the call"),
            ),
            attributes=(*NEURON_ATTRIBUTES, _LEVELS_ATTRIBUTE),
            body=_SIGNED_NEURON,
            states=((2, 1), (3, 2)),
        ),
        Operator(
            name="LayeredRMPNeuron",
            summary="RMPNeuron of layered time: it receives a whole window of current, then fires for "
            "as many steps.  With `radix` a spike of step t weighs 2^(T-t), both where it is "
            "received and where it is sent; else 1.",
            equation="X = (...((0 + w_1·x_1) + w_2·x_2) + ...) + w_T·x_T, or the static current;  "
            "v = v_0 + X;  then for t = 1 ... T: s = 1 if v >= w_t·θ else 0;  v = v - w_t·θ·s",
            inputs=(
                Port(
                    "current",
                    "T",
                    "[steps*N, ...] or [N, ...]",
                    "current of a window, or complete (its sum) if `static_current` = 1",
                ),
                Port(
                    "threshold",
                    "float32",
                    "broadcasts to [N, ...]",
                    "θ, positive: the charge of a spike that weighs 1",
                ),
                Port(
                    "membrane",
                    "float32",
                    "broadcasts to [N, ...]",
                    "v_0: θ/2, and every current that comes once",
                ),
                Port("steps", "int64", "[]", "T; 1 to 24 with `radix`"),
            ),
            outputs=(_NEURON_OUTPUTS[0],),
            attributes=(
                Attribute("static_current", "int", "1: `current` is [N, ...] and complete"),
                Attribute("radix", "int", "1: w_t = 2^(T-t); 0: w_t = 1"),
            ),
            body=_LAYERED_NEURON,
            states=(),
        ),
    )
}

#: Their names.
NEURONS = tuple(NEURON_OPERATORS)
