"""The operator that counts time, on the host whatever the device.

One node reads each number, and reads it once: onnxruntime on CUDA makes two of an initializer that is
read on the GPU and by the host, and a value that overrides it reaches one of them only.
"""

from __future__ import annotations

from snncompiler.ir.dialect.core import Operator, Port

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
