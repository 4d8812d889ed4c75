"""The library as a whole: precedence, threads, memory, errors, what is said when it is broken."""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_node import assert_same_bits, one_node, run, session

from snncompiler.errors import EnvironmentMissing, UsageError
from snncompiler.ir import dialect
from snncompiler.runtime import build, create_session, doctor, library_path, reference, register
from snncompiler.runtime.library import ISAS, LIBRARY_VARIABLE, cpu_isa, inspect_library

ort = pytest.importorskip("onnxruntime")

NEURON = one_node("RMPNeuron", attributes=(("static_current", 0),))
CURRENT = np.random.default_rng(0).normal(0.2, 1.0, (8, 3, 5)).astype(np.float32)
FEEDS = {
    "current": CURRENT,
    "threshold": np.array(1.0, np.float32),
    "membrane": np.array(0.5, np.float32),
    "steps": np.array(4),
}
POOL = {
    "auto_pad": "NOTSET",
    "ceil_mode": 0,
    "dilations": [1],
    "kernel_shape": [2],
    "pads": [0, 0],
    "strides": [2],
}


def executed_operators(native: bool, folder: Path) -> set[str]:
    """The operators that onnxruntime's profile saw running."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    if native:
        assert register(options)
    one = ort.InferenceSession(
        NEURON.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    one.run(None, FEEDS)
    events = json.loads(Path(one.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


@pytest.mark.usefixtures("library")
def test_the_kernel_goes_before_the_body(tmp_path: Path) -> None:
    assert executed_operators(True, tmp_path) == {"RMPNeuron"}
    body = executed_operators(False, tmp_path)
    assert "Scan" in body and "RMPNeuron" not in body


@pytest.mark.usefixtures("library")
def test_an_operator_without_a_kernel_runs_its_body() -> None:
    """A library that is older than the domain: what it does not know still runs."""
    model = one_node("TimeSum")
    model.functions[0].name = model.graph.node[0].op_type = "NoKernel"
    values = CURRENT
    feeds = {"values": values, "total": np.array(0, np.float32), "steps": np.array(4)}
    got = create_session(model, native=True).run(None, feeds)
    assert_same_bits(got, [reference.time_sum(values, feeds["total"], 4)])


@pytest.mark.usefixtures("library")
def test_concurrent_runs_of_one_session() -> None:
    one = session("RMPNeuron", "float32", (("static_current", 0),), True, 2)
    inputs = [
        np.random.default_rng(seed).normal(0.2, 1, (8, 50, 61)).astype(np.float32)
        for seed in range(4)
    ]
    wanted = [
        list(reference.rmp_neuron(x, FEEDS["threshold"], FEEDS["membrane"], 4)) for x in inputs
    ]
    cases = 0

    def work(index: int) -> int:
        for _ in range(25):
            assert_same_bits(one.run(None, {**FEEDS, "current": inputs[index]}), wanted[index])
        return 25

    with ThreadPoolExecutor(4) as threads:
        cases = sum(threads.map(work, range(4)))
    assert cases == 100


@pytest.mark.usefixtures("library")
def test_two_sessions_at_once() -> None:
    """Two models with one set of registered operators, each on its own thread and reset."""
    neurons = {"RMPNeuron": reference.rmp_neuron, "HardResetNeuron": reference.hard_reset_neuron}
    current = np.random.default_rng(1).normal(0.2, 1, (8, 50, 61)).astype(np.float32)
    feeds = {**FEEDS, "current": current}

    def work(name: str) -> int:
        attributes = (("static_current", 0),)
        one = create_session(one_node(name, attributes=attributes), threads=2, native=True)
        wanted = list(neurons[name](current, feeds["threshold"], feeds["membrane"], 4))
        for _ in range(25):
            assert_same_bits(one.run(None, feeds), wanted, name)
        return 25

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(work, neurons)) == 50


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_sessions_leave_nothing_behind() -> None:
    def cycle(times: int) -> None:
        for _ in range(times):
            create_session(NEURON, threads=1, native=True).run(None, FEEDS)

    cycle(50)
    before = resident_bytes()
    cycle(1000)
    assert resident_bytes() - before < 8 * 2**20


@pytest.mark.usefixtures("library")
def test_registering_twice_is_registering_once() -> None:
    options = ort.SessionOptions()
    assert register(options) and register(options)
    one = ort.InferenceSession(
        NEURON.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert len(one.run(None, FEEDS)) == 2


@pytest.mark.usefixtures("library")
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_only_the_entry_is_exported(library: Path) -> None:
    command = ["nm", "-D", "--defined-only", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    assert [line.split()[-1] for line in lines if line] == ["RegisterCustomOps"]


@pytest.mark.usefixtures("library")
@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd")
def test_onnxruntime_is_not_linked(library: Path) -> None:
    command = ["ldd", str(library)]
    needed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "onnxruntime" not in needed and "libcuda" not in needed


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": np.array(3)}, "does not divide into 3 time-steps"),
        ({"steps": np.array(0)}, "`steps` must be at least 1, not 0"),
        ({"steps": np.array([2, 2])}, "`steps` must be one number"),
        ({"threshold": np.ones(4, np.float32)}, "`threshold` of shape [4] does not broadcast"),
        ({"membrane": np.ones((2, 2, 3, 5), np.float32)}, "`membrane` of shape [2, 2, 3, 5]"),
        ({"current": np.array(1, np.float32)}, "`current` has no leading axis"),
    ],
)
def test_wrong_shapes_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="RMPNeuron 'my_RMPNeuron': ") as raised:
        run("RMPNeuron", {**FEEDS, **changed})
    assert message in str(raised.value)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel_shape": [2, 2, 2, 2]}, "must have 1 to 3 axes"),
        ({"strides": [0]}, "`strides` [0] must be 1 numbers of at least 1"),
        ({"pads": [2, 0]}, "must be smaller than `kernel_shape`"),
        ({"auto_pad": "SOME"}, "unknown `auto_pad` SOME"),
        ({"kernel_shape": [9], "pads": [0, 0]}, "is larger than samples of shape [1, 2, 4]"),
        ({"kernel_shape": [2, 2], **{k: [1, 1] for k in ("strides", "dilations")}}, "do not fit"),
    ],
)
def test_wrong_windows_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    window = {**POOL, **changed}
    if len(window["kernel_shape"]) == 2:
        window["pads"] = [0] * 4
    feeds = {"spikes": np.ones((2, 2, 4), np.float32), "counts": np.float32(0), "steps": 2}
    with pytest.raises(Exception, match="SpikeMaxPool 'my_SpikeMaxPool': ") as raised:
        run("SpikeMaxPool", feeds, attributes=window)
    assert message in str(raised.value)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["RunningMean", "Telescope"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": np.array(-1)}, "`start` must be at least 0, not -1"),
        ({"start": np.array([0, 0])}, "`start` must be one number, not of shape [2]"),
        ({"steps": np.array(0)}, "`steps` must be at least 1, not 0"),
        ({"steps": np.array(3)}, "`values`, of shape [8, 3, 5], does not divide into 3 time-steps"),
        ({"values": np.array(1, np.float32)}, "`values` has no leading axis"),
        ({"state": np.ones(4, np.float32)}, " of shape [4] does not broadcast to"),
    ],
)
def test_wrong_starts_are_refused_by_name(name: str, changed: dict[str, Any], message: str) -> None:
    state = dialect.OPERATORS[name].inputs[1].name
    feeds = {"values": CURRENT, state: np.float32(0), "start": 0, "steps": 4}
    feeds |= {state if key == "state" else key: value for key, value in changed.items()}
    with pytest.raises(Exception, match=f"{name} 'my_{name}': ") as raised:
        run(name, feeds)
    assert message in str(raised.value)


SCHEDULED_FEEDS = {
    "current": CURRENT,
    "threshold": np.float32(1),
    "membrane": np.float32(0),
    "schedule": np.zeros((2, 5), np.float32),
    "start": 0,
    "steps": 4,
}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("ScheduledRMPNeuron", {"schedule": np.float32(0)}, "`schedule` of shape [] has no rows"),
        ("ScheduledRMPNeuron", {"schedule": np.zeros((0, 5), np.float32)}, "[0, 5] has no rows"),
        (
            "ScheduledRMPNeuron",
            {"schedule": np.zeros((2, 4), np.float32)},
            "`schedule` of shape [4]",
        ),
        ("ScheduledRMPNeuron", {"start": -1}, "`start` must be at least 0, not -1"),
        ("BurstNeuron", {"levels": 0}, "`levels` must be 1 to 2^24, not 0"),
        ("BurstNeuron", {"levels": 2**24 + 1}, "`levels` must be 1 to 2^24, not 16777217"),
        ("SignedNeuron", {"balance": np.ones(4, np.float32)}, "`balance` of shape [4] does not"),
    ],
)
def test_wrong_schedules_are_refused_by_name(
    name: str, changed: dict[str, Any], message: str
) -> None:
    attributes = {"levels": changed.get("levels", 1)} if name != "ScheduledRMPNeuron" else {}
    feeds = {**SCHEDULED_FEEDS, **({"balance": np.float32(0)} if name == "SignedNeuron" else {})}
    feeds |= {key: value for key, value in changed.items() if key != "levels"}
    with pytest.raises(Exception, match=f"{name}( 'my_{name}')?: ") as raised:
        run(name, feeds, attributes=attributes)
    assert message in str(raised.value)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "feeds", "message"),
    [
        (
            "WeightedTimeSum",
            {"values": CURRENT, "weights": np.ones(3, np.float32), "total": np.float32(0)},
            "`weights` of shape [3] are not 4, one for each step",
        ),
        (
            "Drive",
            {"values": CURRENT, "drive": np.ones((2, 2), np.float32), "start": 0},
            "`drive` of shape [2, 2] must have one axis and at least one element",
        ),
        (
            "PoissonEncoder",
            {"values": CURRENT, "scale": np.ones(2, np.float32), "seed": 0, "first_image": 0}
            | {"start": 0},
            "`scale` must be one number, not of shape [2]",
        ),
    ],
)
def test_wrong_weights_and_scales_are_refused_by_name(
    name: str, feeds: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=f"{name} 'my_{name}': ") as raised:
        run(name, {**feeds, "steps": 4})
    assert message in str(raised.value)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", dialect.OPERATORS)
def test_other_types_are_refused(name: str) -> None:
    """float64 is no type of the domain; integers neither."""
    model = one_node(name, attributes=tuple(POOL.items()) if name == "SpikeMaxPool" else ())
    model.graph.input[0].type.tensor_type.elem_type = 11
    with pytest.raises(Exception, match=f"{name}|type"):
        one = create_session(model, native=True)
        feeds = {p.name: np.zeros((1, 1, 1), np.float32) for p in dialect.OPERATORS[name].inputs}
        feeds[next(iter(feeds))] = np.zeros((1, 1, 2), np.float64)
        feeds |= {p.name: np.array(1) for p in dialect.OPERATORS[name].inputs if p.type == "int64"}
        one.run(None, feeds)


# --- finding the library, and what is said where it is broken ----------------------------------


@pytest.mark.usefixtures("library")
def test_the_environment_names_another_library(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library_path() == library
    other = Path(shutil.copy(library, tmp_path / "other.so"))
    monkeypatch.setenv(LIBRARY_VARIABLE, str(other))
    assert library_path() == other
    assert_same_bits(
        create_session(NEURON, native=True).run(None, FEEDS), run("RMPNeuron", FEEDS, native=False)
    )


def without_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(build, "DEFAULT_OUT", folder)


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_library(monkeypatch, tmp_path)
    assert library_path() is None
    assert register(ort.SessionOptions()) is False
    assert len(create_session(NEURON).run(None, FEEDS)) == 2
    with pytest.raises(EnvironmentMissing, match="native library is not built") as raised:
        create_session(NEURON, native=True)
    assert raised.value.exit_code == 3 and "snncompiler.runtime.build" in str(raised.value)
    assert any("native library" in missing["what"] for missing in doctor()["missing"])
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
    with pytest.raises(EnvironmentMissing, match="SNNC_LIBRARY names"):
        create_session(NEURON)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into ELF files")
@pytest.mark.parametrize("fault", ["empty", "text", "cut", "machine", "foreign", "no entry"])
def test_a_broken_library_is_an_error_not_a_fallback(
    fault: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(library.read_bytes())
    if fault == "empty":
        data = bytearray()
    elif fault == "text":
        data = bytearray(b"hello" * 100)
    elif fault == "cut":
        data = data[: len(data) // 2]
    elif fault == "machine":
        data[18:20] = (183 if platform.machine() == "x86_64" else 62).to_bytes(2, "little")
    elif fault == "foreign":
        data = bytearray(Path(sys.modules["_ctypes"].__file__ or "").read_bytes())
    else:
        data = data.replace(b"RegisterCustomOps", b"RegisterCustomOpz")
    broken = tmp_path / "broken.so"
    broken.write_bytes(data)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(broken))
    with pytest.raises(EnvironmentMissing) as raised:
        create_session(NEURON)
    assert str(broken) in str(raised.value)
    assert len(create_session(NEURON, native=False).run(None, FEEDS)) == 2
    report = doctor()
    assert report["library"]["registers"] is False and report["missing"]


def test_cuda_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(EnvironmentMissing, match="without CUDA") as raised:
        create_session(NEURON, device="cuda")
    assert raised.value.exit_code == 3
    assert create_session(NEURON, device="auto").get_providers() == ["CPUExecutionProvider"]


def test_cuda_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu where there is no GPU: it silently takes the CPU."""
    create = ort.InferenceSession

    def on_the_cpu(source: Any, options: Any, providers: list[str]) -> Any:
        return create(source, options, providers=["CPUExecutionProvider"])

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    monkeypatch.setattr(ort, "InferenceSession", on_the_cpu)
    with pytest.raises(EnvironmentMissing, match="could not start CUDA"):
        create_session(NEURON, device="cuda", native=False)
    with pytest.warns(RuntimeWarning, match="could not start CUDA"):
        chosen = create_session(NEURON, device="auto", native=False)
    assert chosen.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.usefixtures("library")
