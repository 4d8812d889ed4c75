"""What is installed, what works and what is missing: the data behind `snnc doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from snncompiler.errors import SnncError
from snncompiler.runtime import cuda, library
from snncompiler.runtime.session import check_cuda, import_onnxruntime

TF32_NOTE = "off, unless a session is made with the provider option use_tf32=1"


def doctor() -> dict[str, Any]:
    """What is installed, as plain data; `missing` names everything that is missing, and its remedy."""
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
            "architectures": [],
            "onnxruntime_has_cuda": False,
            "runs": False,
            "why_not": "",
            "preload": "",
            "built_with": None,
            "runtime": None,
            "driver": None,
            "devices": [],
            "tf32": TF32_NOTE,
        },
        "compilers": {"c++": build.find_cxx(), "nvcc": build.find_nvcc()},
        "missing": missing,
    }
    try:
        report["isa"] = library.cpu_isa()
    except SnncError as error:
        _note(missing, error)
    built = report["library"]["build"]
    report["cuda"]["kernels_built"] = bool(built.get("cuda"))
    report["cuda"]["architectures"] = cuda.architectures(built.get("cuda_targets", []))
    try:
        ort = import_onnxruntime()
    except SnncError as error:
        _note(missing, error)
        return report
    report["versions"]["onnxruntime"] = ort.__version__
    _cuda(ort, report["cuda"], missing)
    if report["library"]["path"]:
        try:
            report["library"]["registers"] = library.register(ort.SessionOptions())
        except SnncError as error:
            report["library"]["registers"] = False
            _note(missing, error)
    return report


def _cuda(ort: Any, report: dict[str, Any], missing: list[dict[str, str]]) -> None:
    """What a user has to know of CUDA: the versions, the GPUs, and whether a network runs there."""
    report["onnxruntime_has_cuda"] = cuda.CUDA in ort.get_available_providers()
    if not report["onnxruntime_has_cuda"]:
        missing.append({"what": "CUDA in onnxruntime (optional)", "remedy": cuda.REMEDY})
        return
    report["preload"] = cuda.preload(ort) or "done"
    try:
        check_cuda(ort)
        report["runs"] = True
    except SnncError as error:
        report["why_not"] = error.findings[0].message
        _note(missing, error)
    found = cuda.versions(ort)
    report["built_with"] = cuda.text(found.onnxruntime)
    report["runtime"] = cuda.text(found.runtime)
    report["driver"] = "missing" if found.driver == (0, 0) else cuda.text(found.driver)
    report["devices"] = [
        f"{one.name}, sm_{one.capability[0]}{one.capability[1]}, {one.memory >> 20:,} MiB"
        for one in cuda.devices(ort)
    ]


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
        failed = found["build"].get("cuda_failed")
        missing.append(
            {
                "what": "CUDA kernels in the native library (optional)"
                + (f": nvcc failed when it was built: {failed}" if failed else ""),
                "remedy": f"{library.REMEDY} where nvcc {'works' if failed else 'is found'}",
            }
        )
    return found


def _note(missing: list[dict[str, str]], error: SnncError) -> None:
    found = [{"what": f.message, "remedy": f.hint} for f in error.findings]
    missing.extend(entry for entry in found if entry not in missing)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
