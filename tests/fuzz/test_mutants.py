"""Damaged models through `prepare`: an answer of ours or success, never a fault, crash or hang.

The mutants run in child processes with limits, because what reads models is C++ in part and may end
its process.  `python tests/fuzz/fuzz_check.py` looks further, guided by coverage.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_seeds import seeds
from mutate import mutant

from snncompiler import pipeline
from snncompiler.errors import Refused

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MEMORY = 4 << 30
#: CPU seconds of one child, for all its mutants.
SECONDS = 120


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def bad_mutants(first: int, last: int, most: int = 10) -> dict[int, str]:
    """The mutants that got no answer, and what they got; a dead child is followed by another."""
    bad: dict[int, str] = {}
    done = 0
    while first < last and len(bad) < most:
        child = subprocess.run(
            [sys.executable, str(HERE / "mutate.py"), str(first), str(last)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            preexec_fn=limit,
            check=False,
        )
        current = None
        for line in child.stdout.splitlines():
            entry = json.loads(line)
            current = entry["number"]
            if "came" in entry:
                done += 1
                if entry["came"] != "fine":
                    bad[current] = entry["came"]
                current = None
        if child.returncode == 0:
            break
        assert current is not None, child.stderr
        bad[current] = f"ended its process: {child.returncode} {child.stderr[-500:]}"
        done, first = done + 1, current + 1
    assert done == last - first or bad or done >= last - first
    return bad


def test_the_seeds_are_what_they_should_be() -> None:
    names = list(seeds())
    assert len(names) == 6 and sum(map(len, seeds().values())) < 20_000
    for name in names:
        if name == "control":
            with pytest.raises(Refused, match="SNNC111"):
                pipeline.prepare(seeds()[name])
        else:
            pipeline.prepare(seeds()[name])
    assert mutant(7) == mutant(7) != mutant(13)


def test_600_mutants() -> None:
    assert bad_mutants(0, 600) == {}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(600, 20_600, 2000))
def test_2000_more_mutants(first: int) -> None:
    assert bad_mutants(first, first + 2000) == {}
