"""Plots, with matplotlib where it is installed (`pip install "snnc[plot]"`); no display is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from snncompiler.analysis.trace import LayerTrace, Trace
from snncompiler.emission.save import write_atomically
from snncompiler.errors import EnvironmentMissing, UsageError
from snncompiler.findings import printable

#: File name endings that matplotlib writes without anything else installed.
FORMATS = ("png", "svg", "pdf")
#: Panels in a row, and points that a panel draws at most.
_COLUMNS, _POINTS = 4, 4000


def new_figure(width: float, height: float) -> Any:
    """An empty figure in inches, drawn without a display.  Raises EnvironmentMissing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentMissing(
            f"matplotlib, which draws the plots, is not installed ({error})",
            hint='pip install "snnc[plot]"',
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_plot(path: Path) -> None:
    """Refuse early what `save_figure` cannot write."""
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(
            f"{path} is of no kind that can be plotted", hint=f"one of {', '.join(FORMATS)}"
        )
    new_figure(1, 1)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure atomically, in the format of the file's name."""
    kind = path.suffix.lower().lstrip(".")
    write_atomically(path, lambda file: figure.savefig(file, format=kind, dpi=120))


def plot_trace(trace: Trace, path: Path, raster: str | None = None) -> None:
    """Decoded rate against the ANN's activation of every layer, and the raster of one layer.

    Without activations, the rates are drawn as histograms.  raster: default the last layer.
    """
    layers = trace.layers
    shown = next((layer for layer in layers if layer.layer == raster), layers[-1])
    columns = min(_COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    figure = new_figure(3.2 * max(columns, 2), 2.8 * rows + 3.4)
    above, below = figure.subfigures(2, 1, height_ratios=(2.8 * rows, 3.4))
    for index, layer in enumerate(layers):
        axes = above.add_subplot(rows, columns, index + 1)
        _rate_panel(axes, layer)
    _raster_panel(below.add_subplot(1, 1, 1), shown, trace.steps)
    save_figure(figure, path)


def _title(axes: Any, text: str) -> None:
    """A title as it is: matplotlib reads no mathematics into it."""
    axes.set_title(printable(text), fontsize="small", parse_math=False)


def _rate_panel(axes: Any, layer: LayerTrace) -> None:
    decoded = layer.decoded.reshape(-1)
    _title(axes, layer.layer)
    axes.tick_params(labelsize="x-small")
    if layer.activation is None:
        axes.hist(layer.rate.reshape(-1), bins=32)
        axes.set_xlabel("firing rate", fontsize="x-small")
        axes.set_ylabel("neurons", fontsize="x-small")
        return
    wanted = layer.activation.reshape(-1)
    # Evenly spread over all, the same ones every time.
    places = np.linspace(0, len(wanted) - 1, min(len(wanted), _POINTS)).astype(int)
    axes.plot(wanted[places], decoded[places], ".", markersize=2, alpha=0.5)
    most = float(max(wanted.max(initial=0), decoded.max(initial=0))) or 1.0
    axes.plot([0, most], [0, most], linewidth=0.8, color="gray")
    axes.set_xlabel("activation of the ANN", fontsize="x-small")
    axes.set_ylabel("θ · rate", fontsize="x-small")


def _raster_panel(axes: Any, layer: LayerTrace, steps: int) -> None:
    """The spikes of the first sample: a mark where a neuron fires, one line a neuron."""
    spikes = layer.spikes[:, 0]
    for fired, color in ((spikes > 0, "C0"), (spikes < 0, "C3")):
        when, which = np.nonzero(fired)
        axes.scatter(when + 1, which, s=4, marker="|", color=color)
    _title(axes, f"{layer.layer}: spikes of {spikes.shape[1]} neurons, first sample")
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(-0.5, spikes.shape[1] - 0.5)
    axes.set_xlabel("time-step", fontsize="x-small")
    axes.set_ylabel("neuron", fontsize="x-small")
