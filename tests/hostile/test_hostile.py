"""Bad inputs, each given to a child process with little memory and little time.

The child is forked from a process that has imported everything (`fork_server.py`); `make test-slow`
runs every case again as `python -m snncompiler` in a fresh interpreter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fork_server import MEMORY
from hostile_cases import CASES, COMPILE, LIBRARY, Case, W, X, linear, save

from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused
from snncompiler.findings import CODES
from snncompiler.ir.settings import Options

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT = 20.0
ENVIRONMENT = {
    **{name: text for name, text in os.environ.items() if name != "SNNC_LIBRARY"},
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    # Threads take address space, of which there is little.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    #: CPU seconds.
    seconds: float


class Server:
    """`fork_server.py`, started once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.empty = self.run(folder, ["--version"]).seconds

    def run(self, folder: Path, args: list[str], **request: Any) -> Ran:
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        request |= {"folder": str(folder), "args": args, "out": str(out), "err": str(err)}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"timeout": TIMEOUT, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not answer["late"], f"it hangs: more than {answer['wall']:.0f} s"
        return Ran(answer["code"], read(out), read(err), answer["seconds"])

    def stop(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def read(path: Path) -> str:
    return path.read_bytes().decode()


def fresh(folder: Path, args: list[str], request: dict[str, Any]) -> Ran:
    """`python -m snncompiler` in an interpreter of its own."""
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CORE": 0, **request.get("limits", {})}

    def limit() -> None:
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, name), (most, most))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "snncompiler", *args],
        cwd=folder,
        env={**ENVIRONMENT, **request.get("environment", {})},
        capture_output=True,
        timeout=request.get("timeout", TIMEOUT),
        preexec_fn=limit,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode(), used)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def compiled() -> bytes:
    """The linear network, compiled."""
    options = Options(steps=4, threshold="max")
    raw: bytes = pipeline.compile_model(linear(), options, X).model.SerializeToString()
    return raw


def listing(folder: Path) -> dict[str, object]:
    """What lies in a folder: bytes, the kind of what has none, where links lead."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        kind = path.lstat().st_mode
        content: object = stat.S_IFMT(kind)
        if stat.S_ISLNK(kind):
            content = os.readlink(path)
        elif stat.S_ISREG(kind):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = content
    return found


def findings_of(ran: Ran, severity: str) -> set[str]:
    return set(re.findall(rf"^{severity} (SNNC\d{{3}})", ran.err, re.MULTILINE))


def prepared(case: Case, folder: Path, compiled: bytes) -> dict[str, object]:
    """Writes the files of a case and says what is there."""
    if "net.snn.onnx" in case.args:
        (folder / "net.snn.onnx").write_bytes(compiled)
    case.make(folder)
    return listing(folder)


def holds(case: Case, ran: Ran, folder: Path, before: dict[str, object], empty: float) -> None:
    """The checks that every case has to pass."""
    text = ran.out + ran.err
    assert "Traceback" not in text, text
    assert ran.code == case.code, (ran.code, text)
    wanted = set(case.codes.split())
    assert wanted <= set(CODES)
    if case.code:
        assert findings_of(ran, "error") == wanted, text
    elif "--json" not in case.args:
        assert not findings_of(ran, "error")
        assert wanted <= findings_of(ran, "warning") | findings_of(ran, "note"), text
    assert "SNNC504" not in text
    # Nothing but findings, one a line: no warnings of numpy, no log of onnxruntime.
    assert all(re.match(r"(error|warning|note) SNNC\d{3} ", line) for line in ran.err.splitlines())
    assert text.replace("\n", "").isprintable(), [c for c in text if not c.isprintable()]
    assert case.said in re.sub(r"\s+", " ", text), text
    if "--json" in case.args:
        content = json.loads(ran.out)
        assert wanted <= {finding["code"] for finding in content["findings"]}
    elif case.code:
        assert ran.out == ""
    after = listing(folder)
    for name in case.writes:
        assert after.pop(name)
    assert after == {name: what for name, what in before.items() if name not in case.writes}
    assert ran.seconds - empty < case.seconds, f"{ran.seconds - empty:.2f} s of its own"


def arguments(case: Case) -> list[str]:
    return case.args.split(" ")


def request_of(case: Case) -> dict[str, Any]:
    return {
        "environment": dict(case.environment),
        "limits": dict(case.limits),
        "timeout": case.timeout,
    }


MARKED = [
    pytest.param(
        case,
        id=case.name,
        marks=[pytest.mark.slow] if case.slow else [],
    )
    for case in CASES
]


@pytest.mark.parametrize("case", MARKED)
def test_case(case: Case, server: Server, compiled: bytes, tmp_path: Path) -> None:
    before = prepared(case, tmp_path, compiled)
    ran = server.run(tmp_path, arguments(case), **request_of(case))
    holds(case, ran, tmp_path, before, server.empty)


@pytest.mark.slow
@pytest.mark.parametrize("case", MARKED)
def test_case_in_a_fresh_interpreter(case: Case, compiled: bytes, tmp_path: Path) -> None:
    before = prepared(case, tmp_path, compiled)
    empty = fresh(tmp_path, ["--version"], {}).seconds
    holds(case, fresh(tmp_path, arguments(case), request_of(case)), tmp_path, before, empty + 1.0)


def test_there_are_enough_cases_of_every_row() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 80
    # Row 28, two compiles at once, and what takes a signal of row 24 are the tests below.
    assert {case.row for case in CASES} == set(range(1, 28))


@pytest.mark.parametrize("name", ["15 billion laughs", "17 9 PiB"])
def test_refused_within_a_second_of_a_fresh_interpreter(
    name: str, compiled: bytes, tmp_path: Path
) -> None:
    (case,) = [case for case in CASES if case.name == name]
    before = prepared(case, tmp_path, compiled)
    empty = fresh(tmp_path, ["--version"], {}).seconds
    holds(case, fresh(tmp_path, arguments(case), request_of(case)), tmp_path, before, empty)


# --- what takes no process ---


@pytest.mark.parametrize("entries", [{}, {"location": "none"}, {"length": str(9 << 50)}])
@pytest.mark.parametrize("given", ["bytes", "proto"])
def test_17_external_data_of_no_path_is_never_read(
    given: str, entries: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and protos have no folder; what lies in the working directory is not theirs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(np.full(4, np.nan, np.float32).tobytes())
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=entry)
    with pytest.raises(Refused) as caught:
        pipeline.prepare(model if given == "proto" else model.SerializeToString())
    assert [finding.code for finding in caught.value.findings] == ["SNNC113"]


# --- what takes more than one process ---

#: Runs the command with a write that stops before it is whole, and says when it is there.
STOPS = """
import os, pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def stop(handle):
    pathlib.Path("there").touch()
    time.sleep(60)
