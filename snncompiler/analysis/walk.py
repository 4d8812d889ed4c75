"""Running a compiled file to several numbers of time-steps, looking inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.analysis.instrument import watch
from snncompiler.emission.compiled import CompiledFile
from snncompiler.errors import UsageError
from snncompiler.runtime.session import create_session, runs_events

Array = NDArray[Any]


def common_chunk(stops: Sequence[int], own: int) -> int:
    """The size of the chunks with which a run can stop at every one of `stops`.

    The file's own where all stops but the last are multiples of it, else the largest divisor of
    them all that is no larger.
    """
    before = sorted(set(stops))[:-1]
    common = gcd(*before) if before else own
    if common % own == 0:
        return own
    return max(size for size in range(1, own + 1) if common % size == 0)


def image_feed(compiled: CompiledFile, first_image: int) -> dict[str, Array]:
    """The feed that says which sample is the first, where the input is coded at random."""
    name = compiled.metadata.get("snnc.image_input")
    return {name: np.array(first_image, np.int64)} if name else {}


class Walk:
    """Runs a compiled file to several numbers of time-steps in one go, and looks inside at each.

    A file with its time-steps baked in runs to those only.
    """

    def __init__(
        self,
        compiled: CompiledFile,
        *,
        currents: bool = False,
        arrivals: bool = False,
        events: bool = False,
        spikes: bool = False,
        threads: int | None = None,
    ) -> None:
        self.compiled = compiled
        lower = events and runs_events() and compiled.options.target == "portable"
        self.watched = watch(
            compiled.model,
            currents=currents,
            arrivals=arrivals,
            events=lower,
            resume=True,
            spikes=spikes,
        )
        #: The layers, and the event-driven operators that they run as; none where nothing runs so.
        self.events = self.watched.events if lower else compiled.lowered if runs_events() else ()
        self.layers = self.watched.layers
        self.names = [entry.name for entry in self.watched.model.graph.output]
        self._session = create_session(self.watched.model, threads=threads)

    def check(self, stops: Sequence[int]) -> None:
        """Raises UsageError for a number of time-steps that the file cannot run to."""
        for steps in stops:
            if steps < 1:
                raise UsageError(f"a run cannot have {steps} time-steps", hint="at least 1")
            self.compiled.overrides(steps=steps)

    def run(
        self, feeds: Mapping[str, Array], stops: Sequence[int], first_image: int = 0
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """(T, every output by name) for each number of time-steps, from the smallest to the largest.

        `first_image`: the number of the first sample among all, for a random input.
        """
        order = sorted(set(stops))
        self.check(order)
        metadata = self.compiled.metadata
        feeds = {**feeds, **image_feed(self.compiled, first_image)}
        if not self.watched.start:
            # A window that cannot be gone on with: one with its steps baked in, or in layered time.
            for steps in order:
                yield steps, self._outputs({**feeds, **self.compiled.overrides(steps=steps)})
            return
        chunk = {}
        if metadata["snnc.chunk_input"]:
            chunk = self.compiled.overrides(chunk=common_chunk(order, int(metadata["snnc.chunk"])))
        states = {name: first for name, (first, _) in self.watched.states.items()}
        done = 0
        for steps in order:
            asked = {self.watched.start: np.array(done), **self.compiled.overrides(steps=steps)}
            values = self._outputs({**feeds, **asked, **chunk, **states})
            states = {name: values[after] for name, (_, after) in self.watched.states.items()}
            done = steps
            yield steps, values

    def _outputs(self, feeds: dict[str, Array]) -> dict[str, Array]:
        values = self._session.run(None, feeds)
        return {name: np.asarray(v) for name, v in zip(self.names, values, strict=True)}
