"""Calibration: from what the ANN's rectifiers do on real data to one threshold per neuron or channel.

Calibration is a value.  `observe` runs the ANN once and streams its activations into histograms;
`calibrate` turns them into a `Calibration`, which holds the thresholds and where they came from, can
be saved and reused, and is written into the emitted file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.diagnostics import Finding
from snncompiler.errors import refuse
from snncompiler.graph import Graph, Node, label
from snncompiler.operators import rectified_input, rectifier
from snncompiler.passes.base import Context, Moments
from snncompiler.runtime.session import create_session

Method = Literal["max", "percentile"]
Feeds = Mapping[str, NDArray[Any]]

#: Histogram bins per channel.  The range is a power of two above the maximum, so that a bin is at
#: most 1/1024 of the maximum wide: an error of 0.1 % in θ, far below what moves an accuracy.
BINS = 2048

#: onnxruntime's optimizer takes longer than the calibration itself on graphs of more nodes.
LARGE_GRAPH = 4000

#: Activations of one batch that are held at once, in bytes.
_BATCH_BYTES = 256 << 20


@dataclass
class Histogram:
    """Streaming histogram of the non-negative activations of every channel of one layer.

    The range [0, 2^exponent) grows by doubling, merging bins in pairs.  Bin edges depend on the final
    range alone, so the result does not depend on the order or the batches of the data.
    """

    channels: int
    exponent: int | None = None
    counts: NDArray[np.int64] = field(init=False)
    #: Values per channel, zeros included.
    total: int = 0
    maximum: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.channels, BINS), np.int64)
        self.maximum = np.zeros(self.channels, np.float32)

    def add(self, activations: NDArray[np.float32]) -> None:
        """Add activations [N, C, ...] (or [N] of one channel)."""
        by_channel = activations.reshape(activations.shape[0], self.channels, -1)
        rows = np.moveaxis(by_channel, 1, 0).reshape(self.channels, -1)
        self.total += rows.shape[1]
        top = rows.max(axis=1, initial=0.0)
        self.maximum = np.maximum(self.maximum, top)
        peak = float(top.max(initial=0.0))
        if not np.isfinite(peak) or np.isnan(rows).any():
            raise ValueError("an activation is infinite or not a number")
        if peak <= 0.0:
            return
        # peak < 2^exponent strictly.
        self._widen(int(np.frexp(peak)[1]))
        assert self.exponent is not None
        channel, place = np.nonzero(rows > 0)
        # By powers of two, which is exact and does not overflow.
        shift = BINS.bit_length() - 1 - self.exponent
        bins = np.ldexp(rows[channel, place].astype(np.float64), shift).astype(np.int64)
        np.minimum(bins, BINS - 1, out=bins)
        flat = np.bincount(channel * BINS + bins, minlength=self.channels * BINS)
        self.counts += flat.reshape(self.channels, BINS)

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(self.channels, BINS // 2, 2).sum(axis=2)
            self.counts = np.concatenate([merged, np.zeros_like(merged)], axis=1)
            self.exponent += 1

    def pooled(self) -> Histogram:
        """The histogram of the whole layer as one channel."""
        one = Histogram(1, self.exponent)
        one.counts = self.counts.sum(axis=0, keepdims=True)
        one.total = self.total * self.channels
        one.maximum = self.maximum.max(keepdims=True, initial=0.0)
        return one

    def percentile(self, percent: float) -> NDArray[np.float32]:
        """The activation below which `percent` of all values (zeros included) lie, per channel.

        Linear within a bin; never above the maximum; 0 where so many values are 0.
        """
        if self.exponent is None:
            return np.zeros(self.channels, np.float32)
        width = 2.0**self.exponent / BINS
        # How many of the largest values lie above it.
        above = self.total * (1.0 - percent / 100.0)
        tail = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]
        result = np.zeros(self.channels, np.float64)
        for channel in range(self.channels):
            # The last bin with more than `above` values at or beyond its lower edge.
            reached = np.nonzero(tail[channel] > above)[0]
            if reached.size:
                at = int(reached[-1])
                beyond = tail[channel, at] - self.counts[channel, at]
                inside = (above - beyond) / self.counts[channel, at]
                result[channel] = (at + 1 - inside) * width
        return np.minimum(result, self.maximum).astype(np.float32)


@dataclass(frozen=True)
class Observation:
    """What the rectifiers of an ANN did: layer name -> histogram of its outputs."""

    histograms: Mapping[str, Histogram]
    samples: int


@dataclass(frozen=True)
class Calibration:
    """Thresholds and where they came from.

    `thresholds`: layer name -> θ, [C] or [1], float32, finite and positive.  `source` is "data",
    "batch-norm" or "synthetic"; `data_sha256` is of the calibration arrays.
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

    def to_json(self) -> str:
        """As JSON; float32 values are written so that they are read back exactly."""
        content = {**self.__dict__, "thresholds": {}}
        for name, theta in self.thresholds.items():
            content["thresholds"][name] = [float(str(value)) for value in theta]
        return json.dumps(content, ensure_ascii=True)

    @staticmethod
    def from_json(text: str) -> Calibration:
        """The calibration that `to_json` wrote.  Raises Refused where the text is none."""
        try:
            content = json.loads(text)
            content["thresholds"] = {
                name: np.array(theta, np.float32) for name, theta in content["thresholds"].items()
            }
            return Calibration(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise refuse("SNNC401", f"the calibration cannot be read: {error}") from None


def rectifiers_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if rectifier(node) is not None]


