"""Calibration: from what the ANN's rectifiers do on real data to one threshold per neuron or channel.

Calibration is a value.  `observe` runs the ANN once and streams its activations into histograms;
`calibrate` turns them into a `Calibration`, which holds the thresholds and where they came from, can
be saved and reused, and is written into the emitted file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.diagnostics import Finding
from snncompiler.errors import refuse
from snncompiler.graph import Graph, Node, label, producer, value, with_outputs
from snncompiler.growth import NONE, Growth
from snncompiler.histogram import Histogram
from snncompiler.operators import rectified_channels, rectified_input, rectifier
from snncompiler.passes.base import Context, Moments
from snncompiler.runtime.session import create_session
from snncompiler.thresholds import STRATEGIES, Settings

Feeds = Mapping[str, NDArray[Any]]

#: onnxruntime's optimizer takes longer than the calibration itself on graphs of more nodes.
LARGE_GRAPH = 4000

#: Activations of one batch that are held at once, in bytes.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Observation:
    """What the rectifiers of an ANN did: layer name -> histogram of its outputs."""

    histograms: Mapping[str, Histogram]
    samples: int


@dataclass(frozen=True)
class Calibration:
    """Thresholds, corrections and where they came from.

    thresholds: layer name -> θ, [C] or [1], float32, finite and positive.  method, percentile, tau,
    alpha: how θ was found.  schedules: layer name -> charge b [S, C] for each of the first steps, the
    last row for all later ones; empty without a correction.  growth: how θ grew to be what it is
    (`Growth`, as text); schedules are those for it.  neuron, initial, reset, schedule_steps: of the
    running network on which charges, and thresholds by `vin-max`, were found.  input_scales: input
    name -> max |x|, for Poisson input.  maxpool: how the network pools.  source is "data", "batch-norm"
    or "synthetic"; data_sha256 is of the calibration arrays.
    """

    thresholds: Mapping[str, NDArray[np.float32]]
    method: str
    percentile: float
    per_channel: bool
    alpha: float
    source: str
    samples: int
    seed: int
    model_sha256: str
    data_sha256: str = ""
    tau: float = 500.0
    correction: str = "none"
    schedules: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    growth: str = NONE
    neuron: str = "binary"
    initial: float = 0.5
    reset: str = "soft"
    schedule_steps: int = 32
    input_scales: Mapping[str, float] = field(default_factory=dict)
    maxpool: str = "exact"

    def to_json(self) -> str:
        """As JSON; float32 values are written so that they are read back exactly.

        Schedules, of which there are many, as base64 of little-endian float32, with their shape.
        """
        content = {**self.__dict__, "thresholds": {}, "schedules": {}}
        if self.maxpool == "exact":
            del content["maxpool"]  # as calibrations before had it
        for name, theta in self.thresholds.items():
            content["thresholds"][name] = [float(str(value)) for value in theta]
        for name, charges in self.schedules.items():
            raw = base64.b64encode(charges.astype("<f4").tobytes()).decode()
            content["schedules"][name] = {"shape": list(charges.shape), "float32": raw}
        return json.dumps(content, ensure_ascii=True)

    @staticmethod
    def from_json(text: str) -> Calibration:
        """The calibration that `to_json` wrote.  Raises Refused where the text is none."""
        try:
            content = json.loads(text)
            content["thresholds"] = {
                name: np.array(theta, np.float32) for name, theta in content["thresholds"].items()
            }
            content["schedules"] = {
                name: np.frombuffer(base64.b64decode(entry["float32"]), "<f4")
                .reshape(entry["shape"])
                .astype(np.float32)
                for name, entry in content.get("schedules", {}).items()
            }
            Growth.parse(content.get("growth", NONE))
            return Calibration(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise refuse("SNNC401", f"the calibration cannot be read: {error}") from None


def rectifiers_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if rectifier(node) is not None]


def depth_of(graph: Graph) -> int:
    """The most rectifiers on a way from the input to an output."""
    depths: dict[int, int] = {}
    for node in graph.nodes:
        before = max((depths.get(id(tensor), 0) for tensor in node.inputs), default=0)
        for tensor in node.outputs:
            depths[id(tensor)] = before + (rectifier(node) is not None)
    return max((depths.get(id(tensor), 0) for tensor in graph.outputs), default=0)


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
    nodes = rectifiers_of(graph)
    outputs = [node.outputs[0].name for node in nodes]
    session = create_session(
        with_outputs(model, outputs), optimize=len(model.graph.node) <= LARGE_GRAPH
    )
    histograms = {node.name: Histogram(rectified_channels(node)) for node in nodes}
    samples = len(next(iter(feeds.values())))
    if batch is not None:
        samples -= samples % batch
        if not samples:
            raise refuse(
                "SNNC303", f"the network takes {batch} samples at once, the data has fewer"
            )
    size = batch or max(
        1, min(32, _BATCH_BYTES // max(4 * sum(values_of(node) for node in nodes), 1))
    )
    for start in range(0, samples, size):
        part = {name: array[start : start + size] for name, array in feeds.items()}
        for node, activations in zip(nodes, session.run(outputs, part), strict=True):
            try:
                histograms[node.name].add(np.asarray(activations, np.float32))
            except ValueError as error:
                raise refuse(
                    "SNNC303",
                    f"on the calibration data {error}",
                    node=label(node),
                    hint="is the data scaled as the network expects it?",
                ) from None
        if progress:
            progress(min(start + size, samples), samples)
    return Observation(histograms, samples)


def values_of(node: Node) -> int:
    """Values of a rectifier's output for one sample; unknown sizes count as 64."""
    shape = node.outputs[0].shape or []
    return int(np.prod([d if isinstance(d, int) else 64 for d in shape[1:]], dtype=np.int64))


