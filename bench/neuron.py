"""The neurons alone: bytes per second of their kernels against a plain copy and the function body.

    python bench/neuron.py

A neuron layer must read its currents and write its spikes, so a plain copy of as many bytes is the
floor.  A run of any session costs some microseconds more: onnxruntime's own copy, a session of nothing
but an Identity, shows how much of a floor that leaves (on one thread).  RMPNeuron is measured, and
ScheduledRMPNeuron twice: behind the end of its schedule ("settled", the last row is zero) and in the
middle of it ("moving", another row at every step).  Each figure is a median of rounds in which the
candidates take turns.  Buffers are made once and bound, so that no allocation is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import create_session, doctor

STEPS = 32
CHANNELS = 64
#: Bytes of the currents, from what fits the L2 cache to what does not fit the L3 cache.
DEFAULT_SIZES_MB = (0.5, 4, 32, 512)
#: A function body is slow and allocates; larger sizes than this leave it out.
BODY_LIMIT_MB = 64


#: The kernels, each with the rows of its schedule, if it has one.
KERNELS = {
    "RMPNeuron": ("RMPNeuron", 0),
    "settled": ("ScheduledRMPNeuron", 1),
    "moving": ("ScheduledRMPNeuron", STEPS + 1),
}


def neuron_model(name: str, static: bool) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("current", TensorProto.FLOAT, [None, CHANNELS, None, 1]),
        helper.make_tensor_value_info("threshold", TensorProto.FLOAT, [CHANNELS, 1, 1]),
        helper.make_tensor_value_info("membrane", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("schedule", TensorProto.FLOAT, [None, CHANNELS, 1, 1]),
        helper.make_tensor_value_info("start", TensorProto.INT64, []),
        helper.make_tensor_value_info("steps", TensorProto.INT64, []),
    ]
    known = {port.name for port in dialect.OPERATORS[name].inputs}
    inputs = [value for value in inputs if value.name in known]
    outputs = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, CHANNELS, None, 1])
        for output in ("spikes", "membrane_out")
    ]
    node = helper.make_node(
        name,
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain=dialect.DOMAIN,
        static_current=int(static),
    )
    opset = dialect.BASE_OPSET
    return helper.make_model(
        helper.make_graph([node], "neuron", inputs, outputs),
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
        ],
        ir_version=dialect.MAX_IR_VERSION,
        functions=dialect.functions([name], opset),
    )


def identity_runner(count: int) -> Callable[[], None]:
    """A call of a session that copies `count` bytes between bound buffers."""
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "copy", kinds[:1], kinds[1:]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", dialect.BASE_OPSET)],
        ir_version=dialect.MAX_IR_VERSION,
    )
    session = create_session(model, threads=1, native=False)
    binding = session.io_binding()
    source = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones(count // 4, np.float32))
    target = onnxruntime.OrtValue.ortvalue_from_shape_and_type([count // 4], np.float32)
    binding.bind_ortvalue_input("x", source)
    binding.bind_ortvalue_output("y", target)

    def run(keep: object = (source, target)) -> None:
        session.run_with_iobinding(binding)

    return run


def neuron_runner(
    kernel: str, neurons: int, static: bool, threads: int, native: bool
) -> Callable[[], None]:
    """A call that runs one chunk of `STEPS` steps over bound buffers."""
    operator, schedule_rows = KERNELS[kernel]
    session = create_session(neuron_model(operator, static), threads=threads, native=native)
    rng = np.random.default_rng(0)
    width = neurons // CHANNELS
    rows = 1 if static else STEPS
    current = rng.normal(0.1, 0.3, (rows, CHANNELS, width, 1)).astype(np.float32)
    feeds = {
        "current": current,
        "threshold": rng.uniform(0.5, 2.0, (CHANNELS, 1, 1)).astype(np.float32),
        "membrane": np.array(0.5, np.float32),
        "steps": np.array(STEPS),
    }
    if schedule_rows:
        schedule = rng.normal(0, 0.1, (schedule_rows, CHANNELS, 1, 1)).astype(np.float32)
        schedule[-1] = 0
        feeds |= {"schedule": schedule, "start": np.array(0)}
    binding = session.io_binding()
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, leading in (("spikes", STEPS), ("membrane_out", 1)):
        values[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            [leading, CHANNELS, width, 1], np.float32
        )
        binding.bind_ortvalue_output(name, values[name])

    def run(keep: object = (feeds, values)) -> None:
        session.run_with_iobinding(binding)

    return run


def copy_runner(count: int, threads: int, repeats: int) -> Callable[[], None]:
    """`repeats` plain copies of `count` bytes, split over threads that start once."""
    source = np.ones(count, np.uint8)
    target = np.zeros(count, np.uint8)
    part = -(-count // threads)

    def copy(index: int) -> None:
        offset = index * part
        size = min(part, count - offset)
        for _ in range(repeats):
            ctypes.memmove(target.ctypes.data + offset, source.ctypes.data + offset, size)

    def run() -> None:
        others = [threading.Thread(target=copy, args=(index,)) for index in range(1, threads)]
        for thread in others:
            thread.start()
        copy(0)
        for thread in others:
            thread.join()

    return run


def repeated(run: Callable[[], None], times: int) -> Callable[[], None]:
    def run_all() -> None:
        for _ in range(times):
            run()

    return run_all


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(size_mb: float, static: bool, threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of each candidate for currents (or, if static, spikes) of `size_mb`."""
    neurons = int(size_mb * 2**20) // 4 // STEPS // CHANNELS * CHANNELS
    count = neurons * 4 * STEPS
    # A static current is read once, so that the spikes are nearly all there is to move: as many
    # bytes as copying half of them.
    moved = count // 2 if static else count
    repeats = max(1, int(2**25 // moved))
    candidates: dict[str, tuple[Callable[[], None], int]] = {
        "copy": (copy_runner(moved, threads, repeats), repeats),
        "Identity": (repeated(identity_runner(moved), repeats), repeats),
    }
    for kernel in KERNELS:
        one = neuron_runner(kernel, neurons, static, threads, native=True)
        candidates[kernel] = (repeated(one, repeats), repeats)
    if size_mb <= BODY_LIMIT_MB:
        times = max(1, repeats // 8)
        one = neuron_runner("RMPNeuron", neurons, static, threads, native=False)
        candidates["body"] = (repeated(one, times), times)
    for run, _ in candidates.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, (run, times) in candidates.items():
            samples[name].append(seconds(run) / times)
    result = {name: statistics.median(values) for name, values in samples.items()}
    result["bytes"] = 2.0 * moved
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes-mb", type=float, nargs="+", default=DEFAULT_SIZES_MB)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    built = doctor()["library"]["build"]
    print(
        f"onnxruntime {onnxruntime.__version__}, python {platform.python_version()}, "
        f"{built.get('compiler')}, {platform.machine()}; float32, {STEPS} steps, "
        f"threshold [{CHANNELS}, 1, 1], medians of {options.rounds} rounds"
    )
    print(
        "GB/s of bytes read plus bytes written: a plain copy, onnxruntime's own (Identity), RMPNeuron, "
        "ScheduledRMPNeuron behind the end of its schedule (settled) and inside it (moving); "
        "RMPNeuron's body as milliseconds and as a multiple of its kernel."
    )
    columns = ("copy", "Identity", *KERNELS)
    heads = "".join(f"{name:>11}" for name in columns)
    print(
        f"current   size MB  threads{heads}  settled/copy  settled/Identity  body ms  body/kernel"
    )
    for static in (False, True):
        for size_mb in options.sizes_mb:
            for threads in options.threads:
                found = measure(size_mb, static, threads, options.rounds)
                rates = {name: found["bytes"] / found[name] / 1e9 for name in columns}
                figures = "".join(f"{rate:>11.1f}" for rate in rates.values())
                body = found.get("body")
                print(
                    f"{'static' if static else 'temporal':<9} {size_mb:>7g}  {threads:>7}{figures}"
                    f"  {rates['settled'] / rates['copy']:>12.2f}"
                    f"  {rates['settled'] / rates['Identity']:>16.2f}"
                    + (
                        f"  {body * 1e3:>7.2f}  {body / found['RMPNeuron']:>11.1f}"
                        if body
                        else f"  {'-':>7}  {'-':>11}"
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
