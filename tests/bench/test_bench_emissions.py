"""`bench/emissions.py`: equal emissions have equal digests, whatever changes is listed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "emissions.py"
#: A folder without material.
NOWHERE = ["--material", str(ROOT / "bench")]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("snnc_emissions", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def few(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with two forms of a calibration, one of its own, and none without data."""
    monkeypatch.setattr(bench, "FORMS", {"fold": {}, "steps": bench.FORMS["steps"]})
    monkeypatch.setattr(bench, "CALIBRATED", {"paper strict": {"paper": True}})
    monkeypatch.setattr(bench, "BARE", {})
    return bench


def test_an_emission_is_known_by_its_digests(few: Any) -> None:
    (network,) = [one for one in few.networks(str(ROOT)) if one.name == "gcn_ts17"]
    found = few.emissions(network)
    assert set(found) == {"fold", "steps", "paper strict"}
    assert found["fold"]["graph"] != found["steps"]["graph"]
    assert found["fold"]["metadata"] != found["steps"]["metadata"]
    assert set(found["paper strict"]) == {"refused"}  # it has biases
    assert found == few.emissions(network)


def test_every_bundled_and_stored_network_is_compiled(bench: Any) -> None:
    names = [network.name for network in bench.networks(NOWHERE[1])]
    folders = (ROOT / "models", ROOT / "tests" / "zoo" / "stored")
    assert names == [path.stem for folder in folders for path in sorted(folder.glob("*.onnx"))]
    assert len(names) >= 16


def test_a_weight_is_of_the_graph_and_a_property_is_not(bench: Any) -> None:
    model = onnx.load(ROOT / "tests" / "zoo" / "stored" / "gcn_ts17.onnx")
    first = bench.digests(model)
    onnx.helper.set_model_props(model, {"snnc.steps": "8"})
    told = bench.digests(model)
    assert told["graph"] == first["graph"] and told["metadata"] != first["metadata"]
    model.graph.node[0].doc_string = "What it is for."
    described = bench.digests(model)
    assert described["doc strings"] != told["doc strings"]
    assert {**described, "doc strings": told["doc strings"]} == told
    tensor = next(one for one in model.graph.initializer if one.data_type == 1)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert bench.digests(model)["graph"] != first["graph"]


def test_differences_are_listed(bench: Any) -> None:
    one, other = {"graph": "a", "metadata": "b"}, {"graph": "A", "metadata": "b"}
    told, refused = {"graph": "a", "metadata": "B"}, {"refused": "SNNC201"}
    before = {"n": {"fold": one, "loop": one, "step": one, "cpu": one}, "gone": {}}
    now = {"n": {"fold": other, "loop": told, "step": refused, "fp16": one}, "new": {}}
    assert bench.differences(before, before) == []
    assert bench.differences(before, now) == [
        "gone: only before",
        "n, cpu: only before",
        "n, fold: graph changed",
        "n, fp16: only now",
        "n, loop: metadata changed",
        "n, step: now refused: SNNC201",
        "new: only now",
    ]


def test_a_changed_graph_fails_and_changed_metadata_do_not(
    bench: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(tmp_path / "before.json")
    only = [*NOWHERE, "--only", "gcn_ts17"]

    def run(found: dict[str, Any], *more: str) -> tuple[int, str]:
        monkeypatch.setattr(bench, "emissions", lambda network, few, keep: found)
        return bench.main([*only, *more]), capsys.readouterr().out

    now = {"fold": {"graph": "a", "metadata": "b"}, "loop": {"graph": "c", "metadata": "d"}}
    assert run(now, "--write", path) == (0, "")
    assert run(now, "--against", path) == (0, "no emission differs\n")
    now["fold"]["metadata"] = "B"
    assert run(now, "--against", path) == (0, "gcn_ts17, fold: metadata changed\n")
    del now["loop"]
    told = "gcn_ts17, fold: metadata changed\n"
    assert run(now, "--against", path, "--few") == (0, told)
    assert run(now, "--against", path) == (1, told + "gcn_ts17, loop: only before\n")
    now["fold"]["graph"] = "A"
    assert run(now, "--against", path, "--few")[0] == 1


@pytest.mark.slow
def test_every_form_has_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Whatever the order of Python's sets; of the smaller networks."""
    names = ["digits-cnn", "digits-resnet", "gcn_ts17", "mtcnn_dynamo20", "wavenet_relu_ts17"]
    command = [sys.executable, str(SCRIPT), *NOWHERE]
    command += [part for name in names for part in ("--only", name)]
    path = str(tmp_path / "before.json")
    for seed, more in (("1", ["--write", path]), ("2", ["--against", path])):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "no emission differs\n"
