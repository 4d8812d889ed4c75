"""Commands run in this process or in one of its own, on the networks that come with the compiler."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from snncompiler import models
from snncompiler.cli.main import app

CNN, RESNET = models.path("digits-cnn"), models.path("digits-resnet")
TRAIN, TEST = models.path("digits-train"), models.path("digits-test")
SCALED = ("--scale", "16")
#: On few samples: what is tested here isn't the accuracy.
CALIBRATED = ("--calibration", str(TRAIN), *SCALED, "--samples", "16")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as JSON; NaN and Infinity are no JSON."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


def snnc(*args: object) -> Ran:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            app([str(arg) for arg in args], prog_name="snnc")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ran(code, out.getvalue(), err.getvalue())


def child(*args: object, cwd: Path | None = None, **environment: str) -> Ran:
    """Run `python -m snncompiler` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "snncompiler", *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


#: Runs commands, given as JSON, one after another, and prints what each did.
_SEVERAL = """
import json, sys
from commands import snnc
print(json.dumps([vars(snnc(*args)) for args in json.loads(sys.argv[1])]))
"""


def children(
    calls: Sequence[Sequence[object]], cwd: Path | None = None, **environment: str
) -> list[Ran]:
    """Run several commands in one process of their own, which has to find this folder."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _SEVERAL,
            json.dumps([[str(arg) for arg in args] for args in calls]),
        ],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [Ran(**ran) for ran in json.loads(done.stdout)]


def good(*args: object) -> Ran:
    """Run a command that has to succeed."""
    ran = snnc(*args)
    assert ran.code == 0, ran.err
    return ran


def listing(folder: Path) -> dict[str, str]:
    """Every path below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in sorted(folder.rglob("*"))
    }


def errors(ran: Ran) -> list[str]:
    """The error messages on standard error; there is nothing else but warnings and notes."""
    assert "Traceback" not in ran.err
    # A long message may be folded, within a word if need be.
    messages: list[str] = []
    for line in ran.err.splitlines():
        if line.startswith(("error ", "warning ", "note ")):
            messages.append(line)
        else:
            assert messages, ran.err
            messages[-1] += line
    return [message for message in messages if message.startswith("error ")]


def edit(source: Path, target: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target
