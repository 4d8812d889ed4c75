"""Thresholds without data, from batch-norm statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snncompiler.calibration.observe import bounded
from snncompiler.ir.graph import Graph
from snncompiler.ir.operators import record
from snncompiler.ir.rectifiers import rectified_input, rectifier
from snncompiler.ir.settings import Options
from snncompiler.passes.base import Context, Moments

#: Standard deviations above the mean that stand for the percentile, and for the maximum of about
#: 30 000 values, of a Gaussian.
_GAUSSIAN_MAX = 4.0


def gaussian_thresholds(
    graph: Graph,
    context: Context,
    options: Options,
) -> dict[str, NDArray[np.float32]]:
    """Thresholds from batch-norm statistics alone, for the rectifiers whose input they describe.

    A batch-norm's output has mean β and standard deviation |γ| per channel.  Means and variances are
    followed through Add (as if independent) and Relu; a rectifier whose input they do not reach is
    left out.
    """
    # Inverse of the normal distribution function without scipy: Python's own.
    from statistics import NormalDist

    if options.threshold != "percentile":
        reach = _GAUSSIAN_MAX
    else:
        part = min(options.percentile, 100.0 - 1e-9) / 100.0
        reach = min(NormalDist().inv_cdf(part), _GAUSSIAN_MAX)
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
            theta = np.maximum(theta, 1e-3 * layer) if options.per_channel else np.array([layer])
            thresholds[node.name] = bounded(
                node, np.float32(options.alpha) * theta.astype(np.float32)
            )
            known[result] = _rectified(moments)
        elif result in known:
            continue
        elif node.op == "Add" and all(moments is not None for moments in source):
            (m0, s0), (m1, s1) = source[0], source[1]  # type: ignore[misc]
            if m0.shape == m1.shape:
                known[result] = (m0 + m1, np.sqrt(s0**2 + s1**2))
        elif record(node.op).keeps_moments and source[0] is not None:
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
