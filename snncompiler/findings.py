"""Findings: what the compiler has to say about a model, with stable codes.

A finding is data.  An *error* refuses the model, a *warning* and a *note* are printed and go into
the reports.  Codes never change their meaning; `docs/reference/errors.md` is generated from `CODES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]

#: Every code and what it stands for.
CODES: dict[str, str] = {
    # 1xx: the file
    "SNNC101": "not an ONNX model",
    "SNNC102": "opset or IR version missing or outside the supported range",
    "SNNC103": "malformed graph: cycle, dangling or doubly defined name",
    "SNNC104": "nodes were not in topological order",
    "SNNC105": "duplicate initializer",
    "SNNC106": "operator unknown to ONNX",
    "SNNC107": "tensor data does not fit its type and shape",
    "SNNC108": "NaN or infinity in a weight",
    "SNNC109": "data type that is not supported",
    "SNNC110": "the ONNX checker or the shape inference rejects the model",
    "SNNC111": "control flow in the input model",
    "SNNC112": "local functions that do not expand",
    "SNNC113": "external data that is unsafe, missing or short",
    "SNNC114": "already compiled by snnc",
    # 2xx: the network
    "SNNC201": "nothing to convert: no rectifier",
    "SNNC202": "nonlinear operator between spiking layers",
    "SNNC203": "violates the paper's constraints (bias)",
    "SNNC204": "violates the paper's constraints (batch-norm)",
    "SNNC205": "the leading axis is not proved to be a batch axis",
    "SNNC206": "kept as it is",
    "SNNC207": "batch-norm that cannot be folded exactly",
    "SNNC208": "the normalized network differs from the source",
    "SNNC209": "predicted size over the limit",
    "SNNC210": "layer that is not computed by events",
    "SNNC211": "no layer is computed by events",
    "SNNC212": "random operator",
    "SNNC220": "max pooling that takes a spiking layer of its own",
    "SNNC221": "spiking layers that send what weights would multiply",
    "SNNC223": "cannot be computed in whole numbers",
    "SNNC224": "whole numbers with a limit",
    "SNNC225": "activation that is coded in spikes with an offset",
    # 3xx: data and calibration
    "SNNC301": "data file missing, unreadable or of an unknown kind",
    "SNNC302": "data of the wrong shape, type or name",
    "SNNC303": "data with NaN, infinity or no samples",
    "SNNC304": "calibrated without data",
    "SNNC305": "layer that never fires on the calibration data",
    "SNNC306": "calibration of another model",
    "SNNC307": "preprocessing was assumed",
    "SNNC308": "a setting was chosen on the calibration data",
    "SNNC309": "too few samples to correct a layer",
    "SNNC310": "thresholds do not grow",
    "SNNC311": "damaged images that were left out",
    "SNNC312": "part of an evaluation that is damaged, missing or of another one",
    # 4xx: the compiled file
    "SNNC401": "not a compiled network",
    "SNNC402": "the compiled file does not match its model",
    "SNNC403": "verification failed",
    "SNNC404": "an output cannot be compared with the network's",
    "SNNC405": "what a target of exports does not express",
    # 5xx: usage, environment, ourselves
    "SNNC501": "wrong usage",
    "SNNC502": "output cannot be written",
    "SNNC503": "a package or a device is missing",
    "SNNC504": "internal error",
}


@dataclass(frozen=True)
class Finding:
    """One thing found, with the node it is about and what to do."""

    code: str
    message: str
    severity: Severity = "error"
    node: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"unknown diagnostic code {self.code}")

    def as_dict(self) -> dict[str, str]:
        return {key: printable(value) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        where = f" {self.node}:" if self.node else ""
        hint = f" ({self.hint})" if self.hint else ""
        return printable(f"{self.severity} {self.code}{where} {self.message}{hint}")


def printable(text: str) -> str:
    """`text` with control characters, escape sequences and surrogates escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(op: str, name: str) -> str:
    """How a node is named in messages: its operator and its name."""
    return f"{op} '{name}'" if name else op


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]
