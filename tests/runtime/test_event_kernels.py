"""The event kernels: every instruction set against plain loops, sanitizers, threads, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snncompiler
from snncompiler.emission.compiled import read_compiled
from snncompiler.models import path
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import build, create_session, library

pytest.importorskip("onnxruntime")

STEPS, SAMPLES = 24, 6
NATIVE = (
    "event_kernels.cc",
    "event_whole.cc",
    "event_digits.cc",
    "event_pooling.cc",
    "cpu_isa.cc",
)


def compile_driver(folder: Path, *flags: str) -> Path:
    cxx = build.find_cxx()
    if cxx is None:
        pytest.skip("no C++ compiler")
    program = folder / "event_driver"
    sources = [str(Path(__file__).with_name("event_driver.cc"))]
    sources += [str(build.SOURCES / name) for name in NATIVE]
    base = ["-std=c++17", "-ffp-contract=off", "-fno-trapping-math", f"-I{build.SOURCES}"]
    subprocess.run([cxx, *base, *flags, *sources, "-o", str(program)], check=True)
    return program


def drive(*program: str | Path, most: str = "") -> tuple[int, str]:
    """Runs the driver; how many cases agreed, and the best instruction set that it found.

    Where that has tiles, a good part of the cases must have been computed by digits.
    """
    environment = {**os.environ, "SNNC_MAX_ISA": most}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    best = library.ISAS[int(words[-1])]
    counts = [int(word) for word in words[:-1] if word.isdigit()]
    assert all((count > 10) == (best == "amx") for count in counts[1:]), done.stdout
    return int(words[0]), best


@pytest.mark.slow
def test_optimized_kernels_and_every_limit_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of every instruction set against plain loops.  The default suite compares the library's
    own layers: `test_events.py`, `test_same_bits.py`."""
    monkeypatch.delenv("SNNC_MAX_ISA", raising=False)
    program = compile_driver(tmp_path, "-O2")
    cases, best = drive(program)
    assert cases > 1000 and best == (library.cpu_isa() or best)
    for isa in library.ISAS[: library.ISAS.index(best)]:
        monkeypatch.setenv("SNNC_MAX_ISA", isa)
        fewer, found = drive(program, most=isa)
        assert found == (library.cpu_isa() or found)
        assert fewer < cases


@pytest.mark.slow
def test_kernels_of_aarch64_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NEON with products of bytes and without them, in an emulator."""
    if not shutil.which("aarch64-linux-gnu-g++") or not shutil.which("qemu-aarch64"):
        pytest.skip("no compiler for aarch64, or no emulator")
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++")
    program = compile_driver(tmp_path, "-O1", "-static")
    cases, best = drive("qemu-aarch64", "-cpu", "max", program)
    assert cases > 1000 and best == "dotprod"
    fewer, found = drive("qemu-aarch64", "-cpu", "cortex-a53", program)
    assert found == "generic" and 1000 < fewer < cases


@pytest.mark.slow
def test_clang_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain C++ in place of the assembly, against the same plain loops."""
    if not shutil.which("clang++"):
        pytest.skip("no clang++")
    monkeypatch.setenv("CXX", "clang++")
    assert drive(compile_driver(tmp_path, "-O1"))[0] > 1000


@pytest.mark.slow
def test_event_kernels_under_the_sanitizers(tmp_path: Path) -> None:
    # With optimization the compiler takes minutes.
    flags = [flag for flag in build.SANITIZE_FLAGS if flag != "-O1"]
    assert drive(compile_driver(tmp_path, "-O0", *flags))[0] > 1000


# --- through onnxruntime -------------------------------------------------------------------------


@cache
def network() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A compiled ResNet on the event operators, and what it is fed besides images."""
    model = snncompiler.compile(
        path("digits-resnet"),
        calibration=path("digits-train"),
        preprocess=snncompiler.Preprocess(scale=16),
        samples=32,
    )
    lowered = lower_events(model)
    assert lowered.layers and all(layer.operator for layer in lowered.layers)
    return lowered.model, read_compiled(model).overrides(steps=STEPS)


def feeds(first: int, count: int) -> dict[str, Any]:
    model, overrides = network()
    stored = np.load(path("digits-test"))["x"][first : first + count].astype(np.float32) / 16
    images = np.ascontiguousarray(stored.transpose(0, 3, 1, 2))
    return {model.graph.input[0].name: images, **overrides}


def bits(session: Any, inputs: dict[str, Any]) -> list[bytes]:
    return [output.tobytes() for output in session.run(None, inputs)]


@pytest.mark.usefixtures("library")
def test_concurrent_runs_of_one_session() -> None:
    session = create_session(network()[0], threads=2, native=True)
    inputs = [feeds(first, SAMPLES) for first in range(0, 4 * SAMPLES, SAMPLES)]
    alone = [bits(session, one) for one in inputs]
    assert len({one[0] for one in alone}) == 4

    def work(index: int) -> int:
        return sum(bits(session, inputs[index]) == alone[index] for _ in range(15))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [15] * 4


@pytest.mark.usefixtures("library")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    model, _ = network()
    for count in (1, SAMPLES):
        inputs = feeds(0, count)
        alone, *others = (
            bits(create_session(model, threads=threads, native=True), inputs)
            for threads in (1, 2, 4)
        )
        assert others == [alone, alone]


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.usefixtures("library")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_sessions_leave_nothing_behind() -> None:
    model = network()[0].SerializeToString()
    inputs = feeds(0, SAMPLES)

    def cycle(times: int) -> None:
        for _ in range(times):
            create_session(model, threads=2, native=True).run(None, inputs)

    cycle(20)
    before = resident_bytes()
    cycle(200)
    assert resident_bytes() - before < 8 * 2**20
