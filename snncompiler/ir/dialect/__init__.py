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

from snncompiler.ir.dialect.by_counts import COUNT_OPERATORS
from snncompiler.ir.dialect.core import (
    BASE_OPSET,
    DOMAIN,
    MAX_IR_VERSION,
    VERSION,
    Attribute,
    Operator,
    Port,
)
from snncompiler.ir.dialect.counting import COUNTING_OPERATORS
from snncompiler.ir.dialect.driven import DRIVEN, DRIVEN_OPERATORS
from snncompiler.ir.dialect.events import EVENT_NEURONS, EVENT_OPERATORS
from snncompiler.ir.dialect.loader import ALL_OPERATORS, OPERATORS, function, functions
from snncompiler.ir.dialect.neurons import NEURONS

__all__ = [
    "ALL_OPERATORS",
    "BASE_OPSET",
    "COUNTING_OPERATORS",
    "COUNT_OPERATORS",
    "DOMAIN",
    "DRIVEN",
    "DRIVEN_OPERATORS",
    "EVENT_NEURONS",
    "EVENT_OPERATORS",
    "MAX_IR_VERSION",
    "NEURONS",
    "OPERATORS",
    "VERSION",
    "Attribute",
    "Operator",
    "Port",
    "function",
    "functions",
]