def test_cuda_needs_cuda_kernels_if_native_is_asked_for(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inspect_library(library)["cuda"]:
        pytest.skip("this library has CUDA kernels")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    with pytest.raises(EnvironmentMissing, match="was built without CUDA"):
        create_session(NEURON, device="cuda", native=True)


def test_unknown_choices() -> None:
    with pytest.raises(UsageError, match="gpu"):
        create_session(NEURON, device="gpu")  # type: ignore[arg-type]


@pytest.mark.usefixtures("library")
def test_doctor(library: Path) -> None:
    report = doctor()
    assert json.loads(json.dumps(report)) == report
    assert report["library"]["path"] == str(library)
    assert report["library"]["registers"] is True
    assert report["library"]["older_than_its_sources"] is False
    assert report["library"]["build"]["machine"] == platform.machine()
    assert report["versions"]["onnxruntime"] == ort.__version__


def test_the_best_instruction_set_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNC_MAX_ISA", raising=False)
    best = cpu_isa()
    if best is None:
        pytest.skip("the instruction set is not known here")
    monkeypatch.setenv("SNNC_MAX_ISA", "avx2")
    assert cpu_isa() == ("avx2" if ISAS.index(best) >= ISAS.index("avx2") else best)
    monkeypatch.setenv("SNNC_MAX_ISA", "generic")
    assert cpu_isa() == doctor()["isa"] == "generic"


@pytest.mark.usefixtures("library")
def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNC_MAX_ISA", "avx1024")
    with pytest.raises(
        EnvironmentMissing, match="generic, dotprod, avx2, avxvnni, avx512f, avx512, amx"
    ):
        create_session(NEURON, native=True)
    assert any("avx1024" in entry["what"] for entry in doctor()["missing"])


# --- building ----------------------------------------------------------------------------------


def test_no_compiler_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main(["--out", str(tmp_path)]) == 3
    assert "no C++ compiler found" in capsys.readouterr().err


def compile_driver(folder: Path, *flags: str, kernels: Path | None = None) -> Path:
    cxx = build.find_cxx()
    if cxx is None:
        pytest.skip("no C++ compiler")
    program = folder / "kernel_driver"
    here = Path(__file__).parent
    sources = [str(here / "kernel_driver.cc"), *map(str, build.SOURCES.glob("cpu_*.cc"))]
    if kernels is not None:
        sources.append(str(kernels))
    base = ["-std=c++17", "-ffp-contract=off", "-fno-trapping-math", f"-I{build.SOURCES}"]
    subprocess.run([cxx, *base, *flags, *sources, "-o", str(program)], check=True)
    return program


def run_driver(program: Path, *runner: str) -> int:
    done = subprocess.run([*runner, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[0])


def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    # Optimization would take the compiler longer than it saves.
    assert run_driver(compile_driver(tmp_path, "-O0")) > 0


@pytest.mark.slow
def test_optimized_kernels_give_the_same_bits(tmp_path: Path) -> None:
    assert run_driver(compile_driver(tmp_path, "-O2")) > 0


#: Other compilers, how they link, and what runs that.
COMPILERS = {
    "clang++": ((), ()),
    "aarch64-linux-gnu-g++": (("-static",), ("qemu-aarch64",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_other_compilers_give_the_same_bits(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, runner = COMPILERS[compiler]
    for tool in (compiler, *runner):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    monkeypatch.setenv("CXX", compiler)
    assert run_driver(compile_driver(tmp_path, "-O1", *flags), *runner) > 0


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other instruction sets are x86's")
def test_clang_builds_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("clang++"):
        pytest.skip("no clang++")
    monkeypatch.setenv("CXX", "clang++")
    built = build.build(tmp_path, cuda=False)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(built))
    assert "clang" in inspect_library(built)["compiler"]
    got = create_session(NEURON, native=True).run(None, FEEDS)
    assert_same_bits(got, run("RMPNeuron", FEEDS, native=False))


@pytest.mark.slow
def test_kernels_under_the_sanitizers(tmp_path: Path) -> None:
    if not (ctypes.util.find_library("asan") or build.find_cxx()):
        pytest.skip("no AddressSanitizer")
    flags = [flag for flag in build.SANITIZE_FLAGS if flag != "-O1"]
    assert run_driver(compile_driver(tmp_path, "-O1", *flags)) > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers' libraries")
def test_operators_under_the_sanitizers(tmp_path: Path) -> None:
    """The whole library inside onnxruntime: all tests of operators in another process."""
    cxx = build.find_cxx()
    if cxx is None:
        pytest.skip("no C++ compiler")
    built = build.build(tmp_path, cuda=False, sanitize=True)
    runtimes = [
        subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(done.stdout.strip() for done in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        LIBRARY_VARIABLE: str(built),
    }
    suite = str(Path(__file__).with_name("test_operators.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def cuda_kernels_on_the_cpu(folder: Path) -> Path:
    """The CUDA kernels rewritten as C++: see cuda_on_cpu.h."""
    text = (build.SOURCES / "cuda_kernels.cu").read_text()
    text, includes = re.subn(r"#include <cuda_\w+\.h>", "", text)
    launches = r"(\w+<[^;<>]*>)<<<(.+?), threads, 0, stream>>>\("
    text, count = re.subn(launches, r"launch(\1, \2, threads, 0, ", text)
    assert includes == 2 and count == text.count("launch(") > 5 and "<<<" not in text
    source = folder / "cuda_on_cpu.cc"
    header = Path(__file__).parent / "cuda_on_cpu.h"
    source.write_text(f'#include "{header}"\n{text}')
    return source


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs _Float16 as it is on x86-64")
@pytest.mark.parametrize("how", ["plain", "sanitized", "in pieces"])
def test_cuda_kernels_run_on_the_cpu(how: str, tmp_path: Path) -> None:
    """Their logic, without a GPU: every kernel against the same plain loops."""
    flags = ["-O1", "-DSNNC_CUDA_ON_CPU", "-Wno-unknown-pragmas"]
    if how == "sanitized":
        flags += build.SANITIZE_FLAGS
    elif how == "in pieces":
        # As rows of 2^31 elements are: samples of up to 3072, of which up to 24 make a row.
        flags.append("-DSNNC_PIECE=3073")
    kernels = cuda_kernels_on_the_cpu(tmp_path)
    assert run_driver(compile_driver(tmp_path, *flags, kernels=kernels)) > 0


#: Stands in for nvcc: knows some architectures, and fails where it should compile.
FAKE_NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 12.9, V12.9.86" ;;
  *--list-gpu-arch*) printf "compute_%s\\n" {known} ;;
  *) echo "cuda_kernels.cu(1): error: no kernel image" >&2; exit 2 ;;
esac
"""


def fake_nvcc(monkeypatch: pytest.MonkeyPatch, folder: Path, known: str) -> Path:
    nvcc = folder / "nvcc"
    nvcc.write_text(FAKE_NVCC.format(known=known))
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    return nvcc


@pytest.mark.parametrize(
    ("known", "native", "ptx"),
    [
        ("50 60 70 75 80 86 90 100 120", [70, 75, 80, 90], [70, 120]),  # CUDA 12
        ("75 80 86 90 100 120 121", [75, 80, 90], [75, 121]),  # CUDA 13
        ("35 37 50", [], [35, 50]),
        ("100 120", [], [100, 120]),
    ],
)
def test_architectures_are_those_that_the_toolkit_has(
    known: str, native: list[int], ptx: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = fake_nvcc(monkeypatch, tmp_path, known)
    assert build.find_nvcc() == str(nvcc)
    wanted = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in native]
    wanted += [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ptx]
    assert build._cuda_targets(str(nvcc)) == wanted


@pytest.mark.parametrize("asked", [None, True])
def test_a_failing_nvcc_leaves_the_cpu_kernels(
    asked: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is said when the library is built and by `doctor`; whoever asked for CUDA gets an error."""
    if build.find_cxx() is None:
        pytest.skip("no C++ compiler")
    fake_nvcc(monkeypatch, tmp_path, "80 90")
    units = tmp_path / "native"
    shutil.copytree(build.SOURCES, units)
    for unit in units.glob("*.cc"):  # the rest of the library compiles for minutes
        if unit.name != build.REGISTRATION:
            unit.write_text("")
    (units / build.REGISTRATION).write_text(
        'static const char info[] = "snnc-build-info:" SNNC_BUILD_INFO;\n'
        "#ifdef SNNC_CUDA\n#error kernels that are not there\n#endif\n"
        'extern "C" __attribute__((visibility("default"))) void* RegisterCustomOps() {\n'
        '  asm volatile("" : : "r"(info));\n  return nullptr;\n}\n'
    )
    monkeypatch.setattr(build, "SOURCES", units)
    said: list[str] = []
    if asked:
        with pytest.raises(build.BuildFailed, match="has no CUDA kernels, because nvcc failed"):
            build.build(tmp_path, cuda=asked, say=said.append)
    else:
        build.build(tmp_path, cuda=asked, say=said.append)
    built = tmp_path / build.LIBRARY_NAME
    assert said == [f"{built}: CPU only, because nvcc failed"]
    error = capsys.readouterr().err
    assert "no kernel image" in error and error.endswith("nvcc failed: no CUDA kernels are built\n")
    info = inspect_library(built)
    failed = "cuda_kernels.cu(1): error: no kernel image"
    assert (info["cuda"], info["cuda_targets"], info["cuda_failed"]) == (None, [], failed)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(built))
    assert any(failed in missing["what"] for missing in doctor()["missing"])


@pytest.mark.slow
def test_cuda_kernels_compile_and_the_library_loads_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build.find_nvcc() is None:
        pytest.skip("no nvcc")
    built = build.build(tmp_path, cuda=True)
    info = inspect_library(built)
    assert info["cuda"] and any("sm_90" in target for target in info["cuda_targets"])
    monkeypatch.setenv(LIBRARY_VARIABLE, str(built))
    got = create_session(NEURON, native=True).run(None, FEEDS)
    assert_same_bits(got, run("RMPNeuron", FEEDS, native=False))


# --- the C API ---------------------------------------------------------------------------------


def stub_header(places: dict[int, str], members: list[str]) -> str:
    """A header with the official names at the given places, and nothing else of theirs."""
    table = [places.get(place, f"unused_{place}") for place in range(max(places) + 1)]
    types = ["UNDEFINED", *(f"T{i}" for i in range(1, 16))]
    known = ((1, "FLOAT"), (2, "UINT8"), (3, "INT8"), (6, "INT32"), (7, "INT64"), (10, "FLOAT16"))
    for place, name in known:
        types[place] = name
    lines = [
        "#pragma once",
        "#include <cstdint>",
        "#define ORT_API_VERSION 18",
        "enum OrtErrorCode { ORT_OK, ORT_FAIL, ORT_INVALID_ARGUMENT };",
        "enum ONNXTensorElementDataType {",
        *(f"  ONNX_TENSOR_ELEMENT_DATA_TYPE_{name}," for name in types),
        "};",
        "enum OrtCustomOpInputOutputCharacteristic {",
        "  INPUT_OUTPUT_REQUIRED, INPUT_OUTPUT_OPTIONAL, INPUT_OUTPUT_VARIADIC",
        "};",
        "enum OrtMemType { OrtMemTypeCPUInput = -2, OrtMemTypeDefault = 0 };",
        "struct OrtApi {",
        *(f"  void* {name};" for name in table),
        "};",
        "struct OrtApiBase { void* GetApi; void* GetVersionString; };",
        "struct OrtCustomOp {",
        "  uint32_t version;",
        *(f"  void* {name};" for name in members),
        "};",
    ]
    return "\n".join(lines) + "\n"


def test_wrong_places_do_not_compile(tmp_path: Path) -> None:
    """The proof against official headers, tried on a header of our own: right, then wrong."""
    cxx = build.find_cxx()
    if cxx is None:
        pytest.skip("no C++ compiler")
    text = (build.SOURCES / "ort_api.h").read_text()
    found = re.findall(r"using (\w+) =\s*Function<(\d+),", text)
    places = {int(place): name for name, place in found}
    assert len(places) == len(found) > 15
    struct = text.split("struct CustomOp {")[1].split("};")[0]
    members = re.findall(r"\(\*(\w+)\)", struct)
    assert len(members) == 25
    assert re.findall(r"offsetof\(OrtCustomOp, (\w+)\) ==", text) == ["version", *members]
    assert set(re.findall(r"offsetof\(OrtApi, (\w+)\) ==", text)) == set(places.values())

    def compiles(places: dict[int, str], members: list[str]) -> bool:
        (tmp_path / "onnxruntime_c_api.h").write_text(stub_header(places, members))
        source = tmp_path / "proof.cc"
        source.write_text('#include "ort_api.h"\n')
        command = [cxx, "-std=c++17", "-fsyntax-only", f"-I{build.SOURCES}", f"-I{tmp_path}"]
        command += ["-DSNNC_ORT_HEADER=<onnxruntime_c_api.h>", str(source)]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert compiles(places, members)
    assert not compiles({place + 1: name for place, name in places.items()}, members)
    last = max(places)
    assert not compiles({**places, last + 1: places[last], last: "other"}, members)
    assert not compiles(places, [*members[:17], "extra", *members[17:]])
