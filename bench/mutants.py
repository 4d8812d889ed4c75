"""Mutation testing of the passes and the calibration, by cosmic-ray: do the tests notice a wrong line?

    python bench/mutants.py [MODULE ...] [--count 12] [--seed 0] [--again] [--page PAGE]

`make mutants` runs it.  `[tool.cosmic-ray]` in pyproject.toml says which modules, and which tests
mirror each: only those are run, and of those the ones that reach the changed line (coverage says
which), the fast ones first, as many as fit into a budget of time.  Of each module's mutants the first
`--count` in an order drawn by the seed are tried (0: all of them).  Everything happens in a copy of the
tree, and one process that has imported the libraries is forked for every mutant.

Each result is added to `build/mutants/results.jsonl` at once.  What stands there already isn't tried
again; `--again` tries those that survived, and nothing else, against all the tests as they are now.  A
mutant is killed when a test fails, or when the tests take several times as long as without it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from difflib import unified_diff
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "mutants" / "results.jsonl"
#: What the process that is forked for every mutant has imported: nothing of ours.
LIBRARIES = ["numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "hypothesis", "pytest"]
#: Added to pytest's exit code, which is then not that of a process that didn't come so far.
RAN = 64
START, END = "<!-- table of bench/mutants.py -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Mutant:
    """One change of one line: cosmic-ray's operator and which of its places.

    `change` is the - and + lines, by which a result is known again when the module has grown elsewhere;
    it is made only for mutants that are looked at, since each takes as long as parsing the module.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    function: str
    change: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.module, self.operator, self.function, self.change


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str  # killed, timeout or survived
    tests: int
    seconds: float


@dataclass
class Reach:
    """What a test file does without mutants: seconds of each test, and by module and line the tests
    that reach it; "" stands for what runs outside of tests (imports, fixtures)."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)


# --- what is configured ---


def settings(root: Path) -> dict[str, Any]:
    """`[tool.cosmic-ray]` of pyproject.toml: `timeout` and `budget` in seconds, `excluded-operators`,
    and `tests` by module.

    A pass that is not named there has the test file of its own name, if there is one.
    """
    import toml  # comes with cosmic-ray

    found: dict[str, Any] = toml.load(root / "pyproject.toml")["tool"]["cosmic-ray"]
    found["tests"] = mirrored(root) | found["tests"]
    return found


def mirrored(root: Path) -> dict[str, list[str]]:
    """The test file of every pass that has one of its own name."""
    passes = sorted((root / "passes").glob("*/*.py"))
    tests = {path: f"tests/passes/{path.parent.name}/test_{path.stem}.py" for path in passes}
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


# --- mutants ---


def unevaluated(source: str) -> Iterator[ast.AST]:
    """What nothing evaluates, with `annotations` of `__future__`: annotations and docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
        annotation = getattr(node, "annotation", None)
        if annotation is not None:
            yield annotation
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node


