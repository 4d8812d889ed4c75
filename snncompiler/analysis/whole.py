"""What is proved of a file whose weights are whole numbers: they lie on their grid, and every way of
running the network gives the same bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from snncompiler.analysis.instrument import Watched, watch
from snncompiler.ir import dialect
from snncompiler.ir.operators import record
from snncompiler.ir.whole import Grid
from snncompiler.runtime import library_path
from snncompiler.runtime.library import inspect_library
from snncompiler.runtime.session import Device, create_session, runs_events, runs_on_cuda

Array = NDArray[Any]
#: Emits the network in another form.
Form = Callable[..., onnx.ModelProto]


def off_grid(model: onnx.ModelProto, grid: Grid) -> list[str]:
    """What is not as the grid of a portable file says: of every layer its thresholds, charges, the
    potential at the start, and all weights that are multiplied by what flows into it."""
    walk = _Constants(model)
    found = []
    for layer in watch(model).layers:
        told = grid.of(layer.name)
        low, high = told.threshold
        numbers = [layer.threshold, layer.membrane_start]
        numbers += [] if layer.schedule is None else [layer.schedule]
        if any((array != np.round(array)).any() for array in numbers):
            found.append(f"a charge of {layer.name} is not whole")
        if (
            (layer.threshold % 2 != 1).any()
            or layer.threshold.min() < low
            or layer.threshold.max() > high
        ):
            found.append(f"a threshold of {layer.name} is not odd, or not from {low} to {high}")
        for node, weights in walk.weights(layer.name):
            plain = node.op_type != "Mul"
            step, most = (told.step, told.largest) if plain else (1, told.coefficient)
            if (weights % step != 0).any() or np.abs(weights).max(initial=0) > most:
                found.append(f"a weight of {node.name} is no multiple of {step} up to {most}")
    return found


class _Constants:
    """The constants of a file, and the nodes that make its values, in the Loop or outside."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = [model.graph]
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, onnx.TensorProto] = {}
        while graphs:
            graph = graphs.pop()
            self.nodes += graph.node
            self.values |= {tensor.name: tensor for tensor in graph.initializer}
            graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        self.maker = {name: node for node in self.nodes for name in node.output}

    def weights(self, layer: str) -> Iterator[tuple[onnx.NodeProto, Array]]:
        """The weights in front of a neuron, back to the spikes and to the input: those of layers, and
        the coefficients of what is not rounded behind them."""
        neurons = [node for node in self.nodes if _fires(node) and node.name.endswith(layer)]
        # With whether a Round follows, which what is multiplied before it leaves to be any number.
        pending = [(neurons[0].input[0], False)] if neurons else []
        seen: set[tuple[str, bool]] = set()
        while pending:
            name, rounded = pending.pop()
            node = self.maker.get(name)
            if node is None or (name, rounded) in seen or _fires(node):
                continue
            seen.add((name, rounded))
            layout = record(node.op_type).weights
            held = self.values.get(node.input[1]) if len(node.input) > 1 else None
            if held is not None and (layout or (node.op_type == "Mul" and not rounded)):
                array = numpy_helper.to_array(held)
                if array.dtype.kind == "f" and not _is_unit(node, array):
                    yield node, array
            if layout and held is None:
                continue
            ahead = node.op_type == "Round" or (rounded and not layout)
            pending += [(one, ahead) for one in node.input if one]


def _is_unit(node: onnx.NodeProto, array: Array) -> bool:
    """Whether a Mul only turns rounded values into multiples, or counts places: one number for all."""
    return node.op_type == "Mul" and array.size == 1


def _fires(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS


@dataclass(frozen=True)
class Way:
    """A way of running a network: in words, its file, and how a session is made of it."""

    name: str
    model: onnx.ModelProto
    events: bool = False
    native: bool = True
    threads: int = 1
    device: Device = "cpu"
    #: Of a layered network: let the session compute with counts of spikes.
    counts: bool = False


def ways(
    model: onnx.ModelProto, form: Form, steps: int, folds: bool, own: bool, lowered: bool
) -> Iterator[Way]:
    """Every way that is at hand, at `steps` time-steps; the first is the specification: `loop`, by the
    function bodies of stock onnxruntime, on one thread.

    model: the file, which is one of them where `own`.  form: emits the network anew.  folds: whether
    its time can be folded.  lowered: whether the file is for the CPU only.
    """
    most = max(os.cpu_count() or 1, 2)
    loop = form(unroll="loop", chunk=None, steps=steps)
    yield Way("function bodies, loop", loop, native=False)
    unrolled = {"steps": form(unroll="steps", chunk=None, steps=steps), "loop": loop}
    if folds:
        for chunk in sorted({1, min(4, steps), steps}):
            unrolled[f"fold with K = {chunk}"] = form(unroll="fold", chunk=chunk, steps=steps)
    if own:
        unrolled = {"this file": model, **unrolled}
    name, file = next(iter(unrolled.items()))
    yield Way(f"function bodies, {name}", file, native=False, threads=most)
    if library_path() is not None:
        for name, file in unrolled.items():
            for threads in (1, most):
                yield Way(f"kernels, {name}, threads {threads}", file, threads=threads)
                if runs_events() and name != "steps":
                    yield Way(f"by events, {name}, threads {threads}", file, True, threads=threads)
    if lowered:
        unrolled.pop("this file", None)
    yield from _ways_on_cuda(unrolled)


def layered_ways(model: onnx.ModelProto) -> Iterator[Way]:
    """Those of a layered network, which has one form; the first is the specification."""
    yield Way("function bodies", model, native=False)
    if library_path() is not None:
        for threads in (1, max(os.cpu_count() or 1, 2)):
            yield Way(f"kernels, threads {threads}", model, threads=threads)
    for way in _ways_on_cuda({"this file": model}):
        yield way
        if way.native:
            yield replace(way, name="by counts on CUDA", counts=True)


def _ways_on_cuda(files: Mapping[str, onnx.ModelProto]) -> Iterator[Way]:
    """By the function bodies and, where the library has some, by the kernels, where CUDA runs."""
    if not runs_on_cuda():
        return
    path = library_path()
    kernels = path is not None and bool(inspect_library(path)["cuda"])
    for name, file in files.items():
        for native in (False, True) if kernels else (False,):
            what = "kernels" if native else "function bodies"
            yield Way(f"{what} on CUDA, {name}", file, native=native, device="cuda")


def bits_of(way: Way, feeds: Mapping[str, Array], outputs: list[str]) -> list[bytes]:
    """The bits of all spike counts, of all potentials in the end, and of the `outputs`."""
    watched = watch(way.model, events=way.events)
    native: Any = "auto" if way.native else False
    session = create_session(
        watched.model, events=way.counts, threads=way.threads, native=native, device=way.device
    )
    names = [entry.name for entry in watched.model.graph.output]
    values = session.run(None, dict(feeds))
    by_name = dict(zip(names, map(np.asarray, values), strict=True))
    wanted = [Watched.output(layer, "count") for layer in watched.layers]
    return [np.ascontiguousarray(by_name[name]).tobytes() for name in (*wanted, *outputs)]
