"""CUDA as onnxruntime uses it: libraries, versions, whether it runs, and how much memory it has.

onnxruntime's CUDA provider needs CUDA and cuDNN of one major version, which may come from pip
(`onnxruntime-gpu[cuda,cudnn]`); the driver has to be new enough for them and for the CUDA that our
library was built with.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from snncompiler.errors import UsageError
from snncompiler.ir import dialect

CUDA = "CUDAExecutionProvider"
REMEDY = 'needs an NVIDIA GPU and pip install "snnc[gpu]"; "snnc[cpu]" excludes it'
#: What a session is made with unless it is told otherwise.  TF32 keeps 10 bits of a current's mantissa,
#: so that other neurons fire than on the CPU.
DEFAULTS = {"use_tf32": 0}

#: The largest layer's spikes and currents may take this part of the GPU's memory in a chunk: there are
#: other tensors, cuDNN's scratch memory, the weights, and what else runs there.
MEMORY_SHARE = 1 / 8
#: Samples of a run, where the file takes any number.
SAMPLES = 64


def options_of(given: Mapping[str, Any] | None) -> dict[str, str]:
    """The provider's options as onnxruntime takes them: text."""
    merged = {**DEFAULTS, **(given or {})}
    return {key: str(int(v) if isinstance(v, bool) else v) for key, v in merged.items()}


# --- the libraries and their versions ---

Version = tuple[int, int]


@dataclass(frozen=True)
class Device:
    name: str
    capability: Version
    memory: int


@dataclass(frozen=True)
class Versions:
    """Versions of CUDA; None where it is not known, (0, 0) for a driver that is not there."""

    #: What onnxruntime was built with.
    onnxruntime: Version | None
    #: Of the runtime library that is found.
    runtime: Version | None
    #: The newest that the driver supports.
    driver: Version | None


def preload(ort: Any) -> str:
    """Load CUDA and cuDNN where pip has put them; what onnxruntime says to that.

    It has no way to do so before 1.21, where they have to be on the library path.
    """
    load = getattr(ort, "preload_dlls", None)
    if load is None:
        return "this onnxruntime cannot preload: CUDA and cuDNN have to be on the library path"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        load()
    return " ".join(said.getvalue().split())


def _built_with(ort: Any) -> Version | None:
    found = re.match(r"(\d+)\.(\d+)", str(getattr(ort, "cuda_version", "") or ""))
    if found is None:
        with contextlib.suppress(ImportError):
            from onnxruntime.capi import build_and_package_info as info

            found = re.match(r"(\d+)\.(\d+)", str(getattr(info, "cuda_version", "")))
    return (int(found[1]), int(found[2])) if found else None


def _runtime_library(ort: Any) -> ctypes.CDLL | None:
    """The CUDA runtime that onnxruntime uses: of its version, or, where it does not tell that (before
    1.21), the one that it has loaded."""
    built = _built_with(ort)
    mode = ctypes.DEFAULT_MODE if built else os.RTLD_NOW | os.RTLD_NOLOAD
    for major in (built[0],) if built else (13, 12, 11):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(f"libcudart.so.{major}", mode=mode)
    return None


def _number(call: Any, *arguments: Any) -> int | None:
    """What a function of the CUDA runtime writes to its first argument."""
    value = ctypes.c_int(0)
    return value.value if call(ctypes.byref(value), *arguments) == 0 else None


