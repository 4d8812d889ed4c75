"""What an emitted file says of itself: written, read back, and read from files of version 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import parse, random, tell, told

import snncompiler
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.metadata import METADATA_VERSION
from snncompiler.errors import Refused
from snncompiler.ir.option import options_of, written
from snncompiler.ir.settings import Options
from snncompiler.runtime import Stream
from snncompiler.runtime.session import create_session

#: Files of metadata version 1, each a form of `network.onnx`, and what they were compiled with.
VERSION_1 = Path(__file__).parent / "version1"
FORMS: dict[str, dict[str, Any]] = {
    "fold": {"steps": 9, "chunk": 3, "task": "classification", "readout": "ramp:2",
             "growth": "1.5@4", "neuron": "burst:2", "seed": 3},
    "steps": {"steps": 4, "unroll": "steps", "threshold": "percentile", "percentile": 99.0,
              "correction": "bias", "initial": 0.25},
    "step": {"emit": "step", "threshold": "max", "alpha": 0.5, "allow_analog": True},
    "cuda-graph": {"emit": "cuda-graph", "batch": 6, "steps": 5, "readout": "delay:2",
                   "per_channel": False},
    "cpu": {"target": "cpu", "steps": 6, "reset": "hard"},
    "paper": {"paper": True, "steps": 6},
}  # fmt: skip
NETWORK = VERSION_1 / "network.onnx"
X = random(0, 64, 4)


def options_told(options: Options) -> dict[str, Any]:
    return {one.name: written(getattr(options, one.name)) for one in options_of(Options)}


@pytest.mark.parametrize("form", FORMS)
def test_options_are_one_entry_and_are_read_back(form: str) -> None:
    asked = FORMS[form]
    made = snncompiler.compile(NETWORK, calibration=X, **asked)
    assert told(made)["metadata_version"] == str(METADATA_VERSION)
    content = json.loads(told(made)["options"])
    content["steps"] = int(told(made)["steps"])
    assert {name: content[name] for name in asked} == asked
    found = options_told(read_compiled(made).options)
    assert {name: found[name] for name in asked} == asked
    # What is not told means nothing beside what is, or has the default that it always had.
    untold = {one.name for one in options_of(Options) if one.option.untold}
    silent = {"percentile", "tau", "schedule_steps", "chunk", "batch"} | untold
    assert set(found) - set(content) <= silent
    assert "auto" not in content.values()


@pytest.mark.parametrize("form", FORMS)
def test_files_of_version_1_say_the_same(form: str) -> None:
    old = read_compiled(VERSION_1 / f"{form}.onnx")
    assert old.metadata_version == 1 and "snnc.options" not in old.metadata
    new = read_compiled(snncompiler.compile(NETWORK, calibration=X, **FORMS[form]))
    assert old.options == new.options
    # The outputs that carry states may be called otherwise, as that of the step's number is now.
    assert set(old.states) == set(new.states) and old.output_axes == new.output_axes
    assert set(old.calibration.thresholds) == set(new.calibration.thresholds)


@pytest.mark.parametrize("form", FORMS)
def test_files_of_version_1_are_verified_and_run(form: str) -> None:
    old = VERSION_1 / f"{form}.onnx"
    result = snncompiler.verify(NETWORK, old, data=X[:6])
    assert result.passed, result
    if form == "step":
        assert Stream(old).step(X[:6])["y"].shape == (6, 3)
    else:
        (values,) = create_session(old, threads=1).run(None, {"x": X[:6]})
        assert values.shape == (6, 3) and np.isfinite(values).all()


def test_a_file_of_a_later_version_is_refused() -> None:
    model = onnx.load(NETWORK)
    made = snncompiler.compile(model, calibration=X, steps=3)
    tell(made, metadata_version="3")
    with pytest.raises(Refused, match="metadata of version 3 this one does not know"):
        read_compiled(made)


@pytest.mark.parametrize(
    "values",
    [{"unroll": "twice"}, {"steps": "many"}, {"seed": None}, {"readout": "ramp:9"}],
    ids=str,
)
def test_damaged_options_are_refused(values: dict[str, Any]) -> None:
    made = snncompiler.compile(NETWORK, calibration=X, steps=3)
    tell(made, **values)
    with pytest.raises(Refused, match="is damaged") as caught:
        read_compiled(made)
    assert caught.value.findings[0].code == "SNNC401"


def test_an_option_that_is_not_known_is_refused() -> None:
    made = snncompiler.compile(NETWORK, calibration=X, steps=3)
    options = json.loads(told(made)["options"])
    onnx.helper.set_model_props(
        made,
        {**{e.key: e.value for e in made.metadata_props},
         "snnc.options": json.dumps({**options, "leak": 0.5})},
    )  # fmt: skip
    with pytest.raises(Refused, match="'leak'"):
        read_compiled(made)


def test_the_same_options_give_the_same_text() -> None:
    network = parse("g (float[N,2] x) => (float[N,2] y) { y = Relu (x) }")
    texts = {
        told(snncompiler.compile(network, calibration=X[:, :2], readout=readout, steps=3))[
            "options"
        ]
        for readout in ("ramp", "ramp:1")
    }
    assert len(texts) == 1
