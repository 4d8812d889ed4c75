"""What is installed, what works and what is missing: the data behind `snnc doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import Any

from snncompiler.errors import SnncError
from snncompiler.runtime import library
from snncompiler.runtime.session import CUDA, CUDA_REMEDY, import_onnxruntime

TF32_NOTE = (
    "on CUDA, convolutions may use TF32 (10-bit mantissa); set the provider option use_tf32=0,"
    " or NVIDIA_TF32_OVERRIDE=0, for float32; our own kernels never use it"
)


def doctor() -> dict[str, Any]:
    """A report as plain data; `missing` names everything that is not there and its remedy."""
    from snncompiler.runtime import build  # here: it is also run as a script

    missing: list[dict[str, str]] = []
    report: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "snnc": _version("snnc"),
            "onnx": _version("onnx"),
            "onnxruntime": None,
        },
        "machine": platform.machine(),
        "isa": None,
        "library": _library(missing),
        "cuda": {
            "kernels_built": False,
            "onnxruntime_has_cuda": False,
            "driver": _driver(),
            "tf32": TF32_NOTE,
        },
        "compilers": {"c++": build.find_cxx(), "nvcc": build.find_nvcc()},
        "missing": missing,
    }
    try:
        report["isa"] = library.cpu_isa()
    except SnncError as error:
        _note(missing, error)
    report["cuda"]["kernels_built"] = bool(report["library"]["build"].get("cuda"))
    try:
        ort = import_onnxruntime()
    except SnncError as error:
        _note(missing, error)
        return report
    report["versions"]["onnxruntime"] = ort.__version__
    has_cuda = CUDA in ort.get_available_providers()
    report["cuda"]["onnxruntime_has_cuda"] = has_cuda
    if not has_cuda:
        missing.append({"what": "CUDA in onnxruntime (optional)", "remedy": CUDA_REMEDY})
    if report["library"]["path"]:
        try:
            report["library"]["registers"] = library.register(ort.SessionOptions())
        except SnncError as error:
            report["library"]["registers"] = False
            _note(missing, error)
    return report


def _library(missing: list[dict[str, str]]) -> dict[str, Any]:
    from snncompiler.runtime import build

    found: dict[str, Any] = {
        "path": None,
        "build": {},
        "api_version_asked": library.API_VERSION,
        "older_than_its_sources": None,
        "registers": False,
    }
    try:
        path = library.library_path()
        if path is None:
            missing.append(
                {"what": "the native library (optional, faster)", "remedy": library.REMEDY}
            )
            return found
        found["path"] = str(path)
        found["build"] = library.inspect_library(path)
    except SnncError as error:
        _note(missing, error)
        return found
    if build.SOURCES.is_dir():
        found["older_than_its_sources"] = found["build"].get("sources") != build.source_digest()
    if not found["build"].get("cuda"):
        missing.append(
            {
                "what": "CUDA kernels in the native library (optional)",
                "remedy": f"{library.REMEDY} where nvcc is found",
            }
        )
    return found


def _note(missing: list[dict[str, str]], error: SnncError) -> None:
    found = [{"what": f.message, "remedy": f.hint} for f in error.findings]
    missing.extend(entry for entry in found if entry not in missing)


def _driver() -> bool:
    """Whether an NVIDIA driver's tool is there; onnxruntime says more only once a session runs."""
    return shutil.which("nvidia-smi") is not None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