def _version(number: int | None) -> Version | None:
    return None if number is None else (number // 1000, number % 1000 // 10)


def versions(ort: Any) -> Versions:
    library = _runtime_library(ort)
    if library is not None:
        return Versions(
            _built_with(ort),
            _version(_number(library.cudaRuntimeGetVersion)),
            _version(_number(library.cudaDriverGetVersion)),
        )
    driver: Version | None = (0, 0)
    try:
        driver = _version(_number(ctypes.CDLL("libcuda.so.1").cuDriverGetVersion))
    except OSError:
        pass
    except AttributeError:
        driver = None
    return Versions(_built_with(ort), None, driver)


def devices(ort: Any) -> list[Device]:
    """The GPUs that the CUDA runtime sees, in its order."""
    library = _runtime_library(ort)
    if library is None:
        return []
    # The structure begins alike in every version: a name of 256 bytes, identifiers of 28, and after
    # four more the memory.
    properties = getattr(library, "cudaGetDeviceProperties_v2", library.cudaGetDeviceProperties)
    found = []
    for index in range(_number(library.cudaGetDeviceCount) or 0):
        raw = ctypes.create_string_buffer(1 << 14)
        if properties(raw, index) != 0:
            continue
        major, minor = (_number(library.cudaDeviceGetAttribute, code, index) for code in (75, 76))
        memory = int.from_bytes(raw.raw[288:296], "little")
        name = raw.raw[:256].partition(b"\0")[0].decode(errors="replace")
        found.append(Device(name, (major or 0, minor or 0), memory))
    return found


def text(version: Version | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def why_not(found: Versions, kernels: str | None, said: str) -> str:
    """Why CUDA does not run: which part is missing or too old, else what was `said`.

    `kernels`: the version of CUDA that the native library in use was built with.
    """
    needed = found.runtime or found.onnxruntime
    if found.driver == (0, 0):
        return "there is no NVIDIA driver"
    if found.driver and needed and found.driver[0] < needed[0]:
        return (
            f"the NVIDIA driver is too old: it supports CUDA {text(found.driver)}, "
            f"onnxruntime uses {text(needed)}"
        )
    if found.onnxruntime and not found.runtime:
        return f"the libraries of CUDA {found.onnxruntime[0]} are not found"
    built = re.match(r"(\d+)\.(\d+)", kernels or "")
    if built and found.driver and found.driver < (int(built[1]), int(built[2])):
        return (
            f"the NVIDIA driver is too old: it supports CUDA {text(found.driver)}, "
            f"the native library was built with {kernels}"
        )
    return said or "onnxruntime does not say why"


# --- a small network, to see whether it runs ---


def smallest() -> bytes:
    """A model of one operator of ours."""
    opset = dialect.BASE_OPSET
    ports = dialect.OPERATORS["TimeSum"]
    shapes = {"values": [1, 1], "total": [1, 1], "steps": []}
    kinds = {"T": TensorProto.FLOAT, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(port.name, kinds[port.type], shapes[port.name])
        for port in ports.inputs
    ]
    output = helper.make_tensor_value_info("total_out", TensorProto.FLOAT, [1, 1])
    node = helper.make_node("TimeSum", list(shapes), ["total_out"], domain=dialect.DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "probe", inputs, [output]),
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
        ],
        functions=dialect.functions(["TimeSum"], opset),
        ir_version=dialect.MAX_IR_VERSION,
    )
    return bytes(model.SerializeToString())


def fault_of(ort: Any, options: Any, device: str) -> str:
    """What onnxruntime says where it cannot run `smallest` on that device; empty where it can."""
    said = io.StringIO()  # it prints why it takes the CPU instead
    try:
        with contextlib.redirect_stdout(said):
            providers = [(CUDA, {"device_id": device}), "CPUExecutionProvider"]
            session = ort.InferenceSession(smallest(), options, providers=providers)
        if CUDA not in session.get_providers():
            return " ".join(said.getvalue().split()) or "onnxruntime took the CPU"
        one = np.ones((1, 1), np.float32)
        (total,) = session.run(None, {"values": one, "total": one, "steps": np.array(1)})
    except Exception as error:  # onnxruntime raises several types of its own
        return str(error)
    return "" if total.item() == 2 else f"1 + 1 is {total.item()} there"


# --- compiled networks ---


def chunk_for(steps: int, step_bytes: int, samples: int, memory: int) -> int:
    """K: all T steps where they fit into their share of the memory, else a number that divides T and
    is more than half of what fits, so that the last chunk is like the others; else chunks as even as
    can be."""
    most = max(1, int(memory * MEMORY_SHARE) // max(step_bytes * samples, 1))
    if most >= steps:
        return steps
    divisor = max(size for size in range(1, most + 1) if steps % size == 0)
    return divisor if 2 * divisor > most else -(-steps // -(-steps // most))


def check_kind(model: onnx.ModelProto) -> None:
    """Raises UsageError for a file that was lowered for the CPU."""
    if any(f.domain == dialect.DOMAIN and f.name in dialect.EVENT_NEURONS for f in model.functions):
        raise UsageError(
            "this file is lowered for the CPU: on CUDA its layers would run there, too",
            hint="compile it without --target cpu",
        )


def fit(model: onnx.ModelProto, memory: int) -> bool:
    """Give a compiled network the chunk that suits a GPU with so much memory; whether it has another.

    The chunk of a file is for the caches of CPUs; it changes no result.  Where `snnc compile` was told
    one it stays, and so does that of anything but a compiled network.
    """
    told = {entry.key: entry for entry in model.metadata_props}
    if not memory or not all(key in told for key in ("snnc.step_bytes", "snnc.chunk_input")):
        return False
    if not told["snnc.step_bytes"].value.isdecimal():
        return False
    name = told["snnc.chunk_input"].value
    lead = [entry.type.tensor_type.shape.dim[:1] for entry in model.graph.input]
    samples = next((dim.dim_value for dims in lead for dim in dims if dim.dim_value), SAMPLES)
    steps, step_bytes = (int(told[f"snnc.{key}"].value) for key in ("steps", "step_bytes"))
    chunk = chunk_for(steps, step_bytes, samples, memory)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.array(chunk, np.int64), name))
            told["snnc.chunk"].value = str(chunk)
            return True
    return False


def architectures(targets: Sequence[str]) -> list[str]:
    """sm_ and compute_ codes in the flags that the kernels were built with."""
    return [code for flag in targets for code in re.findall(r",code=(\w+)", flag)]