def calibrate(
    observation: Observation,
    nodes: Sequence[Node],
    *,
    method: str,
    settings: Settings,
    per_channel: bool,
    alpha: float,
) -> tuple[dict[str, NDArray[np.float32]], list[Finding]]:
    """Thresholds of every rectifier from an observation, and what there is to say about them.

    `method` names one of `thresholds.STRATEGIES`; per channel or per layer; then times α (the paper's
    scale).  A channel that never fires takes the layer's threshold.  A rectifier with an upper bound
    (ReLU6) never gets a larger θ.
    """
    strategy = STRATEGIES[method]
    thresholds: dict[str, NDArray[np.float32]] = {}
    findings: list[Finding] = []
    for node in nodes:
        histogram = observation.histograms[node.name]
        pooled = histogram.pooled()
        layer = strategy(pooled, settings)
        theta = strategy(histogram, settings) if per_channel else layer
        if float(layer[0]) <= 0.0:
            layer = pooled.maximum
        if float(layer[0]) <= 0.0:
            limit = limit_of(node)
            findings.append(_never_met(node) if limit else _never_fires(node))
            layer = np.full(1, limit or 1, np.float32)
        theta = np.where(theta > 0, theta, layer)
        thresholds[node.name] = bounded(node, theta * np.float32(alpha))
    return thresholds, findings


def limit_of(node: Node) -> float:
    """The size of the constant c where the node is relu(x - c) or relu(c - x); 0 for any other.

    Such a neuron is what is left of a limit, Min(x, c) = x - relu(x - c): it is to be silent.
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


# --- without data ---

#: Standard deviations above the mean that stand for the percentile, and for the maximum of about
#: 30 000 values, of a Gaussian.
_GAUSSIAN_MAX = 4.0


def gaussian_thresholds(
    graph: Graph,
    context: Context,
    *,
    method: str,
    percentile: float,
    per_channel: bool,
    alpha: float,
) -> dict[str, NDArray[np.float32]]:
    """Thresholds from batch-norm statistics alone, for the rectifiers whose input they describe.

    A batch-norm's output has mean β and standard deviation |γ| per channel.  Means and variances are
    followed through Add (as if independent) and Relu; a rectifier whose input they do not reach is
    left out.
    """
    # Inverse of the normal distribution function without scipy: Python's own.
    from statistics import NormalDist

    if method != "percentile":
        reach = _GAUSSIAN_MAX
    else:
        reach = min(NormalDist().inv_cdf(min(percentile, 100.0 - 1e-9) / 100.0), _GAUSSIAN_MAX)
    known: dict[str, Moments] = dict(context.moments)
    thresholds: dict[str, NDArray[np.float32]] = {}
    for node in graph.nodes:
        source = [known.get(tensor.name) for tensor in node.inputs]
        result = node.outputs[0].name
        if rectifier(node) is not None:
            moments = source[rectified_input(node)]
            if moments is None:
                continue
            theta = moments[0] + reach * moments[1]
            layer = max(float(theta.max()), 1e-6)
            # A channel that is almost always negative still has a finite, positive threshold.
            theta = np.maximum(theta, 1e-3 * layer) if per_channel else np.array([layer])
            thresholds[node.name] = bounded(node, np.float32(alpha) * theta.astype(np.float32))
            known[result] = _rectified(moments)
        elif result in known:
            continue
        elif node.op == "Add" and all(moments is not None for moments in source):
            (m0, s0), (m1, s1) = source[0], source[1]  # type: ignore[misc]
            if m0.shape == m1.shape:
                known[result] = (m0 + m1, np.sqrt(s0**2 + s1**2))
        elif node.op in ("MaxPool", "Slice", "Pad", "Cast") and source[0] is not None:
            shape = node.outputs[0].shape
            if shape and shape[1] == source[0][0].size:
                known[result] = source[0]
    return thresholds


def _rectified(moments: Moments) -> Moments:
    """Mean and standard deviation of max(x, 0) for x ~ N(m, s²)."""
    from math import erf, exp, pi, sqrt

    mean, deviation = moments
    out_mean, out_deviation = np.empty_like(mean), np.empty_like(mean)
    for index, (m, s) in enumerate(zip(mean, deviation, strict=True)):
        if s == 0:
            out_mean[index], out_deviation[index] = max(m, 0.0), 0.0
            continue
        z = m / s
        density, below = exp(-z * z / 2) / sqrt(2 * pi), (1 + erf(z / sqrt(2))) / 2
        first = m * below + s * density
        second = (m * m + s * s) * below + m * s * density
        out_mean[index] = first
        out_deviation[index] = sqrt(max(second - first * first, 0.0))
    return out_mean, out_deviation
