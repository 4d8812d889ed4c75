"""`snncompiler.compile` and `snncompiler.check`: the commands of the same names, in Python.

What `compile` takes is written down once, as the fields of `Request`, which has those of `Options`:
`called_with` makes a function with the parameters of a dataclass.  Type checkers and editors see them
too (a ParamSpec carries them over from the dataclass), and `inspect.signature` and `help` show them.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from textwrap import fill
from typing import Annotated, Any, ParamSpec, TypeVar

import onnx

from snncompiler.analysis.constraints import constraints
from snncompiler.ir.option import Option, options_of
from snncompiler.ir.settings import Options, Timing
from snncompiler.network.data import Preprocess
from snncompiler.pipeline import (
    CALIBRATION_SAMPLES,
    CalibrationLike,
    Progress,
    compile_model,
    prepare,
)

Parameters = ParamSpec("Parameters")
Request_ = TypeVar("Request_")
Result = TypeVar("Result")


def called_with(
    kind: Callable[Parameters, Request_],
) -> Callable[[Callable[[Request_], Result]], Callable[Parameters, Result]]:
    """Makes of a function of one object of a dataclass a function of the dataclass's fields.

    The meanings of the fields are put where the docstring of the function says {parameters}.
    """

    def made(function: Callable[[Request_], Result]) -> Callable[Parameters, Result]:
        declared = {one.name: one for one in options_of(kind)}  # type: ignore[arg-type]
        found = inspect.signature(kind).parameters
        # Its own fields before those of the dataclass that it extends.
        names = sorted(found, key=lambda name: name not in inspect.get_annotations(kind))
        parameters = [
            found[name].replace(
                annotation=one.kind,
                default=one.written_default if one.parsed else found[name].default,
            )
            for name in names
            for one in [declared[name]]
        ]
        returned = inspect.get_annotations(function, eval_str=True)["return"]
        signature = inspect.Signature(parameters, return_annotation=returned)

        def called(*args: Parameters.args, **named: Parameters.kwargs) -> Result:
            signature.bind(*args, **named)  # its TypeError names this function's parameters
            return function(kind(*args, **named))

        text = "\n".join(
            fill(
                f"{one.name}: {_in_python(one.text)}",
                100,
                subsequent_indent="    ",
                break_on_hyphens=False,
            )
            for one in (declared[name] for name in names)
        )
        called.__name__, called.__qualname__ = function.__name__, function.__qualname__
        called.__module__ = function.__module__
        called.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{parameters}", text)
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        called.__annotations__["return"] = returned
        called.__signature__ = signature  # type: ignore[attr-defined]
        return called

    return made


def _in_python(text: str) -> str:
    """A text about options of the command line, with their names in Python."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), text)


@dataclass(frozen=True)
class Request(Options):
    """What `compile` is called with: the options, and what is compiled with them."""

    model: Annotated[
        str | os.PathLike[str] | bytes | onnx.ModelProto,
        Option("path, bytes or ModelProto of the ANN; it is not changed."),
    ]
    _: KW_ONLY
    calibration: Annotated[
        CalibrationLike,
        Option(
            "data as for `snncompiler.network.data.load_data`, or a Calibration, which no option "
            "may contradict; without it, thresholds come from batch-norm statistics or synthetic "
            "input, and nothing is corrected."
        ),
    ] = None
    samples: Annotated[
        int | None,
        Option("how many samples of the calibration data are drawn, by `seed`; None for all."),
    ] = CALIBRATION_SAMPLES
    preprocess: Annotated[
        Preprocess | None, Option("how pixels of the calibration data become the network's input.")
    ] = None
    statistics: Annotated[
        Sequence[str | os.PathLike[str]],
        Option(
            "files that `snnc observe` wrote on more data, all parts; thresholds come from them then."
        ),
    ] = ()
    skip_damaged: Annotated[
        bool, Option("calibrate without the images that cannot be read, instead of refusing them.")
    ] = False
    progress: Annotated[
        Progress | None,
        Option("called with what is being done and how far it is: (text, done, of)."),
    ] = None


@called_with(Request)
def compile(request: Request) -> onnx.ModelProto:
    """Compile a trained ReLU network into a spiking one (RMP-SNN, Han, Srinivasan, Roy, CVPR 2020).

    {parameters}

    Returns the spiking network: the same inputs and outputs as the ANN, [N, ...].
    Raises Refused (the model or the data), UsageError (an option), EnvironmentMissing (onnxruntime).
    """
    options = Options(**{entry.name: getattr(request, entry.name) for entry in fields(Options)})
    return compile_model(
        request.model,
        options,
        request.calibration,
        request.preprocess,
        request.samples,
        request.progress,
        skip_damaged=request.skip_damaged,
        statistics=request.statistics,
    ).model


def check(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    strict: bool = False,
    allow_analog: bool = False,
    timing: Timing = "streaming",
) -> dict[str, Any]:
    """The constraints report of a network, as plain data (see `snnc check --json`).

    Per rectifier and linear layer: bias, batch-norm, what was folded; pooling; every finding.
    Raises Refused with all findings where the network cannot be converted.
    """
    options = Options(strict=strict, allow_analog=allow_analog, timing=timing)
    options.check()
    return constraints(
        prepare(model, strict=strict, allow_analog=allow_analog, layered=options.layered)
    )
