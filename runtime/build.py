"""Builds the native library: `python -m snncompiler.runtime.build`.

Only the standard library is used, and nothing of this package: the setup hook runs this file by its
path, before anything is installed.

The result is one file, `_native/libsnnc.so`.  It carries a line of JSON that says how it was built
(`build_info` reads it back from the file), with a digest of the sources, so that a build that is
older than its sources can be told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "native"
DEFAULT_OUT = HERE / "_native"
LIBRARY_NAME = "libsnnc.dylib" if sys.platform == "darwin" else "libsnnc.so"
MARKER = b"snnc-build-info:"

#: One arithmetic everywhere: no fused multiply-add.  Traps are not used, and without them
#: comparisons vectorize; values do not change.
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]
SANITIZE_FLAGS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-cudart",
    "static",
    "-Xfatbin",
    "-compress-all",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
]
#: Native code for V100, T4, A100 and H100/H200, where the toolkit still has them; newer GPUs take the
#: PTX of the newest architecture that it knows.
CUDA_NATIVE = (70, 75, 80, 90)
#: The one unit that knows whether there are CUDA kernels.
REGISTRATION = "ops.cc"
KERNELS = "cuda_kernels.cu"
#: Where the CUDA toolkit usually is.
CUDA_HOME = "/usr/local/cuda"


class BuildFailed(RuntimeError):
    """There is no compiler, or it did not get through."""


def find_cxx() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++."""
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """The CUDA compiler: $NVCC, $CUDA_HOME/bin/nvcc, the path, or the usual place."""
    home = os.environ.get("CUDA_HOME", CUDA_HOME)
    candidates = (os.environ.get("NVCC"), "nvcc", f"{home}/bin/nvcc")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def source_digest() -> str:
    """A short digest of everything that the library is made from."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(SOURCES.iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_info(library: Path) -> dict[str, Any] | None:
    """How a library was built; None where the file is not one of ours."""
    _, marker, rest = library.read_bytes().partition(MARKER)
    if not marker:
        return None
    try:
        info = json.loads(rest.partition(b"\0")[0].decode())
    except ValueError:
        return None
    return info if isinstance(info, dict) else None


def build(
    out: Path = DEFAULT_OUT,
    *,
    cuda: bool | None = None,
    sanitize: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Builds the library into the folder `out` and returns its path.

    `cuda` is None for "where nvcc is found".  Where nvcc fails the library is built without CUDA
    kernels, which its `cuda_failed` says, and BuildFailed is raised only if `cuda` is True.
    `sanitize` adds AddressSanitizer and UndefinedBehaviorSanitizer.  Raises BuildFailed.
    """
    if not SOURCES.is_dir():
        raise BuildFailed(f"the sources are not installed: {SOURCES} is missing")
    cxx = find_cxx()
    if cxx is None:
        raise BuildFailed("no C++ compiler found; install g++ or clang++, or set CXX")
    nvcc = None if cuda is False else find_nvcc()
    if cuda and nvcc is None:
        raise BuildFailed("nvcc not found; install the CUDA toolkit, or set CUDA_HOME")

    flags = list(CXX_FLAGS)
    if sanitize:
        flags += SANITIZE_FLAGS
    if headers := os.environ.get("ONNXRUNTIME_INCLUDE_DIR"):
        flags += [f"-I{headers}", "-DSNNC_ORT_HEADER=<onnxruntime_c_api.h>"]
    info: dict[str, Any] = {
        "compiler": _run([cxx, "--version"]).splitlines()[0],
        "machine": platform.machine(),
        "cuda": None,
        "cuda_targets": [],
        "cuda_failed": None,
        "sanitized": sanitize,
        "sources": source_digest(),
    }

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as work:

        def compile_unit(unit: Path, *more: str) -> str:
            made = f"{work}/{unit.stem}.o"
            _run([cxx, *flags, *more, "-c", str(unit), "-o", made])
            return made

        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            # The longest first.
            kernels = compilers.submit(_compile_cuda, nvcc, cxx, work) if nvcc else None
            units = sorted(SOURCES.glob("*.cc"), key=lambda path: -path.stat().st_size)
            compiled = [
                compilers.submit(compile_unit, unit) for unit in units if unit.name != REGISTRATION
            ]
            link: list[str] = []
            more: list[str] = []
            if kernels is not None:
                try:
                    found, link = kernels.result()
                    info |= found
                    more = ["-DSNNC_CUDA"]
                except (BuildFailed, OSError) as error:
                    info["cuda_failed"] = _last_line(str(error))
                    print(f"{error}\nnvcc failed: no CUDA kernels are built", file=sys.stderr)
            more.append(f"-DSNNC_BUILD_INFO={json.dumps(json.dumps(info))}")
            compiled.append(compilers.submit(compile_unit, SOURCES / REGISTRATION, *more))
            objects = [unit.result() for unit in compiled]
        if sanitize:
            link += SANITIZE_FLAGS
        built = Path(work) / LIBRARY_NAME
        _link(cxx, objects, link, built, static=not sanitize)
        library = out / LIBRARY_NAME
        os.replace(built, library)  # whoever has the old one loaded keeps it
    if info["cuda"]:
        has = f"CPU and CUDA {info['cuda']}"
    elif info["cuda_failed"]:
        has = "CPU only, because nvcc failed"
    else:
        has = "CPU only" + ("" if cuda is False else ", because nvcc was not found")
    say(f"{library}: {has}")
    if cuda and info["cuda_failed"]:
        raise BuildFailed(f"{library} has no CUDA kernels, because nvcc failed")
    return library


