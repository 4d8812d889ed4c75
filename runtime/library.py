"""The native library from Python: where it is, whether it is sound, registering it.

Without the library everything runs too, on the function bodies inside the compiled files.
"""

from __future__ import annotations

import os
import platform
import struct
import sys
import weakref
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snncompiler.errors import EnvironmentMissing

if TYPE_CHECKING:
    import onnxruntime

#: Names a library file to use instead of the installed one.
LIBRARY_VARIABLE = "SNNC_LIBRARY"
#: Names the best instruction set that CPU kernels may use; the library reads it once.
ISA_VARIABLE = "SNNC_MAX_ISA"
ISAS = ("generic", "dotprod", "avx2", "avxvnni", "avx512f", "avx512", "amx")
#: The version of onnxruntime's C API that the library asks for.
API_VERSION = 18
REMEDY = "build it with `python -m snncompiler.runtime.build`"

#: The e_machine of ELF files, by platform.machine().
_ELF_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}

_registered: weakref.WeakSet[Any] = weakref.WeakSet()


def library_path() -> Path | None:
    """The native library, or None where there is none.

    Raises EnvironmentMissing where $SNNC_LIBRARY names a file that does not exist.
    """
    if chosen := os.environ.get(LIBRARY_VARIABLE):
        path = Path(chosen)
        if not path.is_file():
            raise EnvironmentMissing(
                f"{LIBRARY_VARIABLE} names {path}, which is not a file",
                hint=f"correct or unset {LIBRARY_VARIABLE}",
            )
        return path
    from snncompiler.runtime import build  # here: it is also run as a script

    path = build.DEFAULT_OUT / build.LIBRARY_NAME
    return path if path.is_file() else None


def check_isa() -> None:
    """Raises EnvironmentMissing where $SNNC_MAX_ISA names no instruction set."""
    named = os.environ.get(ISA_VARIABLE)
    if named and named not in ISAS:
        raise EnvironmentMissing(
            f"{ISA_VARIABLE} is '{named}', which is not one of {', '.join(ISAS)}",
            hint=f"correct or unset {ISA_VARIABLE}",
        )


def cpu_isa() -> str | None:
    """The best instruction set that the CPU kernels find here, one of ISAS; None where it is not known.

    By the rule of `detect_isa` in cpu_isa.cc, from what Linux says of the processor;
    that a process may be denied the tiles is not seen.
    Raises EnvironmentMissing as `check_isa`.
    """
    check_isa()
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "aarch64") or not info.is_file():
        return None
    lines = info.read_text().splitlines()
    named = ("flags", "Features")  # as x86 and aarch64 call them
    flags = set(next((line for line in lines if line.startswith(named)), "").split())
    avx2 = {"avx2", "f16c", "fma", "popcnt", "bmi2"}
    avx512f = {*avx2, "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    avx512 = {*avx512f, "avx512_vnni"}
    needed: dict[str, set[str]] = {
        "generic": set(),
        "dotprod": {"asimddp"},
        "avx2": avx2,
        "avxvnni": {*avx2, "avx_vnni"},
        "avx512f": avx512f,
        "avx512": avx512,
        "amx": {*avx512, "amx_tile", "amx_int8"},
    }
    most = ISAS.index(os.environ.get(ISA_VARIABLE) or ISAS[-1])
    return next(isa for isa in reversed(ISAS[: most + 1]) if needed[isa] <= flags)


def inspect_library(path: Path) -> dict[str, Any]:
    """How the library in a file was built.

    Raises EnvironmentMissing where the file is damaged, is for another machine or is not ours.
    This looks at the file before the dynamic linker does, because a cut-off file may crash it.
    """
    try:
        found = path.stat()
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        raise EnvironmentMissing(f"the native library {path} {why}", hint=REMEDY) from None
    return dict(_inspected(path, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=8)
def _inspected(path: Path, changed: int, size: int) -> dict[str, Any]:
    """The same of the file as it was `changed`: sessions are many, and reading some MB takes ms."""
    if why := _fault(path):
        raise EnvironmentMissing(f"the native library {path} {why}", hint=REMEDY)
    from snncompiler.runtime import build

    info = build.build_info(path)
    if info is None:
        raise EnvironmentMissing(
            f"{path} is not the native library of snnc", hint=f"{REMEDY}, or unset it"
        )
    return info


def _fault(path: Path) -> str:
    """What is wrong with a shared object, or an empty string."""
    if sys.platform != "linux":
        return ""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(data) < 64 or data[:4] != b"\x7fELF":
        return "is not a shared object"
    if data[4] != 2 or data[5] != 1:
        return "is for another machine"
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 3:
        return "is not a shared object"
    if machine != _ELF_MACHINES.get(platform.machine().lower(), machine):
        return f"is for another machine than {platform.machine()}"
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    if sections + size * count > len(data):
        return "is cut off"
    return ""


def register(session_options: onnxruntime.SessionOptions) -> bool:
    """Makes the native kernels available to sessions with these options.

    Returns whether there is a library.  Registering the same options again does nothing.
    Raises EnvironmentMissing where there is a library but it is broken, or where $SNNC_MAX_ISA names
    no instruction set.
    """
    path = library_path()
    if path is None:
        return False
    check_isa()
    if session_options in _registered:
        return True
    inspect_library(path)
    try:
        session_options.register_custom_ops_library(os.fspath(path.resolve()))
    except Exception as error:  # onnxruntime raises several types of its own
        raise EnvironmentMissing(
            f"onnxruntime cannot load the native library {path}: {error}", hint=REMEDY
        ) from error
    _registered.add(session_options)
    return True
