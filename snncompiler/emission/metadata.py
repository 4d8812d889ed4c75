"""What an emitted file says of itself in its `snnc.*` metadata: all of it is written and read here.

`snnc.options` are the options, as one JSON object, after everything open was chosen: what would have to
be asked for to get this file from its calibration.  Files of metadata version 1 had a key for each.
docs/reference/metadata.md lists the keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.calibration.record import Calibration
from snncompiler.errors import UsageError, refuse
from snncompiler.ir import dialect
from snncompiler.ir.option import applying, written
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import Grid
from snncompiler.network.batching import RUN, Axis
from snncompiler.network.prepared import Prepared
from snncompiler.network.preprocess import Preprocess
from snncompiler.passes.lower.lower_events import LayerNote
from snncompiler.passes.time.unroll_time import COPIES
from snncompiler.version import __version__

#: Of the keys, not of the compiler.  1 had no such key.
METADATA_VERSION = 2
#: What a file says of itself that has the counts of the spikes, in standard operators.
TWIN = "integer twin of a spiking network"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a compiled file says of itself."""

    metadata: Mapping[str, str]
    calibration: Calibration
    options: Options
    #: Of a step model: state input -> the output that carries it on.
    states: Mapping[str, str]
    #: Of a step model in layered time: the output that tells whether the others are an answer.
    answer: str = ""
    #: Layers whose spikes carry an activation that is no rectifier: its `function` and its `offset`.
    coded: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    #: What became of every layer of a file that was lowered for the CPU.
    lowered: tuple[LayerNote, ...] = ()
    #: The batch axis of every output, in their order, or why it has none.
    output_axes: Mapping[str, Axis] = field(default_factory=dict)
    #: That of every layer's spikes where it is not the first; None in files of earlier versions.
    layer_axes: Mapping[str, Axis] | None = None
    #: What the layers are in whole numbers; without layers where weights are real numbers.
    grid: Grid = field(default_factory=Grid)
    #: How stored pixels became the input in calibration, where that was said.
    preprocess: Preprocess = field(default_factory=Preprocess)

    @property
    def keeps_rounding(self) -> bool:
        """Whether it rounds as its quantized source does."""
        return self.metadata.get("snnc.rounding") == "kept"

    @property
    def metadata_version(self) -> int:
        return int(self.metadata.get("snnc.metadata_version", "1"))


# --- writing ---


