"""Event-driven execution: whole networks against their ANNs and our dense path, and single layers.

    python bench/events.py [--networks resnet20,vgg16slim,vgg16,resnet18] [--steps 32,64]
                           [--batch 1,16] [--threads 1,2] [--settings default,max] [--repeat 7]
                           [--weights float32] [--spikingjelly] [--json FILE]
    python bench/events.py --accuracy [--networks resnet20-jpeg,..] [--limit 1000] [--repeat 7]
    python bench/events.py --memory [--networks resnet20,..] [--steps 64] [--batch 1,16]
    python bench/events.py --layers [--densities 100,50,20,10,5,2,1,0] [--repeat 9] [--plot FILE]

--weights int8 compiles to whole numbers of 8 bits (any value of `snnc compile --weights`); --layers
takes whole weights of as many bits, and compares with the same convolution in float32.

Networks are the trained ones of the material (the folder SNNC_MATERIAL), on real test images,
calibrated on real images: the time of events depends on how many there are.  `vgg16` is the trained
one of a quarter of its width with every channel four times, which computes the same.

`SNN / (T·ANN)` is the time of an image over T times the ANN's best time of an image in onnxruntime, of
all batch sizes; `over dense` is over the same file with its layers as they are
(`create_session(events=False)`).  Sessions take turns in one process, and a ratio is the median over
the turns of the ratios of that turn, so that other load weighs little.  With --spikingjelly, a child
process runs SpikingJelly's conversion (`bench/runtime.py`: the same architecture with seeded weights,
its time does not depend on them) in turn with ours, both by the clock on the wall; the better of its
two modes over ours.

--accuracy tells what that means to a user: the first T of the list at which the accuracy is within a
point of the ANN's, the SNN's time there over the ANN's, the T at which they would break even, and
synaptic operations there over the ANN's multiply-accumulates.  Beside it stands the same ANN quantised
to 8 bits by onnxruntime (`quantised`): its time over the ANN's, and what it loses.

--memory gives the peak resident memory of a fresh process that makes a session, one thread, and runs it
once, and the size of the file; of whole weights also of the compact one, and beside it real weights.

--layers times one layer, 16 time-steps of one image, random spikes, over onnxruntime's convolution of
as many images alone, and over that and its neurons in our dense kernel, at every density.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from bench.networks import CLASSIFIERS, Data
from bench.zoo import entries, material_root
from snncompiler.analysis.evaluate import evaluate
from snncompiler.cli.plots import new_figure, save_figure
from snncompiler.cli.tables import table
from snncompiler.emission.emit import emit
from snncompiler.ir import dialect
from snncompiler.ir.settings import Options
from snncompiler.pipeline import compile_model
from snncompiler.runtime import create_session, library

Row = dict[str, Any]
Run = Callable[[], object]

ANN_BATCHES = (1, 4, 16)
CALIBRATION_IMAGES = 128
#: How often a turn runs at least: this long in seconds.
TURN_SECONDS = 0.1
#: Before a turn, where there are several threads: those of another session spin for a while (here
#: 30 ms) when they have nothing to do, and would take a core from this one.
PAUSE_SECONDS = 0.2
LAYER_STEPS = 16
#: --accuracy evaluates at these, and times so many.
ACCURACY_STEPS, TIMED_STEPS = (4, 8, 16, 32, 64, 128), 32
#: (channels in, channels out, height and width, stride); kernels are 3x3.
LAYERS = (
    (16, 16, 32, 1),
    (16, 32, 32, 2),
    (32, 32, 16, 1),
    (32, 64, 16, 2),
    (64, 64, 8, 1),
    (64, 64, 56, 1),
    (128, 128, 28, 1),
    (256, 256, 14, 1),
    (256, 256, 8, 1),
    (256, 512, 14, 2),
    (512, 512, 7, 1),
    (512, 512, 4, 1),
)
NETWORKS = ("resnet20", "vgg16slim", "vgg16", "resnet18")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "max": {"threshold": "max", "correction": "none", "readout": "mean"},
}


def seconds(run: Run, clock: Callable[[], float]) -> float:
    """The time of a run: the mean over a turn."""
    count, begin = 0, clock()
    while True:
        run()
        count += 1
        spent = clock() - begin
        if spent >= TURN_SECONDS:
            return spent / count


def turns(runs: dict[str, Run], repeat: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each run in each of `repeat` turns, after one that is not counted.

    With one thread it is that thread's own time, which other load on the machine lengthens less.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            if threads > 1:
                time.sleep(PAUSE_SECONDS)
            spent = seconds(run, clock)
            if turn:
                found[name].append(spent)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


# --- whole networks ---


def widened(model: onnx.ModelProto, factor: int) -> onnx.ModelProto:
    """The same function with `factor` times the channels inside, for a plain chain of convolutions and
    Gemm: every channel as often, its outgoing weights divided.  Copies fire alike, so density and
    accuracy are the trained network's, and the layers are those of the wide one."""
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    values = {tensor.name: tensor for tensor in wide.graph.initializer}

    def change(name: str, made: Callable[[Any], Any]) -> None:
        array = np.ascontiguousarray(made(numpy_helper.to_array(values[name])), np.float32)
        values[name].CopyFrom(numpy_helper.from_array(array, name))

    layers = [node for node in wide.graph.node if node.op_type in ("Conv", "Gemm")]
    for node in wide.graph.node:
        if node.op_type == "BatchNormalization":
            for name in node.input[1:]:
                change(name, lambda row: np.tile(row, factor))
        elif node in layers:
            first, last = node == layers[0], node == layers[-1]
            if not first:
                change(node.input[1], lambda w: np.concatenate([w / factor] * factor, axis=1))
            if not last:
                for name in node.input[1:]:
                    change(name, lambda w: np.concatenate([w] * factor))
    return wide


