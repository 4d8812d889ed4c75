"""A calibration as a value, and as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import UsageError, refuse
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.option import Parsed
from snncompiler.ir.settings import Options
from snncompiler.ir.spikes import BINARY, Spikes
from snncompiler.ir.whole import REAL, Weights


@dataclass(frozen=True)
class Calibration:
    """Thresholds, corrections and where they came from.

    thresholds: layer name -> θ, [C] or [1], float32, finite and positive.
    method, percentile, tau, alpha: how θ was found.
    schedules: layer name -> charge b [S, C] for each of the first S steps.  The last row holds for all
        later steps.  Empty without a correction.
    growth: how θ grows with time; the schedules belong to it.
    correct: what was corrected in layered time.  corrected_weights: layer name -> its weights, in their
        shape.  corrected_biases: layer name -> bias [O] of a layer with weights; or what is added, [C]
        or [1], to what a rectifier receives (`passes/spike/correct_layers`).
    report: rectifier -> what each part of the correction leaves of the squared error of what it sends,
        over the squared activations of the ANN (`levels.LayerReport`).
    neuron, initial, reset, schedule_steps: settings of the running network on which the charges, and
        thresholds by `vin-max`, were found.
    input_scales: input name -> max |x|, for Poisson input.  maxpool: how the network pools.
    levels: of layered time, where θ is the value of one level: L, the largest number that the spikes of
        a window stand for.  0: of streaming time.
    weights: of the running network.  Where they are whole numbers, input_ranges: input name -> max |x|;
        and whole: name of a node -> by how much its whole weights differ from the nearest, -8 to 7.
    preprocess: how stored pixels became the network's input, where that was said (`Preprocess`).
    source: "data", "batch-norm" or "synthetic".  data_sha256: hash of the calibration arrays.
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
    growth: Parsed[Growth] = Parsed(Growth.parse, Growth, STEADY)
    correct: str = "none"
    corrected_weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    corrected_biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    report: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    neuron: Parsed[Spikes] = Parsed(Spikes.parse, Spikes, BINARY)
    initial: float = 0.5
    reset: str = "soft"
    schedule_steps: int = 32
    input_scales: Mapping[str, float] = field(default_factory=dict)
    maxpool: str = "exact"
    levels: int = 0
    weights: Parsed[Weights] = Parsed(Weights.parse, Weights, REAL)
    input_ranges: Mapping[str, float] = field(default_factory=dict)
    whole: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As JSON; float32 values are written so that they are read back exactly.

        Schedules, weights and biases, of which there are many, as base64 of little-endian float32, with
        their shape.
        """
        content = {**self.__dict__, "thresholds": {}}
        content |= {"growth": str(self.growth), "neuron": str(self.neuron)}
        # What calibrations did not have before, they don't tell where it has its default.
        if self.maxpool == "exact":
            del content["maxpool"]
        if not self.levels:
            del content["levels"]
        if self.weights:
            content["weights"] = str(self.weights)
        else:
            del content["weights"], content["input_ranges"]
        content["whole"] = {name: _nibbles(changes) for name, changes in self.whole.items()}
        if not self.whole:
            del content["whole"]
        if not self.preprocess:
            del content["preprocess"]
        for name, theta in self.thresholds.items():
            content["thresholds"][name] = [float(str(value)) for value in theta]
        for kind in _ARRAYS:
            arrays = getattr(self, kind)
            content[kind] = {name: _written(array) for name, array in arrays.items()}
        if self.correct == "none":
            for kind in ("correct", "corrected_weights", "corrected_biases", "report"):
                del content[kind]
        return json.dumps(content, ensure_ascii=True)

    @staticmethod
    def from_json(text: str) -> Calibration:
        """The calibration that `to_json` wrote.  Raises Refused where the text is not one."""
        try:
            content = json.loads(text)
            content["thresholds"] = {
                name: np.array(theta, np.float32) for name, theta in content["thresholds"].items()
            }
            for kind in _ARRAYS:
                entries = content.get(kind, {})
                content[kind] = {name: _read(entry) for name, entry in entries.items()}
            packed = content.get("whole", {})
            content["whole"] = {name: _from_nibbles(entry) for name, entry in packed.items()}
            return Calibration(**content)
        except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
            raise refuse("SNNC401", f"the calibration cannot be read: {error}") from None


def check_levels(calibration: Calibration, options: Options) -> None:
    """Raises Refused where thresholds are those of another timing, or of other levels."""
    wanted = options.levels if options.layered else 0
    if calibration.levels == wanted:
        return
    made = f"layered time with {calibration.levels} levels" if calibration.levels else "streaming"
    asked = f"layered time with {wanted} levels" if wanted else "streaming"
    raise refuse(
        "SNNC306",
        f"the calibration is for {made}, this is {asked}",
        hint="give the data, to calibrate again",
    )


#: The fields that are written as base64.
_ARRAYS = ("schedules", "corrected_weights", "corrected_biases")


def _written(array: NDArray[np.float32]) -> dict[str, Any]:
    raw = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"shape": list(array.shape), "float32": raw}


def _read(entry: Mapping[str, Any]) -> NDArray[np.float32]:
    values = np.frombuffer(base64.b64decode(entry["float32"]), "<f4")
    return values.reshape(entry["shape"]).astype(np.float32)


def _nibbles(changes: NDArray[np.int8]) -> dict[str, Any]:
    """Numbers from -8 to 7, two to a byte, the first one in its lower half."""
    flat = (changes.reshape(-1) + 8).astype(np.uint8)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    raw = base64.b64encode((flat[::2] | flat[1::2] << 4).tobytes()).decode()
    return {"shape": list(changes.shape), "nibbles": raw}


def _from_nibbles(entry: Mapping[str, Any]) -> NDArray[np.int8]:
    raw = np.frombuffer(base64.b64decode(entry["nibbles"]), np.uint8)
    flat = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1).astype(np.int8) - 8
    shape = [int(size) for size in entry["shape"]]
    return flat[: int(np.prod(shape, dtype=np.int64))].reshape(shape).astype(np.int8)
