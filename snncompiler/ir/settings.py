"""The options of a compilation: this is the one place where they are written down.

To add one is to add a field to `Options`, and to use it where it has its effect (`ir/option` says what
is made from the fields).  Fields keep their order in every list that is made from them.
"""

# Annotations are evaluated here, not kept as text: what is in them is used.
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

from snncompiler.errors import UsageError
from snncompiler.ir.growth import STEADY, Growth
from snncompiler.ir.option import (
    Option,
    Parsed,
    Range,
    Untold,
    check_applies,
    check_range,
    check_values,
    number_or_auto,
    options_of,
    plain_numbers,
    written,
)
from snncompiler.ir.pixels import REAL_INPUT, InputType
from snncompiler.ir.readout import MEAN, ReadOut
from snncompiler.ir.spikes import BINARY, Spikes
from snncompiler.ir.whole import REAL, Weights

Value = TypeVar("Value")
Auto = Literal["auto"]
Unroll = Literal["fold", "loop", "steps"]
Emit = Literal["window", "step", "cuda-graph", "counts"]
#: `auto` is chosen by the network's task (`Options.resolved`).
Correction = Literal["auto", "none", "schedule", "bias", "potential"]
#: `vin-max` is no strategy over a histogram, but looks at the running network.
Method = Literal["auto", "max", "headroom", "percentile", "mmse", "balance", "vin-max"]
#: What is corrected in layered time, layer by layer; `auto` is chosen by the network's task.
Correct = Literal["auto", "weights", "bias", "none"]
Task = Literal["auto", "classification", "regression"]
MaxPooling = Literal["exact", "average"]
Target = Literal["portable", "cpu"]
Encoding = Literal["auto", "constant", "poisson"]
#: When neurons fire: while their input arrives, or when a window of it is complete.
Timing = Literal["streaming", "layered"]
#: What the spikes of a window are: their number, or the binary digits of a number.
Coding = Literal["rate", "radix"]

DEFAULT_STEPS = Untold(64)
#: More steps than this are a slip of the finger: float32 counts end at 2^24.
MAX_STEPS = 1 << 24
#: Digits of a radix number: its levels are counted exactly in float32, and in 16-bit integers.
MAX_DIGITS = 16
#: So many levels resolve values that are larger than any in the calibration data, too.
MANY_LEVELS = 63
#: A schedule of more steps would be longer than any window in which it helps.
MAX_SCHEDULE = 1024
#: How θ of a classifier grows (docs/explanation/accuracy.md).
DEFAULT_GROWTH = Growth.parse("0.85@1,0.9@9,1@13,1.15@33,1.3@65")

#: The headings of what a newcomer does not need.
ACCURACY = "Thresholds and corrections (for experts)"
NEURONS = "Neurons and input (for experts)"
FORM = "Form of the file (for experts)"

