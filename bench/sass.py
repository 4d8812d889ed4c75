"""What nvcc makes of the CUDA kernels: instructions, calls, registers and spilled bytes of each.

    python bench/sass.py [--arch 90] [--json FILE]

Needs nvcc, and cuobjdump and nvdisasm on the path or beside it (in pip: nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm).  No GPU.  Instructions are counted without NOP.  A CALL is a subroutine: a
division of 64 bits, or an exact one of float32 in an unusual case, as burst, signed and level neurons
and the running mean have it.  The exit status is 1 where a kernel spills or has more than `MOST`
instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from snncompiler.cli.tables import table
from snncompiler.runtime import build

#: Instructions of a kernel; with 64-bit divisions scheduled_kernel<Half, 8> had 10,784.
MOST = 2500
NAMES = {
    "Reset": ("soft", "hard"),
    "Firing": ("single", "burst", "balanced"),
    "Current": ("temporal", "static", "driven"),
    "Analog": ("running mean", "telescope"),
}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def compiled(nvcc: str, arch: int, folder: Path) -> str:
    """The kernels as an object file, by the flags of the library."""
    made = str(folder / "kernels.o")
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    flags = ["-std=c++17", "-O3", "-fmad=false", target]
    _run(nvcc, *flags, "-c", str(build.SOURCES / build.KERNELS), "-o", made)
    return made


def counted(tool: str, file: str) -> list[dict[str, object]]:
    """A row for each kernel of an object file."""
    rows: dict[str, dict[str, int]] = {}
    row: dict[str, int] = {}
    for line in _run(tool, "-sass", file).splitlines():
        if found := re.search(r"Function : (\S+)", line):
            row = rows.setdefault(found[1], {"instructions": 0, "calls": 0})
        elif (found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line)) and row:
            words = found[1].split()
            row["instructions"] += "NOP" not in words[:2]
            row["calls"] += any(word.startswith("CALL") for word in words[:2])
    for line in _run(tool, "-res-usage", file).splitlines():
        if found := re.search(r"Function (\S+):", line):
            row = rows.setdefault(found[1], {})
        elif found := re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", line):
            row |= {"registers": int(found[1]), "spilled": int(found[2]) + int(found[3])}
    spelled = subprocess.run(["c++filt"], input="\n".join(rows), capture_output=True, text=True)
    names = [_readable(name) for name in spelled.stdout.splitlines()]
    if not rows or any(len(one) < 4 for one in rows.values()):
        raise SystemExit(f"{tool} does not say enough of the kernels in {file}")
    return sorted(
        ({"kernel": name, **one} for name, one in zip(names, rows.values(), strict=True)),
        key=lambda one: str(one["kernel"]),
    )


def _readable(name: str) -> str:
    """`scheduled_kernel<Half, 8, single, driven>`"""
    name = re.sub(r"\(anonymous namespace\)::|snnc::|cuda::|^void ", "", name).partition(">(")[0]
    for kind, words in NAMES.items():
        for index, word in enumerate(words):
            name = name.replace(f"({kind}){index}", word)
    return name + ">"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, help="of a GPU: 90 is H100 and H200")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    nvcc = build.find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc is not installed")
    beside = os.fspath(Path(nvcc).resolve().parent)
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), beside])
    tool = shutil.which("cuobjdump")
    if tool is None:
        raise SystemExit("cuobjdump is not installed")
    with tempfile.TemporaryDirectory() as folder:
        rows = counted(tool, compiled(nvcc, asked.arch, Path(folder)))
    columns = ("kernel", "instructions", "calls", "registers", "spilled")
    shown = [tuple(f"{row[c]:,}" if c != "kernel" else row[c] for c in columns) for row in rows]
    release = re.search(r"release (\S+),", _run(nvcc, "--version"))
    title = f"CUDA kernels by nvcc {release[1] if release else ''}, sm_{asked.arch}"
    Console(width=100, markup=False, highlight=False).print(table(title, columns, shown))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if int(str(row["spilled"])) or int(str(row["instructions"])) > MOST]
    for row in bad:
        print(f"too large, or spilled: {row['kernel']}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
