"""Options of the command line, from the dataclasses that declare them (`ir/option`)."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar

import typer

from snncompiler.ir.option import (
    Declared,
    Untold,
    check_values,
    flag_of,
    options_of,
    written,
)

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shown:
    """panel: the heading of the options that have none of their own.  only: their names, if not all."""

    panel: str = ""
    only: tuple[str, ...] = ()


def expanded(command: Command) -> Command:
    """A command whose parameters of a dataclass of options became the options themselves.

    `def run(..., how: Preprocess)` takes `--layout`, `--scale` and so on, and gets them as one object,
    whose values were checked.  `Annotated[Preprocess, Shown(...)]` says more.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    bundles: dict[str, tuple[type[Any], list[Declared]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind, *notes = _taken_apart(hints[parameter.name])
        if is_dataclass(kind) and isinstance(kind, type):
            shown = next((note for note in notes if isinstance(note, Shown)), Shown())
            taken = [one for one in options_of(kind) if one.name in shown.only or not shown.only]
            bundles[parameter.name] = (kind, taken)
            parameters += [_parameter(one, shown.panel) for one in taken]
        else:
            parameters.append(
                parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
            )

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        for name, (kind, taken) in bundles.items():
            given[name] = kind(**{one.name: _read(one, given.pop(one.name)) for one in taken})
            check_values(given[name])
        return command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run  # type: ignore[return-value]


def _taken_apart(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)


def _parameter(one: Declared, panel: str) -> inspect.Parameter:
    """The parameter from which Typer makes the option."""
    by_text = one.parsed or one.option.read is not None
    default = one.default
    if by_text and default is not None:
        default = f"{default:g}" if isinstance(default, float) else written(default)
    kind = one.kind
    if by_text:
        kind = str if default is not None else str | None
    if isinstance(default, Untold):
        kind, default = kind | None, None  # whether it was given can be seen then
    info = typer.Option(
        *one.option.flags,
        help=one.text,
        rich_help_panel=one.option.panel or panel or None,
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _read(one: Declared, value: Any) -> Any:
    if value is None and isinstance(one.default, Untold):
        return one.default
    if one.option.read is None or value is None:
        return value
    return one.option.read(flag_of(one.name), value)