_POSITIVE = "positive and finite"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compile.  None and "auto" are filled in by `resolved` once the network's task is known."""

    steps: Annotated[
        int,
        Option(
            "Time-steps T.",
            unset="64, with --coding radix as many digits as a quantized source has bits",
            flags=("--steps", "-T"),
            range=Range(f"1 to {MAX_STEPS:,} time-steps", lambda steps: 1 <= steps <= MAX_STEPS),
        ),
    ] = DEFAULT_STEPS
    timing: Annotated[
        Timing,
        Option(
            "streaming: all layers run at once, step by step; layered: a layer fires when it has "
            "received all T steps of its input.",
            untold=True,
        ),
    ] = "streaming"
    coding: Annotated[
        Coding | None,
        Option(
            "rate: a value is the number of its spikes, 0 to T; radix: its spikes are the binary "
            "digits of a number from 0 to 2^T - 1, the most significant first.",
            unset="rate",
            applies={"timing": ("layered",)},
            untold=True,
        ),
    ] = None
    task: Annotated[Task, Option("What the outputs are; it decides what is left at auto.")] = "auto"
    threshold: Annotated[
        Method,
        Option(
            "How θ follows from the ANN's activations, or for vin-max from the currents of the running "
            "network, as in the paper.",
            panel=ACCURACY,
        ),
    ] = "auto"
    percentile: Annotated[
        float,
        Option(
            "θ is this percentile of all activations, zeros included.",
            panel=ACCURACY,
            applies={"threshold": ("auto", "percentile")},
            range=Range("above 0, at most 100", lambda percent: 0 < percent <= 100),
        ),
    ] = 99.9
    tau: Annotated[
        float,
        Option(
            "How long θ grows from 0 towards the largest activation.",
            panel=ACCURACY,
            applies={"threshold": ("auto", "balance")},
            range=Range(_POSITIVE, lambda tau: 0 < tau < float("inf")),
        ),
    ] = 500.0
    per_channel: Annotated[
        bool | None,
        Option(
            "One θ per channel or one per layer.",
            unset="per channel, with --paper per layer",
            panel=ACCURACY,
            flags=("--per-channel/--per-layer",),
        ),
    ] = None
    alpha: Annotated[
        float | Auto,
        Option(
            "Scale of every θ, the paper's α; auto searches it.",
            panel=ACCURACY,
            range=Range(f"{_POSITIVE}, or auto", lambda alpha: 0 < alpha < float("inf")),
            read=number_or_auto,
        ),
    ] = 1.0
    correction: Annotated[
        Correction,
        Option("Charges that correct the running network, found layer by layer.", panel=ACCURACY),
    ] = "auto"
    correct: Annotated[
        Correct,
        Option(
            "What is corrected in layered time, so that few levels do: weights and biases, biases "
            "alone, or none.",
            panel=ACCURACY,
            applies={"timing": ("layered",)},
            untold=True,
        ),
    ] = "auto"
    schedule_steps: Annotated[
        int,
        Option(
            "How many of the first steps the schedule corrects one by one.",
            panel=ACCURACY,
            applies={"timing": ("streaming",), "correction": ("auto", "schedule")},
            range=Range(f"1 to {MAX_SCHEDULE:,}", lambda steps: 1 <= steps <= MAX_SCHEDULE),
        ),
    ] = 32
    growth: Annotated[
        Parsed[Growth | Auto],
        Option(
            "How θ grows with time: none; or factor@step pairs, as 1.15@33,1.3@65, each of which holds "
            "from its step on, counted from 1.",
            applies={"timing": ("streaming",)},
            panel=ACCURACY,
        ),
    ] = Parsed(lambda text: "auto" if text == "auto" else Growth.parse(text), Growth, "auto")
    readout: Annotated[
        Parsed[ReadOut | Auto],
        Option(
            "How outputs over time become one: mean; ramp:P, where step t weighs t^P; or delay:D, "
            "where the first D steps do not count.",
            unset="by task and depth",
            applies={"timing": ("streaming",)},
            panel=ACCURACY,
        ),
    ] = Parsed(lambda text: "auto" if text == "auto" else ReadOut.parse(text), ReadOut, "auto")
    neuron: Annotated[
        Parsed[Spikes],
        Option(
            "binary; burst:G, up to G spikes a step; or signed:G, also negative ones, which take back "
            "earlier ones.",
            applies={"timing": ("streaming",)},
            panel=NEURONS,
        ),
    ] = Parsed(Spikes.parse, Spikes, BINARY)
    unroll: Annotated[
        Unroll,
        Option(
            "How time is unrolled: fold computes chunks of steps at once, loop one step at a time, "
            "steps writes every step.",
            applies={"timing": ("streaming",)},
            panel=FORM,
        ),
    ] = "fold"
    chunk: Annotated[
        int | None,
        Option(
            "Steps that are computed at once.",
            unset="by memory",
            panel=FORM,
            applies={"timing": ("streaming",), "unroll": ("fold",), "emit": ("window",)},
            range=Range("at least 1 time-step", lambda steps: 1 <= steps <= MAX_STEPS),
        ),
    ] = None
    reset: Annotated[
        Literal["soft", "hard"],
        Option(
            "soft keeps the residual potential, as RMP-SNN does; hard drops it.",
            applies={"timing": ("streaming",)},
            panel=NEURONS,
        ),
    ] = "soft"
    initial: Annotated[
        float | None,
        Option(
            "Membrane potential at the start, in units of θ.",
            unset="0.5, with --paper 0",
            applies={"timing": ("streaming",)},
            panel=NEURONS,
            range=Range("0 to below 1, in units of θ", lambda potential: 0 <= potential < 1),
        ),
    ] = None
    encode: Annotated[
        Encoding,
        Option(
            "The input as a constant current, or as signed random spikes.",
            unset="constant, with --paper poisson",
            panel=NEURONS,
        ),
    ] = "auto"
    paper: Annotated[
        bool,
        Option(
            "As RMP-SNN has it: --strict, --encode poisson, --threshold vin-max with one θ per layer, "
            "--initial 0, no correction; each can be set otherwise.",
            applies={"timing": ("streaming",)},
            panel=NEURONS,
            flags=("--paper",),
        ),
    ] = False
    strict: Annotated[
        bool | None,
        Option(
            "The paper's constraints: refuse bias and batch-norm.",
            unset="with --paper alone",
            panel=NEURONS,
            flags=("--strict/--no-strict",),
        ),
    ] = None
    allow_analog: Annotated[
        bool,
        Option("Keep nonlinear operators between spiking layers, exact but not spiking."),
    ] = False
    maxpool: Annotated[
        MaxPooling,
        Option(
            "average replaces max pooling by average pooling, which changes the network.",
            panel=NEURONS,
        ),
    ] = "exact"
    pure: Annotated[
        bool,
        Option(
            "Weights read spikes alone, and the input: other real numbers are sent by two more spiking "
            "layers, one for each sign.",
            panel=NEURONS,
            untold=True,
        ),
    ] = False
    seed: Annotated[
        int,
        Option(
            "Seed for drawing samples and for synthetic input.",
            panel=ACCURACY,
            range=Range("0 to 2^63 - 1", lambda seed: 0 <= seed < 1 << 63),
        ),
    ] = 0
    emit: Annotated[
        Emit,
        Option(
            "window: all T steps; step: one step, with the states as inputs and outputs, for streams "
            "and, in layered time, for pipelines of layers; cuda-graph: all T steps without control "
            "flow, for a fixed batch; counts: no spikes, but the 8-bit network that computes with "
            "their counts, in standard operators (layered time, whole numbers)."
        ),
    ] = "window"
    batch: Annotated[
        int | None,
        Option(
            "The fixed batch size.",
            panel=FORM,
            applies={"emit": ("cuda-graph",)},
            range=Range("at least 1 sample", lambda batch: 1 <= batch <= 1 << 20),
        ),
    ] = None
    precision: Annotated[
        Literal["fp32", "fp16"],
        Option("fp16: weights and currents in float16, for GPUs.", panel=FORM),
    ] = "fp32"
    weights: Annotated[
        Parsed[Weights],
        Option(
            "float32; or whole numbers, int8, int4, int16 or any intB: every sum is exact then, and "
            "every machine gives the same spikes.",
            untold=True,
        ),
    ] = Parsed(Weights.parse, Weights, REAL)
    input_bits: Annotated[
        int | None,
        Option(
            "Bits of a real-valued input beside weights that are whole numbers.",
            unset="as many as leave every sum exact, at most 16",
            panel=FORM,
            range=Range("4 to 16", lambda bits: 4 <= bits <= 16),
            untold=True,
        ),
    ] = None
    input_type: Annotated[
        Parsed[InputType],
        Option(
            "float32: the input as the source has it; uint8: pixels, of which the network makes it "
            "itself, by --scale, --mean and --std.",
            panel=FORM,
            untold=True,
        ),
    ] = Parsed(InputType.parse, InputType, REAL_INPUT)
    compact: Annotated[
        bool,
        Option(
            "Store weights that are whole numbers in 8 or 16 bits, with a Cast behind them.",
            panel=FORM,
            flags=("--compact",),
            untold=True,
        ),
    ] = False
    target: Annotated[
        Target,
        Option("portable: for any device; cpu: lowered to event-driven operators in the file."),
    ] = "portable"

    def __post_init__(self) -> None:
        plain_numbers(self)

    def check(self) -> None:
        """Raises UsageError for the first value that is of a wrong type or out of range, and where
        options exclude or need each other."""
        check_values(self)
        if isinstance(self.readout, ReadOut):
            good = self.readout.skipped < self.steps
            check_range("--readout", self.readout, good, f"a delay below T = {self.steps}")
        if (self.batch is None) == (self.emit == "cuda-graph"):
            raise UsageError("--emit cuda-graph and --batch N belong together")
        check_applies(self)
        if self.reset == "hard" and self.neuron != BINARY:
            raise UsageError(f"--reset hard is for binary neurons, not for {self.neuron}")
        if self.reset == "hard" and self.correction not in ("auto", "none"):
            raise UsageError(f"--reset hard takes no correction, not {self.correction}")
        if not self.weights and (self.input_bits is not None or self.compact):
            flag = "--compact" if self.compact else "--input-bits"
            raise UsageError(
                f"{flag} belongs to weights that are whole numbers", hint="give --weights int8 too"
            )
        if self.weights and self.precision == "fp16":
            raise UsageError(
                f"--weights {self.weights} beside --precision fp16: float16 holds whole numbers up to "
                "2,048 only, and ONNX gives the sums of a layer, which are larger, in the type of its "
                "weights",
                hint="leave one of the two out",
            )
        if self.emit == "counts" and not self.layered:
            raise UsageError(
                "--emit counts collapses a window of layered time, not --timing streaming",
                hint="give --timing layered --weights int8",
            )
        if self.layered:
            self._check_layered()
        if self.target == "cpu":
            self._check_lowerable()
        poisson = self.encode == "poisson" or (self.paper and self.encode == "auto")
        if poisson and self.input_type:
            raise UsageError(
                f"--input-type {self.input_type} beside --encode poisson: spikes code real numbers",
                hint="leave one of the two out",
            )
        if poisson and self.emit == "step":
            raise UsageError(
                "--encode poisson makes spikes of one image; a stream brings its own input",
                hint="leave out --encode, and feed the spikes",
            )

    def _check_layered(self) -> None:
        """Raises UsageError for what was asked for and has no meaning in layered time, or no form."""
        for one in options_of(type(self)):
            timings, given = one.option.applies.get("timing", ()), getattr(self, one.name)
            if timings and self.timing not in timings and given != one.default:
                text = f"{one.flag} {written(given)} belongs to --timing {timings[0]}"
                raise UsageError(f"{text}, not to {self.timing}")
        reason = ""
        if self.correction not in ("auto", "none"):
            reason = f"--correction {self.correction} corrects a network that runs step by step"
        elif self.threshold == "vin-max":
            reason = "--threshold vin-max looks at a network that runs step by step"
        elif self.encode == "poisson":
            reason = (
                "--encode poisson needs a mean over time, and the input of a window is constant"
            )
        elif self.target == "cpu":
            reason = (
                "--target cpu lowers a loop over time, and layered time has none: a session on the CPU "
                "puts operators by counts into the file by itself"
            )
        if reason:
            raise UsageError(
                reason, hint="leave one of the two out, or compile with --timing streaming"
            )
        if self.coding == "radix" and not self.steps_are_open:
            self.check_digits()

    def check_digits(self) -> None:
        """Raises UsageError for more steps than a radix number has digits."""
        allowed = f"1 to {MAX_DIGITS} digits with --coding radix; 8 of them make 255 levels"
        check_range("--steps", self.steps, self.steps <= MAX_DIGITS, allowed)

    def _check_lowerable(self) -> None:
        """Raises UsageError for a form that has nothing to lower for the CPU."""
        reason = ""
        if self.compact:
            reason = "writes weights as its operators take them, not --compact"
        elif self.emit != "window":
            reason = f"lowers whole windows, not --emit {self.emit}"
        elif self.unroll == "steps":
            reason = "lowers a loop over time, which --unroll steps does not write"
        elif self.precision == "fp16":
            reason = "computes in float32, not in --precision fp16"
        if reason:
            raise UsageError(f"--target cpu {reason}", hint="leave one of the two out")

    @property
    def layered(self) -> bool:
        return self.timing == "layered"

    @property
    def radix(self) -> bool:
        return self.layered and self.coding == "radix"

    @property
    def steps_are_open(self) -> bool:
        """Whether nobody has asked for T, whose default is no number of digits: a quantized source says
        then how many."""
        return self.radix and isinstance(self.steps, Untold)

    @property
    def levels(self) -> int:
        """L, the largest number that the spikes of a window stand for in layered time."""
        return (1 << self.steps) - 1 if self.radix else self.steps

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
    ) -> "Options":
        """Everything that was left open, chosen for the task (docs/explanation/accuracy.md).

        `data`: there is calibration data; without it nothing can be corrected on the running network.
        `depth`: the most spiking layers on a way through the network.  `hindrance`: why thresholds
        cannot grow in it.  Raises UsageError where they are asked to all the same, or a correction
        without data.  Where they grow by default, `growth` stays auto: the calibration may find that
        they cannot.
        """
        classifies = task == "classification"
        if self.layered:
            return self._resolved_layered(task, data)
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
            growth = "auto" if grows else STEADY
        elif growth != STEADY and hindrance:
            raise no_growth(growth, hindrance)
        # The more layers, the longer the last ones need to find their rate
        # (docs/explanation/accuracy-choices.md).
        power = min(max(depth - 3, 0) // 2, 3) if classifies and not self.paper else 0
        read_out = ReadOut("ramp", power=power) if power else MEAN
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

    def _resolved_layered(
        self, task: Literal["classification", "regression"], data: bool
    ) -> "Options":
        """The same in layered time, where nothing is uneven that could be corrected."""
        correct: Correct = "weights" if task == "classification" else "bias"
        threshold: Method = "mmse"
        if not data:
            threshold, correct = "percentile", "none"
        elif task == "regression" and self.levels >= MANY_LEVELS:
            # What other data reaches must not be cut off, and there are levels enough for it.
            threshold = "headroom"
        if self.threshold != "auto":
            threshold = self.threshold
        if self.correct != "auto":
            correct = self.correct
        if not data and correct != "none":
            raise UsageError(
                f"--correct {correct} needs calibration data",
                hint="give --calibration DATA, or leave the correction away",
            )
        return replace(
            self,
            task=task,
            coding=self.coding or "rate",
            threshold=threshold,
            correct=correct,
            correction="none",
            growth=STEADY,
            readout=MEAN,
            per_channel=True if self.per_channel is None else self.per_channel,
            initial=0.5,
            encode=self.encoding,
            strict=self.is_strict,
        )


def no_growth(growth: Growth, hindrance: str) -> UsageError:
    """That thresholds cannot grow as asked."""
    return UsageError(f"--growth {growth} is not possible: {hindrance}")


def chosen(value: Value | Auto) -> Value:
    """What `Options.resolved` or the calibration has chosen.  Raises ValueError for `auto`."""
    if value == "auto":
        raise ValueError("an option is still to be chosen")
    return value
