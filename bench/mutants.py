"""Mutation testing of the passes and the calibration, by cosmic-ray: do the tests notice a wrong line?

    python bench/mutants.py [MODULE ...] [--count 20] [--seed 0] [--write PAGE]

`make mutants` runs it.  `[tool.cosmic-ray]` in pyproject.toml says which modules, and which tests
mirror each: only those are run.  From each module's mutants `--count` are drawn by the seed (0: all
of them).  Everything happens in a copy of the tree.  A mutant is killed when a test fails or when the
tests take several times as long as without it; what survives is listed with its change.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Score:
    """What became of a module's mutants; `survivors` are their changes, as (line, - and + lines)."""

    module: str
    mutants: int
    killed: int = 0
    timeouts: int = 0
    survivors: list[tuple[int, str]] = field(default_factory=list)


def settings(root: Path) -> dict[str, Any]:
    """`[tool.cosmic-ray]` of pyproject.toml: `timeout`, `excluded-operators`, and `tests` by module.

    A pass that is not named there has the test file of its own name, if there is one.
    """
    import toml  # comes with cosmic-ray

    found: dict[str, Any] = toml.load(root / "pyproject.toml")["tool"]["cosmic-ray"]
    found["tests"] = mirrored(root) | found["tests"]
    return found


def mirrored(root: Path) -> dict[str, list[str]]:
    """The test file of every pass that has one of its own name."""
    passes = sorted((root / "passes").glob("*/*.py"))
    tests = {path: f"tests/passes/test_{path.stem}.py" for path in passes}
    return {
        path.relative_to(root).as_posix(): [test]
        for path, test in tests.items()
        if (root / test).is_file()
    }


def copied(root: Path, folder: Path) -> Path:
    """A copy of the tree in which the mutants are made, the native library included."""
    leave = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv")
    tree = folder / "tree"
    shutil.copytree(root, tree, symlinks=True, ignore=leave)
    return tree


def test_command(tests: Iterable[str]) -> str:
    options = ["-x", "-q", "-p", "no:cacheprovider", *tests]
    return shlex.join([sys.executable, "-m", "pytest", *options])


def run_module(tree: Path, module: str, given: dict[str, Any], count: int, seed: int) -> Score:
    """The score of one module; raises RuntimeError where its tests fail without any mutant."""
    from cosmic_ray.commands import execute, init
    from cosmic_ray.config import ConfigDict
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    command = test_command(given["tests"][module])
    started = time.perf_counter()
    if subprocess.run(shlex.split(command), cwd=tree, stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"{module}: its tests fail without a mutant: {command}")
    timeout = given["timeout"] + 5 * (time.perf_counter() - started)
    config = ConfigDict(
        {"timeout": timeout, "test-command": command, "distributor": ConfigDict(name="local")}
    )
    session = tree.parent / f"{module.replace('/', '.')}.sqlite"
    excluded = re.compile("|".join(given["excluded-operators"]))
    with use_db(str(session), WorkDB.Mode.create) as database:
        init([Path(module)], database, {})
        items = sorted(database.work_items, key=lambda item: str(item.mutations))
        items = [i for i in items if not excluded.fullmatch(i.mutations[0].operator_name)]
        chosen = random.Random(seed).sample(items, min(count or len(items), len(items)))
        kept = {item.job_id for item in chosen}
        skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
        rest = [item.job_id for item in database.work_items if item.job_id not in kept]
        database.set_multiple_results(rest, skipped)
        execute(database, config)
        score = Score(module, len(chosen))
        for item, result in database.completed_work_items:
            if item.job_id not in kept:
                continue
            if result.test_outcome == TestOutcome.SURVIVED:
                change = "\n".join(
                    line
                    for line in (result.diff or "").splitlines()
                    if line[:1] in "+-" and line[:3] not in ("+++", "---")
                )
                score.survivors.append((item.mutations[0].start_pos[0], change))
            elif result.output == "timeout":
                score.timeouts += 1
            else:
                score.killed += 1
    score.survivors.sort()
    return score


def table(scores: list[Score]) -> str:
    lines = ["| module | mutants | killed | timeouts | survived |", "|---|---|---|---|---|"]
    for one in scores:
        lines.append(
            f"| `{one.module}` | {one.mutants} | {one.killed} | {one.timeouts} "
            f"| {len(one.survivors)} |"
        )
    return "\n".join(lines)


def survivors(scores: list[Score]) -> str:
    parts = []
    for one in scores:
        for line, change in one.survivors:
            parts.append(f"`{one.module}`, line {line}:\n\n```diff\n{change}\n```")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="as in pyproject.toml; default: all of them")
    parser.add_argument("--count", type=int, default=20, help="mutants of a module; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="write table and survivors here")
    options = parser.parse_args()
    given = settings(ROOT)
    unknown = set(options.modules) - set(given["tests"])
    if unknown:
        parser.error(f"no tests are named for {', '.join(sorted(unknown))} in pyproject.toml")
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(ROOT, Path(folder))
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        os.chdir(tree)
        for module in options.modules or given["tests"]:
            scores.append(run_module(tree, module, given, options.count, options.seed))
            print(table(scores[-1:]).splitlines()[-1], flush=True)
            print(survivors(scores[-1:]), flush=True)
    command = shlex.join(["python", "bench/mutants.py", *sys.argv[1:]])
    page = f"Generated by `{command}`.\n\n{table(scores)}\n\n{survivors(scores)}\n"
    if options.write:
        (ROOT / options.write).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
