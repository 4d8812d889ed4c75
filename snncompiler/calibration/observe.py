"""From what the ANN's rectifiers do on data to one threshold per neuron or channel.

`observe` runs the ANN once and streams its activations into histograms; `calibrate` turns them into
thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.histogram import Histogram
from snncompiler.calibration.thresholds import STRATEGIES
from snncompiler.errors import Refused, refuse
from snncompiler.findings import Finding
from snncompiler.ir.graph import Graph, Node, label, producer, value, with_outputs
from snncompiler.ir.rectifiers import (
    rectified_channels,
    rectified_input,
    rectifier,
    rectifiers_of,
    values_of,
)
from snncompiler.ir.settings import Options
from snncompiler.runtime.session import LARGE_GRAPH, create_session

Feeds = Mapping[str, NDArray[Any]]


#: Activations of one batch that are held at once, in bytes.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Observation:
    """What the rectifiers of an ANN did: layer name -> histogram of its outputs.

    largest: input name -> max |x|.
    """

    histograms: Mapping[str, Histogram]
    samples: int
    largest: Mapping[str, float] = field(default_factory=dict)


class Observer:
    """Runs a normalized ANN, batch by batch, and gathers histograms of what its rectifiers send.

    fixed: the fixed batch of a network that takes no other.
    """

    def __init__(self, model: onnx.ModelProto, graph: Graph, fixed: int | None) -> None:
        self.nodes = rectifiers_of(graph)
        self._outputs = [node.outputs[0].name for node in self.nodes]
        self._session = create_session(
            with_outputs(model, self._outputs), optimize=len(model.graph.node) <= LARGE_GRAPH
        )
        self.histograms = {node.name: Histogram(rectified_channels(node)) for node in self.nodes}
        self.largest: dict[str, float] = {}
        self.samples = 0
        #: Samples that run at once: few enough that their activations can be held.
        self.size = fixed or max(
            1, min(32, _BATCH_BYTES // max(4 * sum(values_of(node) for node in self.nodes), 1))
        )

    def add(self, feeds: Feeds) -> None:
        """Add a batch.  Raises Refused where an activation is not finite."""
        for node, activations in zip(
            self.nodes, self._session.run(self._outputs, dict(feeds)), strict=True
        ):
            try:
                self.histograms[node.name].add(np.asarray(activations, np.float32))
            except ValueError as error:
                raise refuse(
                    "SNNC303",
                    f"on the calibration data {error}",
                    node=label(node),
                    hint="is the data scaled as the network expects it?",
                ) from None
        self.samples += len(next(iter(feeds.values())))
        self.see(feeds)

    def see(self, feeds: Feeds) -> None:
        """Take the largest |x| of inputs into account."""
        for name, array in feeds.items():
            found = float(np.abs(array).max(initial=0))
            self.largest[name] = max(found, self.largest.get(name, 0.0))

    @property
    def result(self) -> Observation:
        return Observation(self.histograms, self.samples, self.largest)


def too_few(batch: int) -> Refused:
    return refuse("SNNC303", f"the network takes {batch} samples at once, the data has fewer")


def observe(
    model: onnx.ModelProto,
    graph: Graph,
    feeds: Feeds,
    *,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Observation:
    """Run the normalized ANN on `feeds` (input name -> [n, ...]) and gather histograms.

    Activations are never held for more than one batch.  `batch` is the fixed batch of a network that
    takes no other; samples that do not fill it are left out.
    """
    observer = Observer(model, graph, batch)
    samples = len(next(iter(feeds.values())))
    if batch is not None:
        samples -= samples % batch
        if not samples:
            raise too_few(batch)
    for start in range(0, samples, observer.size):
        observer.add({n: array[start : start + observer.size] for n, array in feeds.items()})
        if progress:
            progress(min(start + observer.size, samples), samples)
    observer.see(feeds)
    return observer.result


def calibrate(
    observation: Observation,
    nodes: Sequence[Node],
    options: Options,
) -> tuple[dict[str, NDArray[np.float32]], list[Finding]]:
    """Thresholds of every rectifier from an observation, and what there is to say about them.

    By `options.threshold`, one of `thresholds.STRATEGIES`; per channel or per layer; then times α (the
    paper's scale).  A channel that never fires takes the layer's threshold.  A rectifier with an upper
    bound (ReLU6) never gets a larger θ.
    """
    strategy = STRATEGIES[options.threshold]
    thresholds: dict[str, NDArray[np.float32]] = {}
    findings: list[Finding] = []
    for node in nodes:
        histogram = observation.histograms[node.name]
        pooled = histogram.pooled()
        layer = strategy(pooled, options)
        theta = strategy(histogram, options) if options.per_channel else layer
        if float(layer[0]) <= 0.0:
            layer = pooled.maximum
        if float(layer[0]) <= 0.0:
            limit = limit_of(node)
            findings.append(_never_met(node) if limit else _never_fires(node))
            layer = np.full(1, limit or 1, np.float32)
        theta = np.where(theta > 0, theta, layer)
        thresholds[node.name] = bounded(node, theta * np.float32(options.alpha))
    return thresholds, findings


def limit_of(node: Node) -> float:
    """The size of the constant c where the node is relu(x - c) or relu(c - x); 0 for any other.

    Such a neuron stems from a limit, Min(x, c) = x - relu(x - c), and is silent below it.
    """
    source = producer(node.inputs[rectified_input(node)])
    arrays = [value(tensor) for tensor in source.inputs] if source and source.op == "Sub" else []
    found = [float(np.abs(array).max(initial=0.0)) for array in arrays if array is not None]
    return found[0] if len(found) == 1 else 0.0


def _never_met(node: Node) -> Finding:
    return Finding(
        "SNNC305",
        "its limit is never met on the calibration data, so that it never fires; its threshold is "
        "set to the limit",
        severity="note",
        node=label(node),
    )


def _never_fires(node: Node) -> Finding:
    return Finding(
        "SNNC305",
        "it never fires on the calibration data; its threshold is set to 1",
        severity="warning",
        node=label(node),
        hint="calibrate with other or more data",
    )


def bounded(node: Node, theta: NDArray[np.float32]) -> NDArray[np.float32]:
    """θ within the upper bound of its rectifier, which only a neuron that saturates there keeps, and
    positive; every way of finding thresholds ends here."""
    found = rectifier(node)
    cap = None if found is None else found.cap
    bounded = theta if cap is None else np.minimum(theta, np.float32(cap))
    return np.maximum(bounded, np.finfo(np.float32).tiny).astype(np.float32)
