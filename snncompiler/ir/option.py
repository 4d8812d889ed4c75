"""What an option is, apart from which options there are.

The options of the compiler are the fields of dataclasses (`Options` in `ir/settings`, `Preprocess` in
`network/data`).  A field has a name, a type and a default as any other, and an `Option` in its
annotation says the rest: what it means, which values are allowed, when it applies.  The command line,
the signature and the docstring of `snncompiler.compile`, the errors, the metadata of a file and the
pages of docs/reference are all made from that, by `options_of`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Generic, TypeVar

import numpy as np

from snncompiler.errors import UsageError

T = TypeVar("T")

#: How the types of values are called.
_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False"}


@dataclass(frozen=True)
class Range:
    """Which values are allowed: in words, and as a condition."""

    allowed: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Option:
    """What there is to say of an option besides its name, its type and its default.

    help: what it means, in a sentence or two.  unset: what its default stands for, where that is None
    or `auto`.  panel: the heading that it stands under in `--help`; empty for what a newcomer needs.
    flags: its spelling on the command line, where that is not its name with dashes.  range: the values
    that are allowed.  applies: other options, and their values with which this one means anything.
    read: how the command line reads it, where its type does not say; called with the flag and the text.
    untold: a file does not tell it where it has its default, so that files stay the bytes that they
    were before there was this option.
    """

    help: str
    unset: str = ""
    panel: str = ""
    flags: tuple[str, ...] = ()
    range: Range | None = None
    applies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: Callable[[str, str], Any] | None = None
    untold: bool = False


class Parsed(Generic[T]):
    """A field that holds an object and also takes its text, which it parses: `burst:4` for Spikes.

    parse: reads the text; raises ValueError.  kind: the type of the object.
    """

    def __init__(self, parse: Callable[[str], T], kind: type[Any], default: T) -> None:
        self.parse, self.kind, self.default = parse, kind, default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> T:
        if instance is None:
            return self.default
        value: T = vars(instance)[self.name]
        return value

    def __set__(self, instance: object, value: T | str) -> None:
        if not isinstance(value, (str, self.kind)):
            raise UsageError(f"{flag_of(self.name)} is {value!r}, it should be a text")
        try:
            # An object by its text too: what no text stands for is not an option.
            vars(instance)[self.name] = self.parse(str(value))
        except ValueError as error:
            raise UsageError(f"{flag_of(self.name)}: {error}") from None


@dataclass(frozen=True)
class Declared:
    """An option as it is declared by a field.

    kind: its type; of a `Parsed` field the object's or the text.  parsed: whether it is one.
    """

    name: str
    kind: Any
    default: Any
    option: Option
    parsed: bool

    @property
    def flag(self) -> str:
        """How messages call it: the last of its spellings."""
        return self.option.flags[-1] if self.option.flags else flag_of(self.name)

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types that it may have, None left out."""
        union = typing.get_origin(self.kind) in (typing.Union, types.UnionType)
        kinds = typing.get_args(self.kind) if union else (self.kind,)
        return tuple(kind for kind in kinds if kind is not type(None))

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes."""
        literals = [kind for kind in self.alternatives if typing.get_origin(kind) is typing.Literal]
        return tuple(word for kind in literals for word in typing.get_args(kind))

    @property
    def optional(self) -> bool:
        return type(None) in typing.get_args(self.kind)

    @property
    def text(self) -> str:
        """Its meaning, when it applies, what is allowed, and what its default stands for."""
        parts = [self.option.help]
        if self.option.applies:
            others = (f"{flag_of(o)} {_but_auto(v)}" for o, v in self.option.applies.items())
            parts.append(f"For {' and '.join(others)}.")
        if self.option.range:
            parts.append(f"Allowed: {self.option.range.allowed}.")
        if self.option.unset:
            parts.append(f"Default: {self.option.unset}.")
        return " ".join(parts)

    @property
    def written_default(self) -> Any:
        """The default, as a text where the option takes one."""
        return written(self.default) if self.parsed else self.default


def _but_auto(values: tuple[str, ...]) -> str:
    return " or ".join(value for value in values if value != "auto")


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def written(value: Any) -> Any:
    """A value as it is written: objects as the texts that they are parsed from."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return ",".join(f"{number:g}" for number in value)
    return str(value)


