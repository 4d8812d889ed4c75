"""The normalized ANN as a value, and the sessions and the inputs with which it is checked."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.errors import EnvironmentMissing
from snncompiler.findings import Finding
from snncompiler.ir import dialect
from snncompiler.ir.graph import (
    BATCH,
    Graph,
    export_model,
    import_model,
    known,
)
from snncompiler.ir.rectifiers import rectifiers_of
from snncompiler.network.batching import RUN, Axis, axes_of_outputs, filled
from snncompiler.network.data import InputSpec
from snncompiler.network.load import Source
from snncompiler.passes.base import Context, Observer, run_passes
from snncompiler.passes.normalize.track_batch import name_batch
from snncompiler.passes.source.to_base_opset import without_maps
from snncompiler.passes.source.to_float32 import ToFloat32, has_other_floats
from snncompiler.passes.source.verify_input import verify_input
from snncompiler.runtime.session import LARGE_GRAPH, create_session

Array = NDArray[Any]

#: What sizes are taken to be, in checks, that the source leaves open.
OPEN_SIZE = 32


#: And where the source does not run so, as with a Reshape to one size: the first of these with which it
#: does.  Not 1, which runs wherever it is repeated.
OTHER_SIZES = (*range(2, 65), 80, 96, 100, 112, 128, 160, 192, 224, 240, 256, 299, 300, 320, 384, 416,
               448, 512, 600, 608, 640, 1024)  # fmt: skip


#: Inputs of more values than this are not tried.
MAX_TRIED = 1 << 23


@dataclass
class Prepared:
    """The normalized ANN and what is known of it."""

    source: Source
    graph: Graph
    ann: onnx.ModelProto
    context: Context
    inputs: list[InputSpec]
    #: Whether any batch size works: proved, and checked where onnxruntime is there.
    any_batch: bool = True
    #: Whether the outputs depend on how many samples run at once, as the source's do.
    counts_samples: bool = False
    checked_model: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    #: The shape of one sample of every input in checks, with sizes for what the source leaves open;
    #: empty where it runs with none that was tried.
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the network takes, None where it takes any."""
        if self.any_batch:
            return None
        return next((spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0]), 1)

    def apart(self, observer: Observer | None = None) -> Prepared:
        """The same network for one emission, which leaves nothing behind in this one."""
        return replace(self, context=self.context.apart(observer))

    @property
    def output_axes(self) -> dict[str, Axis]:
        """The batch axis of every output, or why it has none (`batching`)."""
        return axes_of_outputs(self.graph, self.context.batch_axis)

    @property
    def layer_axes(self) -> dict[str, Axis]:
        """The same of the output of every rectifier, by its name."""
        found: dict[str, Axis] = {}
        for node in rectifiers_of(self.graph):
            tensor = node.outputs[0]
            seen = [at for at, dim in enumerate(tensor.shape or ()) if dim == BATCH]
            followed = self.context.batch_axis.get(tensor.name, RUN)
            found[node.name] = seen[0] if self.any_batch and seen else followed
        return found

    @property
    def source_batch(self) -> int:
        """The size of axis 0 that the source was exported for, else 1."""
        inputs = import_model(self.checked_model).inputs
        leading = [tensor.shape[0] for tensor in inputs if tensor.shape]
        return next((int(size) for size in leading if known(size) and size > 0), 1)

    @property
    def samples_of_source(self) -> int:
        """How many samples that is: one where a whole input is one."""
        return self.source_batch if self.any_batch else 1

    def take_sizes_of(self, feeds: Mapping[str, Array]) -> None:
        """Let checks have the sizes of data, where no others are known to run."""
        if not self.sizes:
            self.sizes = {name: array.shape[1:] for name, array in feeds.items()}

    def for_source(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As many samples as the source takes, from the first on; repeated where there are fewer."""
        count = self.source_batch
        have = min(count, *(len(array) for array in feeds.values()))
        return filled(feeds, slice(0, have), count)

    @property
    def findings(self) -> list[Finding]:
        return self.context.findings


def imported(checked: onnx.ModelProto, findings: list[Finding]) -> tuple[Graph, Context]:
    context = Context(findings=list(findings))
    graph = import_model(checked)
    context.output_types = {
        output.name: np.dtype(output.dtype) for output in graph.outputs if output.dtype is not None
    }
    return graph, context


def as_model(graph: Graph) -> onnx.ModelProto:
    model = export_model(graph)
    name_batch(model.graph)
    model.ir_version = dialect.MAX_IR_VERSION
    return model


def checking_session(model: onnx.ModelProto, optimize: bool = True) -> Any:
    """A session that runs a few times only, on one thread."""
    optimize = optimize and len(model.graph.node) <= LARGE_GRAPH
    return create_session(model, threads=1, optimize=optimize)


def in_float32(checked: onnx.ModelProto) -> onnx.ModelProto:
    """A checked model computed in float32 inside (`ToFloat32`), and otherwise as it is."""
    if not has_other_floats(checked):
        return checked
    graph, context = imported(checked, [])
    run_passes([ToFloat32()], graph, context)
    return as_model(graph)


def _with_open_batch(source: onnx.ModelProto) -> onnx.ModelProto:
    """The model with any number of samples where it says 0 of them, as some exporters write it;
    onnxruntime would take none but 0.  The model itself where it does not."""
    leading = [entry.type.tensor_type.shape.dim[:1] for entry in source.graph.input]
    if not any(
        dim.HasField("dim_value") and dim.dim_value == 0 for dims in leading for dim in dims
    ):
        return source
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    del copy.graph.value_info[:]
    for entry in (*copy.graph.input, *copy.graph.output):
        for dim in entry.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == 0:
                dim.Clear()
    return copy


def runnable(source: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The source as onnxruntime can run it, and why that is not as it stands; empty where it is.

    On the CPU it has no float64 convolutions, for one: such a source runs in float32.  Maps are given
    as the arrays that they are made of, as in the compiled network, and 0 samples are any number.
    """
    source = _with_open_batch(without_maps(source))
    if not has_other_floats(source):
        return source, ""
    try:
        checking_session(source)
    except EnvironmentMissing:
        raise
    except Exception as error:  # onnxruntime's own classes have no common base
        if type(error).__name__ == "NotImplemented":
            copy = onnx.ModelProto()
            copy.CopyFrom(source)
            return in_float32(verify_input(copy)[0]), str(error).splitlines()[0][:200]
    return source, ""


def sizes_that_run(prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """`Prepared.sizes`: one number for all that is open, with which the source runs."""
    inputs = prepared.inputs
    if not any(None in spec.shape[1:] for spec in inputs):
        return {spec.name: _sample_shape(spec, OPEN_SIZE) for spec in inputs}
    try:
        session = checking_session(runnable(prepared.source.model)[0])
    except Exception:  # whoever needs a session says why there is none
        return {spec.name: _sample_shape(spec, OPEN_SIZE) for spec in inputs}
    for size in (OPEN_SIZE, *OTHER_SIZES):
        sizes = {spec.name: _sample_shape(spec, size) for spec in inputs}
        if any(prod(shape) > MAX_TRIED for shape in sizes.values()):
            break
        one = {
            spec.name: np.zeros((prepared.source_batch, *sizes[spec.name]), spec.dtype)
            for spec in inputs
        }
        with contextlib.suppress(Exception):  # onnxruntime's own classes have no common base
            session.run(None, one)
            return sizes
    return {}


def _sample_shape(spec: InputSpec, size: int) -> tuple[int, ...]:
    return tuple(size if dim is None else dim for dim in spec.shape[1:])


def synthetic_feeds(prepared: Prepared, samples: int, seed: int) -> dict[str, Array]:
    """Seeded standard-normal inputs, and pixels where those are taken.

    Sizes that the source leaves open are those of `Prepared.sizes`.  Where the network takes one size
    only, each of the `samples` is a whole input.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in prepared.inputs:
        inner = prepared.sizes.get(spec.name, _sample_shape(spec, OPEN_SIZE))
        shape = (samples * (prepared.fixed_batch or 1), *inner)
        if spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif prepared.source.pixels and spec.dtype == np.uint8:
            feeds[spec.name] = rng.integers(0, 256, shape, np.uint8)
        else:
            feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds
