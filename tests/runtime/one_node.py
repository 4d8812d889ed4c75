"""Models of one operator of `ai.snnc`, run natively and by their function body."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snncompiler.ir import dialect
from snncompiler.runtime import create_session

Array = NDArray[Any]
Attributes = tuple[tuple[str, Any], ...]

ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def one_node(
    name: str, dtype: str = "float32", attributes: Attributes = (), shape: Any = None
) -> onnx.ModelProto:
    """A model of one node of any rank (or of `shape`), with its function body."""
    operator = dialect.ALL_OPERATORS[name]
    opset = dialect.BASE_OPSET

    def values(ports: tuple[dialect.Port, ...]) -> list[onnx.ValueInfoProto]:
        types = {"T": ONNX_TYPES[dtype], "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(p.name, types[p.type], shape) for p in ports]

    inputs, outputs = values(operator.inputs), values(operator.outputs)
    if shape is not None:
        for index, port in enumerate(operator.inputs):
            if port.type == "int64":
                inputs[index] = helper.make_tensor_value_info(port.name, TensorProto.INT64, [])
    node = helper.make_node(
        name,
        [p.name for p in operator.inputs],
        [p.name for p in operator.outputs],
        name=f"my_{name}",
        domain=dialect.DOMAIN,
        **dict(attributes),
    )
    return helper.make_model(
        helper.make_graph([node], "one_node", inputs, outputs),
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
        ],
        ir_version=dialect.MAX_IR_VERSION,
        functions=dialect.functions([name], opset),
    )


@lru_cache(maxsize=64)
def session(
    name: str,
    dtype: str = "float32",
    attributes: Attributes = (),
    native: bool = True,
    threads: int = 1,
    device: Any = "cpu",
) -> Any:
    model = one_node(name, dtype, attributes)
    return create_session(model, device=device, threads=threads, native=native)


def run(
    name: str,
    feeds: Mapping[str, Any],
    *,
    attributes: Mapping[str, Any] | None = None,
    native: bool = True,
    threads: int = 1,
    device: str = "cpu",
) -> list[Array]:
    """The outputs of one node; the type of the first input is the type `T`."""
    if name in dialect.NEURONS:
        attributes = {"static_current": 0, **(attributes or {})}
    if name == "LayeredRMPNeuron":
        attributes = {"radix": 0, **(attributes or {})}
    arrays = {key: np.asarray(value) for key, value in feeds.items()}
    dtype = str(next(iter(arrays.values())).dtype)
    frozen = tuple(
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in sorted((attributes or {}).items())
    )
    result: list[Array] = session(name, dtype, frozen, native, threads, device).run(None, arrays)
    return result


def assert_same_bits(got: list[Array], wanted: list[Array], what: object = "") -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype, (what, one.dtype, other.dtype)
        assert one.shape == other.shape, (what, one.shape, other.shape)
        assert one.tobytes() == other.tobytes(), what
