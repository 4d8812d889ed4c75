"""A compiled file read back, and how to run it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.emission.metadata import Metadata, copies_of, read_metadata
from snncompiler.errors import UsageError
from snncompiler.findings import Finding
from snncompiler.ir import dialect
from snncompiler.ir.reads import Reads, fires_here, reads_of
from snncompiler.ir.settings import chosen
from snncompiler.network.batching import one_by_one
from snncompiler.network.data import Dataset, InputSpec, Preprocess, load_data
from snncompiler.network.load import load
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.lower_events import LayerNote, lower_events

Array = NDArray[Any]

#: Input values of all samples that run at once; the network's own are some ten times as many.
BATCH_VALUES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CompiledFile(Metadata):
    """A compiled network with what its metadata says."""

    model: onnx.ModelProto

    @property
    def outputs(self) -> list[str]:
        """The names of the network's outputs, without what a step model adds to them."""
        own = {*self.states.values(), self.answer}
        return [entry.name for entry in self.model.graph.output if entry.name not in own]

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
        """The operator of every layer on the CPU, event-driven or by counts, or why it has none."""
        if self.options.target == "cpu":
            return self.lowered
        if self.options.layered and self.options.emit != "step":
            return tuple(collapse_time(self.model).layers)
        layers = tuple(lower_events(self.model).layers)
        form = self.options.unroll if self.options.emit == "window" else self.options.emit
        reason = f"{form} has no loop over time that could be lowered"
        return layers or tuple(LayerNote(name, "", reason) for name in self.calibration.thresholds)

    @property
    def reads(self) -> dict[str, Reads]:
        """What every layer of weights reads, in the order of the network."""
        root = copies_of(self.model)
        found = reads_of(self.model.graph, fires_here)
        first = f"{root}0/"  # of the copies of a step the first one tells for all
        copied = re.compile(rf"^{re.escape(root)}\d+/")
        return {
            name.removeprefix(first) if root else name: kind
            for name, kind in found.items()
            if not root or name.startswith(first) or not copied.match(name)
        }

    @property
    def depth(self) -> int:
        """The most neurons on a way through the network."""
        depths: dict[str, int] = {}
        graphs = [self.model.graph]
        for graph in graphs:
            for node in graph.node:
                graphs += [entry.g for entry in node.attribute if entry.HasField("g")]
                fires = node.domain == dialect.DOMAIN and (
                    node.op_type in dialect.NEURONS or node.op_type in dialect.EVENT_NEURONS
                )
                before = max((depths.get(name, 0) for name in node.input), default=0)
                depths.update(dict.fromkeys(node.output, before + fires))
        return max(depths.values(), default=0)

    def latency(self, steps: int) -> int:
        """The time-steps after which the answer to an image of T `steps` is there.  The next answer
        comes T steps later."""
        return (self.depth + 1) * steps if self.options.layered else steps

    def batch_size(self, wanted: int, values: int = 1) -> int:
        """How many samples one run takes: the fixed batch where there is one, else `wanted`, but fewer
        where samples of so many `values` would take much memory, and 1 where an output is one of all
        samples together."""
        if one_by_one(self.output_axes):
            wanted = 1
        size = values
        if self.options.layered:  # which holds all time-steps at once
            size *= max(self.options.steps // 4, 1)
        return self.fixed_batch or max(1, min(wanted, BATCH_VALUES // max(size, 1)))

    def data(
        self,
        data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset,
        preprocess: Preprocess | None = None,
        *,
        inputs: Sequence[InputSpec] | None = None,
        labels: str | os.PathLike[str] | None = None,
        skip_damaged: bool = False,
    ) -> Dataset:
        """Data for the network (`load_data`), preprocessed as asked, or where nothing is said as the
        calibration was; then a note says so.  inputs: its own by default.

        Raises the errors of `load_data`.
        """
        own = self.preprocess
        kept = (
            own != Preprocess()
            and preprocess in (None, Preprocess())
            and not isinstance(data, Dataset)
        )
        how = own if kept else preprocess
        try:
            dataset = load_data(
                data, inputs or self.inputs, how, labels=labels, skip_damaged=skip_damaged
            )
        except UsageError as error:
            (finding,) = error.findings
            if not kept or "does not apply" not in finding.message:
                raise
            raise UsageError(
                f"the compiled file's preprocessing, {own.flags()}, does not fit: {finding.message}",
                hint="say how this data is preprocessed, or --preset none",
            ) from None
        if not kept:
            return dataset
        note = Finding(
            "SNNC307",
            f"data is preprocessed as for the calibration: {own.flags()}",
            severity="note",
            hint="--preset none feeds it as it is",
        )
        return replace(dataset, findings=(note, *dataset.findings))

    def overrides(self, steps: int | None = None, chunk: int | None = None) -> dict[str, Array]:
        """The feeds that ask for other steps or another chunk than the file's own.

        Raises UsageError where they are baked in, and where none of the steps would be read out.
        """
        if self.options.emit == "step":
            raise UsageError(
                "this file is one time-step, with its states as inputs and outputs",
                hint="step it with snncompiler.runtime.Stream, or compile with --emit window",
            )
        skipped = 0 if self.options.layered else chosen(self.options.readout).skipped
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
                    hint=f"compile it with -T {wanted}"
                    if self.options.layered
                    else "compile it with --unroll fold",
                )
        return feeds


def read_compiled(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> CompiledFile:
    """Read a compiled network.  Raises Refused where it is not one, or its metadata is damaged."""
    source = load(model)
    return CompiledFile(**vars(read_metadata(source.model, source.name)), model=source.model)


def _spec(entry: onnx.ValueInfoProto) -> InputSpec:
    kind = entry.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return InputSpec(
        entry.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    )
