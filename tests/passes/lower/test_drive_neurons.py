"""drive-neurons: a Drive and the neuron behind it become one operator, with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import compile_text, op_counts, parse, random, run_model
from onnx import helper

from snncompiler.ir import dialect
from snncompiler.passes.lower.drive_neurons import drive_neurons
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import Stream

#: Two layers take the input, one of them before a branch.
TEXT = """g (float[N,4] x) => (float[N,3] y)
{ a = Gemm (x, w1, b)  h = Relu (a)  c = Gemm (x, w2)  k = Relu (c)  s = Add (h, k)
  d = Gemm (s, w3)  y = Relu (d) }"""
NETWORK = parse(
    TEXT, {"w1": random(1, 4, 6), "w2": random(2, 4, 6), "b": random(3, 6), "w3": random(4, 6, 3)}
)
X = random(5, 7, 4)
GROWN = {"correction": "schedule", "growth": "0.25@1,0.5@5,1@9", "steps": 12, "chunk": 5}
FORMS: dict[str, dict[str, Any]] = {
    "fold": {},
    "burst": {"neuron": "burst:3"},
    "signed": {"neuron": "signed:2"},
    "fp16": {"precision": "fp16"},
    "loop": {"unroll": "loop", "chunk": None},
    "steps": {"unroll": "steps", "chunk": None},
    "cuda-graph": {"emit": "cuda-graph", "batch": 7, "chunk": None},
}


def grown(**options: Any) -> onnx.ModelProto:
    given = {key: value for key, value in {**GROWN, **options}.items() if value is not None}
    return compile_text(NETWORK, X, **given)


def driven(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    assert drive_neurons(made)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_neurons_drive_their_currents_with_the_same_bits(form: str) -> None:
    model = grown(**FORMS[form])
    made = driven(model)
    before, after = op_counts(model), op_counts(made)
    assert before["Drive"] and not after["Drive"]
    assert sum(after[name] for name in dialect.DRIVEN_OPERATORS) == before["Drive"]
    known = {function.name for function in made.functions}
    assert {name for name in after if name in dialect.ALL_OPERATORS} <= known
    onnx.checker.check_model(made, full_check=True)
    wanted = run_model(model, x=X)
    assert np.count_nonzero(wanted[0])
    for one, other in zip(run_model(made, x=X), wanted, strict=True):
        assert one.tobytes() == other.tobytes()
    assert not drive_neurons(made)


def test_what_has_no_drive_stays() -> None:
    model = compile_text(NETWORK, X, steps=12)
    before = model.SerializeToString(deterministic=True)
    assert not drive_neurons(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_session_computes_the_others_by_events() -> None:
    """Where no neuron has an event-driven form, and where all have."""
    bursts, singles = grown(neuron="burst:3"), grown()
    assert not lower_events(bursts).changed
    assert drive_neurons(lower_events(bursts).model)
    assert not drive_neurons(lower_events(singles).model)


def test_a_stream_drives_what_changes_with_time() -> None:
    model = grown(emit="step", chunk=None, neuron="signed:2")
    streams = [Stream(model), Stream(driven(model))]
    for step in range(12):
        one, other = (stream.step({"x": random(step, 7, 4)})["y"] for stream in streams)
        assert one.tobytes() == other.tobytes()


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


@pytest.mark.parametrize("change", ["other steps", "an attribute", "a neuron without a schedule"])
def test_what_is_not_such_a_pair_stays(change: str) -> None:
    model = grown()
    drive = next(node for node in body_of(model).node if node.op_type == "Drive")
    reader = next(node for node in body_of(model).node if drive.output[0] in node.input)
    if change == "other steps":
        drive.input[2] = drive.input[3]
    elif change == "an attribute":
        drive.attribute.append(helper.make_attribute("rounded", 1))
    else:
        reader.op_type = "RMPNeuron"
    before = op_counts(model)["Drive"]
    made = driven(model)  # the other pair
    assert op_counts(made)["Drive"] == 1 < before
    assert drive in list(body_of(made).node) and reader in list(body_of(made).node)


def test_a_drive_that_another_node_reads_stays_beside() -> None:
    model = grown()
    drive = next(node for node in body_of(model).node if node.op_type == "Drive")
    body_of(model).node.append(helper.make_node("Identity", [drive.output[0]], ["seen"]))
    made = driven(model)
    assert drive in list(body_of(made).node)
    assert op_counts(made)["DrivenRMPNeuron"] == 2