#: Networks made from a trained one.
WIDENED = {"vgg16": ("vgg16slim", 4)}
#: The networks of `snncompiler.models` with their architectures.
SAME_AS = {"resnet20-jpeg": "resnet20"}


def options(asked: argparse.Namespace, **others: Any) -> Options:
    """Those of a setting, with the weights that are asked for."""
    return Options(**others, **({} if asked.weights == "float32" else {"weights": asked.weights}))


def density(model: onnx.ModelProto, feeds: Row) -> float:
    """The mean over all neurons of their spikes per time-step."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    loop = next(node for node in watched.graph.node if node.op_type == "Loop")
    body = next(entry.g for entry in loop.attribute if entry.name == "body")
    names = [
        node.output[0]
        for node in body.node
        if node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS
    ]
    for index, name in enumerate(names):
        axes = f"spikes_{index}"
        body.node.append(helper.make_node("ReduceMean", [name], [axes], keepdims=0))
        size = f"size_{index}"
        body.node.append(helper.make_node("Size", [name], [size]))
        body.output.append(helper.make_tensor_value_info(axes, TensorProto.FLOAT, []))
        body.output.append(helper.make_tensor_value_info(size, TensorProto.INT64, []))
        for kind, result in ((TensorProto.FLOAT, axes), (TensorProto.INT64, size)):
            loop.output.append(f"all_{result}")
            watched.graph.output.append(
                helper.make_tensor_value_info(f"all_{result}", kind, [None])
            )
    session = create_session(watched, events=False)
    results = session.run([f"all_spikes_{i}" for i in range(len(names))], feeds)
    sizes = session.run([f"all_size_{i}" for i in range(len(names))], feeds)
    total = sum(float(np.sum(m * s)) for m, s in zip(results, sizes, strict=True))
    return total / float(sum(np.sum(s) for s in sizes))


def opened(name: str, root: Path) -> tuple[Data, onnx.ModelProto]:
    """A network and its data."""
    trained, factor = WIDENED.get(name, (name, 1))
    data = Data(CLASSIFIERS[trained], root)
    source = onnx.load(data.model)
    return data, widened(source, factor) if factor > 1 else source


def best_of(found: Mapping[str, Sequence[float]], which: str = "ann") -> list[float]:
    """The ANN's best time of an image in each turn."""
    each = [[t / batch for t in found[f"{which} {batch}"]] for batch in ANN_BATCHES]
    return [min(times) for times in zip(*each, strict=True)]


