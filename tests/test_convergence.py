"""The SNN converges to the ANN as 1/T, on random networks (`random_networks.py` has the bound)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers import Array, parse, random
from hypothesis import HealthCheck, given, settings
from random_networks import (
    PLAIN,
    STEPS,
    Network,
    check,
    check_layers,
    networks,
    spike_counts,
)

from snncompiler import pipeline
from snncompiler.ir.settings import Options
from snncompiler.passes.lower.events import currents, layers, signals
from snncompiler.runtime import library_path

#: Networks of the default suite and of the slow test; `make fuzz` draws thousands.
FEW, GRAPHS = 60, 160
#: The share of neurons whose spike counts may differ between `fold` and `loop`: a current within a
#: rounding of θ moves a spike.
MOVED = 2e-3


@dataclass
class Tally:
    """What the graphs had in common."""

    graphs: int = 0
    used: Counter[str] = field(default_factory=Counter)
    errors: dict[int, list[float]] = field(default_factory=lambda: {steps: [] for steps in STEPS})
    #: The error over the bound.
    tightness: list[float] = field(default_factory=list)
    #: Networks with sizes left open; layers, and those that run by events.
    freed: int = 0
    layers: int = 0
    by_events: int = 0
    moved: int = 0
    neurons: int = 0


TALLY = Tally()


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(network=networks())
def test_random_networks_of_layered_time_keep_the_bound(network: Network) -> None:
    check_layers(network, ("dense",))


@settings(max_examples=FEW, suppress_health_check=list(HealthCheck))
@given(network=networks())
def test_random_networks_converge_within_the_bound(network: Network) -> None:
    check(network)


@settings(max_examples=GRAPHS, suppress_health_check=list(HealthCheck))
@given(network=networks())
def tallied(network: Network) -> None:
    checked = check(network)
    for steps, error in checked.errors.items():
        TALLY.errors[steps].append(error)
    if checked.tightness is not None:
        TALLY.tightness.append(checked.tightness)
    TALLY.layers += checked.layers
    TALLY.by_events += checked.by_events
    TALLY.freed += checked.freed

    TALLY.graphs += 1
    TALLY.used += network.used
    if TALLY.graphs % 3:
        return
    prepared, calibration = checked.compiled
    options = {**PLAIN, "per_channel": network.options["per_channel"], "steps": STEPS[0]}
    counts = [
        spike_counts(
            pipeline.emit(prepared, calibration, Options(**options, unroll=unroll)),
            network.x,
            STEPS[0],
        )
        for unroll in ("fold", "loop")
    ]
    TALLY.moved += int((counts[0] != counts[1]).sum())
    TALLY.neurons += counts[0].size


@pytest.mark.slow
def test_many_networks_together() -> None:
    """Errors fall as 1/T, `fold` is `loop`, and every operator was drawn."""
    tallied()
    medians = {steps: float(np.median(errors)) for steps, errors in TALLY.errors.items()}
    print(f"{TALLY.graphs} graphs, median of the largest relative errors {medians}")
    print(f"error over bound at T = 16: median {np.median(TALLY.tightness):.3f}, ")
    print(f"largest {max(TALLY.tightness):.3f}; {TALLY.moved} of {TALLY.neurons} counts differ")
    print(dict(TALLY.used))
    print(f"{TALLY.freed} with open sizes, {TALLY.by_events} of {TALLY.layers} layers by events")
    assert TALLY.graphs >= GRAPHS - 10 and TALLY.freed >= 15
    if library_path() is not None:
        # Both kinds: what is lowered, and what is not proved.
        assert TALLY.layers / 8 < TALLY.by_events < TALLY.layers
    # Four times the steps: a quarter of the error, or at least less than half.
    assert medians[64] < medians[16] / 2 and medians[256] < medians[64] / 2
    # The bound is not empty: some network comes within a factor of ten of it.
    assert max(TALLY.tightness) > 0.1
    assert TALLY.moved <= MOVED * TALLY.neurons
    # Each has a test of its own in test_operator_table.py; a draw may miss a few.
    missing = EVERY - set(TALLY.used)
    assert len(missing) <= 4, missing


#: All that the generator can write.
EVERY = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv",
    "ConvTranspose", "DepthToSpace", "Div", "Expand", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "Identity", "LeakyRelu", "MatMul", "Max",
    "MaxPool", "Mean", "Min", "Mul", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean", "ReduceSum",
    "Relu", "Reshape", "Resize", "Slice", "Softmax", "SpaceToDepth", "Split", "Sub", "Sum",
    "ThresholdedRelu", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


#: A constant along the width, of as many values as there are channels.
ALONG_THE_WIDTH = """g (float[N,4,4,4] x) => (float[N,4,4,4] y)
{
  c = Conv <pads = [1, 1, 1, 1]> (x, a)  r = Relu (c)  d = Conv (r, b)  e = Add (d, w)  y = Relu (e)
}"""


@pytest.mark.skipif(library_path() is None, reason="the native library is not built")
def test_a_wrong_lowering_leaves_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {
        "a": random(1, 4, 4, 3, 3) / 5,
        "b": random(2, 4, 4, 1, 1) / 2,
        "w": np.array([-2, -1, 1, 2], np.float32),
    }
    options = {"unroll": "fold", "per_channel": True}
    network = Network(
        parse(ALONG_THE_WIDTH, weights), random(3, 4, 4, 4, 4), Counter(), None, options
    )
    assert check(network).by_events == 1

    def by_size(values: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(values.reshape(-1), shape[1])

    for module in (signals, currents, layers):
        monkeypatch.setattr(module, "per_channel", by_size)
    with pytest.raises(AssertionError, match="events, T ="):
        check(network)
