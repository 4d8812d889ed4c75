"""`make mutants`: every module has tests that mirror it; scores and survivors are told as they are."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
#: Every emission test runs it.
NOT_MUTATED = {"__init__", "attach_functions"}


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("snnc_mutants", ROOT / "bench" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_pass_has_tests_that_are_there(mutants: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = mutants.mirrored(ROOT) | tomllib.loads(text)["tool"]["cosmic-ray"]["tests"]
    passes = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "passes").glob("*/*.py")
        if path.stem not in NOT_MUTATED
    }
    assert passes <= set(listed)
    for module, tests in listed.items():
        assert (ROOT / module).is_file()
        assert tests and all((ROOT / test).is_file() for test in tests)


def test_only_the_tests_that_are_named_are_run(mutants: ModuleType) -> None:
    command = shlex.split(mutants.test_command(["tests/a.py", "tests/b.py"]))
    assert command[:3] == [sys.executable, "-m", "pytest"]
    assert command[-2:] == ["tests/a.py", "tests/b.py"] and "-x" in command


def test_a_copy_of_the_tree_is_changed(mutants: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / ".git").mkdir(parents=True)
    (source / "module.py").write_text("a = 1\n")
    tree = mutants.copied(source, tmp_path)
    assert tree != source and [path.name for path in tree.iterdir()] == ["module.py"]


def test_the_table_and_the_survivors(mutants: ModuleType) -> None:
    scores = [mutants.Score("passes/a.py", 10, 8, 1, [(7, "-a\n+b")])]
    assert mutants.table(scores).splitlines()[-1] == "| `passes/a.py` | 10 | 8 | 1 | 1 |"
    assert mutants.survivors(scores) == "`passes/a.py`, line 7:\n\n```diff\n-a\n+b\n```"