def over_spikingjelly(
    name: str, run: Run, batch: int, steps: int, asked: argparse.Namespace, threads: int
) -> tuple[float | None, str]:
    """The better mode's time over ours, and why there is none."""
    from bench.runtime import SPIKINGJELLY, Cell, Skip

    architecture = SAME_AS.get(name, name)
    ratios: list[float] = []
    reasons: list[str] = []
    for mode in SPIKINGJELLY:
        try:
            cell = Cell(
                "spikingjelly",
                network=architecture,
                form="common",
                steps=steps,
                mode=mode,
                batches=[batch],
                threads=threads,
            )
        except Skip as skip:
            reasons.append(f"{mode}: {skip}")
            continue
        mine = []
        for _ in range(asked.repeat + 1):
            time.sleep(PAUSE_SECONDS)
            mine.append(seconds(run, time.perf_counter))
            cell.turn()  # pauses before
        cell.close()
        other = [row[str(batch)] for row in cell.turns]
        if len(other) < 2:
            reasons.append(f"{mode}: {cell.reason}")
            continue
        ratios.append(ratio(other[1:], mine[1 : len(other)]))
    return (min(ratios) if ratios else None), "; ".join(reasons)


def network(name: str, asked: argparse.Namespace, root: Path) -> list[Row]:
    data, source = opened(name, root)
    images = next(iter(data.test(max(asked.batch)).feeds.values()))
    calibration = data.calibration(0, CALIBRATION_IMAGES)
    rows: list[Row] = []
    for setting in asked.settings:
        model = compile_model(source, options(asked, **SETTINGS[setting]), calibration).model
        entry = model.graph.input[0].name
        active = density(model, {entry: images, "snnc_steps": np.array(max(asked.steps))})
        for threads in asked.threads:
            ann = create_session(source, threads=threads)
            by_events = create_session(model, threads=threads, native=True)
            dense = create_session(model, threads=threads, native=True, events=False)
            runs: dict[str, Run] = {}
            for batch in ANN_BATCHES:
                repeated = np.resize(images, (batch, *images.shape[1:]))
                runs[f"ann {batch}"] = partial(ann.run, None, {entry: repeated})
            for batch in asked.batch:
                for steps in asked.steps:
                    feeds = {entry: images[:batch], "snnc_steps": np.array(steps)}
                    runs[f"events {batch} {steps}"] = partial(by_events.run, None, feeds)
                    runs[f"dense {batch} {steps}"] = partial(dense.run, None, feeds)
            found = turns(runs, asked.repeat, threads)
            best = best_of(found)
            for batch in asked.batch:
                for steps in asked.steps:
                    mine = [t / (batch * steps) for t in found[f"events {batch} {steps}"]]
                    other = [t / (batch * steps) for t in found[f"dense {batch} {steps}"]]
                    rows.append(
                        {
                            "network": name,
                            "setting": setting,
                            "weights": asked.weights,
                            "density": round(active, 3),
                            "threads": threads,
                            "N": batch,
                            "T": steps,
                            "µs/step": round(1e6 * statistics.median(mine), 1),
                            "SNN / (T·ANN)": round(ratio(mine, best), 3),
                            "dense / (T·ANN)": round(ratio(other, best), 3),
                            "over dense": round(ratio(mine, other), 3),
                        }
                    )
                    if asked.spikingjelly:
                        run = runs[f"events {batch} {steps}"]
                        times, why = over_spikingjelly(name, run, batch, steps, asked, threads)
                        rows[-1]["SpikingJelly / SNN"] = why if times is None else round(times, 1)
                    print(rows[-1], file=sys.stderr, flush=True)
    return rows