os.fsync = stop
from snncompiler.cli.main import main
main()
"""


def stopped(folder: Path) -> subprocess.Popen[str]:
    """A compile in the middle of its write."""
    save(folder, linear())
    (folder / "out.onnx").write_bytes(b"an old file")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, *COMPILE.split()],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    late = time.monotonic() + TIMEOUT
    while not (folder / "there").exists():
        assert process.poll() is None and time.monotonic() < late, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_24_a_signal_during_the_write_leaves_the_old_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = stopped(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (tmp_path / "out.onnx").read_bytes() == b"an old file"
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert out == "" and "Traceback" not in err
    left = set(listing(tmp_path)) - {"net.onnx", "out.onnx", "there"}
    # Nobody catches SIGTERM; what is left is hidden.
    assert not left or (number == signal.SIGTERM and all(name[0] == "." for name in left))


def test_24_kill_during_the_write_leaves_the_old_file(tmp_path: Path) -> None:
    process = stopped(tmp_path)
    process.kill()
    process.communicate(timeout=TIMEOUT)
    assert (tmp_path / "out.onnx").read_bytes() == b"an old file"
    left = set(listing(tmp_path)) - {"net.onnx", "out.onnx", "there"}
    assert len(left) <= 1 and all(name.startswith(".out.onnx.") for name in left)
    # What was left does not disturb the next compile.
    ran = fresh(tmp_path, COMPILE.split(), {})
    assert ran.code == 0 and read_compiled(tmp_path / "out.onnx").steps == 64


def test_24_a_link_stays_a_link(server: Server, tmp_path: Path) -> None:
    save(tmp_path, linear())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.onnx").write_bytes(b"an old file")
    (tmp_path / "out.onnx").symlink_to("there/real.onnx")
    assert server.run(tmp_path, COMPILE.split()).code == 0
    assert (tmp_path / "out.onnx").is_symlink()
    assert read_compiled(tmp_path / "there" / "real.onnx").steps == 64
    assert set(listing(tmp_path / "there")) == {"real.onnx"}


def test_26_a_saved_calibration_of_another_model() -> None:
    made = pipeline.compile_model(linear(), Options(), X)
    with pytest.raises(Refused) as caught:
        pipeline.compile_model(linear(w=W + 1), Options(), made.calibration)
    assert [finding.code for finding in caught.value.findings] == ["SNNC306"]


def test_27_the_library_is_not_needed_for_what_runs_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"broken")
    ran = server.run(tmp_path, ["--version"], environment=dict(LIBRARY))
    assert (ran.code, ran.err) == (0, "")


def test_28_two_compiles_to_one_output(tmp_path: Path) -> None:
    save(tmp_path, linear())
    alone = {}
    for steps in (3, 5):
        target = tmp_path / f"{steps}.onnx"
        model = pipeline.compile_model(tmp_path / "net.onnx", Options(steps=steps)).model
        target.write_bytes(model.SerializeToString(deterministic=True))
        alone[steps] = target.read_bytes()
    before = set(listing(tmp_path))
    for _ in range(2):
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "snncompiler", *COMPILE.split(), "-T", str(steps), "-q"],
                cwd=tmp_path,
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for steps in alone
        ]
        assert [process.wait(TIMEOUT) for process in both] == [0, 0]
        assert (tmp_path / "out.onnx").read_bytes() in alone.values()
        onnx.checker.check_model(str(tmp_path / "out.onnx"))
        assert set(listing(tmp_path)) == before | {"out.onnx"}
        shutil.copy(tmp_path / "3.onnx", tmp_path / "out.onnx")
