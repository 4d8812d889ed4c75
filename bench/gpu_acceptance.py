"""What there is to see of a GPU, cheapest first, in under ten minutes: one table, and one JSON.

    python bench/gpu_acceptance.py [--only kernels,suite,..] [--limit 560] [--json FILE]
                                   [--model resnet18=FILE.onnx] [--quick]

    doctor       CUDA runs, and with which versions
    kernels      the CUDA kernels against plain loops, without onnxruntime
    sanitizer    the same under compute-sanitizer, where it is installed
    suite        the tests that need a GPU: operators and whole networks, bit for bit
    networks     digits-resnet and digits-cnn on CUDA against the CPU: T and K overridden, odd K,
                 layered time; and in whole numbers, bit for bit
    stream       --emit step against the window
    graph        --emit cuda-graph: three replays, each with another input
    fp16         the accuracy of --precision fp16 on CUDA and of float32 on the CPU
    bandwidth    GB/s of the kernels, and of a copy in the same run
    resnet18     N = 64, T = 32, with K = 2 and 32, against T times the ANN, in float32 and float16
    spikingjelly the same network by SpikingJelly, with CuPy or Triton

Every step is a process of its own with the rest of the time as its limit.  Below the table stands what
did not run, with the reason: it did not fit into the time, or something is not installed.  The exit
status is 1 where a step fails.  Networks of the last two have seeded weights and need PyTorch, but for
a file given by --model.

--quick is for a slow device that only has to show that everything runs: small networks and tensors, one
run of each, and no time is judged.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console

import snncompiler
from snncompiler import models
from snncompiler.cli.tables import table
from snncompiler.errors import SnncError
from snncompiler.ir import dialect
from snncompiler.runtime import (
    Stream,
    build,
    create_session,
    doctor,
    import_onnxruntime,
    library_path,
)

ROOT = Path(__file__).resolve().parents[1]
Array = NDArray[Any]
Row = dict[str, Any]

STEPS = 32
#: What a figure may be off by where sums are made in another order: single spikes move, each by 1/T of
#: its weight (tests/test_unroll.py).
MOVED = 0.02
#: Of ResNet-18: the chunk beside T, and the SNN's time over T times the ANN's that is to be reached.
CHUNK, MOST_OVER_ANN = 2, 1.25
#: The sizes; what `--quick` takes instead.  `bytes` is above what any cache holds.
SIZES: dict[str, tuple[int, int, str]] = {
    "images": (64, 8, "of digits, for the networks"),
    "bytes": (1 << 29, 1 << 20, "of a tensor in bandwidth"),
    "batch": (64, 1, "samples of ResNet-18"),
    "size": (224, 32, "height and width of ResNet-18's images"),
    "steps": (32, 4, "T of ResNet-18"),
    "repeat": (7, 1, "runs of which the median is taken"),
}


class Skipped(Exception):
    """Why a step cannot be done here."""


def row(what: str, figure: object, good: bool | None = None) -> Row:
    """A figure; `good` says whether it is as it should be, where there is such a thing."""
    return {"what": what, "figure": figure, "good": good, "skipped": False}


def skipped(why: object) -> Row:
    return {**row("", f"skipped: {why}"), "skipped": True}


# --- is it right ---


def step_doctor(_: argparse.Namespace) -> list[Row]:
    told = doctor()["cuda"]
    keys = ("built_with", "runtime", "driver", "devices", "architectures", "tf32")
    rows = [row(key.replace("_", " "), told[key]) for key in keys]
    return [row("runs", told["why_not"] or "yes", told["runs"]), *rows]


def _driver(folder: Path) -> Path:
    """tests/runtime/kernel_driver.cc with the CUDA kernels and managed memory."""
    nvcc, cxx = build.find_nvcc(), build.find_cxx()
    if nvcc is None or cxx is None:
        raise Skipped("nvcc or the C++ compiler is not installed")
    program = folder / "kernel_driver"
    tests = ROOT / "tests" / "runtime"
    sources = [
        build.SOURCES / "cuda_kernels.cu",
        *sorted(build.SOURCES.glob("cpu_*.cc")),
        tests / "kernel_driver.cc",
        ROOT / "bench" / "managed_memory.cc",
    ]
    strict = "-ffp-contract=off,-fno-trapping-math"
    command = [nvcc, "-std=c++17", "-O1", "-fmad=false", "-arch=native", "-ccbin", cxx]
    command += ["-DSNNC_CUDA_ON_CPU", f"-I{build.SOURCES}", "-Xcompiler", strict]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(next((line for line in said if "error" in line), said[-1]))
    return program


def _cases(command: list[str]) -> list[Row]:
    # The driver reads results right after a launch.
    blocking = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=blocking)
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode == 77:
        raise Skipped(said[-1])
    found = re.search(r"(\d+) cases", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"ended with {done.returncode}: {said[-1] if said else 'no word'}")
    return [row("cases that agree", int(found[1]), True)]


def step_kernels(_: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return _cases([str(_driver(Path(folder)))])


def step_sanitizer(_: argparse.Namespace) -> list[Row]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise Skipped("compute-sanitizer is not installed")
    with tempfile.TemporaryDirectory() as folder:
        return _cases([tool, "--error-exitcode", "3", str(_driver(Path(folder)))])


def step_suite(_: argparse.Namespace) -> list[Row]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-p",
            "no:cacheprovider",
            "tests/runtime",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
    return [
        row("tests", last, done.returncode == 0 and " passed" in last and "skipped" not in last)
    ]


def _digits(name: str, **options: Any) -> onnx.ModelProto:
    return snncompiler.compile(
        models.path(name),
        calibration=models.path("digits-train"),
        preprocess=snncompiler.Preprocess(scale=16),
        **{"steps": STEPS, **options},
    )


def _images(count: int) -> tuple[Array, Array]:
    with np.load(models.path("digits-test")) as stored:
        images = stored["x"][:count].astype(np.float32).transpose(0, 3, 1, 2) / 16
        return np.ascontiguousarray(images), stored["y"][:count]


def _compared(what: str, found: Array, wanted: Array) -> Row:
    """How far logits are apart, and how many classes are others."""
    far = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    others = int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum())
    text = f"{far:.2g} of the largest, {others} of {len(found)} classes"
    return row(what, text, far <= MOVED and not others)


def step_networks(asked: argparse.Namespace) -> list[Row]:
    x, _labels = _images(asked.images)
    rows = []
    for name in ("digits-resnet", "digits-cnn"):
        for way, options in (
            ("fold", {}),
            ("loop", {"unroll": "loop"}),
            ("signed", {"neuron": "signed:2"}),
            ("layered", {"timing": "layered"}),
            ("layered, radix", {"timing": "layered", "coding": "radix", "steps": 8}),
            ("int8", {"weights": "int8"}),
            ("int8, layered", {"weights": "int8", "timing": "layered"}),
        ):
            model = _digits(name, **options)
            gpu, cpu = (
                create_session(model, device="cuda", native=True),
                create_session(model, events=False),
            )
            told = gpu.get_modelmeta().custom_metadata_map
            overridden: list[dict[str, int]] = [{}]
            overridden += [{"snnc_steps": 50}] if told["snnc.steps_input"] else []
            overridden += [{"snnc_chunk": 7}] if way == "fold" else []
            compared = _same_bits if "weights" in options else _compared
            for feeds in overridden:
                given = {"input": x, **{key: np.array(value) for key, value in feeds.items()}}
                what = " ".join([name, way, *(f"{k[5:]}={v}" for k, v in feeds.items())])
                rows.append(compared(what, gpu.run(None, given)[0], cpu.run(None, given)[0]))
    return rows


def _same_bits(what: str, found: Array, wanted: Array) -> Row:
    """In whole numbers nothing is rounded; but an algorithm of cuDNN that transforms its input rounds
    (docs/how-to/cuda.md)."""
    others = int((found != wanted).sum())
    return row(what, f"{others} of {wanted.size} numbers differ", not others)


def step_stream(asked: argparse.Namespace) -> list[Row]:
    x, _labels = _images(asked.images)
    stream = Stream(_digits("digits-resnet", emit="step"), device="cuda")
    window = create_session(_digits("digits-resnet"), events=False)
    rows = []
    for done in range(1, STEPS + 1):
        logits = stream.step(x)["logits"]
        if done in (2, 8, STEPS):
            (wanted,) = window.run(None, {"input": x, "snnc_steps": np.array(done)})
            rows.append(_compared(f"after {done} steps", logits, wanted))
    return rows


def step_graph(_: argparse.Namespace) -> list[Row]:
    ort = import_onnxruntime()
    x, _labels = _images(48)
    model = _digits("digits-resnet", emit="cuda-graph", batch=16)
    options = {"enable_cuda_graph": True}
    graph = create_session(model, device="cuda", native=True, provider_options=options)
    cpu = create_session(model, events=False)
    held = ort.OrtValue.ortvalue_from_numpy(x[:16], "cuda", 0)
    logits = ort.OrtValue.ortvalue_from_numpy(np.zeros((16, 10), np.float32), "cuda", 0)
    binding = graph.io_binding()
    binding.bind_ortvalue_input("input", held)
    binding.bind_ortvalue_output("logits", logits)
    rows = []
    for run in range(4):  # the first one records
        part = x[16 * (run % 3) : 16 * (run % 3) + 16]
        held.update_inplace(np.ascontiguousarray(part))
        graph.run_with_iobinding(binding)
        if run:
            found = logits.numpy().copy()
            rows.append(_compared(f"replay {run}", found, cpu.run(None, {"input": part})[0]))
    return rows


def step_fp16(asked: argparse.Namespace) -> list[Row]:
    x, labels = _images(8 * asked.images)
    half = create_session(_digits("digits-resnet", precision="fp16"), device="cuda", native=True)
    full = create_session(_digits("digits-resnet"), events=False)
    found, wanted = (session.run(None, {"input": x})[0] for session in (half, full))
    accuracy = [float((one.argmax(axis=1) == labels).mean()) for one in (found, wanted)]
    text = f"{accuracy[0]:.1%} in float16, {accuracy[1]:.1%} in float32"
    return [row("accuracy", text, abs(accuracy[0] - accuracy[1]) <= 0.01)]


# --- is it fast ---


def _bound(session: Any, feeds: Mapping[str, Array]) -> Callable[[], None]:
    """A run of a session with everything on the GPU but whole numbers; it waits for the end."""
    ort = import_onnxruntime()
    binding = session.io_binding()
    for name, array in feeds.items():
        place = "cpu" if array.dtype == np.int64 else "cuda"
        # `bind_cpu_input` does not know inputs that have a default.
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, place, 0))
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _seconds(run: Callable[[], None], repeat: int) -> float:
    """The median.  Where more than one run is asked for, two come before, which choose algorithms."""
    for _ in range(min(2, repeat - 1)):
        run()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _one_node(
    name: str, inputs: Mapping[str, Array], outputs: list[str], **attributes: Any
) -> bytes:
    kinds = {
        np.float32: TensorProto.FLOAT,
        np.float16: TensorProto.FLOAT16,
        np.int64: TensorProto.INT64,
    }
    ours = name in dialect.ALL_OPERATORS
    domain = dialect.DOMAIN if ours else ""
    element = kinds[next(iter(inputs.values())).dtype.type]
    types = [element] + [TensorProto.FLOAT] * len(outputs)
    node = helper.make_node(name, list(inputs), outputs, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [
            helper.make_tensor_value_info(key, kinds[value.dtype.type], value.shape)
            for key, value in inputs.items()
        ],
        [
            helper.make_tensor_value_info(key, kind, None)
            for key, kind in zip(outputs, types, strict=False)
        ],
    )
    opset = dialect.BASE_OPSET
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(dialect.DOMAIN, dialect.VERSION)]
    functions = dialect.functions([name], opset) if ours else []
    model = helper.make_model(
        graph, opset_imports=imports, functions=functions, ir_version=dialect.MAX_IR_VERSION
    )
    return bytes(model.SerializeToString())


def step_bandwidth(asked: argparse.Namespace) -> list[Row]:
    """Bytes that a kernel has to read and write, over its time; a copy reads and writes all of its."""
    rows = []
    size = asked.bytes
    for dtype in (np.float32, np.float16):
        channels, edge = 64, 56
        samples = max(1, size // (STEPS * channels * edge * edge * np.dtype(dtype).itemsize))
        shape = (STEPS * samples, channels, edge, edge)
        neurons = samples * channels * edge * edge
        # Of one kind: the time of a kernel does not depend on the values.
        train = np.ones(shape, dtype)
        theta = np.full((channels, 1, 1), 1.5, np.float32)
        state = np.zeros((samples, channels, edge, edge), np.float32)
        half = np.full((channels, 1, 1), 0.75, np.float32)
        schedule = np.zeros((STEPS + 1, channels, 1, 1), np.float32)
        start, steps = np.array(0, np.int64), np.array(STEPS, np.int64)
        weights = np.ones(STEPS, np.float32)
        moved, held = train.nbytes, 4 * neurons
        pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0] * 4, "dilations": [1, 1]}
        neuron = {"current": train, "threshold": theta, "membrane": state}
        cases: dict[str, tuple[str, dict[str, Array], list[str], dict[str, Any], int]] = {
            "copy": ("Identity", {"x": train}, ["y"], {}, 2 * moved),
            "RMPNeuron": (
                "RMPNeuron",
                {**neuron, "steps": steps},
                ["spikes", "after"],
                {"static_current": 0},
                2 * moved + 2 * held,
            ),
            "ScheduledRMPNeuron": (
                "ScheduledRMPNeuron",
                {**neuron, "schedule": schedule, "start": start, "steps": steps},
                ["spikes", "after"],
                {"static_current": 0},
                2 * moved + 2 * held,
            ),
            "DrivenRMPNeuron": (
                "DrivenRMPNeuron",
                {
                    "current": train[:samples],
                    "drive": np.linspace(0.5, 1, STEPS, dtype=np.float32),
                    "threshold": theta,
                    "membrane": state,
                    "schedule": schedule,
                    "start": start,
                    "steps": steps,
                },
                ["spikes", "after"],
                {},
                moved // STEPS + moved + 2 * held,
            ),
            "LayeredRMPNeuron": (
                "LayeredRMPNeuron",
                {"current": train, "threshold": theta, "membrane": half, "steps": steps},
                ["spikes"],
                {"static_current": 0, "radix": 0},
                2 * moved,
            ),
            "LevelNeuron": (
                "LevelNeuron",
                {
                    "current": train,
                    "membrane": half,
                    "threshold": theta,
                    "levels": np.array(STEPS, np.int64),
                },
                ["counts"],
                {},
                2 * moved,
            ),
            "SignedNeuron": (
                "SignedNeuron",
                {**neuron, "balance": state, "schedule": schedule, "start": start, "steps": steps},
                ["spikes", "after", "balance_after"],
                {"static_current": 0, "levels": 2},
                2 * moved + 4 * held,
            ),
            "WeightedTimeSum": (
                "WeightedTimeSum",
                {"values": train, "weights": weights, "total": state, "steps": steps},
                ["after"],
                {},
                moved + 2 * held,
            ),
            "SpikeMaxPool": (
                "SpikeMaxPool",
                {"spikes": train, "counts": state, "steps": steps},
                ["pooled", "after"],
                {**pool, "auto_pad": "NOTSET", "ceil_mode": 0},
                moved + moved // 4 + 2 * held,
            ),
        }
        copied = 0.0
        for what, (name, feeds, outputs, attributes, total) in cases.items():
            if name == "LevelNeuron" and dtype is np.float16:
                continue  # it takes float32 only
            if name == "WeightedTimeSum":
                # A sum is float32 whatever it adds up; its one output has that type.
                model = _sum_model(feeds)
            else:
                model = _one_node(name, feeds, outputs, **attributes)
            session = create_session(model, device="cuda", native=True)
            rate = total / _seconds(_bound(session, feeds), asked.repeat) / 1e9
            copied = copied or rate
            text = f"{rate:,.0f} GB/s, {rate / copied:.0%} of a copy"
            rows.append(row(f"{what}, {np.dtype(dtype).name}", text))
    return rows


def _sum_model(feeds: Mapping[str, Array]) -> bytes:
    model = onnx.load_model_from_string(_one_node("WeightedTimeSum", feeds, ["after"]))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return bytes(model.SerializeToString())


def _resnet18(asked: argparse.Namespace, folder: Path) -> Path:
    for entry in asked.model:
        name, _, file = entry.partition("=")
        if name == "resnet18":
            return Path(file)
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed, and --model resnet18=FILE.onnx is not given")
    from snncompiler.models.export import build_and_export

    file = folder / "resnet18.onnx"
    build_and_export("resnet18", file, classes=1000, size=asked.size)
    return file


def step_resnet18(asked: argparse.Namespace) -> list[Row]:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    rows = []
    shape = (asked.batch, 3, asked.size, asked.size)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = _resnet18(asked, Path(folder))
        ann = onnx.load(file)
        entry = ann.graph.input[0].name
        for precision in ("fp32", "fp16"):
            source = (
                ann if precision == "fp32" else convert_float_to_float16(ann, keep_io_types=True)
            )
            # Without it onnxruntime keeps float16, too, off the tensor cores (docs/how-to/cuda.md).
            chosen = {"use_tf32": int(precision == "fp16")}
            plain = create_session(source, device="cuda", provider_options=chosen)
            once = _seconds(_bound(plain, {entry: noise}), asked.repeat)
            rows.append(row(f"ANN, {precision}", f"{1e3 * once:.1f} ms"))
            snn = snncompiler.compile(
                ann,
                calibration=noise[:8],
                steps=asked.steps,
                precision=precision,
                correction="none",
            )
            session = create_session(snn, device="cuda", native=True, provider_options=chosen)
            for chunk in (CHUNK, asked.steps):
                feeds = {entry: noise, "snnc_chunk": np.array(chunk)}
                took = _seconds(_bound(session, feeds), min(asked.repeat, 3))
                ratio = took / (asked.steps * once)
                text = f"{1e3 * took:.0f} ms, {ratio:.2f} of T times the ANN"
                judged = chunk == asked.steps and not asked.quick
                good = ratio <= MOST_OVER_ANN if judged else None
                rows.append(row(f"SNN, {precision}, K = {chunk}", text, good))
    return rows


def step_spikingjelly(asked: argparse.Namespace) -> list[Row]:
    for package in ("torch", "spikingjelly"):
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
    backend = next((b for b in ("cupy", "triton") if importlib.util.find_spec(b)), None)
    if backend is None:
        raise Skipped("neither cupy nor triton is installed")
    import torch
    from spikingjelly.activation_based import (  # type: ignore[import-not-found, unused-ignore]
        ann2snn,
        functional,
        neuron,
    )

    from snncompiler.models.export import seeded

    if not torch.cuda.is_available():
        raise Skipped("PyTorch finds no GPU")
    network = seeded("resnet18", classes=1000, size=asked.size)
    shape = (asked.batch, 3, asked.size, asked.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    recipe = ann2snn.RateCodingRecipe(dataloader=[x[:8]], mode="99.9%")
    snn = ann2snn.Converter(recipe=recipe, device="cpu").convert(network).eval().cuda()
    functional.set_step_mode(snn, "m")
    functional.set_backend(snn, backend, neuron.IFNode)
    rows = []
    for kind in (torch.float32, torch.float16):
        sized, images = snn.to(kind), x.cuda().to(kind)

        def run(sized: Any = sized, images: Any = images) -> None:
            with torch.inference_mode():
                functional.reset_net(sized)
                sized(images.unsqueeze(0).expand(asked.steps, *images.shape)).mean(0)
            torch.cuda.synchronize()

        rows.append(
            row(
                f"{backend}, {str(kind)[6:]}", f"{1e3 * _seconds(run, min(asked.repeat, 3)):.0f} ms"
            )
        )
    return rows


STEPS_BY_NAME: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    name.removeprefix("step_"): function
    for name, function in list(globals().items())
    if name.startswith("step_")
}


# --- one after the other ---


def child(asked: argparse.Namespace) -> int:
    """One step, whose rows are printed as JSON on the last line."""
    try:
        rows = STEPS_BY_NAME[asked.child](asked)
    except Skipped as why:
        rows = [skipped(why)]
    except (SnncError, RuntimeError) as error:
        rows = [row("", str(error), False)]
    print("\n" + json.dumps(rows))
    return 0


def done(name: str, limit: float) -> list[Row]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    started = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        rows = [row("", f"stopped after {limit:.0f} s", False)]
    else:
        last = (ran.stdout.strip().splitlines() or [""])[-1]
        try:
            rows = json.loads(last)
        except ValueError:
            said = (ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"])[-1]
            rows = [row("", said, False)]
    seconds = round(time.perf_counter() - started, 1)
    return [{"step": name, **one, "seconds": seconds} for one in rows]


def shown(rows: list[Row]) -> list[tuple[object, ...]]:
    verdict = {True: "good", False: "BAD", None: ""}
    return [
        (
            one["step"],
            one["what"],
            one["figure"] if isinstance(one["figure"], str) else json.dumps(one["figure"]),
            verdict[one["good"]],
            one["seconds"],
        )
        for one in rows
        if not one["skipped"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="steps, with commas between")
    parser.add_argument("--limit", type=float, default=560, help="seconds for everything")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", action="append", default=[], help="resnet18=FILE.onnx")
    parser.add_argument("--quick", action="store_true", help="small sizes; no time is judged")
    for name, (full, quick, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"{what} ({full}; --quick: {quick})")
    parser.add_argument("--child", choices=STEPS_BY_NAME, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for name, (full, quick, _) in SIZES.items():
        if getattr(asked, name) is None:
            setattr(asked, name, quick if asked.quick else full)
    if asked.child:
        return child(asked)
    names = asked.only.split(",") if asked.only else list(STEPS_BY_NAME)
    if unknown := [name for name in names if name not in STEPS_BY_NAME]:
        parser.error(f"there is no step {unknown[0]}; they are {', '.join(STEPS_BY_NAME)}")
    until = time.perf_counter() + asked.limit
    rows: list[Row] = []
    why = ""
    for name in names:
        left = until - time.perf_counter()
        why = why or ("no time is left" if left <= 5 else "")
        rows += [{"step": name, **skipped(why), "seconds": 0.0}] if why else done(name, left)
        if name == "doctor" and rows[0]["good"] is False:
            why = "CUDA does not run"
    console = Console(width=140, markup=False, highlight=False)
    title = f"GPU acceptance ({library_path() or 'no native library'})"
    console.print(table(title, ("step", "", "figure", "", "s"), shown(rows)))
    for one in rows:
        if one["skipped"]:
            console.print(f"{one['step']} {one['figure']}")
    if asked.json:
        sizes = {name: getattr(asked, name) for name in SIZES}
        record = {"quick": asked.quick, "sizes": sizes, "rows": rows}
        asked.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(one["good"] is False for one in rows))


if __name__ == "__main__":
    sys.exit(main())
