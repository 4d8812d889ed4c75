"""Stepping a spiking network through a stream: `snnc compile --emit step` and this.

The model takes one time-step: the input of that step and every state (membrane potentials, pooling
counts, read-out sums, the number of steps done) come in, and the new states go out.  They stay on the
device between the steps, by onnxruntime's IOBinding.

In layered time a step is one of every layer in a pipeline: an image is fed for a window of T steps, the
next one follows at once, and each is answered when it has passed through all layers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.errors import UsageError, refuse
from snncompiler.runtime.cuda import CUDA
from snncompiler.runtime.session import Device, create_session

Array = NDArray[Any]


class Stream:
    """A spiking network that runs step by step, while its input changes with time.

    model: what `snnc compile --emit step` wrote.  device, threads, provider_options: as for
    `create_session`.

    The outputs after t steps are decoded from all t steps; with a constant input they equal those of
    the whole-window model with T = t.  In layered time the input is constant for a window of T steps,
    `period`, and its answer comes with the last step of another window, `latency` steps from its first.
    Raises Refused if the model is not a compiled one, and UsageError if it is not a step model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        device: Device = "cpu",
        threads: int | None = None,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = create_session(
            model, device=device, threads=threads, provider_options=provider_options
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        if "snnc.version" not in metadata:
            raise refuse(
                "SNNC401",
                "the model was not compiled by snnc",
                hint="give the file that snnc compile --emit step wrote",
            )
        states = json.loads(metadata.get("snnc.states", "{}"))
        if not states:
            raise UsageError(
                "this file runs a whole window of time-steps",
                hint="compile it with --emit step to step it",
            )
        #: State input -> the output that carries it on.
        self._states: dict[str, str] = states
        #: The output that counts the steps: the host's on every device.
        self._counter = states.get(metadata["snnc.step_input"], "")
        #: The inputs that change with time; states have a value at the start.
        self._inputs = {entry.name: _dtype(entry.type) for entry in self._session.get_inputs()}
        #: In layered time, the output that tells whether the others are an answer.
        self._answer = metadata.get("snnc.answer", "")
        #: Steps from one answer to the next; those of the file's T where every step has one.
        self.period = int(metadata["snnc.steps"])
        own = {*self._states.values(), self._answer}
        names = [entry.name for entry in self._session.get_outputs()]
        self.outputs = [name for name in names if name not in own]
        self._device = "cuda" if CUDA in self._session.get_providers() else "cpu"
        self._held: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._image: dict[str, Array] = {}
        self.steps_done = 0

    def reset(self) -> None:
        """Forget every state: the next step is the first."""
        self._held, self._shapes, self._image = {}, {}, {}
        self.steps_done = 0

    def step(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """One time-step with `inputs` (an array, or arrays by name), [N, ...] each.

        Returns the outputs decoded so far, by name; in layered time those of the image that is
        answered with this step, and nothing at the other steps.  N and other open sizes may change
        after `reset` only, and in layered time the input after a whole window only: UsageError.
        """
        feeds = inputs if isinstance(inputs, Mapping) else {next(iter(self._inputs)): inputs}
        if set(feeds) != set(self._inputs):
            raise UsageError(
                f"inputs {sorted(feeds)} were given, the network has {sorted(self._inputs)}"
            )
        arrays = {
            name: np.ascontiguousarray(feeds[name], dtype=dtype)
            for name, dtype in self._inputs.items()
        }
        for name, array in arrays.items():
            before = self._shapes.get(name, array.shape)
            if array.shape != before:
                raise UsageError(
                    f"the stream began with '{name}' of shape {list(before)}, this step has "
                    f"{list(array.shape)}",
                    hint="reset it first: its states are those of the samples before",
                )
        if self._answer:
            self._check_window(arrays)
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        for name, held in self._held.items():
            binding.bind_ortvalue_input(name, held)
        answer = [self._answer] if self._answer else []
        for name in (*self.outputs, *answer):
            binding.bind_output(name, "cpu")
        for name in self._states.values():
            binding.bind_output(name, "cpu" if name == self._counter else self._device)
        self._session.run_with_iobinding(binding)
        values = dict(
            zip(
                [*self.outputs, *answer, *self._states.values()], binding.get_outputs(), strict=True
            )
        )
        self._shapes = {name: array.shape for name, array in arrays.items()}
        self._held = {name: values[carried] for name, carried in self._states.items()}
        self.steps_done += 1
        if answer and not values[self._answer].numpy():
            return {}
        return {name: values[name].numpy() for name in self.outputs}

    def run(self, frames: Iterable[Array | Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """`step` for every frame."""
        for frame in frames:
            yield self.step(frame)

    def answers(self, images: Iterable[Array | Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """The outputs for every image (`[N, ...]`, N samples), in their order, from a reset stream.

        In layered time they go through the pipeline one behind the other, one every T steps; behind the
        last one it is fed again until it is answered.  In streaming time each runs T steps alone.
        """
        self.reset()
        waiting = 0
        for image in images:
            if not self._answer:
                self.reset()
            outputs: dict[str, Array] = {}
            waiting += 1
            for _ in range(self.period):
                outputs = self.step(image)
            if outputs:
                waiting -= 1
                yield outputs
        while self._answer and waiting:
            outputs = self.step(self._image)
            if outputs:
                waiting -= 1
                yield outputs

    def _check_window(self, arrays: dict[str, Array]) -> None:
        """Raises UsageError where the input changes within a window, of which the last step counts."""
        if self.steps_done % self.period == 0:
            self._image = {name: array.copy() for name, array in arrays.items()}
            return
        for name, array in arrays.items():
            if not np.array_equal(array, self._image[name], equal_nan=array.dtype.kind == "f"):
                raise UsageError(
                    f"'{name}' changes within a window of {self.period} steps, in which the input of "
                    "layered time is constant",
                    hint=f"feed each image for {self.period} steps, as `answers` does",
                )


def _dtype(kind: str) -> np.dtype[Any]:
    """numpy's type for onnxruntime's name of a tensor type, as `tensor(float)`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
