"""The documentation: generated pages are up to date, links lead somewhere, commands exist and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import snncompiler
import snncompiler.models
from snncompiler.cli.main import app
from snncompiler.findings import CODES
from snncompiler.version import __version__

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "models" / "README.md",
]
#: Pages whose blocks of `sh` and `python` are run, one after the other, in a folder of their own.
RUN = [
    ROOT / "README.md",
    *sorted(DOCS.glob("tutorial/*.md")),
    *sorted(DOCS.glob("how-to/*.md")),
    DOCS / "explanation" / "accuracy.md",
]
#: Set up an environment or build something: what they name has to exist, but they are not run.
NOT_RUN = ("pip ", "make ", "git ", "python -m snncompiler.runtime.build")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```([a-z]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that mkdocs makes of a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading)
    ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def anchors(page: Path) -> set[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}


def test_generated_pages_are_up_to_date() -> None:
    script = [sys.executable, str(DOCS / "generate.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_codes_that_are_used_are_those_that_are_listed() -> None:
    sources = [
        file
        for folder in ("snncompiler", "passes", "runtime")
        for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 20
    used: set[str] = set()
    for source in sources:
        if source.name != "findings.py":
            used |= set(re.findall(r"SNNC\d{3}", source.read_text(encoding="utf-8")))
    assert used == set(CODES)


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:passes|runtime|snncompiler|tests|bench)/[\w/.-]*)`", text)
    assert [file for file in named if not (ROOT / file).exists()] == []


def test_every_pass_is_in_the_design() -> None:
    page = (DOCS / "explanation" / "design.md").read_text(encoding="utf-8")
    passes = [
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "passes").glob("*/*.py")
        if re.search(r"^class \w+\(Pass\):", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert len(passes) > 20
    assert [file for file in passes if f"`{file}`" not in page] == []


def test_every_key_of_the_metadata_is_described() -> None:
    page = (DOCS / "reference" / "metadata.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(snnc\.\w+)`", page))
    model = snncompiler.compile(snncompiler.models.path("digits-cnn"), steps=2)
    written = {entry.key for entry in model.metadata_props}
    of_some_files = {"answer", "coded", "copies", "pooled", "grid", "rounding", "units"}
    assert written == described - {f"snnc.{name}" for name in of_some_files}


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, flags=re.MULTILINE)[1] == __version__  # type: ignore[index]


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=name_of)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_file(), f"{target}: there is no such file"
        if page.is_relative_to(DOCS):
            assert linked.is_relative_to(DOCS), f"{target} is not part of the site"
        if anchor:
            assert anchor in anchors(linked), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_list_begins_behind_an_empty_line(page: Path) -> None:
    """Else it is a part of the paragraph or the block before it in the site."""
    text = re.sub(r"^```.*?^```$", "```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n", text)
    wrong = [
        p
        for p in paragraphs
        if re.search(r"\n(?:- |\d+\. )", p) and not re.match(r"\s*(?:- |\d+\. )", p)
    ]
    assert not wrong


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r"[\w/-]+\.md", navigation)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def code(page: Path) -> Iterator[str]:
    """Blocks and inline code, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    yield from (block for _, block in blocks(page))
    text = without_code(text)
    yield from re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
    yield from re.findall(r"`([^`]+)`", text)


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words behind `program` wherever a line of code starts with it."""
    for text in code(page):
        for line in text.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words[: len(program.split())] == program.split():
                yield words[len(program.split()) :]


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=name_of)
def test_commands_and_options_that_are_shown_exist(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(page, "snnc"):
        if not words or words[0].startswith("-") or not words[0].isalpha():
            continue
        assert words[0] in known, f"snnc {' '.join(words)}"
        parameters = known[words[0]].params
        options = {opt for p in parameters for opt in (*p.opts, *p.secondary_opts)} | {"--help"}
        given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[A-Za-z]", word)}
        assert given <= options, f"snnc {' '.join(words)}: {given - options}"
    for words in commands(page, "python"):
        if not words or not words[0].endswith(".py"):
            continue
        script = ROOT / words[0]
        assert script.is_file(), f"python {' '.join(words)}"
        # Scripts of one folder may share their options.
        source = "".join(file.read_text(encoding="utf-8") for file in script.parent.glob("*.py"))
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option.partition("=")[0]}"' in source, f"python {' '.join(words)}"


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=name_of)
def test_make_targets_and_extras_that_are_shown_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in filter(None, commands(page, "make")):
        assert re.search(rf"^{words[0]}:", makefile, flags=re.MULTILINE), f"make {words[0]}"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for words in commands(page, "pip install"):
        for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
            for name in extra.split(","):
                assert re.search(rf"^{name} = \[", project, flags=re.MULTILINE), extra


def missing_package(text: str) -> str | None:
    """The first package that a block imports and that is not installed."""
    for name in re.findall(r"^(?:import|from) (\w+)", text, flags=re.MULTILINE):
        found = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import importlib.util as u; exit(u.find_spec({name!r}) is None)",
            ]
        )
        if found.returncode:
            return str(name)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_run_as_they_are_shown(page: Path, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    ran = 0
    for language, text in blocks(page):
        if language == "python":
            if missing_package(text):
                continue
            command = [sys.executable, "-c", text]
        elif language == "sh":
            lines = [
                line
                for line in text.replace("\\\n", " ").splitlines()
                if not line.startswith(NOT_RUN)
            ]
            command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
        else:
            continue
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        ran += 1
    assert ran, "nothing was run"


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > len(PAGES)
    fetched = r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//'
    for page in built:
        assert not re.search(fetched, page.read_text(encoding="utf-8")), page.name