def span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a node starts and ends, as (line, column)."""
    place: Any = node
    return (place.lineno, place.col_offset), (place.end_lineno, place.end_col_offset)


def mutants_of(module: str, source: str, excluded: str) -> list[Mutant]:
    """All mutants of a module's source that something evaluates, without their changes.

    excluded: a regular expression of operators that are left out.
    """
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.ast.ast_query import ASTQuery
    from cosmic_ray.plugins import get_operator, operator_names

    spans = [span(node) for node in unevaluated(source)]
    tree = get_ast(source)
    found = []
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or re.fullmatch(excluded, name):
            continue
        operator = kind()
        places = [
            (start, end, node)
            for node in ast_nodes(tree)
            for start, end in operator.mutation_positions(node)
        ]
        for occurrence, (start, end, node) in enumerate(places):
            if any(first <= start and end <= last for first, last in spans):
                continue
            function = ASTQuery(node).get_definition_name() or ""
            found.append(Mutant(module, name, occurrence, start[0], function))
    return found


def with_change(mutant: Mutant, source: str) -> Mutant:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    new = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    lines = list(unified_diff(source.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    change = "\n".join(line.rstrip() for line in lines if line[:1] in "+-")
    return replace(mutant, change=change)


def drawn(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """The first `count` in an order that the seed draws: a larger count only adds to a smaller one."""
    order = list(mutants)
    random.Random(seed).shuffle(order)
    return order[:count] if count else order


# --- tests ---


def reach_of(tree: Path, test: str, modules: list[str]) -> Reach:
    """What `measure` finds, kept for as long as the test file and all modules are the same."""
    texts = [(tree / path).read_bytes() for path in (test, *modules)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()
    kept = RESULTS.with_name(f"{Path(test).stem}.{digest[:16]}.pickle")
    if kept.is_file():
        found: Reach = pickle.loads(kept.read_bytes())
        return found
    found = measure(tree, test, modules)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps(found))
    return found


def measure(tree: Path, test: str, modules: list[str]) -> Reach:
    """Run a test file without mutants; raises RuntimeError where it fails."""
    folder = tree.parent
    rules, data, report = (folder / name for name in ("rules.ini", "coverage", "report.xml"))
    include = "\n    ".join(str(tree / module) for module in modules)
    rules.write_text(
        f"[run]\ndynamic_context = test_function\ndata_file = {data}\ninclude =\n    {include}\n"
    )
    data.unlink(missing_ok=True)
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", test]
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={rules}", *options]
    # Only the tracer in C knows which test runs.
    kept = os.environ | {"COVERAGE_CORE": "ctrace"}
    if subprocess.run(command, cwd=tree, env=kept, stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"{test} fails without a mutant")
    return read_reach(tree, data, report)


def read_reach(tree: Path, data: Path, report: Path) -> Reach:
    """What coverage and pytest wrote of one test file."""
    from coverage import CoverageData

    found = Reach()
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].split("[")[0]
        found.seconds[name] = found.seconds.get(name, 0.0) + float(case.attrib["time"])
    measured = CoverageData(str(data))
    measured.read()
    for path in measured.measured_files():
        lines = measured.contexts_by_lineno(path)
        module = Path(path).relative_to(tree.resolve()).as_posix()
        found.lines[module] = {
            line: {context.rpartition(".")[2] for context in contexts}
            for line, contexts in lines.items()
        }
    return found


def statement_lines(source: str, line: int) -> range:
    """The lines of the statement in which a line stands; of a compound one, those of its head."""
    best = range(line, line + 1)
    size = None
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt):
            continue
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
        lines = range(node.lineno, max(end, node.lineno) + 1)
        if line in lines and (size is None or len(lines) < size):
            best, size = lines, len(lines)
    return best


def tests_for(
    mutant: Mutant, source: str, reaches: dict[str, Reach], budget: float = math.inf
) -> tuple[list[str], float]:
    """The tests that reach a mutant, the fast ones first, and how long they take without it.

    Behind them whole test files, where a line runs outside of tests too.  What doesn't fit into the
    budget (seconds) is left out, but never the first.
    """
    chosen, files = [], []
    lines = statement_lines(source, mutant.line)
    for test, reach in reaches.items():
        found = reach.lines.get(mutant.module, {})
        names = set().union(*(found.get(line, set()) for line in lines))
        chosen += [(reach.seconds[name], f"{test}::{name}") for name in names & set(reach.seconds)]
        if "" in names:
            files.append((sum(reach.seconds.values()), test))
    tests, total = [], 0.0
    for seconds, name in (*sorted(chosen), *sorted(files)):
        if tests and total + seconds > budget:
            break
        tests.append(name)
        total += seconds
    return tests, total


def run_tests(tests: list[str], log: str) -> None:
    """Run tests in this process, which ends with pytest's exit code; what they say goes to a file."""
    import pytest

    os.setsid()
    # Bytecode is known by second and size: that of a mutant could pass for the next one's.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(RAN + int(code))


