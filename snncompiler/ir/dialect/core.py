"""What an operator of the domain is, and what the bodies of all of them begin with."""

from __future__ import annotations

from dataclasses import dataclass

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
LAYOUT = """
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

HELD_BY_FLAG = """flag = Constant <value_int: int = @static_current> ()
  static = Cast <to = 9> (flag)
  held = Where (static, one, k)"""

HELD_TEMPORAL = "held = Identity (k)"

STEPS = Port("steps", "int64", "[]", "time-steps in this call, at least 1")
START = Port("start", "int64", "[]", "time-steps before this call")
