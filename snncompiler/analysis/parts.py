"""Parts of an evaluation or of statistics: which samples belong to one, how it is written, and how
parts are merged.

A part is what one machine found on its shard of the data.  It is small, and says what it is a part of,
so that parts that do not belong together are refused.  The parts of n shards give the result of one,
exactly, in whatever order they are given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from snncompiler.analysis.count import Macs
from snncompiler.analysis.evaluation import Evaluation, StepResult
from snncompiler.analysis.exact import Exact
from snncompiler.analysis.tally import (
    Answers,
    Classes,
    Constant,
    Judge,
    Largest,
    LayerTally,
    Observed,
    OutputTally,
    StepTally,
    SynOpsTally,
    Tally,
    merged,
    plain,
    step_result,
)
from snncompiler.calibration.histogram import Histogram
from snncompiler.emission.save import write_atomically
from snncompiler.errors import Refused, UsageError, refuse
from snncompiler.findings import Finding
from snncompiler.network.data import left_out
from snncompiler.passes.lower.lower_events import LayerNote

T = TypeVar("T")

#: Of the file of a part.
FORMAT = 1
#: What parts are of, by `about["kind"]`, and what writes them.
EVALUATION, STATISTICS = "evaluation", "statistics"
_WRITES = {EVALUATION: "snnc eval --shard", STATISTICS: "snnc observe"}


@dataclass(frozen=True)
class Shard:
    """Number `index` of `of` shards, counted from 1."""

    index: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Of `i/n`.  Raises UsageError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {text} is not i/n", hint="from 1/n to n/n, as 2/7")
        return Shard(int(found[1]), int(found[2]))

    def of_batches(self, count: int) -> tuple[int, int]:
        """The batches that belong to it, from the first to the last (exclusive): shards differ by one
        batch at most, and some are empty where there are fewer batches than shards."""
        return (self.index - 1) * count // self.of, self.index * count // self.of

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


ALL = Shard(1, 1)


@dataclass(frozen=True)
class Part(Generic[T]):
    """What was found on one shard: the tally of an evaluation, or observations.

    about: what all parts of one evaluation have in common, as plain data.
    """

    about: dict[str, Any]
    shard: Shard
    tally: T

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all: the same bytes for the same part."""
        content = {"about": self.about, "shard": str(self.shard), "tally": _written(self.tally)}
        text = json.dumps(content, ensure_ascii=True, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        whole = f'{{"snnc_part": {FORMAT}, "sha256": "{digest}",\n"content": {text}}}\n'
        write_atomically(path, lambda file: file.write(whole.encode()))

    @staticmethod
    def load(path: Path) -> Part[Any]:
        """Read one.  Raises Refused where it is none, is damaged or is cut off, UsageError where there
        is no such file."""
        try:
            text = path.read_text()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", code="SNNC312") from None
        except ValueError:
            raise refuse("SNNC312", f"{path} is no part that snnc wrote") from None
        found = re.fullmatch(
            r'\{"snnc_part": (\d+), "sha256": "(\w+)",\n"content": (.*)\}\n?', text
        )
        if found is None:
            cut_off = text.startswith('{"snnc_part"')
            what = "is cut off or damaged" if cut_off else "is no part that snnc wrote"
            hint = (
                "run its shard again"
                if cut_off
                else "give what snnc eval --shard or snnc observe wrote"
            )
            raise refuse("SNNC312", f"{path} {what}", hint=hint)
        version, digest, content = found.groups()
        if int(version) != FORMAT:
            raise refuse("SNNC312", f"{path} is of another version of snnc")
        if hashlib.sha256(content.encode()).hexdigest() != digest:
            raise refuse("SNNC312", f"{path} is damaged", hint="run its shard again")
        try:
            read = json.loads(content)
            return Part(read["about"], Shard.parse(read["shard"]), _read(read["tally"]))
        except (ValueError, TypeError, KeyError, AttributeError, zlib.error, UsageError) as error:
            raise refuse("SNNC312", f"{path} is damaged: {error}") from None


# --- a tally as JSON ---

_KINDS = {kind.__name__: kind for kind in (
    Answers, Largest, LayerTally, Observed, OutputTally, StepTally, SynOpsTally, Tally
)}  # fmt: skip


def _written(value: Any) -> Any:
    """As plain data; what JSON does not know as a dict with one key, which begins with $."""
    if isinstance(value, Exact):
        return {"$sum": value.written()}
    if isinstance(value, Classes):
        return {"$classes": _packed(value.array)}
    if isinstance(value, Constant):
        return {"$constant": value.value}
    if isinstance(value, np.ndarray):
        return {"$fired": _packed(value)}
    if isinstance(value, Histogram):
        # Ranges of channels that were always 0 mean nothing.
        exponent = np.where(value.maximum > 0, value.exponent, 0)
        arrays = [_packed(one) for one in (exponent, value.counts, value.maximum)]
        return {"$histogram": [value.channels, value.total, *arrays]}
    if isinstance(value, float):
        return {"$float": value.hex()}
    if isinstance(value, tuple):
        return {"$tuple": list(value)}
    if isinstance(value, dict):
        return {"$dict": [[key, _written(entry)] for key, entry in value.items()]}
    if is_dataclass(value):
        entries = {entry.name: _written(getattr(value, entry.name)) for entry in fields(value)}
        return {f"${type(value).__name__}": entries}
    return value


def _read(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "$sum":
        return Exact.read(content)
    if kind == "$classes":
        return Classes([_unpacked(content)])
    if kind == "$constant":
        return Constant(content)
    if kind == "$fired":
        return _unpacked(content)
    if kind == "$tuple":
        return tuple(content)
    if kind == "$histogram":
        found = Histogram(content[0], content[1])
        found.exponent, found.counts, found.maximum = map(_unpacked, content[2:])
        return found
    if kind == "$float":
        return float.fromhex(content)
    if kind == "$dict":
        return {key: _read(entry) for key, entry in content}
    return _KINDS[kind.removeprefix("$")](**{n: _read(entry) for n, entry in content.items()})


def _packed(array: Any) -> list[Any]:
    """Whole numbers in the fewest bytes that hold them, truth values in bits, and float32 as they are:
    type, shape, and the bytes compressed, in base64."""
    if array.dtype == bool:
        kind, raw = "bits", np.packbits(array.reshape(-1)).tobytes()
    elif array.dtype == np.float32 or array.min(initial=0) < 0:
        kind = "<f4" if array.dtype == np.float32 else "<i8"
        raw = array.astype(kind).tobytes()
    else:
        small = np.min_scalar_type(int(array.max(initial=0)))
        kind, raw = small.newbyteorder("<").str, array.astype(small.newbyteorder("<")).tobytes()
    return [kind, list(array.shape), base64.b64encode(zlib.compress(raw, 6)).decode()]


def _unpacked(packed: Sequence[Any]) -> Any:
    kind, shape, text = packed
    raw = zlib.decompress(base64.b64decode(text, validate=True))
    size = int(np.prod(shape, dtype=np.int64))
    if kind == "bits":
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=size)
        return bits.astype(bool).reshape(shape)
    wide = np.float32 if kind == "<f4" else np.int64
    return np.frombuffer(raw, np.dtype(kind)).astype(wide).reshape(shape)


# --- merging ---


def merge(paths: Sequence[Path]) -> Evaluation:
    """The evaluation of which the files hold all parts, in any order.

    Raises the errors of `gathered`.
    """
    return put_together(gathered(paths, EVALUATION))


def gathered(paths: Sequence[Path], kind: str) -> Part[Any]:
    """The whole of which the files hold all parts, in any order.

    Raises Refused where one is damaged, is of another kind, does not belong to the others, or is there
    twice, and where one is missing.
    """
    parts = [Part.load(path) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if part.about["kind"] != kind:
            raise refuse(
                "SNNC312",
                f"{path} is a part of {part.about['kind']}, not of {kind}",
                hint=f"give what {_WRITES[kind]} wrote",
            )
        if part.about != first.about or part.shard.of != first.shard.of:
            raise refuse(
                "SNNC312",
                f"{path} does not belong to {paths[0]}: {_difference(part, first)}",
                hint="give the parts of one whole",
            )
    order = sorted(zip(parts, paths, strict=True), key=lambda entry: entry[0].shard.index)
    for (part, path), (other, behind) in pairwise(order):
        if part.shard == other.shard:
            raise refuse("SNNC312", f"{path} and {behind} are both shard {part.shard}")
    there = {part.shard.index for part in parts}
    missing = [str(index) for index in range(1, first.shard.of + 1) if index not in there]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise refuse("SNNC312", f"of {first.shard.of} shards {len(missing)} are missing: {shown}")
    tally = order[0][0].tally
    for part, path in order[1:]:
        try:
            tally = merged(tally, part.tally)
        except ValueError as error:
            raise refuse("SNNC312", f"{path} does not fit the parts before it: {error}") from None
    return Part(first.about, ALL, tally)


#: Missing shards that are named.
_SHOWN = 20
#: How what parts have in common is called where it differs.
_CALLED = {
    "version": "the version of snnc",
    "source_sha256": "the source network",
    "ann_sha256": "the network, or an option that changes it,",
    "snn_sha256": "the compiled file",
    "steps": "the time-steps",
    "diagnose": "--diagnose",
    "skip_damaged": "--skip-damaged",
    "samples": "the number of samples",
    "data_sha256": "the data, its labels or its preprocessing",
    "events": "how layers run (by events, or as they stand in the file)",
}


def _difference(part: Part[Any], first: Part[Any]) -> str:
    if part.shard.of != first.shard.of:
        return f"it is shard {part.shard}, not one of {first.shard.of}"
    keys = {*part.about, *first.about}
    names = [
        key for key in (*_CALLED, *sorted(keys)) if part.about.get(key) != first.about.get(key)
    ]
    return f"{_CALLED.get(names[0], names[0])} is another"


def put_together(part: Part[Tally]) -> Evaluation:
    """What a part says that is the whole.  Raises Refused where no sample could be read, and where
    there are labels but no class scores for them."""
    about, tally = part.about, part.tally
    if not tally.samples or tally.macs is None:
        raise refuse("SNNC303", f"none of the {about['samples']:,} samples can be read")
    scored = about["scored"] and not tally.uneven
    if about["labelled"] and not scored:
        raise no_scores()
    judge = Judge.of(tally, scored, about["labelled"])
    samples = tally.samples
    results = {
        steps: step_result(
            one, int(steps), about["latency"][steps], samples, judge, about["operators"]
        )
        for steps, one in tally.steps.items()
    }
    findings = [Finding(**finding) for finding in about["findings"]]
    return Evaluation(
        samples // about["rows"],
        judge.accuracy(judge.ann),
        tuple(results[str(steps)] for steps in about["steps"]),
        (*findings, *left_out(tally.damaged), *_differing(list(results.values()))),
        plain(judge.ann),
        Macs(**tally.macs.value),
        tuple(LayerNote(**note) for note in about["events"]),
    )


def no_scores() -> Refused:
    return refuse("SNNC302", "the data has labels, but no output of the network is class scores")


def _differing(results: Sequence[StepResult]) -> list[Finding]:
    """A warning for every output that cannot be compared at some number of time-steps."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for output in result.outputs:
            if output.differ:
                text = f"in {output.differ:,} at T = {result.steps}"
                seen.setdefault(output.output, []).append(text)
    return [
        Finding(
            "SNNC404",
            f"the shape of '{name}' depends on the data and is not that of the ANN for every sample "
            f"({', '.join(texts)}), so it is left out of the relative error there",
            severity="warning",
            hint="compare what the network computes before it selects rows",
        )
        for name, texts in seen.items()
    ]
