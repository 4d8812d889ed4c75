"""The network after each pass, as files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from commands import snnc
from helpers import random

from snncompiler import models, pipeline
from snncompiler.emission.save import serialize
from snncompiler.emission.stages import Stages
from snncompiler.errors import UsageError
from snncompiler.ir.settings import Options

CNN = models.path("digits-cnn")
X = random(0, 16, 1, 8, 8)


def watched(folder: Path, *wanted: str, **options: object) -> tuple[Stages, onnx.ModelProto]:
    stages = Stages(folder, wanted)
    chosen = Options(steps=4, **options)  # type: ignore[arg-type]
    return stages, pipeline.compile_model(CNN, chosen, X, watch=stages.of).model


def test_every_pass_is_written_in_the_order_of_the_run(tmp_path: Path) -> None:
    stages, model = watched(tmp_path, "all", target="cpu")
    names = [path.relative_to(tmp_path).as_posix() for path in stages.written]
    assert names == [
        *sorted(n for n in names if n[0] == "n"),
        *sorted(n for n in names if n[0] == "e"),
    ]
    passes = [step.name for step in pipeline.normalization_passes()]
    first = [f"normalize/{at:02d}-{name}.onnx" for at, name in enumerate(passes, 1)]
    assert [name for name in names if name.startswith("n") and name.endswith("x")] == first
    emitted = [name.partition("-")[2] for name in names if name[0] == "e" and name.endswith("x")]
    expected = ["insert-neurons", "fold-amplitude", "sink-time-mean", "drive-input"]
    assert emitted == [f"{name}.onnx" for name in (*expected, "unroll-time", "lower-events")]
    # The last one is what the user gets.
    assert serialize(onnx.load(stages.written[-2])) == serialize(model)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    _, model = watched(tmp_path, "all")
    plain = pipeline.compile_model(CNN, Options(steps=4), X).model
    assert serialize(model) == serialize(plain)


def test_a_graph_between_two_passes_is_an_onnx_file_with_its_text(tmp_path: Path) -> None:
    stages, _ = watched(tmp_path, "insert-neurons")
    model, text = (path for path in stages.written)
    ours = [node for node in onnx.load(model).graph.node if node.domain == "ai.snnc"]
    assert {node.op_type for node in ours} == {"ScheduledRMPNeuron"}
    assert {entry.domain for entry in onnx.load(model).opset_import} >= {"", "ai.snnc"}
    assert text.read_text(encoding="utf-8").count("ScheduledRMPNeuron") == len(ours)


def test_a_pass_that_did_not_run_is_named(tmp_path: Path) -> None:
    stages, _ = watched(tmp_path, "fold-batch-norms")
    with pytest.raises(UsageError, match="no pass fold-batch-norms has run") as caught:
        stages.check()
    assert "fold-batch-norm," in str(caught.value)
    assert not list(tmp_path.iterdir())
    stages, _ = watched(tmp_path, "fold-batch-norm")
    stages.check()


def test_print_after_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "a.snn.onnx"
    ran = snnc("compile", CNN, "-o", out, "-T", 4, "--print-after", "fold-batch-norm", "--json")
    assert ran.code == 0
    files = [out.with_name("a.snn.onnx.passes") / "normalize" / f"13-fold-batch-norm.{kind}"
             for kind in ("onnx", "txt")]  # fmt: skip
    assert json.loads(ran.out)["passes"] == [str(path) for path in files]
    assert all(path.is_file() for path in files)
    ran = snnc("compile", CNN, "-o", out, "-T", 4, "--print-after", "all")
    assert f"{out}.passes: " in ran.out
    out.unlink()
    ran = snnc("compile", CNN, "-o", out, "-T", 4, "--print-after", "fold")
    assert (ran.code, ran.out, out.exists()) == (2, "", False)
    assert "no pass fold has run" in ran.err and "fold-batch-norm" in ran.err
