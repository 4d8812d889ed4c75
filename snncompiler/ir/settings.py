"""The options of a compilation, their ranges, and what `auto` stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from snncompiler.errors import UsageError
from snncompiler.ir.growth import NONE, Growth
from snncompiler.ir.readout import ReadOut
from snncompiler.ir.spikes import Spikes

Parsed = TypeVar("Parsed")
Unroll = Literal["fold", "loop", "steps"]
Emit = Literal["window", "step", "cuda-graph"]
#: `auto` is chosen by the network's task (`Options.resolved`).
Correction = Literal["auto", "none", "schedule", "bias", "potential"]
#: `vin-max` is no strategy over a histogram (see above); `auto` is chosen by the network's task.
Method = Literal["auto", "max", "percentile", "mmse", "balance", "vin-max"]
Task = Literal["auto", "classification", "regression"]
MaxPooling = Literal["exact", "average"]
Target = Literal["portable", "cpu"]

DEFAULT_STEPS = 64
#: More steps than this are a slip of the finger: float32 counts end at 2^24.
MAX_STEPS = 1 << 24
#: A schedule of more steps would be longer than any window in which it helps.
MAX_SCHEDULE = 1024
#: How θ of a classifier grows (docs/explanation/accuracy.md).
DEFAULT_GROWTH = "0.85@1,0.9@9,1@13,1.15@33,1.3@65"


@dataclass(frozen=True)
class Options:
    """How to compile.  The fields are the options of `snnc compile`; None and "auto" are filled in by
    `resolved` once the network's task is known."""

    steps: int = DEFAULT_STEPS
    task: Task = "auto"
    threshold: Method = "auto"
    percentile: float = 99.9
    tau: float = 500.0
    per_channel: bool | None = None
    alpha: float | Literal["auto"] = 1.0
    correction: Correction = "auto"
    schedule_steps: int = 32
    growth: str = "auto"
    readout: str = "auto"
    neuron: str = "binary"
    unroll: Unroll = "fold"
    chunk: int | None = None
    reset: Literal["soft", "hard"] = "soft"
    initial: float | None = None
    encode: Literal["auto", "constant", "poisson"] = "auto"
    paper: bool = False
    strict: bool | None = None
    allow_analog: bool = False
    maxpool: MaxPooling = "exact"
    seed: int = 0
    emit: Emit = "window"
    batch: int | None = None
    precision: Literal["fp32", "fp16"] = "fp32"
    target: Target = "portable"

    def __post_init__(self) -> None:
        """numpy's numbers become Python's, so that they can be written into the metadata."""
        for name, number in vars(self).items():
            if isinstance(number, np.generic):
                object.__setattr__(self, name, number.item())

    def check(self) -> None:
        """Raises UsageError for the first value that is of a wrong type or out of range."""
        for option in ("steps", "seed", "chunk", "batch", "schedule_steps"):
            check_type(option, getattr(self, option), int, "a whole number", option in _OPTIONAL)
        for option in ("percentile", "tau", "alpha", "initial"):
            given = getattr(self, option)
            if option != "alpha" or given != "auto":
                check_type(option, given, (int, float), "a number", option in _OPTIONAL)
        for option in ("per_channel", "paper", "strict", "allow_analog"):
            given = getattr(self, option)
            check_type(option, given, bool, "True or False", option in _OPTIONAL)
        for option, allowed in _CHOICES.items():
            _choice(f"--{option}", getattr(self, option), allowed)
        _parsed("--neuron", Spikes.parse, self.neuron)
        if self.growth != "auto":
            _parsed("--growth", Growth.parse, self.growth)
        if self.readout != "auto":
            read_out = _parsed("--readout", ReadOut.parse, self.readout)
            good = read_out.skipped < self.steps
            check_range("--readout", self.readout, good, f"a delay below T = {self.steps}")
        steps, initial, alpha = self.steps, self.initial, self.alpha
        check_range("-T", steps, 1 <= steps <= MAX_STEPS, f"1 to {MAX_STEPS:,} time-steps")
        good = 0 < self.percentile <= 100
        check_range("--percentile", self.percentile, good, "above 0, at most 100")
        check_range("--tau", self.tau, 0 < self.tau < float("inf"), "positive and finite")
        if alpha != "auto":
            check_range("--alpha", alpha, 0 < alpha < float("inf"), "positive and finite, or auto")
        if initial is not None:
            check_range("--initial", initial, 0 <= initial < 1, "0 to below 1, in units of θ")
        good = 1 <= self.schedule_steps <= MAX_SCHEDULE
        check_range("--schedule-steps", self.schedule_steps, good, f"1 to {MAX_SCHEDULE:,}")
        check_range("--seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        self._check_together()

    def _check_together(self) -> None:
        """Options that exclude or need each other."""
        if self.chunk is not None:
            check_range("--chunk", self.chunk, 1 <= self.chunk <= MAX_STEPS, "at least 1 time-step")
            if self.unroll != "fold" or self.emit != "window":
                form = self.unroll if self.emit == "window" else self.emit
                raise UsageError(f"--chunk belongs to --unroll fold, not to {form}")
        if self.batch is not None:
            check_range("--batch", self.batch, 1 <= self.batch <= 1 << 20, "at least 1 sample")
        if (self.batch is None) == (self.emit == "cuda-graph"):
            raise UsageError("--emit cuda-graph and --batch N belong together")
        if self.reset == "hard" and self.neuron != "binary":
            raise UsageError(f"--reset hard is for binary neurons, not for {self.neuron}")
        if self.reset == "hard" and self.correction not in ("auto", "none"):
            raise UsageError(f"--reset hard takes no correction, not {self.correction}")
        if self.target == "cpu":
            self._check_lowerable()
        poisson = self.encode == "poisson" or (self.paper and self.encode == "auto")
        if poisson and self.emit == "step":
            raise UsageError(
                "--encode poisson makes spikes of one image; a stream brings its own input",
                hint="leave out --encode, and feed the spikes",
            )

    def _check_lowerable(self) -> None:
        """Raises UsageError for a form that has nothing to lower for the CPU."""
        reason = ""
        if self.emit != "window":
            reason = f"lowers whole windows, not --emit {self.emit}"
        elif self.unroll == "steps":
            reason = "lowers a loop over time, which --unroll steps does not write"
        elif self.precision == "fp16":
            reason = "computes in float32, not in --precision fp16"
        if reason:
            raise UsageError(f"--target cpu {reason}", hint="leave one of the two out")

    @property
    def spikes(self) -> Spikes:
        return Spikes.parse(self.neuron)

    @property
    def is_strict(self) -> bool:
        """Whether bias and batch-norm are refused; by default in paper mode alone."""
        return self.paper if self.strict is None else self.strict

    @property
    def encoding(self) -> Literal["constant", "poisson"]:
        """How the input is coded; by default as spikes in paper mode alone."""
        if self.encode != "auto":
            return self.encode
        return "poisson" if self.paper else "constant"

    def resolved(
        self,
        task: Literal["classification", "regression"],
        data: bool,
        depth: int,
        hindrance: str = "",
    ) -> Options:
        """Everything that was left open, chosen for the task (docs/explanation/accuracy.md).

        `data`: there is calibration data; without it nothing can be corrected on the running network.
        `depth`: the most spiking layers on a way through the network.  `hindrance`: why thresholds
        cannot grow in it.  Raises UsageError where they are asked to all the same, or a correction
        without data.  Where they grow by default, `growth` stays auto: the calibration may find that
        they cannot.
        """
        classifies = task == "classification"
        threshold: Method = "balance" if classifies else "max"
        correction: Correction = "schedule"
        if self.paper:
            threshold, correction = "vin-max", "none"
        elif not data:
            threshold, correction = "percentile", "none"
        elif self.reset == "hard" or self.threshold == "vin-max":
            correction = "none"
        if self.threshold != "auto":
            threshold = self.threshold
        if self.correction != "auto":
            correction = self.correction
        if not data and correction != "none":
            raise UsageError(
                f"--correction {correction} needs calibration data",
                hint="give --calibration DATA, or leave the correction away",
            )
        if not data:
            hindrance = "it needs calibration data"
        elif correction != "schedule":
            hindrance = f"it needs --correction schedule, not {correction}"
        elif self.encoding == "poisson":
            hindrance = "the input is coded as spikes"
        growth = self.growth
        if growth == "auto":
            # What balance clips is what time is for; other methods mean their θ as it is.
            grows = classifies and threshold == "balance" and not hindrance
            growth = growth if grows else NONE
        else:
            growth = str(Growth.parse(growth))
            if growth != NONE and hindrance:
                raise no_growth(growth, hindrance)
        # The more layers, the longer the last ones need to find their rate
        # (docs/explanation/accuracy-choices.md).
        power = min(max(depth - 3, 0) // 2, 3) if classifies and not self.paper else 0
        read_out = f"ramp:{power}" if power else "mean"
        return replace(
            self,
            task=task,
            threshold=threshold,
            correction=correction,
            growth=growth,
            readout=read_out if self.readout == "auto" else self.readout,
            per_channel=not self.paper if self.per_channel is None else self.per_channel,
            initial=(0.0 if self.paper else 0.5) if self.initial is None else self.initial,
            encode=self.encoding,
            strict=self.is_strict,
        )


def no_growth(growth: str, hindrance: str) -> UsageError:
    """That thresholds cannot grow as asked."""
    return UsageError(f"--growth {growth} is not possible: {hindrance}")


_OPTIONAL = ("chunk", "batch", "per_channel", "initial", "strict")
_CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("auto", "classification", "regression"),
    "threshold": ("auto", "max", "percentile", "mmse", "balance", "vin-max"),
    "correction": ("auto", "none", "schedule", "bias", "potential"),
    "unroll": ("fold", "loop", "steps"),
    "reset": ("soft", "hard"),
    "encode": ("auto", "constant", "poisson"),
    "maxpool": ("exact", "average"),
    "emit": ("window", "step", "cuda-graph"),
    "precision": ("fp32", "fp16"),
    "target": ("portable", "cpu"),
}


def check_type(
    option: str, given: object, kind: type | tuple[type, ...], text: str, optional: bool = False
) -> None:
    """Raises UsageError where `given` is of another type; a bool is no number."""
    truth = isinstance(given, bool) and kind is not bool
    if not (optional and given is None) and (truth or not isinstance(given, kind)):
        raise UsageError(f"{option} is {given!r}, it should be {text}")


def check_range(option: str, value: object, good: bool, allowed: str) -> None:
    """Raises UsageError where a value is not `good`."""
    if not good:
        raise UsageError(f"{option} {value} is out of range", hint=f"allowed: {allowed}")


def _choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value} is unknown", hint=f"one of {', '.join(choices)}")


def _parsed(option: str, parse: Callable[[str], Parsed], text: object) -> Parsed:
    check_type(option, text, str, "a text")
    try:
        return parse(str(text))
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
