"""The read-out's arithmetic: what every time-step weighs, and the sum of the weights.

A value over time is decoded as Σ w_t·g_t·o_t / Σ w_t (`ReadOut`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir.readout import ReadOut
from snncompiler.passes.time.graph_writer import GraphWriter, Time


@dataclass(frozen=True)
class TimeWeights:
    """Writes the weights of a read-out as nodes of a graph."""

    writer: GraphWriter
    read_out: ReadOut

    def of_steps(self, prefix: str, time: Time) -> list[onnx.NodeProto]:
        """The weights w_t·g_t of the steps start + 1 to end, float32 [steps]."""
        variable = {entry.name for entry in self.writer.overridable}
        known = {n: t for n, t in self.writer.initializers.items() if n not in variable}
        if time.start in known and time.steps in known:
            before, count = (
                int(numpy_helper.to_array(known[name])) for name in (time.start, time.steps)
            )
            weights = self.read_out.weights(np.arange(before + 1, before + count + 1))
            name = self.writer.within(prefix, "snnc_time_weights")
            self.writer.initializers[name] = numpy_helper.from_array(weights, name)
            return []
        one = self.writer.constant(f"{prefix}snnc_first", 1)
        before_each, times, result = (
            self.writer.within(prefix, f"snnc_{x}")
            for x in ("times_before", "times", "time_weights")
        )
        made = [
            # The host gives both ends, so that on CUDA nothing is copied.
            helper.make_node("Range", [time.start, time.end, one], [before_each], name=before_each),
            helper.make_node("Add", [before_each, one], [times], name=times),
        ]
        counted = times
        if self.read_out.kind == "ramp":
            # In double precision, where t³ cannot overflow however long a stream is.
            wide = counted = self.writer.within(prefix, "snnc_times_wide")
            made.append(helper.make_node("Cast", [times], [wide], name=wide, to=TensorProto.DOUBLE))
            for power in range(2, self.read_out.power + 1):
                factor, counted = counted, self.writer.within(prefix, f"snnc_times_{power}")
                made.append(helper.make_node("Mul", [factor, wide], [counted], name=counted))
        else:
            skipped = self.writer.constant(f"{prefix}snnc_skipped", self.read_out.skipped)
            counted = self.writer.within(prefix, "snnc_counted")
            made.append(helper.make_node("Greater", [times, skipped], [counted], name=counted))
        growing = self.read_out.growth
        plain = self.writer.within(prefix, "snnc_plain_weights") if growing else result
        made.append(helper.make_node("Cast", [counted], [plain], name=plain, to=TensorProto.FLOAT))
        if growing:
            made += self._worth(prefix, times, one, plain, result)
        return made

    def _worth(
        self, prefix: str, times: str, one: str, plain: str, result: str
    ) -> list[onnx.NodeProto]:
        """`result`: `plain` times g_t, of which a table says the first and the last one holds on."""
        table = self.read_out.growth.table
        worth = self.writer.constant(f"{prefix}snnc_worth", table, np.float32)
        length = self.writer.constant(f"{prefix}snnc_growing", len(table))
        held, place, here = (
            self.writer.within(prefix, f"snnc_worth_{x}") for x in ("step", "place", "here")
        )
        return [
            helper.make_node("Min", [times, length], [held], name=held),
            helper.make_node("Sub", [held, one], [place], name=place),
            helper.make_node("Gather", [worth, place], [here], name=here),
            helper.make_node("Mul", [plain, here], [result], name=result),
        ]

    def divisor(self, steps: str | int) -> str:
        """The name of Σ w_t over all T steps, a float32 scalar."""
        if isinstance(steps, int):
            total = self.read_out.total(steps)
            return self.writer.constant("snnc_weight_of_time", total, np.float32)
        total_name = steps
        if self.read_out.kind == "ramp":
            total_name = self._sum_of_powers(steps)
        elif self.read_out.kind == "delay":
            counted, total_name = (
                self.writer.name("snnc_steps_counted"),
                self.writer.name("snnc_delay_total"),
            )
            skip = self.writer.constant("snnc_skip", self.read_out.skipped)
            one = self.writer.constant("snnc_one", 1)
            self.writer.nodes += [
                helper.make_node("Sub", [steps, skip], [counted], name=counted),
                helper.make_node("Max", [counted, one], [total_name], name=total_name),
            ]
        divisor = self.writer.name("snnc_weight_of_time")
        self.writer.nodes.append(
            helper.make_node("Cast", [total_name], [divisor], name=divisor, to=TensorProto.FLOAT)
        )
        return divisor

    def _sum_of_powers(self, steps: str) -> str:
        """The name of Σ t^P for t from 1 to T, in double precision."""

        def emit(op: str, inputs: Sequence[str], wanted: str, **more: Any) -> str:
            name = self.writer.name(f"snnc_{wanted}")
            self.writer.nodes.append(helper.make_node(op, inputs, [name], name=name, **more))
            return name

        def number(value: int, wanted: str) -> str:
            return self.writer.constant(f"snnc_{wanted}_wide", value, np.float64)

        # T(T+1)/2, T(T+1)(2T+1)/6, or the square of the first.
        last = emit("Cast", [steps], "steps_wide", to=TensorProto.DOUBLE)
        following = emit("Add", [last, number(1, "one")], "steps_plus_one")
        product = emit("Mul", [last, following], "steps_product")
        if self.read_out.power == 2:
            odd = emit("Add", [last, following], "steps_odd")
            cubic = emit("Mul", [product, odd], "steps_cubic")
            return emit("Div", [cubic, number(6, "six")], "ramp_total")
        total = emit("Div", [product, number(2, "two")], "ramp_total")
        return emit("Mul", [total, total], "ramp_squared") if self.read_out.power == 3 else total
