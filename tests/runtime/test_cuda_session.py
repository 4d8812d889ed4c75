"""What a session on CUDA is decided by, without CUDA: versions, memory, options, kinds of files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import parse, random
from one_node import one_node
from onnx import numpy_helper

import snncompiler
from snncompiler.errors import EnvironmentMissing, UsageError
from snncompiler.ir import dialect
from snncompiler.runtime import Stream, create_session, cuda
from snncompiler.runtime.cuda import Versions, chunk_for, why_not
from snncompiler.runtime.session import _without_time

TEXT = """g (float[N,2,6,6] x) => (float[N,3,4,4] y)
{ c = Conv (x, w)  r = Relu (c)  d = Conv <pads = [1, 1, 1, 1]> (r, v)  y = Relu (d) }"""
NETWORK = parse(TEXT, {"w": random(1, 3, 2, 3, 3), "v": random(2, 3, 3, 3, 3)})


def compiled(**options: Any) -> onnx.ModelProto:
    given = {"steps": 12, "correction": "none", **options}
    return snncompiler.compile(NETWORK, calibration=random(0, 2, 2, 6, 6), **given)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize(
    ("steps", "fits", "chunk"),
    [
        (32, 100, 32),
        (32, 32, 32),
        (32, 31, 16),
        (30, 8, 6),
        # No divisor above half of what fits: even chunks, of 16 and 15, and of 4, 4 and 3.
        (31, 16, 16),
        (11, 5, 4),
        (7, 1, 1),
        (7, 0, 1),
    ],
)
def test_the_chunk_fits_and_divides(steps: int, fits: int, chunk: int) -> None:
    bytes_a_step, samples = 1000, 4
    memory = int(fits * bytes_a_step * samples / cuda.MEMORY_SHARE)
    assert chunk_for(steps, bytes_a_step, samples, memory) == chunk


def test_a_compiled_network_gets_the_chunk_of_the_gpu() -> None:
    model = compiled()
    # The first convolution: two maps of 6x6 to three of 4x4, in float32.
    step_bytes = int(metadata(model)["snnc.step_bytes"])
    assert step_bytes == 4 * (2 * 36 + 3 * 16)
    needed = step_bytes * cuda.SAMPLES / cuda.MEMORY_SHARE
    for steps, memory in ((12, 12 * needed), (6, 11 * needed), (4, 5 * needed), (1, needed / 2)):
        fitted = onnx.ModelProto.FromString(model.SerializeToString())
        assert cuda.fit(fitted, int(memory))
        (default,) = (t for t in fitted.graph.initializer if t.name == "snnc_chunk")
        assert numpy_helper.to_array(default) == steps
        assert metadata(fitted)["snnc.chunk"] == str(steps)
    assert not cuda.fit(model, 0)  # the memory is not known


@pytest.mark.parametrize("options", [{"chunk": 3}, {"unroll": "loop"}, {"emit": "step"}])
def test_a_chunk_that_was_asked_for_stays(options: dict[str, Any]) -> None:
    model = compiled(**options)
    assert metadata(model)["snnc.step_bytes"] == ""
    before = model.SerializeToString()
    assert not cuda.fit(model, 1 << 40) and model.SerializeToString() == before


def test_what_is_no_compiled_network_stays() -> None:
    for model in (NETWORK, one_node("TimeSum")):
        before = model.SerializeToString()
        cuda.check_kind(model)
        assert not cuda.fit(model, 1 << 40) and model.SerializeToString() == before


@pytest.mark.parametrize("weights", [{}, {"weights": "int8"}], ids=str)
def test_a_layered_network_loses_its_time(weights: dict[str, str]) -> None:
    """With the native library; without it only in whole numbers, and of standard operators."""
    layered = compiled(timing="layered", correction="auto", **weights)
    for kernels in (True, False):
        collapsed = _without_time(layered, kernels=kernels)
        assert (collapsed is None) == (not kernels and not weights)
        nodes = collapsed.graph.node if collapsed else []
        operators = {node.op_type for node in nodes if node.domain == dialect.DOMAIN}
        assert operators - {"TimeSteps"} == ({"LevelNeuron"} if kernels else set())
    assert _without_time(compiled(), kernels=True) is None


def test_a_lowered_file_is_refused() -> None:
    with pytest.raises(UsageError, match="lowered for the CPU") as raised:
        cuda.check_kind(compiled(target="cpu"))
    assert "--target cpu" in str(raised.value)


@pytest.mark.parametrize(
    ("found", "kernels", "message"),
    [
        (Versions((13, 0), (13, 0), (0, 0)), None, "there is no NVIDIA driver"),
        (
            Versions((13, 0), (13, 0), (12, 4)),
            "13.0",
            "driver is too old: it supports CUDA 12.4, onnxruntime uses 13.0",
        ),
        (
            Versions((12, 8), (12, 9), (12, 9)),
            "13.0",
            "driver is too old: it supports CUDA 12.9, the native library was built with 13.0",
        ),
        (Versions((13, 0), None, (13, 0)), "13.0", "the libraries of CUDA 13 are not found"),
        (Versions((13, 0), (13, 0), (13, 1)), "13.0", "no kernel image"),
        (Versions(None, None, None), None, "no kernel image"),
    ],
)
def test_the_part_that_is_missing_or_too_old_is_named(
    found: Versions, kernels: str | None, message: str
) -> None:
    assert message in why_not(found, kernels, "no kernel image")


def test_a_session_that_breaks_at_its_first_run_is_found_out(monkeypatch: Any) -> None:
    """As with a driver that is too old for the kernels: the session is made all the same."""

    class Broken:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return [cuda.CUDA, "CPUExecutionProvider"]

        def run(self, *_: Any) -> list[Any]:
            raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    create, made = ort.InferenceSession, []

    def session(source: Any, options: Any, providers: list[Any]) -> Any:
        made.append(providers)
        return create(source, options, providers=providers) if len(providers) == 1 else Broken()

    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    old = Versions((13, 0), (13, 0), (12, 2))
    monkeypatch.setattr(cuda, "versions", lambda _: old)
    monkeypatch.setattr(cuda, "preload", lambda _: "")
    with pytest.raises(EnvironmentMissing, match=r"driver is too old: it supports CUDA 12\.2"):
        create_session(one_node("TimeSum"), device="cuda", native=False)
    with pytest.warns(RuntimeWarning, match=r"driver is too old: it supports CUDA 12\.2"):
        chosen = create_session(one_node("TimeSum"), device="auto", native=False)
    assert chosen.get_providers() == ["CPUExecutionProvider"]
    assert made[-1] == ["CPUExecutionProvider"]


def test_provider_options_are_for_cuda() -> None:
    with pytest.raises(UsageError, match="provider options are for CUDA"):
        create_session(NETWORK, provider_options={"use_tf32": 0})
    with pytest.raises(UsageError, match="provider options are for CUDA"):
        Stream(compiled(emit="step"), provider_options={"device_id": 1})


def test_provider_options_are_text_and_tf32_is_off() -> None:
    assert cuda.options_of(None) == {"use_tf32": "0"}
    given = {"use_tf32": True, "user_compute_stream": 1234, "cudnn_conv_algo_search": "DEFAULT"}
    assert cuda.options_of(given) == {
        "use_tf32": "1",
        "user_compute_stream": "1234",
        "cudnn_conv_algo_search": "DEFAULT",
    }


def test_what_onnxruntime_prints_while_it_loads_is_kept_apart(capsys: Any) -> None:
    def preload_dlls() -> None:
        print("Failed to load\nlibcudnn.so.9")

    assert (
        cuda.preload(SimpleNamespace(preload_dlls=preload_dlls)) == "Failed to load libcudnn.so.9"
    )
    assert "cannot preload" in cuda.preload(SimpleNamespace())
    assert capsys.readouterr().out == ""


def test_the_architectures_of_the_kernels() -> None:
    flags = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=compute_90"]
    assert cuda.architectures(flags) == ["sm_80", "compute_90"]


def test_the_probe_runs_on_the_cpu(monkeypatch: Any) -> None:
    """The network with which CUDA is tried is sound: on the CPU it gives 1 + 1."""
    session = create_session(cuda.smallest(), native=False)
    one = np.ones((1, 1), np.float32)
    assert session.run(None, {"values": one, "total": one, "steps": np.array(1)})[0].item() == 2
