"""What an emitted file says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from snncompiler.calibration.record import Calibration
from snncompiler.ir import dialect
from snncompiler.ir.settings import Options
from snncompiler.network.batching import Axis
from snncompiler.network.prepared import Prepared
from snncompiler.version import __version__


def _not_leading(axes: Mapping[str, Axis]) -> str:
    """Where the batch is not the first axis."""
    return json.dumps({name: axis for name, axis in axes.items() if axis != 0})


def metadata_of(
    prepared: Prepared,
    calibration: Calibration,
    options: Options,
    chunk: int,
    step_bytes: int | None,
    names: dict[str, str],
) -> dict[str, str]:
    text = calibration.to_json()
    return {
        "snnc.version": __version__,
        "snnc.dialect": f"{dialect.DOMAIN} {dialect.VERSION}",
        "snnc.source": prepared.source.name,
        "snnc.source_sha256": prepared.source.sha256,
        "snnc.steps": str(options.steps),
        "snnc.steps_input": names.get("steps", ""),
        "snnc.chunk": str(chunk),
        "snnc.chunk_input": names.get("chunk", ""),
        "snnc.step_bytes": "" if step_bytes is None else str(step_bytes),
        "snnc.unroll": options.unroll,
        "snnc.emit": options.emit,
        "snnc.batch": "" if options.batch is None else str(options.batch),
        "snnc.precision": options.precision,
        "snnc.target": options.target,
        "snnc.events": "",
        "snnc.step_input": names.get("step", ""),
        "snnc.states": json.dumps(
            {k.removeprefix("state:"): v for k, v in names.items() if k.startswith("state:")}
        ),
        "snnc.output_axes": _not_leading(prepared.output_axes),
        "snnc.layer_axes": _not_leading(prepared.layer_axes),
        "snnc.task": options.task,
        "snnc.paper": str(options.paper).lower(),
        "snnc.encode": options.encode,
        "snnc.image_input": names.get("first_image", ""),
        "snnc.seed_input": names.get("seed", ""),
        "snnc.neuron": options.neuron,
        "snnc.reset": options.reset,
        "snnc.initial": repr(options.initial),
        "snnc.correction": calibration.correction,
        "snnc.growth": options.growth,
        "snnc.readout": options.readout,
        "snnc.strict": str(options.strict).lower(),
        "snnc.allow_analog": str(options.allow_analog).lower(),
        "snnc.maxpool": options.maxpool,
        "snnc.seed": str(options.seed),
        "snnc.threshold": calibration.method,
        "snnc.calibration": text,
        "snnc.calibration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