def metadata_of(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    chunk: int,
    step_bytes: int | None,
    names: dict[str, str],
) -> dict[str, str]:
    """The metadata of an emission.  names: of inputs and states, as `UnrollTime.emit` gives them."""
    text = calibration.to_json()
    states = {k.removeprefix("state:"): v for k, v in names.items() if k.startswith("state:")}
    found = {
        "snnc.version": __version__,
        "snnc.metadata_version": str(METADATA_VERSION),
        "snnc.dialect": f"{dialect.DOMAIN} {dialect.VERSION}",
        "snnc.source": prepared.source.name,
        "snnc.source_sha256": prepared.source.sha256,
        "snnc.options": _options_text(_of_calibration(options, calibration)),
        "snnc.steps": str(options.steps),
        "snnc.chunk": str(chunk),
        "snnc.steps_input": names.get("steps", ""),
        "snnc.chunk_input": names.get("chunk", ""),
        "snnc.step_bytes": "" if step_bytes is None else str(step_bytes),
        "snnc.step_input": names.get("step", ""),
        "snnc.image_input": names.get("first_image", ""),
        "snnc.seed_input": names.get("seed", ""),
        "snnc.states": json.dumps(states),
        "snnc.output_axes": _not_leading(prepared.output_axes),
        "snnc.layer_axes": _not_leading(prepared.layer_axes),
        "snnc.events": "",
        "snnc.calibration": text,
        "snnc.calibration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if "answer" in names:
        found["snnc.answer"] = names["answer"]
    if "copies" in names:
        found["snnc.copies"] = names["copies"]
    if prepared.context.keeps_rounding:
        found["snnc.rounding"] = "kept"
    if prepared.context.sum_units:
        units = {name: scale.tolist() for name, scale in prepared.context.sum_units.items()}
        found["snnc.units"] = json.dumps(units)
    if prepared.context.coded:
        coded = prepared.context.coded.items()
        content = {name: {"function": x.function, "offset": x.offset} for name, x in coded}
        found["snnc.coded"] = json.dumps(content)
    if prepared.context.pooled:
        found["snnc.pooled"] = json.dumps(prepared.context.pooled)
    if prepared.context.grid.layers:
        found["snnc.grid"] = json.dumps(prepared.context.grid.as_dict())
    return found


def twin_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of an integer twin, of those of its spiking network: what it is and comes from."""
    kept = ("version", "source", "source_sha256", "options", "steps", "output_axes")
    return {"snnc.form": TWIN} | {f"snnc.{key}": metadata[f"snnc.{key}"] for key in kept}


def tell_lowered(model: onnx.ModelProto, layers: list[LayerNote]) -> None:
    """Write into a model that was lowered for the CPU what became of every layer."""
    entry = next(entry for entry in model.metadata_props if entry.key == "snnc.events")
    entry.value = json.dumps([asdict(layer) for layer in layers])


def _of_calibration(options: Options, calibration: Calibration) -> Options:
    """The options, with those by which the calibration was made."""
    method: Any = calibration.method
    correction: Any = calibration.correction
    correct: Any = calibration.correct
    return replace(
        options,
        threshold=method,
        percentile=calibration.percentile,
        tau=calibration.tau,
        per_channel=calibration.per_channel,
        alpha=calibration.alpha,
        correction=correction,
        correct=correct,
        schedule_steps=calibration.schedule_steps,
        growth=calibration.growth,
    )


def _options_text(options: Options) -> str:
    """As JSON, without those that mean nothing beside the others, and without T, which has a key of its
    own, as what else a session needs."""
    content = {name: written(value) for name, value in applying(options).items() if name != "steps"}
    return json.dumps(content)


def _not_leading(axes: Mapping[str, Axis]) -> str:
    """Where the batch is not the first axis."""
    return json.dumps({name: axis for name, axis in axes.items() if axis != 0})


# --- reading ---


def read_metadata(model: onnx.ModelProto, name: str) -> Metadata:
    """What a compiled model says of itself.  name: for messages.

    Raises Refused where the model was not compiled by snnc, was compiled by a later version, or its
    metadata is damaged.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "snnc.version" not in metadata:
        raise refuse(
            "SNNC401",
            f"{name} was not compiled by snnc",
            hint="give the file that snnc compile wrote",
        )
    if metadata.get("snnc.form") == TWIN:
        raise refuse(
            "SNNC401",
            f"{name} is the {TWIN}, and has no spikes",
            hint="give the file that snnc compile writes without --emit counts",
        )
    text = metadata.get("snnc.calibration", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("snnc.calibration_sha256"):
        raise refuse("SNNC401", f"the calibration in {name} was changed or is missing")
    calibration = Calibration.from_json(text)
    version = metadata.get("snnc.metadata_version", "1")
    if version not in ("1", str(METADATA_VERSION)):
        raise refuse(
            "SNNC401",
            f"{name} was compiled by snnc {metadata['snnc.version']}, whose metadata of version "
            f"{version} this one does not know",
            hint="take a later version of snnc",
        )
    try:
        read_options = _options_1 if version == "1" else _options_2
        options = read_options(metadata, calibration)
        options.check()
        names = [metadata[f"snnc.{key}_input"] for key in ("steps", "chunk", "step")]
        states = json.loads(metadata["snnc.states"])
        names += states
        own = {*states.values(), metadata.get("snnc.answer", "")}
        axes = _output_axes(model, metadata.get("snnc.output_axes"), own)
        layer_axes = json.loads(metadata.get("snnc.layer_axes", "null"))
        events = json.loads(metadata.get("snnc.events") or "[]")
        lowered = tuple(LayerNote(**{key: str(layer[key]) for key in layer}) for layer in events)
        grid = grid_of(model)
        preprocess = Preprocess.from_dict(calibration.preprocess)
        told = json.loads(metadata.get("snnc.coded", "{}"))
        coded = {
            str(name): {"function": str(one["function"]), "offset": float(one["offset"])}
            for name, one in told.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError, UsageError) as error:
        raise refuse("SNNC401", f"the metadata of {name} is damaged: {error}") from None
    given = {tensor.name for tensor in model.graph.initializer}
    if any(name and name not in given for name in names):
        raise refuse("SNNC401", f"{name} lacks the inputs that its metadata names")
    return Metadata(
        metadata=metadata,
        calibration=calibration,
        options=options,
        states=states,
        coded=coded,
        answer=metadata.get("snnc.answer", ""),
        lowered=lowered,
        output_axes=axes,
        layer_axes=layer_axes,
        grid=grid,
        preprocess=preprocess,
    )


def units_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
    """Neurons whose currents are whole numbers, as the source's: name -> what 1 stands for, [O]."""
    told = next((e.value for e in model.metadata_props if e.key == "snnc.units"), "{}")
    found = {name: np.asarray(scale, np.float64) for name, scale in json.loads(told).items()}
    # A neuron that fires behind a pooling receives what its rectifier does.
    behind = {name: rectifier for name, (rectifier, _) in pooled_of(model).items()}
    return found | {name: found[one] for name, one in behind.items() if one in found}


def pooled_of(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Neurons of layered time that fire behind a pooling: name -> names of rectifier and pooling."""
    told = next((e.value for e in model.metadata_props if e.key == "snnc.pooled"), "{}")
    return {neuron: (first, second) for neuron, (first, second) in json.loads(told).items()}


def grid_of(model: onnx.ModelProto) -> Grid:
    """What the layers are in whole numbers; without layers where weights are real numbers.

    Raises KeyError, TypeError or ValueError where it is damaged.
    """
    text = next((one.value for one in model.metadata_props if one.key == "snnc.grid"), "")
    return Grid.from_dict(json.loads(text)) if text else Grid()


def copies_of(model: onnx.ModelProto) -> str:
    """What the names of copied steps begin with; empty where no step is copied."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    # Of version 1 only where it was not COPIES.
    old = metadata.get("snnc.unroll") == "steps" and metadata.get("snnc.emit") == "window"
    return metadata.get("snnc.copies") or (COPIES if old else "")


def _options_2(metadata: Mapping[str, str], calibration: Calibration) -> Options:
    content = json.loads(metadata["snnc.options"])
    return Options(**content, steps=int(metadata["snnc.steps"]))


def _options_1(metadata: Mapping[str, str], calibration: Calibration) -> Options:
    """From a key for each option, and from the calibration."""

    def text_of(key: str) -> Any:
        return metadata[f"snnc.{key}"]

    # K where it was asked for; elsewhere it was chosen by `step_bytes`, which the oldest did not tell.
    asked = metadata["snnc.chunk_input"] and not metadata.get("snnc.step_bytes")
    chunk = int(metadata["snnc.chunk"]) if asked else None
    words = ("task", "correction", "readout", "neuron", "encode", "unroll", "reset", "maxpool")
    options = Options(
        **{name: text_of(name) for name in (*words, "emit", "precision")},
        **{name: text_of(name) == "true" for name in ("paper", "strict", "allow_analog")},
        steps=int(text_of("steps")),
        seed=int(text_of("seed")),
        initial=float(text_of("initial")),
        chunk=chunk,
        batch=int(text_of("batch")) if text_of("batch") else None,
        target=metadata.get("snnc.target", "portable"),  # type: ignore[arg-type]
    )
    # The calibration also tells of options that meant nothing for it.
    return Options(**applying(_of_calibration(options, calibration)))


def _output_axes(model: onnx.ModelProto, text: str | None, own: set[str]) -> dict[str, Axis]:
    """The batch axes of the outputs of the network.  `own`: outputs that the compiler has added.

    Files of earlier versions do not tell them.  There the batch is the axis that has the name of the
    inputs' batch; an output without an axis of this name has no batch.
    """
    outputs = [entry for entry in model.graph.output if entry.name not in own]
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
