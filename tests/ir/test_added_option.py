"""To add an option is one edit: what is made of a field of `Options`, in a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

FIELD = """    leak: Annotated[
        float,
        Option(
            "How much of the potential leaks away in one step.",
            panel=NEURONS,
            applies={"reset": ("soft",)},
            range=Range("0 to below 1", lambda leak: 0 <= leak < 1),
        ),
    ] = 0.125

"""

SCRIPT = """
import inspect, json, sys
import numpy as np, onnx, onnx.parser
from typer.testing import CliRunner
import snncompiler
from snncompiler.cli.main import app
from snncompiler.emission.compiled import read_compiled

def said(*command):
    ran = CliRunner().invoke(app, [str(word) for word in command], env={"COLUMNS": "300"})
    return [ran.exit_code, ran.output]

def refused(**options):
    try:
        snncompiler.compile(model, steps=3, **options)
    except snncompiler.UsageError as error:
        return str(error)

def told_of(**options):
    made = snncompiler.compile(model, steps=3, **options)
    return {entry.key: entry.value for entry in made.metadata_props}

model = onnx.parser.parse_model(
    \'<ir_version: 8, opset_import: ["": 17]> g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }\'
)
onnx.save(model, "net.onnx")
made = snncompiler.compile(model, steps=3, leak=0.5)
told = told_of(leak=0.5)
wrong = said("compile", "net.onnx", "--leak", "2")
right = said("compile", "net.onnx", "--leak", "0.25", "-T", "3", "--quiet")
parameter = inspect.signature(snncompiler.compile).parameters["leak"]
json.dump({
    "signature": [parameter.annotation.__name__, parameter.default],
    "docstring": inspect.getdoc(snncompiler.compile),
    "help": said("compile", "--help")[1],
    "range": refused(leak=1.0),
    "type": refused(leak="much"),
    "beside hard": "leak" in json.loads(told_of(reset="hard", leak=0.5)["snnc.options"]),
    "wrong": wrong,
    "right": right[0],
    "written": json.loads(told["snnc.options"])["leak"],
    "read": read_compiled(made).options.leak,
    "read from the command line": read_compiled("net.snn.onnx").options.leak,
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package says in which the field was added to one file."""
    copy = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "_native", "*.npz", "*.onnx", "*.cc", "*.cu")
    shutil.copytree(ROOT / "snncompiler", copy / "snncompiler", ignore=ignored)
    (copy / "docs" / "reference").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "generate.py", copy / "docs")
    settings = copy / "snncompiler" / "ir" / "settings.py"
    text = settings.read_text(encoding="utf-8")
    place = "    def __post_init__"
    assert text.count(place) == 1
    settings.write_text(text.replace(place, FIELD + place), encoding="utf-8")

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONIOENCODING": "utf-8"}
        ran = subprocess.run(
            [sys.executable, *words], cwd=copy, env=environment, capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode()

    found: dict[str, Any] = json.loads(run("-c", SCRIPT))
    run("docs/generate.py")
    for page in ("cli", "python"):
        path = copy / "docs" / "reference" / f"{page}.md"
        found[page] = path.read_text(encoding="utf-8")
    return found


def test_the_python_function_takes_it(seen: dict[str, Any]) -> None:
    assert seen["signature"] == ["float", 0.125]
    assert (
        "leak: How much of the potential leaks away in one step. For reset soft."
        in seen["docstring"]
    )


def test_the_command_line_takes_it_where_experts_look(seen: dict[str, Any]) -> None:
    heading, line = seen["help"].index("Neurons and input"), seen["help"].index("--leak")
    assert heading < line < seen["help"].index("Form of the file")
    assert "How much of the potential leaks away in one step." in seen["help"]
    assert seen["right"] == 0 and seen["read from the command line"] == 0.25


def test_its_values_are_checked(seen: dict[str, Any]) -> None:
    assert "--leak 1.0 is out of range" in seen["range"] and "0 to below 1" in seen["range"]
    assert "leak is 'much', it should be a number" in seen["type"]
    code, output = seen["wrong"]
    assert code == 2 and "--leak 2.0 is out of range" in output


def test_the_file_tells_it(seen: dict[str, Any]) -> None:
    assert seen["written"] == seen["read"] == 0.5
    assert not seen["beside hard"]  # where it means nothing


def test_the_pages_describe_it(seen: dict[str, Any]) -> None:
    assert "| `--leak` | number | `0.125` |" in seen["cli"]
    assert "leak: float = 0.125" in seen["python"]
