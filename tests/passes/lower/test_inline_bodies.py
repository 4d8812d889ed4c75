"""Operators by counts as standard ones: the same bits, and nothing that a device has no kernels of."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random

import snncompiler
from snncompiler import models
from snncompiler.ir import dialect
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.inline_bodies import BY_COUNTS, inline_bodies
from snncompiler.runtime import create_session

X = random(1, 16, 1, 8, 8)


@pytest.mark.parametrize("name", ["digits-resnet", "digits-cnn"])
def test_the_bodies_in_their_place_give_the_same_bits(name: str) -> None:
    spiking = snncompiler.compile(
        models.path(name), calibration=X, timing="layered", weights="int8", steps=4
    )
    collapsed = collapse_time(spiking).model
    assert {node.op_type for node in collapsed.graph.node} & set(BY_COUNTS)
    before = collapsed.SerializeToString()
    inlined = inline_bodies(collapsed)
    assert collapsed.SerializeToString() == before
    assert not [node for node in inlined.graph.node if node.domain == dialect.DOMAIN]
    found, wanted = (
        create_session(model, events=False, native=native).run(None, {"input": X[:3]})
        for model, native in ((inlined, False), (spiking, "auto"))
    )
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
