"""`make mutants`: every module has tests that mirror it; scores and survivors are told as they are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
#: Every emission test runs it.
NOT_MUTATED = {"__init__", "attach_functions"}


@pytest.fixture(scope="module")
def mutants() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))  # forked processes import it by its name
        yield importlib.import_module("mutants")


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


SOURCE = '''from __future__ import annotations


def total(values: list[int] | None) -> int | None:
    """1 + 1."""
    if (
        values
        and values[0] > 0
    ):
        return sum(values) + 1
    return None
'''


def mutant(mutants: ModuleType, operator: str, line: int) -> Any:
    """The one of SOURCE that an operator makes in a line."""
    pytest.importorskip("cosmic_ray")
    (found,) = [
        one
        for one in mutants.mutants_of("passes/a.py", SOURCE, "")
        if (one.operator, one.line) == (f"core/{operator}", line)
    ]
    return found


def test_what_nothing_evaluates_is_not_changed(mutants: ModuleType) -> None:
    pytest.importorskip("cosmic_ray")
    found = mutants.mutants_of("passes/a.py", SOURCE, "core/ReplaceBinary.*_BitOr")
    assert {one.line for one in found} == {6, 8, 10}
    assert {one.function for one in found} == {"total"}
    names = {one.operator for one in found}
    assert "core/ReplaceBinaryOperator_Add_Sub" in names
    assert "core/ReplaceBinaryOperator_Add_BitOr" not in names


def test_a_mutant_is_known_by_its_change(mutants: ModuleType) -> None:
    one = mutants.with_change(mutant(mutants, "ReplaceBinaryOperator_Add_Sub", 10), SOURCE)
    assert one.change == "-        return sum(values) + 1\n+        return sum(values) - 1"
    longer = "\n# A line more.\n" + SOURCE
    (same,) = [
        other
        for other in mutants.mutants_of("passes/a.py", longer, "")
        if (other.operator, other.line) == (one.operator, 12)
    ]
    assert mutants.with_change(same, longer).key == one.key


def test_more_mutants_only_add_to_fewer(mutants: ModuleType) -> None:
    every = [mutants.Mutant("passes/a.py", "core/AddNot", at, at, "f") for at in range(50)]
    assert mutants.drawn(every, 12, 0) == mutants.drawn(every, 20, 0)[:12]
    assert mutants.drawn(every, 12, 0) != mutants.drawn(every, 12, 1)
    assert sorted(mutants.drawn(every, 0, 0), key=lambda one: one.line) == every


def test_the_tests_that_reach_a_line_are_run_the_fast_ones_first(mutants: ModuleType) -> None:
    one = mutant(mutants, "ReplaceComparisonOperator_Gt_GtE", 8)
    fast = mutants.Reach({"test_a": 0.1, "test_b": 9.0}, {"passes/a.py": {10: {"test_b"}}})
    slow = mutants.Reach(
        {"test_c": 3.0, "test_d": 1.0}, {"passes/a.py": {6: {"test_c"}, 7: {"test_d"}}}
    )
    reaches = {"tests/fast.py": fast, "tests/slow.py": slow}
    tests, seconds = mutants.tests_for(one, SOURCE, reaches)
    assert tests == ["tests/slow.py::test_d", "tests/slow.py::test_c"]  # the head of the `if`
    assert seconds == 4.0
    slow.lines["passes/a.py"][6].add("")  # a fixture reaches it too
    tests, seconds = mutants.tests_for(one, SOURCE, reaches)
    assert tests[2:] == ["tests/slow.py"] and seconds == 8.0
    assert mutants.tests_for(one, SOURCE, reaches, 4.0) == (tests[:2], 4.0)
    assert mutants.tests_for(one, SOURCE, reaches, 0.5) == (tests[:1], 1.0)


def test_a_mutant_is_killed_by_a_failing_test(mutants: ModuleType, tmp_path: Path) -> None:
    """And one of which a test waits forever; the source stands as it was afterwards."""
    pytest.importorskip("cosmic_ray")
    (tmp_path / "passes").mkdir()
    module = tmp_path / "passes" / "a.py"
    module.write_text(SOURCE)
    text = (
        "import importlib.util as u\ndef test_it():\n    s = u.spec_from_file_location('a', {!r})\n"
    )
    text += "    m = u.module_from_spec(s)\n    s.loader.exec_module(m)\n    {}\n"
    (tmp_path / "test_one.py").write_text(text.format(str(module), "assert m.total([1]) == 2"))
    (tmp_path / "test_none.py").write_text(text.format(str(module), "assert not m.total([])"))
    waits = "while m.total([1]) != 2: pass"
    (tmp_path / "test_waits.py").write_text(text.format(str(module), waits))
    one = mutant(mutants, "ReplaceBinaryOperator_Add_Sub", 10)
    found = []
    for name in ("one", "none", "waits"):
        test = str(tmp_path / f"test_{name}.py")
        found.append(
            mutants.try_mutant(tmp_path, one, [test], 20 if name != "waits" else 4).outcome
        )
    assert found == ["killed", "survived", "timeout"]
    assert mutants.try_mutant(tmp_path, one, [], 9).outcome == "survived"  # no test reaches it
    assert module.read_text() == SOURCE


def test_a_copy_of_the_tree_is_changed(mutants: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / ".git").mkdir(parents=True)
    (source / "module.py").write_text("a = 1\n")
    tree = mutants.copied(source, tmp_path)
    assert tree != source and [path.name for path in tree.iterdir()] == ["module.py"]


def test_results_are_kept(mutants: ModuleType, tmp_path: Path) -> None:
    one = mutants.Mutant("passes/a.py", "core/AddNot", 0, 7, "f", "-a\n+b")
    path = tmp_path / "build" / "results.jsonl"
    assert mutants.read_results(path) == {}
    for outcome in ("survived", "killed"):
        mutants.add_result(path, mutants.Result(one, outcome, 3, 1.5))
    assert mutants.read_results(path) == {one.key: mutants.Result(one, "killed", 3, 1.5)}


def test_the_table_and_the_survivors(mutants: ModuleType) -> None:
    one = mutants.Mutant("passes/a.py", "core/AddNot", 0, 7, "f", "-a\n+b")
    results = [
        mutants.Result(one, outcome, 1, 1.0)
        for outcome in ("killed", "killed", "timeout", "survived")
    ]
    assert mutants.table(results).splitlines()[2:] == [
        "| `passes/a.py` | 4 | 2 | 1 | 1 |",
        "| all | 4 | 2 | 1 | 1 |",
    ]
    assert mutants.survivors(results) == "`passes/a.py`, line 7, `f`:\n\n```diff\n-a\n+b\n```"
    page = f"before\n{mutants.START}\nold\n{mutants.END}\nafter\n"
    new = mutants.with_table(page, "new")
    assert new == f"before\n{mutants.START}\n\nnew\n\n{mutants.END}\nafter\n"
    assert mutants.with_table(new, "new") == new