# --- what it means ---


def quantised(source: onnx.ModelProto, calibration: Row, folder: Path) -> Path:
    """The ANN in 8 bits as onnxruntime quantises it statically: U8S8 in QDQ form, per channel, with the
    ranges of the calibration samples."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(range(len(next(iter(calibration.values())))))

        def get_next(self) -> Row | None:
            number = next(self.left, None)
            if number is None:
                return None
            return {name: array[number : number + 1] for name, array in calibration.items()}

    onnx.save(source, folder / "ann.onnx")
    quant_pre_process(str(folder / "ann.onnx"), str(folder / "ready.onnx"))
    quantization.quantize_static(
        str(folder / "ready.onnx"),
        str(folder / "int8.onnx"),
        Samples(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    return folder / "int8.onnx"


def right(session: Any, images: Any) -> float:
    """The share of images whose class is the largest score."""
    (name,) = images.feeds
    found = [
        int(session.run(None, {name: images.feeds[name][at : at + 1]})[0].argmax())
        for at in range(len(images))
    ]
    return float((np.asarray(found) == np.asarray(images.labels)).mean())


def meaning(name: str, asked: argparse.Namespace, root: Path) -> list[Row]:
    data, source = opened(name, root)
    images = data.test(asked.limit)
    entry = next(iter(images.feeds))
    calibration = data.calibration(0, CALIBRATION_IMAGES)
    model = compile_model(source, options(asked), calibration).model
    result = evaluate(source, model, images, steps=ACCURACY_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        eight = quantised(source, dict(calibration.feeds), Path(folder)).read_bytes()
    lost = (result.ann_accuracy or 0) - right(create_session(eight, threads=1), images)
    one = next(iter(images.feeds.values()))[:1]
    sixteen = next(iter(images.feeds.values()))[: max(ANN_BATCHES)]
    rows: list[Row] = []
    for threads in asked.threads:
        ann = create_session(source, threads=threads)
        snn = create_session(model, threads=threads, native=True)
        runs: dict[str, Run] = {
            f"ann {b}": partial(ann.run, None, {entry: sixteen[:b]}) for b in ANN_BATCHES
        }
        integers = create_session(eight, threads=threads)
        for batch in ANN_BATCHES:
            runs[f"int8 {batch}"] = partial(integers.run, None, {entry: sixteen[:batch]})
        runs["snn"] = partial(snn.run, None, {entry: one, "snnc_steps": np.array(TIMED_STEPS)})
        found = turns(runs, asked.repeat, threads)
        best = best_of(found)
        step = ratio([t / TIMED_STEPS for t in found["snn"]], best)
        near = next((r for r in result.results if r.drop is not None and r.drop <= 0.01), None)
        row: Row = {
            "network": name,
            "weights": asked.weights,
            "images": result.samples,
            "threads": threads,
            "ANN top-1": f"{100 * (result.ann_accuracy or 0):.2f} %",
            "step / ANN": round(step, 3),
            "int8 ANN / ANN": round(ratio(best_of(found, "int8"), best), 3),
            "int8 ANN drop": f"{100 * lost:.2f}",
            "break-even T": round(1 / step, 1),
            "T within 1 point": near.steps if near else "none",
        }
        if near:
            row["drop"] = f"{100 * (near.drop or 0):.2f}"
            row["time / ANN"] = round(near.steps * step, 1)
            row["SynOps"] = f"{near.all_synops.done / 1e6:.1f} M"
            row["SynOps / MACs"] = round(near.all_synops.done / result.macs.ann, 2)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


# --- memory ---

#: Prints the peak resident memory in KiB.  That of `getrusage` starts with the parent's.
PEAK = """
import sys, numpy as np
from snncompiler.runtime import create_session
model, feeds, events = sys.argv[1:]
session = create_session(model, threads=1, native=True, events=events == "True")
with np.load(feeds) as arrays:
    session.run(None, dict(arrays))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory(name: str, asked: argparse.Namespace, root: Path) -> list[Row]:
    data, source = opened(name, root)
    images = next(iter(data.test(max(asked.batch)).feeds.values()))
    rows: list[Row] = []
    for weights in dict.fromkeys(["float32", asked.weights]):
        given = argparse.Namespace(**{**vars(asked), "weights": weights})
        calibration = data.calibration(0, CALIBRATION_IMAGES)
        compiled = compile_model(source, options(given), calibration)
        sizes = {"file, KiB": compiled.model.ByteSize()}
        if weights != "float32":
            small = emit(compiled.prepared, compiled.calibration, options(given, compact=True))
            sizes["compact, KiB"] = small.ByteSize()
        told = {name: round(size / 1024) for name, size in sizes.items()}
        rows += peaks_of(
            compiled.model, images, asked, {"network": name, "weights": weights, **told}
        )
    return rows


