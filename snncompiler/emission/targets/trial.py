"""A compiled file run for one sample, with all its tensors to be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.emission.compiled import CompiledFile
from snncompiler.runtime.session import create_session

Array = NDArray[Any]


class Trial:
    """One sample through a compiled file; of a step model, step by step.

    What a tensor is (its shape for a batch of 1, its type) is seen rather than inferred, and so are the
    numbers that an export has to give as well.
    """

    def __init__(self, compiled: CompiledFile) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(compiled.model)
        shown = {entry.name for entry in model.graph.output}
        for node in model.graph.node:
            for name in node.output:
                if name and name not in shown:
                    model.graph.output.add(name=name)
        self._session = create_session(model, events=False, threads=1)
        self._states = compiled.states
        self._held: dict[str, Array] = {}

    def reset(self) -> None:
        """The next step is the first."""
        self._held = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All tensors after a step, or after the window."""
        names = [entry.name for entry in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(None, {**feeds, **self._held}), strict=True))
        self._held = {before: values[after] for before, after in self._states.items()}
        return {name: np.asarray(value) for name, value in values.items()}
