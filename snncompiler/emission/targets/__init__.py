"""Compiled networks written for something else than onnxruntime: one module for each target.

A module has `export(compiled, name, samples)`, which gives the files of the export by their names, and
refuses by name what its target cannot express.  `TARGETS` lists them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.emission.compiled import CompiledFile, read_compiled
from snncompiler.emission.save import check_writable, write_atomically
from snncompiler.emission.targets import c
from snncompiler.emission.targets.base import Exported
from snncompiler.errors import UsageError
from snncompiler.network.data import Dataset, InputSpec, Preprocess, load_data

Array = NDArray[Any]
Samples = Sequence[Mapping[str, Array]]

#: Samples that an export is compared on, if nothing else is asked for.
VECTORS = 4
#: Names that C and Python take for functions.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True)
class Target:
    """Where a compiled network can be exported to."""

    summary: str
    export: Callable[[CompiledFile, str, Samples], Exported]


TARGETS: Mapping[str, Target] = {
    "c": Target("C99 with integers, without dependencies, with static memory", c.export),
}


def export(
    snn: str | os.PathLike[str] | bytes | onnx.ModelProto,
    to: str,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset | None = None,
    preprocess: Preprocess | None = None,
    vectors: int = VECTORS,
) -> Exported:
    """Write a compiled network for a target of `TARGETS`, with test vectors, into a folder.

    snn: a file that `compile` wrote.  folder: is made if only itself is missing; files of the same
    names are overwritten, each as a whole.  name: of the network in the target's language; by default
    that of the file.  data: samples for the test vectors, as for `load_data`; seeded normal noise
    without it.  vectors: how many samples.
    Raises UsageError (an option; a file of another form) and Refused, with all that the target does not
    express.
    """
    if to not in TARGETS:
        raise UsageError(f"there is no target {to!r}", hint=f"one of {', '.join(TARGETS)}")
    if vectors < 1:
        raise UsageError(f"--vectors {vectors} is out of range", hint="at least 1 sample")
    named = name if name is not None else _name_of(snn)
    if not _NAME.fullmatch(named):
        raise UsageError(
            f"{named!r} is no name for a function", hint="give --name with letters, digits and _"
        )
    into = Path(folder)
    if not into.is_dir():
        check_writable(into)  # which tells what is wrong with its parent
    compiled = read_compiled(snn)
    made = TARGETS[to].export(compiled, named, _samples(compiled, data, preprocess, vectors))
    into.mkdir(exist_ok=True)
    sources = (Path(snn),) if isinstance(snn, (str, os.PathLike)) else ()
    for file in made.files:
        check_writable(into / file, sources)
    for file, content in made.files.items():
        write_atomically(into / file, partial(_write, content))
    return made


def _write(content: bytes, file: BinaryIO) -> int:
    return file.write(content)


def _name_of(snn: object) -> str:
    """The name of a file up to its first dot, as an identifier."""
    if not isinstance(snn, (str, os.PathLike)):
        return "network"
    stem = Path(os.fspath(snn)).name.split(".")[0]
    found = re.sub(r"\W", "_", stem, flags=re.ASCII).lower()
    return found if found[:1].isalpha() else f"network_{found}"[:63]


def _samples(
    compiled: CompiledFile,
    data: str | os.PathLike[str] | Array | Mapping[str, Array] | Dataset | None,
    preprocess: Preprocess | None,
    count: int,
) -> Samples:
    """Inputs of single runs: one sample each, or as many as the network takes at once."""
    together = compiled.fixed_batch or 1
    if data is None:
        random = np.random.default_rng(0)
        return [
            {spec.name: _noise(spec, together, random) for spec in compiled.inputs}
            for _ in range(count)
        ]
    dataset = load_data(data, compiled.inputs, preprocess)
    runs = min(count, len(dataset) // together)
    if not runs:
        raise UsageError(f"the data has {len(dataset)} samples, a run takes {together}")
    return [
        {
            name: np.asarray(array[run * together : (run + 1) * together])
            for name, array in dataset.feeds.items()
        }
        for run in range(runs)
    ]


def _noise(spec: InputSpec, together: int, random: np.random.Generator) -> Array:
    sizes = [size for size in spec.shape[1:] if size is not None]
    if len(sizes) < len(spec.shape) - 1 or spec.dtype.kind != "f":
        raise UsageError(
            f"there is no noise for '{spec.name}', {spec.dtype} of shape {spec.dims}",
            hint="give samples with --data",
        )
    return random.standard_normal((together, *sizes)).astype(spec.dtype)
