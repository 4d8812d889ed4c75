"""Whole networks on CUDA against the CPU, bit for bit, and where onnxruntime places their nodes.

Weights and inputs are multiples of 1/8, thresholds and levels powers of two, so that every sum of
a convolution or a product is exact in any order, in float16 too: |sum| < 32 in multiples of 1/64.  The
networks end in a rectifier, whose decoded value is computed element by element.  So whatever differs
between the devices is a fault.  `make test-gpu`; skipped where onnxruntime has no CUDA.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import Array, parse

import snncompiler
from snncompiler import Calibration, models
from snncompiler.errors import UsageError
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.drive_neurons import drive_neurons
from snncompiler.passes.lower.inline_bodies import inline_bodies
from snncompiler.runtime import Stream, create_session, doctor, register

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_library")]

STEPS = 8


def eighths(seed: int, *shape: int, low: int = -4, high: int = 5) -> Array:
    values = np.random.default_rng(seed).integers(low, high, shape)
    return (values / 8).astype(np.float32)


#: A shortcut of pooled spikes, a static branch beside spikes, max pooling, and dense layers.
TEXT = """net (float[N,2,8,8] x) => (float[N,6] y, float[N,4,4,4] h) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, bias)
    r = Relu (a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    c = Conv <pads = [1, 1, 1, 1]> (p, inner)
    u = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    side = Conv (u, wide)
    s = Add (c, p)
    t = Add (s, side)
    h = Relu (t)
    f = Flatten (h)
    g = Gemm (f, last, offset)
    y = Relu (g)
}"""
WEIGHTS = {
    "stem": eighths(1, 4, 2, 3, 3),
    "bias": eighths(2, 4),
    "inner": eighths(3, 4, 4, 3, 3),
    "wide": eighths(4, 4, 2, 1, 1, low=-2, high=3),
    "last": eighths(5, 64, 6),
    "offset": eighths(6, 6),
}
NETWORK = parse(TEXT, WEIGHTS)
#: Without what flows into a later layer past all rectifiers, so that thresholds may grow.
PLAIN = parse(TEXT.replace("t = Add (s, side)", "t = Identity (s)"), WEIGHTS)
THETAS = {"Relu_1": [0.5, 1, 2, 0.5], "Relu_8": [1, 2, 0.5, 1], "Relu_11": [1, 1, 2, 2, 4, 4]}


def inputs(count: int = 3, seed: int = 9) -> Array:
    return eighths(seed, count, 2, 8, 8, low=0, high=9)


@cache
def compiled(growth: bool = False, **options: Any) -> onnx.ModelProto:
    """The network with thresholds that are given; the tests do not change it."""
    source = PLAIN if growth else NETWORK
    first = snncompiler.compile(source, steps=1)
    known = {entry.key: entry.value for entry in first.metadata_props}
    names = json.loads(known["snnc.calibration"])["thresholds"]
    thetas = {name: np.float32(theta) for name, theta in zip(names, THETAS.values(), strict=True)}
    charges = {name: np.float32([theta / 2, theta / 4]) for name, theta in thetas.items()}
    layered = options.get("timing") == "layered"
    scheduled = options.get("reset") != "hard" and not layered
    radix = options.get("coding") == "radix"
    steps = int(options.get("steps", STEPS))
    calibration = Calibration(
        levels=((1 << steps) - 1 if radix else steps) * layered,
        thresholds=thetas,
        schedules=charges if scheduled else {},
        correction="schedule" if scheduled else "none",
        growth="0.5@1,1@4" if growth else "none",
        neuron=options.get("neuron", "binary"),
        input_scales={"x": 1.0},
        method="max",
        percentile=99.9,
        per_channel=True,
        alpha=1.0,
        source="data",
        samples=1,
        seed=0,
        model_sha256=known["snnc.source_sha256"],
    )
    given = {"steps": STEPS, **options}
    return snncompiler.compile(source, calibration=calibration, **given)


def same(found: list[Array], wanted: list[Array], what: object = "", linear: bool = False) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape, what
        assert one.tobytes() == other.tobytes(), (what, np.abs(one - other).max())
    # Spikes that are sent, and not all of them, but where a linear layer is behind.
    counts = [np.count_nonzero(other) / other.size for other in wanted]
    assert all(counts) and (linear or max(counts) < 1), (what, counts)


def both(model: onnx.ModelProto, native: Any = True) -> tuple[Any, Any]:
    """Dense sessions: on CUDA with the native library or without, and on the CPU."""
    return (
        create_session(model, device="cuda", native=native),
        create_session(model, events=False),
    )


FORMS: dict[str, dict[str, Any]] = {
    "fold": {"chunk": 4},
    "fold, K chosen": {},
    "fold, odd K": {"chunk": 3},
    "loop": {"unroll": "loop"},
    "steps": {"unroll": "steps"},
    "mean": {"readout": "mean", "chunk": 3},
    "ramp:3": {"readout": "ramp:3", "chunk": 4},
    "delay": {"readout": "delay:2", "unroll": "loop"},
    "growth": {"growth": True, "chunk": 4},
    "growth, signed": {"growth": True, "neuron": "signed:4", "chunk": 3},
    "growth, fp16": {"growth": True, "precision": "fp16", "chunk": 3},
    "growth, loop": {"growth": True, "unroll": "loop"},
    "hard reset": {"reset": "hard", "chunk": 4},
    "burst": {"neuron": "burst:4", "chunk": 3},
    "signed": {"neuron": "signed:4", "chunk": 3},
    "poisson": {"encode": "poisson", "chunk": 3},
    "poisson, loop": {"encode": "poisson", "unroll": "loop"},
    "fp16": {"precision": "fp16", "chunk": 3},
    "fp16, loop": {"precision": "fp16", "unroll": "loop"},
    "fp16, signed": {"precision": "fp16", "neuron": "signed:2", "chunk": 4},
    "layered, rate": {"timing": "layered"},
    "layered, radix": {"timing": "layered", "coding": "radix", "steps": 4},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_gives_the_bits_of_the_cpu(form: str) -> None:
    """With its own T and K, and with every other that can be asked for."""
    model = compiled(**FORMS[form])
    known = {entry.key: entry.value for entry in model.metadata_props}
    gpu, cpu = both(model)
    asked: list[dict[str, int]] = [{}]
    if known["snnc.steps_input"]:
        asked += [{"snnc_steps": steps} for steps in (3, 5, 13)]
    if known["snnc.chunk_input"]:
        asked += [{"snnc_steps": 7, "snnc_chunk": chunk} for chunk in (1, 2, 5, 7, 32)]
    if known["snnc.seed_input"]:
        asked += [{"snnc_seed": 5, "snnc_first_image": 40, "snnc_steps": 6}]
    for feeds in asked:
        given = {"x": inputs(), **{name: np.array(value) for name, value in feeds.items()}}
        same(gpu.run(None, given), cpu.run(None, given), (form, feeds))
    assert len(asked) == 1 or len(asked) >= 4


@pytest.mark.parametrize("form", ["fold", "loop", "ramp:3", "signed"])
def test_function_bodies_give_the_bits_of_the_cpu(form: str) -> None:
    """Without the native library, too, whatever is overridden reaches every reader."""
    gpu, cpu = both(compiled(**FORMS[form]), native=False)
    for steps in (STEPS, 3, 13):
        given = {"x": inputs(), "snnc_steps": np.array(steps)}
        same(gpu.run(None, given), cpu.run(None, given), (form, steps))


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("form", ["fold", "ramp:3", "delay", "signed", "fp16"])
def test_a_stream_on_cuda_gives_the_bits_of_the_cpu(
    form: str, native: bool, monkeypatch: Any
) -> None:
    options = {k: v for k, v in FORMS[form].items() if k not in ("chunk", "unroll")}
    model = compiled(emit="step", **options)
    if not native:
        monkeypatch.setattr(
            "snncompiler.runtime.stream.create_session",
            lambda *args, **more: create_session(*args, native=False, **more),
        )
    gpu = Stream(model, device="cuda")
    monkeypatch.undo()
    cpu = Stream(model)
    for _ in range(2):
        for done in range(6):
            frame = inputs(seed=20 + done)
            found, wanted = gpu.step(frame), cpu.step(frame)
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert found[name].tobytes() == wanted[name].tobytes(), (form, done, name)
        assert any(np.count_nonzero(value) for value in wanted.values())
        gpu.reset()
        cpu.reset()


@pytest.mark.parametrize("form", ["fold", "fp16", "layered, rate", "layered, radix"])
def test_a_cuda_graph_replays_with_a_changed_input(form: str) -> None:
    options = {name: value for name, value in FORMS[form].items() if name != "chunk"}
    model = compiled(emit="cuda-graph", batch=3, **options)
    gpu = create_session(model, device="cuda", provider_options={"enable_cuda_graph": True})
    cpu = create_session(model, events=False)
    names = [entry.name for entry in model.graph.output]
    held = onnxruntime.OrtValue.ortvalue_from_numpy(inputs(), "cuda", 0)
    binding = gpu.io_binding()
    binding.bind_ortvalue_input("x", held)
    for name, wanted in zip(names, cpu.run(None, {"x": inputs()}), strict=True):
        binding.bind_ortvalue_output(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(wanted), "cuda", 0)
        )
    seen = []
    for seed in (30, 31, 32, 30):
        x = inputs(seed=seed)
        held.update_inplace(x)
        gpu.run_with_iobinding(binding)
        found = [value.numpy() for value in binding.get_outputs()]
        same(found, cpu.run(None, {"x": x}), seed)
        seen.append(found[0].tobytes())
    assert len(set(seen)) == 3 and seen[0] == seen[3]


# --- whole numbers ---

#: Ends in a linear layer, whose sums are decoded.
LINEAR = parse(TEXT.replace("y = Relu (g)", "y = Identity (g)"), WEIGHTS)
WHOLE_FORMS: dict[str, dict[str, Any]] = {
    "fold, int4": {"weights": "int4", "chunk": 3},
    "layered, rate, int4": {"weights": "int4", "timing": "layered"},
    "int16": {"weights": "int16", "chunk": 4},
    "compact": {"weights": "int8", "compact": True},
    "input of 6 bits": {"weights": "int8", "input_bits": 6},
} | {
    f"{form}, int8": {"weights": "int8", **FORMS[form]}
    for form in (
        "fold, odd K",
        "loop",
        "steps",
        "mean",
        "ramp:3",
        "delay",
        "hard reset",
        "burst",
        "signed",
        "poisson",
        "layered, rate",
        "layered, radix",
    )
}


@cache
def in_whole_numbers(**options: Any) -> onnx.ModelProto:
    """The network with weights, thresholds and charges that the compiler puts on a grid."""
    given = {"steps": STEPS, "correction": "none" if options.get("reset") == "hard" else "auto"}
    if options.get("timing") == "layered":
        given.pop("correction")
    return snncompiler.compile(LINEAR, calibration=real_inputs(16), **{**given, **options})


def real_inputs(count: int, seed: int = 40) -> Array:
    """On no grid."""
    return np.random.default_rng(seed).uniform(0, 1, (count, 2, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("form", WHOLE_FORMS)
def test_whole_numbers_give_the_bits_of_the_cpu(form: str, native: bool) -> None:
    model = in_whole_numbers(**WHOLE_FORMS[form])
    known = {entry.key: entry.value for entry in model.metadata_props}
    gpu, cpu = both(model, native=native)
    asked = [{}, {"snnc_steps": 3}] if known["snnc.steps_input"] else [{}]
    for feeds in asked:
        given = {"x": real_inputs(3), **{name: np.array(value) for name, value in feeds.items()}}
        same(gpu.run(None, given), cpu.run(None, given), (form, feeds), linear=True)


@pytest.mark.parametrize("native", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("coding", ["rate", "radix"])
@pytest.mark.parametrize("name", ["digits-resnet", "digits-cnn"])
def test_layered_networks_compute_with_counts(
    name: str, coding: str, native: bool, tmp_path: Path
) -> None:
    """One convolution for all steps: no neuron of layered time is left, and the bits are the same."""
    model = digits(name, coding)
    with np.load(models.path("digits-test")) as stored:
        x = np.ascontiguousarray(stored["x"][:5].transpose(0, 3, 1, 2) / 16, np.float32)
    spiking = create_session(model, device="cuda", native=native, events=False)
    gpu = create_session(model, device="cuda", native=native)
    cpu = create_session(model, events=False)
    wanted = cpu.run(None, {"input": x})
    same(gpu.run(None, {"input": x}), wanted, "by counts", linear=True)
    same(spiking.run(None, {"input": x}), wanted, "spiking", linear=True)
    for levels in (True, False) if native else ():
        collapsed = inline_bodies(collapse_time(model, levels=levels).model)
        assert not [node for node in collapsed.graph.node if node.op_type == "LayeredRMPNeuron"]
        folder = tmp_path / str(levels)
        folder.mkdir()
        assert placed(collapsed, folder, feeds={"input": x}) == (set(), [])
        found = create_session(collapsed, device="cuda", events=False).run(None, {"input": x})
        same(found, wanted, ("levels", levels), linear=True)


@cache
def digits(name: str, coding: str) -> onnx.ModelProto:
    return snncompiler.compile(
        models.path(name),
        calibration=models.path("digits-train"),
        preprocess=snncompiler.Preprocess(scale=16),
        weights="int8",
        timing="layered",
        coding=coding,
        steps=4,
    )


@pytest.mark.parametrize("coding", ["rate", "radix"])
def test_a_pipeline_of_layers_on_cuda_gives_the_bits_of_the_cpu(coding: str) -> None:
    """One step of every layer; an image is answered when it has passed through all of them."""
    layered = {"timing": "layered", "coding": coding, "steps": 4}
    images = [real_inputs(3, seed=70 + image) for image in range(3)]
    for model, given in (
        (in_whole_numbers(weights="int8", emit="step", **layered), images),
        (compiled(emit="step", **layered), [inputs(seed=70 + image) for image in range(3)]),
    ):
        gpu, cpu = Stream(model, device="cuda"), Stream(model)
        for found, wanted in zip(gpu.answers(given), cpu.answers(given), strict=True):
            for name in wanted:
                assert found[name].tobytes() == wanted[name].tobytes(), name
            assert all(np.count_nonzero(value) for value in wanted.values())


def test_a_stream_in_whole_numbers_gives_the_bits_of_the_cpu() -> None:
    model = in_whole_numbers(weights="int8", emit="step")
    gpu, cpu = Stream(model, device="cuda"), Stream(model)
    for done in range(6):
        frame = real_inputs(3, seed=50 + done)
        found, wanted = gpu.step(frame), cpu.step(frame)
        for name in wanted:
            assert found[name].tobytes() == wanted[name].tobytes(), (done, name)
    assert all(np.count_nonzero(value) for value in wanted.values())


def test_a_cuda_graph_in_whole_numbers_gives_the_bits_of_the_cpu() -> None:
    model = in_whole_numbers(weights="int8", emit="cuda-graph", batch=3)
    cpu = create_session(model, events=False)
    gpu = create_session(model, device="cuda", provider_options={"enable_cuda_graph": True})
    held = onnxruntime.OrtValue.ortvalue_from_numpy(real_inputs(3), "cuda", 0)
    binding = gpu.io_binding()
    binding.bind_ortvalue_input("x", held)
    for entry, wanted in zip(gpu.get_outputs(), cpu.run(None, {"x": real_inputs(3)}), strict=True):
        binding.bind_ortvalue_output(
            entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(wanted), "cuda", 0)
        )
    for seed in (60, 61, 62):
        x = real_inputs(3, seed=seed)
        held.update_inplace(x)
        gpu.run_with_iobinding(binding)
        found = [value.numpy() for value in binding.get_outputs()]
        same(found, cpu.run(None, {"x": x}), seed, linear=True)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"emit": "step"},
        {"target": "cpu"},
        {"timing": "layered", "coding": "radix"},
        {"timing": "layered", "emit": "step"},
    ],
    ids=str,
)
def test_verify_proves_the_bits_on_cuda(form: dict[str, Any]) -> None:
    model = in_whole_numbers(weights="int8", steps=3, **form)
    result = snncompiler.verify(LINEAR, model, data=real_inputs(2))
    assert result.passed, result
    told = {check.name: check.detail for check in result.checks}
    assert "on CPU and CUDA" in told["the same bits in every way"]
    stepped = (
        "pipeline of layers on CUDA = window" if "timing" in form else "stepped on CUDA = loop"
    )
    assert (stepped in told) == (form.get("emit") == "step")


# --- where the nodes are ---


def placed(
    model: onnx.ModelProto,
    folder: Path,
    where: str = "CPUExecutionProvider",
    feeds: dict[str, Array] | None = None,
) -> tuple[set[str], list[str]]:
    """The operators of nodes that run on the CPU, and the copies in the optimized graph."""
    options = onnxruntime.SessionOptions()
    assert register(options)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
    )
    session.run(None, feeds or {"x": inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node"]
    found = {node["op_name"] for node in nodes if node.get("provider") == where}
    assert any(node.get("provider") == "CUDAExecutionProvider" for node in nodes)

    def copies(graph: onnx.GraphProto) -> list[str]:
        here = [f"{n.op_type} {n.input[0]}" for n in graph.node if n.op_type.startswith("Memcpy")]
        for node in graph.node:
            for attribute in node.attribute:
                here += copies(attribute.g)
        return here

    optimized = onnx.load(folder / "optimized.onnx")
    assert optimized.graph.node
    return found, copies(optimized.graph)


@pytest.mark.parametrize(
    ("form", "host", "copies"),
    [
        # T goes to the GPU once a run, where the read-out divides by it.
        ("fold", {"TimeSteps"}, ["MemcpyFromHost snnc_window_steps"]),
        ("loop", {"TimeSteps"}, ["MemcpyFromHost snnc_window_steps"]),
        ("signed", {"TimeSteps"}, ["MemcpyFromHost snnc_window_steps"]),
        ("poisson", {"TimeSteps"}, ["MemcpyFromHost snnc_window_steps"]),
        ("fp16", {"TimeSteps"}, ["MemcpyFromHost snnc_window_steps"]),
        ("steps", set(), []),
        ("layered, rate", {"TimeSteps"}, []),
        ("layered, radix", set(), []),
    ],
)
def test_only_time_is_counted_on_the_cpu(
    form: str, host: set[str], copies: list[str], tmp_path: Path
) -> None:
    assert placed(compiled(**FORMS[form]), tmp_path) == (host, copies)


@pytest.mark.parametrize("form", ["growth", "growth, signed"])
def test_a_neuron_drives_its_current_itself(form: str, tmp_path: Path) -> None:
    """So no node writes the current of every step; a session on CUDA lowers the network so."""
    model = onnx.ModelProto()
    model.CopyFrom(compiled(**FORMS[form]))
    assert drive_neurons(model)
    found, copies = placed(model, tmp_path, "CUDAExecutionProvider")
    assert {name for name in found if name.startswith("Drive")} == {
        "DrivenSignedNeuron" if "signed" in form else "DrivenRMPNeuron"
    }
    assert copies == ["MemcpyFromHost snnc_window_steps"]


@pytest.mark.parametrize("timing", ["streaming", "layered"])
def test_whole_numbers_stay_on_the_gpu(timing: str, tmp_path: Path) -> None:
    host, copies = placed(in_whole_numbers(weights="int8", timing=timing), tmp_path)
    assert host <= {"TimeSteps"}
    assert copies in ([], ["MemcpyFromHost snnc_window_steps"])


def test_a_cuda_graph_has_no_node_on_the_cpu(tmp_path: Path) -> None:
    assert placed(compiled(emit="cuda-graph", batch=3), tmp_path) == (set(), [])


def test_a_step_counts_on_the_cpu(tmp_path: Path) -> None:
    host, copies = placed(compiled(emit="step"), tmp_path)
    assert host == {"TimeSteps"}
    assert copies == ["MemcpyFromHost snnc_step_next"]


@pytest.mark.parametrize("coding", ["rate", "radix"])
def test_a_pipeline_counts_on_the_cpu(coding: str, tmp_path: Path) -> None:
    """Where a window begins and ends is found on the GPU, from two numbers; a Concat makes a shape."""
    model = compiled(emit="step", timing="layered", coding=coding, steps=4)
    host, copies = placed(model, tmp_path)
    assert host == {"TimeSteps", "Concat"}
    assert copies == ["MemcpyFromHost snnc_step_next", "MemcpyFromHost snnc_trip_start"]


# --- what a session on CUDA is given ---


def test_a_file_for_the_cpu_is_refused() -> None:
    model = compiled(target="cpu")
    with pytest.raises(UsageError, match="lowered for the CPU"):
        create_session(model, device="cuda")
    with pytest.warns(RuntimeWarning, match="lowered for the CPU"):
        session = create_session(model, device="auto")
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_network_that_fits_runs_in_one_chunk() -> None:
    told = create_session(compiled(), device="cuda").get_modelmeta().custom_metadata_map
    assert told["snnc.chunk"] == told["snnc.steps"] == str(STEPS)
    told = create_session(compiled(chunk=3), device="cuda").get_modelmeta().custom_metadata_map
    assert told["snnc.chunk"] == "3"


def test_provider_options_reach_onnxruntime() -> None:
    given = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": True}
    chosen = create_session(compiled(), device="cuda", provider_options=given)
    told = chosen.get_provider_options()["CUDAExecutionProvider"]
    assert told["cudnn_conv_algo_search"] == "HEURISTIC" and told["use_tf32"] == "1"
    plain = create_session(compiled(), device="cuda").get_provider_options()
    assert plain["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_doctor_tells_what_runs(cuda_library: Path) -> None:
    told = doctor()["cuda"]
    assert told["runs"] and told["kernels_built"] and not told["why_not"]
    assert told["devices"] and told["architectures"]
    # Versions as "13.0", the driver's no older than what it has to run; onnxruntime 1.20 has none.
    runtime, driver = (
        [int(part) for part in told[key].split(".")] for key in ("runtime", "driver")
    )
    assert runtime[0] <= driver[0]
    assert told["built_with"] is None or int(told["built_with"].split(".")[0]) == runtime[0]
