"""What `unroll_time` writes into: nodes, constants, inputs that may be overridden, and free names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir.graph import unique_name


@dataclass(frozen=True)
class Time:
    """The names of the time-steps before one pass through the region, in it, and after it; the last is
    missing where the others are constants."""

    start: str
    steps: str
    end: str = ""


@dataclass(kw_only=True)
class GraphWriter:
    """A graph that is being written.

    `taken` holds the names of all tensors and nodes, in the body of the Loop or outside: what the user
    wrote keeps its name, and what is made here gets one that is free.
    """

    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    overridable: list[onnx.ValueInfoProto] = field(default_factory=list)
    #: What `region` makes in every copy: wanted name -> free name, before the prefix of a copy.
    inner: dict[str, str] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        return unique_name(wanted, self.taken)

    def within(self, prefix: str, wanted: str) -> str:
        """The name of what one copy of the region makes, the same in each but for the prefix."""
        if wanted not in self.inner:
            self.inner[wanted] = self.name(wanted)
        return prefix + self.inner[wanted]

    def constant(self, wanted: str, values: object, dtype: type = np.int64) -> str:
        name = self.name(wanted)
        self.initializers[name] = numpy_helper.from_array(np.array(values, dtype), name)
        return name

    def parameter(self, wanted: str, default: int) -> str:
        """An int64 scalar initializer that is also a graph input: a value the user may override."""
        name = self.constant(wanted, default)
        self.overridable.append(helper.make_tensor_value_info(name, TensorProto.INT64, []))
        return name
