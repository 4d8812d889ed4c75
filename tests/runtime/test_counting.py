"""TimeSteps: the kernel, the body and numpy give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import create_session, reference

OPERATOR = dialect.COUNTING_OPERATORS["TimeSteps"]
KINDS = {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def one_node() -> onnx.ModelProto:
    inputs, outputs = (
        [helper.make_tensor_value_info(port.name, KINDS[port.type], []) for port in ports]
        for ports in (OPERATOR.inputs, OPERATOR.outputs)
    )
    names = [[port.name for port in ports] for ports in (OPERATOR.inputs, OPERATOR.outputs)]
    node = helper.make_node("TimeSteps", *names, name="counter", domain=dialect.DOMAIN)
    return helper.make_model(
        helper.make_graph([node], "one_node", inputs, outputs),
        opset_imports=[
            helper.make_opsetid("", dialect.BASE_OPSET),
            helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
        ],
        ir_version=dialect.MAX_IR_VERSION,
        functions=dialect.functions(["TimeSteps"], dialect.BASE_OPSET),
    )


def feeds(iteration: int, done: int, total: int, chunk: int) -> dict[str, Any]:
    values = {"iteration": iteration, "done": done, "total": total, "chunk": chunk}
    return {name: np.array(value, np.int64) for name, value in values.items()}


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("native", [False, True], ids=["body", "kernel"])
def test_every_trip_of_a_loop(native: bool) -> None:
    session = create_session(one_node(), native=native)
    trips = 0
    for total, chunk, done in (
        (1, 1, 0),
        (7, 3, 0),
        (8, 4, 0),
        (5, 9, 0),
        (9, 2, 4),
        (2**62, 2**62, 0),
    ):
        seen, going, iteration = done, True, 0
        while going:
            given = (iteration, done, total, chunk)
            found = session.run(None, feeds(*given))
            assert tuple(value.item() for value in found) == reference.time_steps(*given)
            assert [value.dtype for value in found] == [np.int64] * 3 + [np.bool_]
            assert found[0] == seen and 1 <= found[1] <= chunk
            seen, going = int(found[2]), bool(found[3])
            iteration += 1
            trips += 1
        assert seen == total
    assert trips == 1 + 3 + 2 + 1 + 3 + 1


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((-1, 0, 4, 2), "`iteration` must be at least 0, not -1"),
        ((0, -1, 4, 2), "`done` must be at least 0, not -1"),
        ((0, 0, 0, 2), "`total` must be at least 1, not 0"),
        ((0, 0, 4, 0), "`chunk` must be at least 1, not 0"),
        ((4, 0, 4, 2**62), "4 times 4611686018427387904 is more than 64 bits hold"),
        ((1, 2**62, 4, 2**62), "plus 4611686018427387904 is more than 64 bits hold"),
    ],
)
def test_wrong_numbers_are_refused_by_name(given: tuple[int, ...], message: str) -> None:
    with pytest.raises(Exception, match="TimeSteps 'counter': ") as raised:
        create_session(one_node(), native=True).run(None, feeds(*given))
    assert message in str(raised.value)


def test_a_body_ends_at_a_node_that_says_what_is_wrong() -> None:
    session = create_session(one_node(), native=False)
    for given, name in (((0, 0, 0, 2), "total"), ((0, 0, 4, -3), "chunk")):
        with pytest.raises(Exception, match=f"{name}_must_be_at_least_1"):
            session.run(None, feeds(*given))


def test_one_node_alone_reads_each_number() -> None:
    """What an overridable initializer needs on CUDA."""
    body = dialect.function("TimeSteps", dialect.BASE_OPSET)
    read = [name for node in body.node for name in node.input]
    assert {name: read.count(name) for name in body.input} == dict.fromkeys(body.input, 1)
