"""Layers by counts over the ANN in float32 and over onnxruntime's own 8-bit network, in one process.

    python bench/counts.py [--networks resnet18,resnet20,vgg16] [--batches 1] [--threads 1]

The networks have the layers of ResNet-18 (224x224), ResNet-20 and VGG-16 (CIFAR) with random weights:
residual sums, pooling and read-out, all of them.  `counts` has weights of 8 bits, `levels` real ones.
Sessions run in turn, and the table gives medians of the times and of their ratios.  SNNC_MAX_ISA names
the best instruction set of the count kernels; onnxruntime always takes the machine's.  `--layers` gives
the time of every layer.  Between two runs of a session others run and take the caches; with `--warm`
it runs once more before it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.runtime import create_session
from snncompiler.runtime.session import import_onnxruntime

Array = NDArray[Any]


class Graph:
    """A network that is written twice: in float32, and by counts."""

    def __init__(self, size: int, levels: int) -> None:
        self.rng = np.random.default_rng(1)
        self.levels = levels
        self.size = size
        self.nodes: dict[str, list[onnx.NodeProto]] = {"float": [], "counts": []}
        self.constants: dict[str, list[onnx.TensorProto]] = {"float": [], "counts": []}
        self.channels: dict[str, int] = {"x": 3}
        self.most: dict[str, int] = {"x": 255}
        unit = self._constant("counts", "x_unit", np.ones(3, np.float32))
        self._count(
            "CountInput", ["x_image", unit], "x", {"lowest": 0, "highest": 255, "origin": 0}
        )

    def _constant(self, form: str, name: str, value: Array) -> str:
        self.constants[form].append(numpy_helper.from_array(value, name))
        return name

    def _count(
        self, op: str, inputs: list[str], out: str, attributes: dict[str, Any], *neurons: Array
    ) -> None:
        names = [
            self._constant("counts", f"{out}_{port}", value.astype(np.int32))
            for port, value in zip(("membrane", "threshold"), neurons, strict=False)
        ]
        if neurons:
            levels = np.array(self.levels, np.int64)
            names.append(self._constant("counts", f"{out}_levels", levels))
        self.nodes["counts"].append(
            helper.make_node(op, [*inputs, *names], [out], out, domain=dialect.DOMAIN, **attributes)
        )

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        residual: str = "",
        projected: int = 0,
    ) -> str:
        """Convolution, residual or its projection of stride `projected`, and rectifier or neuron."""
        out = f"c{len(self.channels)}"
        pads = [kernel // 2] * 4
        weights, bias = self._weights(x, channels, kernel)
        total, window = f"{out}_conv", {"strides": [stride, stride], "pads": pads}
        self._float_conv(x, weights, bias, total, window)
        charge = float(np.sqrt((weights.astype(np.float64) ** 2).sum((0, 1, 2)).mean()))
        charge *= 0.35 * self.most[x]
        inputs = [x, self._constant("counts", f"{out}_w", weights)]
        attributes: dict[str, Any] = {
            "group": 1,
            "origin": 0,
            "top": 255,
            "levels_in": self.most[x],
            "dilations": [1, 1],
            **window,
        }
        op = "CountConv"
        if x == "x":  # the sums of an input are on a grid of their own
            op = "CountConvScaled"
            inputs += [
                self._constant("counts", f"{out}_bias", np.zeros(channels, np.int32)),
                self._constant("counts", f"{out}_factor", np.ones(channels, np.float32)),
            ]
            attributes |= {"lowest": -(2**23), "highest": 2**23}
        elif projected:
            op = "CountConvPair"
            more, none = self._weights(residual, channels, 1)
            side = {"strides": [projected, projected], "pads": [0, 0, 0, 0]}
            self._float_conv(residual, more, none, f"{out}_side", side)
            inputs += [residual, self._constant("counts", f"{out}_more", more)]
            attributes |= {f"more_{key}": value for key, value in side.items()}
            attributes |= {"more_dilations": [1, 1], "more_levels_in": self.most[residual]}
        elif residual:
            op = "CountConvAdd"
            coefficient = np.full(channels, int(charge / self.levels) + 1, np.int32)
            inputs += [residual, self._constant("counts", f"{out}_coefficient", coefficient)]
        if residual:
            side_name = f"{out}_side" if projected else residual
            self.nodes["float"].append(
                helper.make_node("Add", [total, side_name], [f"{out}_sum"], f"{out}_sum")
            )
            total = f"{out}_sum"
        self.nodes["float"].append(helper.make_node("Relu", [total], [out], out))
        threshold = np.full(channels, 2 * int(1.25 * charge / self.levels) + 1)
        self._count(op, inputs, out, attributes, threshold // 2, threshold)
        self.channels[out], self.most[out] = channels, self.levels
        return out

    def _weights(self, x: str, channels: int, kernel: int) -> tuple[Array, Array]:
        shape = (kernel, kernel, self.channels[x], channels)
        weights = np.clip(np.rint(self.rng.normal(0, 30, shape)), -127, 127).astype(np.int8)
        return weights, np.zeros(channels, np.float32)

    def _float_conv(
        self, x: str, weights: Array, bias: Array, out: str, window: dict[str, Any]
    ) -> None:
        scale = np.sqrt(2 / np.prod(weights.shape[:3])) / 30
        values = (weights.transpose(3, 2, 0, 1) * scale).astype(np.float32)
        names = [
            self._constant("float", f"{out}_w", values),
            self._constant("float", f"{out}_b", bias),
        ]
        source = "x_image" if x == "x" else x
        self.nodes["float"].append(helper.make_node("Conv", [source, *names], [out], out, **window))

    def pool(self, x: str, kernel: int = 2, stride: int = 2, pad: int = 0) -> str:
        out = f"c{len(self.channels)}"
        window = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [pad] * 4,
            "dilations": [1, 1],
        }
        self.nodes["float"].append(helper.make_node("MaxPool", [x], [out], out, **window))
        self._count("CountMaxPool", [x], out, window)
        self.channels[out], self.most[out] = self.channels[x], self.levels
        return out

    def read_out(self, x: str, classes: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The models; the read-out of counts is in float32."""
        weights = self.rng.normal(0, 0.1, (self.channels[x], classes)).astype(np.float32)
        for form in ("float", "counts"):
            last = x
            if form == "counts":
                last = f"{x}_planes"
                self.nodes[form] += [
                    helper.make_node("Cast", [x], [f"{x}_wide"], "wide", to=TensorProto.FLOAT),
                    helper.make_node(
                        "Transpose", [f"{x}_wide"], [last], "planes", perm=[0, 3, 1, 2]
                    ),
                ]
            names = [
                self._constant(form, "read_w", weights),
                self._constant(form, "read_b", np.zeros(classes, np.float32)),
            ]
            self.nodes[form] += [
                helper.make_node("GlobalAveragePool", [last], ["mean"], "mean"),
                helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
                helper.make_node("Gemm", ["flat", *names], ["y"], "gemm"),
            ]
        opset = dialect.BASE_OPSET
        models = []
        for form in ("float", "counts"):
            shape = ["N", 3, self.size, self.size]
            graph = helper.make_graph(
                self.nodes[form],
                form,
                [helper.make_tensor_value_info("x_image", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
                initializer=self.constants[form],
            )
            ours = [] if form == "float" else [helper.make_opsetid(dialect.DOMAIN, 1)]
            used = {node.op_type for node in self.nodes[form] if node.domain == dialect.DOMAIN}
            models.append(
                helper.make_model(
                    graph,
                    opset_imports=[helper.make_opsetid("", opset), *ours],
                    ir_version=8,
                    functions=dialect.functions(used, opset),
                )
            )
        return models[0], models[1]


def resnet18(levels: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = Graph(224, levels)
    x = graph.pool(graph.conv("x", 64, 7, 2), 3, 2, 1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            inner = graph.conv(x, channels, 3, stride)
            x = graph.conv(inner, channels, 3, 1, x, stride if stride > 1 else 0)
    return graph.read_out(x, 1000)


def resnet20(levels: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = Graph(32, levels)
    x = graph.conv("x", 16)
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            inner = graph.conv(x, channels, 3, stride)
            x = graph.conv(inner, channels, 3, 1, x, stride if stride > 1 else 0)
    return graph.read_out(x, 10)


def vgg16(levels: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = Graph(32, levels)
    x = "x"
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = graph.conv(x, channels)
        if channels < 512 or graph.channels[x] == 512:
            x = graph.pool(x)
    return graph.read_out(x, 10)


NETWORKS = {"resnet18": resnet18, "resnet20": resnet20, "vgg16": vgg16}


def levelled(model: onnx.ModelProto, levels: int) -> onnx.ModelProto:
    """The network of real weights by counts: each rectifier a neuron of levels."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    channels = {
        node.output[0]: next(t.dims[0] for t in made.graph.initializer if t.name == node.input[1])
        for node in made.graph.node
        if node.op_type == "Conv"
    }
    made.graph.initializer.append(numpy_helper.from_array(np.array(levels, np.int64), "levels"))
    for node in made.graph.node:
        if node.op_type == "Add":
            channels[node.output[0]] = channels[node.input[0]]
        if node.op_type == "Relu":
            theta = np.ones((channels[node.input[0]], 1, 1), np.float32)
            for name, value in ((f"{node.name}_v", theta / 2), (f"{node.name}_t", theta)):
                made.graph.initializer.append(numpy_helper.from_array(value, name))
            inputs = [node.input[0], f"{node.name}_v", f"{node.name}_t", "levels"]
            new = helper.make_node(
                "LevelNeuron", inputs, node.output, node.name, domain=dialect.DOMAIN
            )
            node.CopyFrom(new)
    made.opset_import.append(helper.make_opsetid(dialect.DOMAIN, 1))
    made.functions.extend(dialect.functions(["LevelNeuron"], dialect.BASE_OPSET))
    return made


def quantized(model: onnx.ModelProto, size: int, folder: Path) -> Path:
    """The network as onnxruntime quantizes it: U8S8, per channel, from eight random images."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Array] = iter(images(8, size)[:, None])

        def get_next(self) -> dict[str, Array] | None:
            image = next(self.left, None)
            return None if image is None else {"x_image": image}

    given, prepared, made = (folder / f"{name}.onnx" for name in ("float", "prepared", "int8"))
    onnx.save(model, given)
    quant_pre_process(given, prepared)
    quantize_static(
        prepared,
        made,
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return made


def images(count: int, size: int) -> Array:
    """Random pictures of whole numbers, smooth as pictures are."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (count, 3, size // 8, size // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(np.float32)


def ratios(
    sessions: dict[str, Any],
    feeds: dict[str, Array],
    seconds: float,
    threads: int,
    warm: bool,
) -> dict[str, Any]:
    """Median times, and medians of ratios of runs one after the other; with one thread the processor's
    time, which does not tell how busy the machine is otherwise."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    for session in sessions.values():
        session.run(None, feeds)
    while time.perf_counter() < end or len(times["counts"]) < 15:
        for name, session in sessions.items():
            if warm:
                session.run(None, feeds)
            begin = clock()
            session.run(None, feeds)
            times[name].append(clock() - begin)
    result: dict[str, Any] = {
        name: round(statistics.median(values) * 1e6) for name, values in times.items()
    }
    for one, other in (("counts", "fp32"), ("counts", "int8"), ("levels", "fp32")):
        each = [a / b for a, b in zip(times[one], times[other], strict=True)]
        result[f"{one}/{other}"] = round(statistics.median(each), 3)
    return result


def layers(model: onnx.ModelProto, feeds: dict[str, Array], threads: int) -> None:
    """The median time of every node, by onnxruntime's profile."""
    ort = import_onnxruntime()
    from snncompiler.runtime import library

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        library.register(options)
        session = ort.InferenceSession(model.SerializeToString(), options)
        for _ in range(50):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, list[int]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            found.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    for name, values in found.items():
        print(f"  {name:30} {statistics.median(values):8.0f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="resnet18,resnet20,vgg16")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--levels", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm", action="store_true", help="run each session before it is timed")
    parser.add_argument("--layers", action="store_true")
    options = parser.parse_args()
    ort = import_onnxruntime()
    print(f"onnxruntime {ort.__version__}, SNNC_MAX_ISA={os.environ.get('SNNC_MAX_ISA', '')}; µs")
    for name in options.networks.split(","):
        model, counts = NETWORKS[name](options.levels)
        size = 224 if name == "resnet18" else 32
        with tempfile.TemporaryDirectory() as folder:
            made = quantized(model, size, Path(folder))
            for threads in map(int, options.threads.split(",")):
                sessions = {
                    "fp32": create_session(model, threads=threads),
                    "int8": create_session(made, threads=threads),
                    "counts": create_session(counts, threads=threads, native=True),
                    "levels": create_session(
                        levelled(model, options.levels), threads=threads, native=True
                    ),
                }
                for batch in map(int, options.batches.split(",")):
                    feeds = {"x_image": images(batch, size)}
                    print(name, f"N={batch}", f"threads={threads}", end=" ")
                    print(
                        ratios(sessions, feeds, options.seconds, threads, options.warm), flush=True
                    )
                    if options.layers:
                        layers(counts, feeds, threads)


if __name__ == "__main__":
    main()
