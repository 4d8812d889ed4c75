"""A calibration as a value, and as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from snncompiler.errors import UsageError, refuse
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.option import Parsed
from snncompiler.ir.spikes import BINARY, Spikes


@dataclass(frozen=True)
class Calibration:
    """Thresholds, corrections and where they came from.

    thresholds: layer name -> θ, [C] or [1], float32, finite and positive.
    method, percentile, tau, alpha: how θ was found.
    schedules: layer name -> charge b [S, C] for each of the first S steps.  The last row holds for all
        later steps.  Empty without a correction.
    growth: how θ grows with time; the schedules belong to it.
    neuron, initial, reset, schedule_steps: settings of the running network on which the charges, and
        thresholds by `vin-max`, were found.
    input_scales: input name -> max |x|, for Poisson input.  maxpool: how the network pools.
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
    neuron: Parsed[Spikes] = Parsed(Spikes.parse, Spikes, BINARY)
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
        content |= {"growth": str(self.growth), "neuron": str(self.neuron)}
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
        """The calibration that `to_json` wrote.  Raises Refused where the text is not one."""
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
            return Calibration(**content)
        except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
            raise refuse("SNNC401", f"the calibration cannot be read: {error}") from None