def peaks_of(
    model: onnx.ModelProto, images: Any, asked: argparse.Namespace, head: Row
) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        file, feeds = Path(folder, "snn.onnx"), Path(folder, "feeds.npz")
        onnx.save(model, file)
        for batch in asked.batch:
            for steps in asked.steps:
                entry = model.graph.input[0].name
                np.savez(feeds, **{entry: images[:batch], "snnc_steps": np.array(steps)})
                peaks = {}
                for events in (True, False):
                    command = [sys.executable, "-c", PEAK, str(file), str(feeds), str(events)]
                    # The same repository as this script, wherever it is called from.
                    where = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
                    found = subprocess.run(
                        command, capture_output=True, text=True, check=True, env=where
                    )
                    peaks[events] = int(found.stdout) / 1024
                rows.append(
                    {
                        **head,
                        "N": batch,
                        "T": steps,
                        "by events, MiB": round(peaks[True]),
                        "dense, MiB": round(peaks[False]),
                        "over dense": round(peaks[True] / peaks[False], 2),
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


# --- single layers ---


def layer_models(
    channels: int, out: int, size: int, stride: int, kind: str
) -> dict[str, onnx.ModelProto]:
    """The layer by events, densely, and its convolution alone."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (out, channels, 3, 3)).astype(np.float32)
    theta = 1.0
    if kind != "float32":
        most = 2 ** (int(kind.removeprefix("int")) - 1) - 1
        scale = most / float(np.abs(weights).max())
        weights, theta = np.rint(weights * scale), float(np.rint(scale))
    constants = {
        "weights": weights.transpose(2, 3, 1, 0),
        "current": np.zeros(out, np.float32),
        "threshold": np.full(out, theta, np.float32),
        "membrane": np.zeros(out, np.float32),
        "schedule": np.zeros((1, out), np.float32),
        "start": np.array(0),
        "steps": np.array(LAYER_STEPS),
        "kernel": weights,
        "bias": np.zeros(out, np.float32),
        "theta": np.full((out, 1, 1), theta, np.float32),
        "v": np.zeros((), np.float32),
    }
    window: Row = {"strides": [stride] * 2, "pads": [1] * 4, "dilations": [1, 1]}
    names = ["spikes", "weights", "current", "threshold", "membrane", "schedule", "start", "steps"]
    event = helper.make_node(
        "EventConv", names, ["out", "after"], domain=dialect.DOMAIN, group=1, levels=1, **window
    )
    conv = helper.make_node("Conv", ["x", "kernel", "bias"], ["y"], **window)
    neuron = helper.make_node(
        "RMPNeuron",
        ["y", "theta", "v", "steps"],
        ["out", "after"],
        domain=dialect.DOMAIN,
        static_current=0,
    )
    last = helper.make_tensor_value_info(
        "spikes", TensorProto.UINT8, [LAYER_STEPS, size, size, channels]
    )
    first = helper.make_tensor_value_info(
        "x", TensorProto.FLOAT, [LAYER_STEPS, channels, size, size]
    )

    def model(nodes: list[onnx.NodeProto], given: onnx.ValueInfoProto, out: str) -> onnx.ModelProto:
        used = {name for node in nodes for name in node.input}
        kind = TensorProto.UINT8 if out == "out" and nodes[0] is event else TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "layer",
            [given],
            [helper.make_tensor_value_info(out, kind, None)],
            initializer=[
                numpy_helper.from_array(np.ascontiguousarray(v), k)
                for k, v in constants.items()
                if k in used
            ],
        )
        return helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", dialect.BASE_OPSET),
                helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
            ],
            ir_version=dialect.MAX_IR_VERSION,
        )

    return {
        "events": model([event], last, "out"),
        "dense": model([conv, neuron], first, "out"),
        "convolution": model([conv], first, "y"),
    }


def layers(asked: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for channels, out, size, stride in LAYERS:
        models = layer_models(channels, out, size, stride, asked.weights)
        sessions = {
            name: create_session(model, threads=asked.threads[0], native=True, events=False)
            for name, model in models.items()
        }
        rng = np.random.default_rng(1)
        runs: dict[str, Run] = {}
        for percent in asked.densities:
            spikes = rng.random((LAYER_STEPS, size, size, channels)) < percent / 100
            x = np.ascontiguousarray(spikes.transpose(0, 3, 1, 2)).astype(np.float32)
            given = {"spikes": spikes.astype(np.uint8)}
            runs[f"events {percent}"] = partial(sessions["events"].run, None, given)
            if not percent or percent == asked.densities[0]:
                runs["dense"] = partial(sessions["dense"].run, None, {"x": x})
                runs["convolution"] = partial(sessions["convolution"].run, None, {"x": x})
        found = turns(runs, asked.repeat, asked.threads[0])
        row: Row = {
            "layer": f"{channels} to {out}, {size}x{size}" + (", stride 2" if stride > 1 else ""),
            "conv µs/step": round(1e6 * statistics.median(found["convolution"]) / LAYER_STEPS, 1),
        }
        for percent in asked.densities:
            mine = found[f"events {percent}"]
            row[f"{percent} %"] = (
                f"{ratio(mine, found['convolution']):.2f} {ratio(mine, found['dense']):.2f}"
            )
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def plot(rows: Sequence[Row], densities: Sequence[int], file: Path) -> None:
    """Time over the dense path against density, a line for each layer."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for row in rows:
        over = [float(row[f"{density} %"].split()[1]) for density in densities]
        axes.plot(densities, over, label=row["layer"])
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="spikes per neuron and step, %", ylabel="time over the dense path")
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(fontsize=7, ncols=2)
    save_figure(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--spikingjelly", action="store_true")
    parser.add_argument("--networks", type=words, default=list(NETWORKS))
    parser.add_argument("--settings", type=words, default=list(SETTINGS))
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--steps", type=numbers, default=[32, 64])
    parser.add_argument("--batch", type=numbers, default=[1, 16])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--densities", type=numbers, default=[100, 50, 20, 10, 5, 2, 1, 0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[Row] = []
    if asked.layers:
        rows = layers(asked)
        if asked.plot:
            plot(rows, asked.densities, asked.plot)
    else:
        root = material_root()
        if not entries(root):
            sys.exit("set SNNC_MATERIAL to the folder with the networks and images")
        for name in asked.networks:
            measure = meaning if asked.accuracy else memory if asked.memory else network
            rows += measure(name, asked, root)
    console = Console(width=200)
    versions = [f"{what} {metadata.version(what)}" for what in ("onnxruntime", "onnx", "numpy")]
    machine = [
        f"{os.cpu_count()} cores",
        platform.machine(),
        f"kernels: {library.cpu_isa() or '-'}",
    ]
    console.print(", ".join([*versions, *machine]))
    titles = list(dict.fromkeys(key for row in rows for key in row))
    console.print(table("", titles, [[str(row.get(key, "-")) for key in titles] for row in rows]))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