def options_of(kind: type[Any]) -> tuple[Declared, ...]:
    """The options that the fields of a dataclass declare, in their order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for entry in fields(kind):
        if typing.get_origin(hints[entry.name]) is not Annotated:
            continue
        held, *notes = typing.get_args(hints[entry.name])
        option = next((note for note in notes if isinstance(note, Option)), None)
        if option is None:
            continue
        parsed = typing.get_origin(held) is Parsed
        if parsed:
            descriptor = next(vars(c)[entry.name] for c in kind.__mro__ if entry.name in vars(c))
            held = descriptor.kind | str
        found.append(Declared(entry.name, held, entry.default, option, parsed))
    return tuple(found)


class Untold(int):
    """The default of an option that nobody has given: a network may have a better value."""


def plain_numbers(instance: object) -> None:
    """In a frozen dataclass, numpy's numbers become Python's, so that they can be written as JSON."""
    for name, number in vars(instance).items():
        if isinstance(number, np.generic):
            object.__setattr__(instance, name, number.item())


def check_values(options: Any) -> None:
    """Raises UsageError for the first value that is of a wrong type, no choice, or out of range."""
    declared = options_of(type(options))
    for one in declared:
        _check_kind(one, getattr(options, one.name))
    for one in declared:
        value, allowed = getattr(options, one.name), one.option.range
        if allowed is not None and value is not None and value not in one.choices:
            check_range(one.flag, written(value), allowed.holds(value), allowed.allowed)


def _check_kind(one: Declared, value: Any) -> None:
    kinds = tuple(kind for kind in one.alternatives if kind in _TYPES)
    if one.parsed or (value is None and one.optional):
        return
    if isinstance(value, str) and value in one.choices:
        return
    if kinds:
        text = " or ".join(_TYPES[kind] for kind in kinds)
        check_type(one.name, value, (*kinds, int) if float in kinds else kinds, text)
    elif one.choices:
        raise UsageError(f"{one.flag} {value} is unknown", hint=f"one of {', '.join(one.choices)}")


def check_applies(options: Any) -> None:
    """Raises UsageError where an option is given that means nothing beside the others.

    Of an option that has a value of its own by default, nothing tells whether it was given.
    """
    for one in options_of(type(options)):
        if one.default is not None or getattr(options, one.name) is None:
            continue
        for other, values in one.option.applies.items():
            given = getattr(options, other)
            if given not in values:
                wanted = f"{flag_of(other)} {_but_auto(values)}"
                raise UsageError(f"{one.flag} belongs to {wanted}, not to {given}")


def applying(options: Any) -> dict[str, Any]:
    """The values of the options that mean something beside the others, without those that are not told
    because they have their default."""
    return {
        one.name: getattr(options, one.name)
        for one in options_of(type(options))
        if all(getattr(options, other) in values for other, values in one.option.applies.items())
        and not (one.option.untold and getattr(options, one.name) == one.default)
    }


def check_type(option: str, given: object, kind: type | tuple[type, ...], text: str) -> None:
    """Raises UsageError where `given` is of another type; a bool is no number."""
    truth = isinstance(given, bool) and kind not in (bool, (bool,))
    if truth or not isinstance(given, kind):
        raise UsageError(f"{option} is {given!r}, it should be {text}")


def check_range(option: str, value: object, good: bool, allowed: str) -> None:
    """Raises UsageError where a value is not `good`."""
    if not good:
        raise UsageError(f"{option} {value} is out of range", hint=f"allowed: {allowed}")


# --- how the command line reads what is no plain number or word ---


def number_or_auto(flag: str, text: str) -> float | str:
    """A number, or `auto`.  Raises UsageError."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag} {text} is neither a number nor auto") from None


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """Finite numbers, separated by commas.  Raises UsageError."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text} is not a list of numbers", hint="as 0.5,0.5,0.5") from None
    if not all(np.isfinite(values)):
        raise UsageError(f"{flag} {text} is not finite")
    return values


def height_width_or_side(flag: str, text: str) -> tuple[int, ...]:
    """`HxW`, or one number for the shorter side.  Raises UsageError."""
    if text.isdecimal() and int(text) > 0:
        return (int(text),)
    if "x" not in text.lower():
        raise UsageError(f"{flag} {text} is neither HxW nor a side", hint="as 224x224 or 256")
    return height_width(flag, text)


def height_width(flag: str, text: str) -> tuple[int, int]:
    """`HxW`, both positive.  Raises UsageError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{flag} {text} is not HxW", hint="as 224x224")
    return int(parts[0]), int(parts[1])