def try_mutant(tree: Path, mutant: Mutant, tests: list[str], limit: float) -> Result:
    """Make the change in the tree, run the tests, and take it back."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    if not tests:
        return Result(mutant, "survived", 0, 0.0)
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(LIBRARIES)
    started = time.perf_counter()
    with use_mutation(tree / mutant.module, get_operator(mutant.operator)(), mutant.occurrence):
        process = forked.Process(target=run_tests, args=(tests, str(tree.parent / "log")))
        process.start()
        process.join(limit)
        if process.is_alive():
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            outcome = "timeout"
        else:
            code = process.exitcode or 0
            if 0 <= code < RAN:
                raise RuntimeError(f"the tests of {mutant} could not be started")
            # A crash has a code below 0.
            outcome = "survived" if code == RAN else "killed"
    return Result(mutant, outcome, len(tests), round(time.perf_counter() - started, 2))


# --- results ---


def read_results(path: Path) -> dict[tuple[str, str, str, str], Result]:
    """The last result of every mutant that was tried."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        entry = json.loads(line)
        result = Result(Mutant(**entry.pop("mutant")), **entry)
        found[result.mutant.key] = result
    return found


def add_result(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def table(results: list[Result]) -> str:
    """A row for every module, and their sum."""
    rows = ["| module | mutants | killed | timeouts | survived |", "|---|---|---|---|---|"]
    modules = sorted({result.mutant.module for result in results})
    for module in [*modules, ""]:
        mine = [r.outcome for r in results if not module or r.mutant.module == module]
        counts = [len(mine), *(mine.count(kind) for kind in ("killed", "timeout", "survived"))]
        name = f"`{module}`" if module else "all"
        rows.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


def survivors(results: list[Result]) -> str:
    parts = [
        f"`{one.module}`, line {one.line}, `{one.function}`:\n\n```diff\n{one.change}\n```"
        for one in (result.mutant for result in results if result.outcome == "survived")
    ]
    return "\n\n".join(parts)


def with_table(page: str, text: str) -> str:
    """A page, its table replaced."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def try_module(
    tree: Path,
    module: str,
    given: dict[str, Any],
    options: argparse.Namespace,
    reaches: dict[str, Reach],
) -> list[Result]:
    """The results of one module, with those that stood in the file."""
    source = (tree / module).read_text(encoding="utf-8")
    known = read_results(RESULTS)
    mutants = mutants_of(module, source, given["excluded-operators"])
    if options.again:
        alive = {key for key, result in known.items() if result.outcome == "survived"}
        places = {key[:3] for key in alive}
        near = [m for m in mutants if (m.module, m.operator, m.function) in places]
        wanted = [m for m in (with_change(m, source) for m in near) if m.key in alive]
        todo = wanted
    else:
        wanted = [with_change(m, source) for m in drawn(mutants, options.count, options.seed)]
        todo = [mutant for mutant in wanted if mutant.key not in known]
    for test in given["tests"][module] if todo else []:
        if test not in reaches:
            reaches[test] = reach_of(tree, test, list(given["tests"]))
    mine = {test: reaches[test] for test in given["tests"][module] if test in reaches}
    if todo and not any(reach.lines.get(module) for reach in mine.values()):
        raise RuntimeError(f"{module}: none of its tests reaches it")
    for mutant in todo:
        budget = math.inf if options.again else given["budget"]
        tests, seconds = tests_for(mutant, source, mine, budget)
        result = try_mutant(tree, mutant, tests, given["timeout"] + 3 * seconds)
        add_result(RESULTS, result)
    known = read_results(RESULTS)
    return [known[mutant.key] for mutant in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", help="as in pyproject.toml; default: all of them")
    parser.add_argument("--count", type=int, default=12, help="mutants of a module; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="try again those that survived")
    parser.add_argument("--page", type=Path, help="write the table of all results into this page")
    options = parser.parse_args()
    given = settings(ROOT)
    unknown = set(options.modules) - set(given["tests"])
    if unknown:
        parser.error(f"no tests are named for {', '.join(sorted(unknown))} in pyproject.toml")
    reaches: dict[str, Reach] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(ROOT, Path(folder))
        os.environ["PYTHONPATH"] = str(tree)
        sys.path.insert(0, str(tree))
        os.chdir(tree)
        for module in options.modules or given["tests"]:
            results = try_module(tree, module, given, options, reaches)
            print(table(results).splitlines()[2], flush=True)
            print(survivors(results), flush=True)
    if options.page:
        page = ROOT / options.page
        everything = sorted(read_results(RESULTS).values(), key=lambda r: r.mutant.key)
        text = with_table(page.read_text(encoding="utf-8"), table(everything))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
