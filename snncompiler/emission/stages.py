"""The network after a pass, as a file: how a stranger watches the compiler work.

`snnc compile --print-after PASS` writes with it, per pass an .onnx for a viewer, and ONNX's text form,
in which constants of many values have none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import onnx
import onnx.printer

from snncompiler.emission.save import save, write_atomically
from snncompiler.errors import UsageError
from snncompiler.ir.graph import Graph, export_model
from snncompiler.passes.base import Observer

#: Constants with more values than this are written without them in the text.
_FEW = 16
#: Stands for every pass.
ALL = "all"


@dataclass
class Stages:
    """Writes what it is shown into `folder`: `normalize/03-fold-constants.onnx` and `.txt`.

    `wanted` are names of passes, or `all`.  A stage that runs again writes over what it wrote before.
    """

    folder: Path
    wanted: Collection[str] = (ALL,)
    #: Every pass that was seen, in order.
    seen: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def of(self, stage: str) -> Observer:
        """The observer of one stage of the compilation, whose passes are counted from 1."""
        count = 0

        def observe(name: str, network: Graph | onnx.ModelProto) -> None:
            nonlocal count
            count += 1
            if name not in self.seen:
                self.seen.append(name)
            if name in self.wanted or ALL in self.wanted:
                self._write(self.folder / stage / f"{count:02d}-{name}", network)

        return observe

    def check(self) -> None:
        """Raises UsageError for a wanted pass that did not run."""
        unknown = [name for name in self.wanted if name != ALL and name not in self.seen]
        if unknown:
            raise UsageError(
                f"no pass {unknown[0]} has run", hint=f"one of all, {', '.join(self.seen)}"
            )

    def _write(self, place: Path, network: Graph | onnx.ModelProto) -> None:
        model = network if isinstance(network, onnx.ModelProto) else _exported(network)
        text = onnx.printer.to_text(_without_large_values(model))
        place.parent.mkdir(parents=True, exist_ok=True)
        for path in (place.with_name(f"{place.name}.onnx"), place.with_name(f"{place.name}.txt")):
            if path.suffix == ".onnx":
                save(model, path)
            else:
                write_atomically(path, lambda file: file.write(f"{text}\n".encode()))
            if path not in self.written:
                self.written.append(path)


def _exported(graph: Graph) -> onnx.ModelProto:
    """A graph between two passes as a model.  Our operators have no bodies in it, so that it can be
    looked at, but does not run without the native library."""
    apart = graph.copy()
    return export_model(apart)


def _without_large_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be printed: what is said of external data stands for the values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.raw_data and prod(tensor.dims) > _FEW:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="left out")
    return copy