def _compile_cuda(nvcc: str, cxx: str, work: str) -> tuple[dict[str, Any], list[str]]:
    """Compiles the CUDA kernels: what is known of them, and what is linked with them."""
    version, targets = _cuda_version(nvcc), _cuda_targets(nvcc)
    made = f"{work}/cuda.o"
    _run([nvcc, *NVCC_FLAGS, "-ccbin", cxx, *targets, "-c", str(SOURCES / KERNELS), "-o", made])
    link = [made, *_cuda_library_dirs(nvcc), "-lcudart_static", "-ldl", "-lpthread", "-lrt"]
    _run([cxx, "-shared", *link, "-o", f"{work}/cuda.so"])  # whether it links is known now
    return {"cuda": version, "cuda_targets": targets}, link


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _link(cxx: str, objects: list[str], link: list[str], built: Path, static: bool) -> None:
    command = [cxx, "-shared", *objects, *link, "-o", str(built)]
    if sys.platform == "darwin":
        _run(command)
        return
    command.append(f"-Wl,--version-script={SOURCES / 'exports.map'}")
    command.append("-Wl,--gc-sections")
    if static:
        # The C++ runtime inside, where there is a static one: one file for every machine.
        try:
            _run([*command, "-static-libstdc++", "-static-libgcc"])
            return
        except BuildFailed:
            pass
    _run(command)


def _cuda_version(nvcc: str) -> str:
    release = _run([nvcc, "--version"]).partition("release ")[2]
    return release.partition(",")[0]


def _cuda_targets(nvcc: str) -> list[str]:
    known = sorted(
        int(name.removeprefix("compute_"))
        for name in _run([nvcc, "--list-gpu-arch"]).split()
        if name.removeprefix("compute_").isdigit()
    )
    if not known:
        raise BuildFailed(f"{nvcc} --list-gpu-arch names no architecture")
    native = [arch for arch in CUDA_NATIVE if arch in known]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in native]
    # PTX of the oldest serves the GPUs between, of the newest those that are still to come.
    for arch in sorted({native[0] if native else known[0], known[-1]}):
        targets.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return targets


def _cuda_library_dirs(nvcc: str) -> list[str]:
    homes = (Path(nvcc).resolve().parent.parent, Path(os.environ.get("CUDA_HOME", CUDA_HOME)))
    folders = ("lib64", f"targets/{platform.machine()}-linux/lib", "lib")
    places = [home / folder for home in homes for folder in folders]
    return [f"-L{place}" for place in places if (place / "libcudart_static.a").is_file()]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, end="", file=sys.stderr)
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m snncompiler.runtime.build", description="Builds the native library."
    )
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="build the CUDA kernels (default: where nvcc is found)",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the library")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    options = parser.parse_args(arguments)
    try:
        build(options.out, cuda=options.cuda, sanitize=options.sanitize)
    except (BuildFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
