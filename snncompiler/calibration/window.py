"""The spiking network of a calibration: the graph with neurons, and a window of all its time-steps.

Calibration on the running network needs it before there is anything to emit; emission goes on from the
same graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.record import Calibration
from snncompiler.errors import refuse
from snncompiler.ir import dialect
from snncompiler.ir.graph import Graph, infer_shapes, label
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import Grid
from snncompiler.network.prepared import Prepared
from snncompiler.passes.base import Pass, Units, run_passes
from snncompiler.passes.lower.spell_rounding import SpellRounding
from snncompiler.passes.spike.correct_layers import CorrectLayers
from snncompiler.passes.spike.encode_poisson import EncodePoisson
from snncompiler.passes.spike.fold_amplitude import FoldAmplitude
from snncompiler.passes.spike.insert_neurons import InsertNeurons
from snncompiler.passes.spike.whole_numbers import WholeNumbers
from snncompiler.passes.spike.whole_sums import WholeSums
from snncompiler.passes.time.drive_input import DriveInput
from snncompiler.passes.time.telescope_analog import TelescopeAnalog
from snncompiler.passes.time.unroll_time import UnrollTime, unfoldable
from snncompiler.passes.time.whole_read_out import WholeReadOut


@dataclass(frozen=True)
class Window:
    """All time-steps of a network as one graph without control flow (`UnrollTime`, cuda-graph form).

    `opsets` are those of the source; `steps` is the number of time-steps; `first_image` names the input
    that tells a Poisson encoder which image is the first, empty where there is none; `grid` tells of
    the layers where weights are whole numbers, and `units` of the weights before.
    """

    graph: onnx.GraphProto
    opsets: Sequence[onnx.OperatorSetIdProto]
    steps: int
    first_image: str = ""
    grid: Grid = field(default_factory=Grid)
    units: Mapping[str, Units] = field(default_factory=dict)

    @property
    def inputs(self) -> set[str]:
        """What the user feeds, and the number of the first image where it matters."""
        given = {tensor.name for tensor in self.graph.initializer} - {self.first_image}
        return {entry.name for entry in self.graph.input} - given

    def unit(self, layer: str, channels: int) -> NDArray[np.float32] | None:
        """What 1 stands for in the currents of a layer, [C, 1]; None where they are real numbers."""
        if not self.grid.layers:
            return None
        scale = self.grid.of(layer).scale.reshape(-1, 1).astype(np.float32)
        return np.broadcast_to(scale, (channels, 1))

    def neurons(self) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if is_neuron(node)]

    def before(self, wanted: str) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes that compute `wanted` from inputs and spikes, and which of these they read."""
        stops = self.inputs | {node.output[0] for node in self.neurons()}
        needed, reads = {wanted} - stops, {wanted} & stops
        nodes = []
        for node in reversed(self.graph.node):
            if any(name in needed for name in node.output):
                nodes.append(node)
                reads.update(name for name in node.input if name in stops)
                needed.update(name for name in node.input if name not in stops)
        return nodes[::-1], sorted(reads)


def is_neuron(node: onnx.NodeProto) -> bool:
    return node.domain == dialect.DOMAIN and node.op_type in dialect.NEURONS


def spiking_graph(
    prepared: Prepared, calibration: Calibration, options: Options, *, settled: bool = True
) -> Graph:
    """The normalized ANN with neurons for its rectifiers and spikes between its layers.

    `settled`: the calibration has its charges already, where it will have some.

    `prepared` is one's own (`Prepared.apart`): what the passes learn of the copied graph goes into it.
    """
    graph = prepared.graph.copy()
    corrections = CorrectLayers(calibration.corrected_weights, calibration.corrected_biases)
    run_passes(
        [
            *([corrections] if calibration.correct != "none" else []),
            *([EncodePoisson(calibration.input_scales)] if options.encode == "poisson" else []),
            InsertNeurons(
                calibration.thresholds,
                float(options.initial or 0.0),
                options.reset,
                options.neuron,
                calibration.schedules,
                options.coding if options.layered else None,
                options.levels if options.layered else 0,
            ),
            FoldAmplitude(options.layered),
            *([TelescopeAnalog()] if options.allow_analog and not options.layered else []),
            *([SpellRounding(), WholeSums()] if prepared.context.keeps_rounding else []),
            *_whole_numbers(prepared, calibration, options, settled),
        ],
        graph,
        prepared.context,
    )
    return graph


def _whole_numbers(
    prepared: Prepared, calibration: Calibration, options: Options, settled: bool
) -> list[Pass]:
    """The pass that makes weights whole numbers, where they are."""
    if not options.weights.bits:
        return []
    return [
        WholeNumbers(
            options.weights.bits,
            calibration.input_ranges,
            options.input_bits,
            options.steps,
            calibration.growth,
            calibration.whole,
            settled,
            options.levels if options.layered else 1,
            frozenset(
                node.name
                for node in prepared.graph.nodes
                if (found := rectifier(node)) is not None and found.cap is not None
            ),
        )
    ]


def whole_read_out(options: Options) -> list[Pass]:
    """The pass that makes the sums of the read-out exact, where weights are whole numbers."""
    if not options.weights.bits:
        return []
    varies = (
        options.emit == "step" and not options.layered
    )  # where the input of a window is constant
    return [WholeReadOut(options.weights.bits, inputs_vary=varies)]


def driving(calibration: Calibration, options: Options) -> list[Pass]:
    """The pass that lets thresholds grow, where they do."""
    growth = calibration.growth
    return [DriveInput(growth, whole=bool(options.weights))] if growth else []


def window_of(prepared: Prepared, calibration: Calibration, options: Options, steps: int) -> Window:
    """The spiking network over `steps` time-steps without control flow.

    Raises Refused where time cannot be folded into the batch.
    """
    prepared = prepared.apart()
    graph = spiking_graph(prepared, calibration, options, settled=False)
    run_passes(driving(calibration, options), graph, prepared.context)
    infer_shapes(graph)
    blocking = unfoldable(graph)
    if blocking:
        raise refuse(
            "SNNC205", "time cannot be folded into the batch here", node=label(blocking[0])
        )
    unrolled, names = UnrollTime("fold", steps, steps, "cuda-graph").emit(graph)
    return Window(
        unrolled,
        prepared.checked_model.opset_import,
        steps,
        names.get("first_image", ""),
        prepared.context.grid,
        prepared.context.units,
    )