def channels_of(node: Node) -> int:
    """Channels (axis 1) of a rectifier's output; 1 where there is no such axis or it is unknown."""
    shape = node.outputs[0].shape
    return int(shape[1]) if shape and len(shape) > 1 and isinstance(shape[1], int) else 1


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` that also returns the named tensors (all float)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    return copy


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
    histograms = {node.name: Histogram(channels_of(node)) for node in nodes}
    samples = len(next(iter(feeds.values())))
    if batch is not None:
        samples -= samples % batch
        if not samples:
            raise refuse(
                "SNNC303", f"the network takes {batch} samples at once, the data has fewer"
            )
    size = batch or max(1, min(32, _BATCH_BYTES // _activation_bytes(nodes)))
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


def _activation_bytes(nodes: Sequence[Node]) -> int:
    """Bytes of all rectifier outputs for one sample; unknown sizes count as 64."""
    total = 0
    for node in nodes:
        shape = node.outputs[0].shape or []
        total += 4 * int(np.prod([d if isinstance(d, int) else 64 for d in shape[1:]]))
    return max(total, 1)


def calibrate(
    observation: Observation,
    nodes: Sequence[Node],
    *,
    method: Method,
    percentile: float,
    per_channel: bool,
    alpha: float,
) -> tuple[dict[str, NDArray[np.float32]], list[Finding]]:
    """Thresholds of every rectifier from an observation, and what there is to say about them.

    `max` takes the largest activation, `percentile` the given percentile of all activations, zeros
    included; per channel or per layer; then times α (the paper's scale).  A channel that never fires
    takes the layer's threshold.  A rectifier with an upper bound (ReLU6) never gets a larger θ.
    """
    thresholds: dict[str, NDArray[np.float32]] = {}
    findings: list[Finding] = []
    for node in nodes:
        histogram = observation.histograms[node.name]
        layer = _threshold(histogram.pooled(), method, percentile)
        theta = _threshold(histogram, method, percentile) if per_channel else layer
        if float(layer[0]) <= 0.0:
            layer = histogram.maximum.max(keepdims=True, initial=0.0)
        if float(layer[0]) <= 0.0:
            findings.append(
                Finding(
                    "SNNC305",
                    "it never fires on the calibration data; its threshold is set to 1",
                    severity="warning",
                    node=label(node),
                    hint="calibrate with other or more data",
                )
            )
            layer = np.ones(1, np.float32)
        theta = np.where(theta > 0, theta, layer)
        thresholds[node.name] = _bounded(node, theta * np.float32(alpha))
    return thresholds, findings


def _threshold(histogram: Histogram, method: Method, percentile: float) -> NDArray[np.float32]:
    return histogram.maximum if method == "max" else histogram.percentile(percentile)


def _bounded(node: Node, theta: NDArray[np.float32]) -> NDArray[np.float32]:
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
    method: Method,
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

    if method == "max":
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
            thresholds[node.name] = _bounded(node, np.float32(alpha) * theta.astype(np.float32))
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
