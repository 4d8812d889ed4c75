"""A compiled file read back: the model, its metadata, the calibration in it, and how to run it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.record import Calibration
from snncompiler.errors import UsageError, refuse
from snncompiler.ir.readout import ReadOut
from snncompiler.ir.settings import Options
from snncompiler.network.batching import RUN, Axis, one_by_one
from snncompiler.network.data import InputSpec
from snncompiler.network.load import load
from snncompiler.passes.lower.lower_events import LayerNote, lower_events

Array = NDArray[Any]

#: Input values of all samples that run at once; the network's own are some ten times as many.
BATCH_VALUES = 1 << 20


@dataclass(frozen=True)
class CompiledFile:
    """A compiled network with what its metadata says."""

    model: onnx.ModelProto
    metadata: Mapping[str, str]
    calibration: Calibration
    options: Options
    #: Of a step model: state input -> the output that carries it on.
    states: Mapping[str, str]
    #: What became of every layer of a file that was lowered for the CPU.
    lowered: tuple[LayerNote, ...] = ()
    #: The batch axis of every output, in their order, or why it has none.
    output_axes: Mapping[str, Axis] = field(default_factory=dict)
    #: That of every layer's spikes where it is not the first; None in files of earlier versions.
    layer_axes: Mapping[str, Axis] | None = None

    @property
    def outputs(self) -> list[str]:
        """The names of the network's outputs, without the states of a step model."""
        carried = set(self.states.values())
        return [entry.name for entry in self.model.graph.output if entry.name not in carried]

    @property
    def steps(self) -> int:
        return self.options.steps

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs that a user must feed, without the overridable ones."""
        given = {tensor.name for tensor in self.model.graph.initializer}
        return [_spec(entry) for entry in self.model.graph.input if entry.name not in given]

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the file takes, None where it takes any."""
        return next((spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0]), None)

    @property
    def events(self) -> tuple[LayerNote, ...]:
        """The event-driven operator of every layer on the CPU, or why it has none."""
        if self.options.target == "cpu":
            return self.lowered
        layers = tuple(lower_events(self.model).layers)
        form = self.options.unroll if self.options.emit == "window" else self.options.emit
        reason = f"{form} has no loop over time that could be lowered"
        return layers or tuple(LayerNote(name, "", reason) for name in self.calibration.thresholds)

    def batch_size(self, wanted: int, feeds: Mapping[str, Array] | None = None) -> int:
        """How many samples one run takes: the fixed batch where there is one, else `wanted`, but fewer
        where samples as large as those of `feeds` would take much memory, and 1 where an output is one
        of all samples together."""
        if one_by_one(self.output_axes):
            wanted = 1
        size = sum(array[0].size for array in feeds.values()) if feeds else 1
        return self.fixed_batch or max(1, min(wanted, BATCH_VALUES // max(size, 1)))

    def overrides(self, steps: int | None = None, chunk: int | None = None) -> dict[str, Array]:
        """The feeds that ask for other steps or another chunk than the file's own.

        Raises UsageError where they are baked in, and where none of the steps would be read out.
        """
        if self.options.emit == "step":
            raise UsageError(
                "this file is one time-step, with its states as inputs and outputs",
                hint="step it with snncompiler.runtime.Stream, or compile with --emit window",
            )
        skipped = ReadOut.parse(self.options.readout).skipped
        if steps is not None and steps <= skipped:
            raise UsageError(
                f"T = {steps} is within the delay of this file's read-out, {self.options.readout}",
                hint=f"ask for more than {skipped} time-steps",
            )
        feeds: dict[str, Array] = {}
        for what, wanted, own in (
            ("steps", steps, self.options.steps),
            ("chunk", chunk, int(self.metadata["snnc.chunk"])),
        ):
            name = self.metadata[f"snnc.{what}_input"]
            if wanted is not None and name:
                feeds[name] = np.array(wanted, np.int64)
            elif wanted is not None and wanted != own:
                raise UsageError(
                    f"this file has {what} = {own} baked in, so it cannot run with {wanted}",
                    hint="compile it with --unroll fold",
                )
        return feeds


def read_compiled(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> CompiledFile:
    """Read a compiled network.  Raises Refused where it is not one, or its metadata is damaged."""
    source = load(model)
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    if "snnc.version" not in metadata:
        raise refuse(
            "SNNC401",
            f"{source.name} was not compiled by snnc",
            hint="give the file that snnc compile wrote",
        )
    text = metadata.get("snnc.calibration", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("snnc.calibration_sha256"):
        raise refuse("SNNC401", f"the calibration in {source.name} was changed or is missing")
    calibration = Calibration.from_json(text)

    def text_of(key: str) -> Any:
        return metadata[f"snnc.{key}"]

    try:
        method: Any = calibration.method
        options = Options(
            steps=int(metadata["snnc.steps"]),
            task=text_of("task"),
            threshold=method,
            percentile=calibration.percentile,
            tau=calibration.tau,
            per_channel=calibration.per_channel,
            alpha=calibration.alpha,
            correction=text_of("correction"),
            growth=calibration.growth,
            readout=text_of("readout"),
            neuron=text_of("neuron"),
            encode=text_of("encode"),
            paper=text_of("paper") == "true",
            unroll=text_of("unroll"),
            chunk=_chosen_chunk(metadata),
            reset=text_of("reset"),
            initial=float(metadata["snnc.initial"]),
            strict=metadata["snnc.strict"] == "true",
            allow_analog=metadata["snnc.allow_analog"] == "true",
            maxpool=text_of("maxpool"),
            seed=int(metadata["snnc.seed"]),
            emit=text_of("emit"),
            batch=int(metadata["snnc.batch"]) if metadata["snnc.batch"] else None,
            precision=text_of("precision"),
            target=metadata.get("snnc.target", "portable"),
        )
        options.check()
        names = [metadata[f"snnc.{key}_input"] for key in ("steps", "chunk", "step")]
        states = json.loads(metadata["snnc.states"])
        names += states
        axes = _output_axes(source.model, metadata.get("snnc.output_axes"), set(states.values()))
        layer_axes = json.loads(metadata.get("snnc.layer_axes", "null"))
        events = json.loads(metadata.get("snnc.events") or "[]")
        lowered = tuple(LayerNote(**{key: str(layer[key]) for key in layer}) for layer in events)
    except (KeyError, ValueError, TypeError, UsageError) as error:
        raise refuse("SNNC401", f"the metadata of {source.name} is damaged: {error}") from None
    given = {tensor.name for tensor in source.model.graph.initializer}
    if any(name and name not in given for name in names):
        raise refuse("SNNC401", f"{source.name} lacks the inputs that its metadata names")
    return CompiledFile(
        source.model, metadata, calibration, options, states, lowered, axes, layer_axes
    )


def _chosen_chunk(metadata: Mapping[str, str]) -> int | None:
    """K where it was asked for; elsewhere the compiler or the session chooses it by `step_bytes`."""
    open_chunk = bool(metadata.get("snnc.step_bytes"))
    return int(metadata["snnc.chunk"]) if metadata["snnc.chunk_input"] and not open_chunk else None


def _output_axes(model: onnx.ModelProto, text: str | None, carried: set[str]) -> dict[str, Axis]:
    """The batch axes of the outputs that carry no state.

    Files of earlier versions do not tell them.  There the batch is the axis that has the name of the
    inputs' batch; an output without an axis of this name has no batch.
    """
    outputs = [entry for entry in model.graph.output if entry.name not in carried]
    if text is not None:
        other: dict[str, Axis] = json.loads(text)
        return {entry.name: other.get(entry.name, 0) for entry in outputs}
    batch = {
        entry.type.tensor_type.shape.dim[0].dim_param
        for entry in model.graph.input
        if entry.type.tensor_type.shape.dim
    } - {""}
    found: dict[str, Axis] = {}
    for entry in outputs:
        names = [dim.dim_param for dim in entry.type.tensor_type.shape.dim]
        found[entry.name] = next((at for at, name in enumerate(names) if name in batch), RUN)
    return found


def _spec(entry: onnx.ValueInfoProto) -> InputSpec:
    kind = entry.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return InputSpec(
        entry.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    )
