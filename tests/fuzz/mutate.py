"""Damages models, always in the same way: bytes flipped and cut, fields of protobuf changed.

    python tests/fuzz/mutate.py FIRST LAST

prepares the mutants FIRST to LAST - 1 and prints one JSON line for each: its number before it starts,
so that whoever reads knows which one ended the process, and what came of it.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from typing import Any

import onnx
from fuzz_seeds import seeds
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from snncompiler import pipeline
from snncompiler.errors import SnncError

INTEGERS = (0, 1, -1, 2, 7, 255, 1 << 16, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "y",
    "w",
    "Relu",
    "Add",
    "Conv",
    "If",
    "Loop",
    "Pad",
    "Range",
    "Expand",
    "a\x1b[31m",
)


def mutant(number: int) -> bytes:
    """The mutant of this number."""
    rng = random.Random(number)
    names = sorted(seeds())
    raw = seeds()[names[number % len(names)]]
    kind = rng.choice(("flip", "flip", "cut", "insert", "field", "field", "field", "field"))
    if kind == "cut":
        return raw[: rng.randrange(len(raw))]
    if kind == "insert":
        at = rng.randrange(len(raw))
        return raw[:at] + rng.randbytes(rng.randint(1, 8)) + raw[at:]
    if kind == "flip":
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(damaged)
    return change_fields(raw, rng)


def change_fields(raw: bytes, rng: random.Random) -> bytes:
    """A model with one to three fields changed, of any message in it."""
    model = onnx.ModelProto.FromString(raw)
    for _ in range(rng.randint(1, 3)):
        _change(rng, rng.choice(_messages(model)))
    changed: bytes = model.SerializeToString()
    return changed


def _messages(message: Message) -> list[Message]:
    """The message and all messages in it."""
    found, waiting = [message], [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = list(value) if field.is_repeated else [value]
                found += inner
                waiting += inner
    return found


def _change(rng: random.Random, message: Message) -> None:
    """Changes, clears, doubles or adds one field."""
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present * 3 + list(message.DESCRIPTOR.fields))
    name = field.name
    if rng.random() < 0.15:
        message.ClearField(name)
        return
    values: Any = getattr(message, name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if not field.is_repeated:
            values.SetInParent()
        elif len(values) and rng.random() < 0.5:
            del values[rng.randrange(len(values))]
        elif len(values):
            values.add().CopyFrom(rng.choice(values))
        else:
            values.add()
        return
    value = _value(rng, field)
    if not field.is_repeated:
        setattr(message, name, value)
    elif len(values) and rng.random() < 0.7:
        values[rng.randrange(len(values))] = value
    else:
        values.append(value)


def _value(rng: random.Random, field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\xff", bytes(4), bytes(16), b"SAME_UPPER"))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([entry.number for entry in field.enum_type.values])
    top = 1 << (31 if field.type == FieldDescriptor.TYPE_INT32 else 63)
    low = 0 if field.type == FieldDescriptor.TYPE_UINT64 else -top
    return rng.choice([number for number in INTEGERS if low <= number < top])


def outcome(raw: bytes) -> str:
    """`fine`, or what came instead of an answer."""
    try:
        pipeline.prepare(raw)
    except SnncError as error:
        return "fine" if error.exit_code != 4 else str(error)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def main() -> None:
    warnings.simplefilter("ignore")
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps({"number": number}), flush=True)
        print(json.dumps({"number": number, "came": outcome(mutant(number))}), flush=True)


if __name__ == "__main__":
    main()
