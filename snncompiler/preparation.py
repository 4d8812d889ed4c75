"""From a model file to the normalized ANN: load, verify, normalize, and check what was done.

The normalized ANN computes what the source computes (`check_source`), with rectifiers spelled as Relu
or Clip, linear layers with their batch-norms folded, and a known batch axis.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler import calibration as calib
from snncompiler import dialect
from snncompiler.batching import CONSTANT, RUN, Axis, axes_of_outputs
from snncompiler.compiled import filled
from snncompiler.data import InputSpec
from snncompiler.diagnostics import Finding, describe
from snncompiler.errors import EnvironmentMissing, Refused, refuse
from snncompiler.graph import (
    BATCH,
    Graph,
    Node,
    Tensor,
    export_model,
    import_model,
    infer_shapes,
    known,
    label,
    reachable_from,
    with_outputs,
)
from snncompiler.growth import hindrance
from snncompiler.io import Source, load
from snncompiler.operators import rectifier
from snncompiler.options import MaxPooling, Options
from snncompiler.passes.average_max_pool import AverageMaxPool
from snncompiler.passes.base import Context, Pass, run_passes
from snncompiler.passes.check_constraints import CheckConstraints
from snncompiler.passes.drop_fake_quant import DropFakeQuant
from snncompiler.passes.fold_affine import FoldAffine
from snncompiler.passes.fold_batch_norm import FoldBatchNorm
from snncompiler.passes.fold_constants import FoldConstants
from snncompiler.passes.fold_forward import FoldForward
from snncompiler.passes.pool_spikes import PoolSpikes
from snncompiler.passes.remove_noops import RemoveNoops
from snncompiler.passes.spell_linear import SpellLinear
from snncompiler.passes.spell_max_pool import SpellMaxPool
from snncompiler.passes.spell_ml import SpellMl
from snncompiler.passes.spell_quantized import SpellQuantized
from snncompiler.passes.spell_rectifiers import SpellRectifiers
from snncompiler.passes.swap_max_pool import SwapMaxPool
from snncompiler.passes.to_float32 import ToFloat32, has_other_floats
from snncompiler.passes.track_batch import TrackBatch, name_batch
from snncompiler.passes.unify_linear import UnifyLinear
from snncompiler.passes.verify_input import verify_input, without_maps
from snncompiler.runtime.session import create_session
from snncompiler.unrounded import NotUnrounded, unrounded

Array = NDArray[Any]

#: Relative tolerance of the batch check.  Convolutions and matrix products of other batch sizes may
#: sum in another order: a few hundred float32 roundings of 2^-24 each, with room to spare.
BATCH_TOLERANCE = 1e-4
#: What sizes are taken to be, in checks, that the source leaves open.
OPEN_SIZE = 32
#: And where the source does not run so, as with a Reshape to one size: the first of these with which it
#: does.  Not 1, which runs wherever it is repeated.
OTHER_SIZES = (*range(2, 65), 80, 96, 100, 112, 128, 160, 192, 224, 240, 256, 299, 300, 320, 384, 416,
               448, 512, 600, 608, 640, 1024)  # fmt: skip
#: Inputs of more values than this are not tried.
MAX_TRIED = 1 << 23
#: Relative tolerance against the source: folding rounds every weight once, and the roundings of tens of
#: layers add up; float16 sources are computed in float32 on purpose, and keep 11 bits.
SOURCE_TOLERANCE = 1e-2


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

    def apart(self) -> Prepared:
        """The same network for one emission, which leaves nothing behind in this one."""
        return replace(self, context=self.context.apart())

    @property
    def output_axes(self) -> dict[str, Axis]:
        """The batch axis of every output, or why it has none (`batching`)."""
        return axes_of_outputs(self.graph, self.context.batch_axis)

    @property
    def layer_axes(self) -> dict[str, Axis]:
        """The same of the output of every rectifier, by its name."""
        found: dict[str, Axis] = {}
        for node in calib.rectifiers_of(self.graph):
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


def normalization_passes(
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    freeze_batch: bool = True,
) -> list[Pass]:
    """The graph passes from the checked source to the normalized ANN, in order."""
    return [
        SpellMl(),
        ToFloat32(),
        SpellQuantized(),
        FoldConstants(freeze_batch),
        DropFakeQuant(),
        *([AverageMaxPool()] if maxpool == "average" else []),  # of real values, not of integers
        SpellLinear(),
        SpellRectifiers(),
        RemoveNoops(),
        TrackBatch(),
        UnifyLinear(),
        SpellMaxPool(),
        SwapMaxPool(),
        FoldBatchNorm(),
        FoldAffine(),
        PoolSpikes(),
        FoldForward(),
        CheckConstraints(strict, allow_analog),
    ]


def prepare(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
) -> Prepared:
    """Load, verify and normalize a model.  Raises Refused with every finding."""
    source = load(model)
    checked, findings = verify_input(source.model)
    options: dict[str, Any] = {"strict": strict, "allow_analog": allow_analog, "maxpool": maxpool}
    no_samples = _inputs_without_samples(checked)
    try:
        graph, context = _normalized(checked, findings, options)
    except Refused as refused:
        raise Refused(*no_samples, *refused.findings) from None
    if no_samples:
        raise Refused(*no_samples)
    prepared = _prepared(source, checked, graph, context, any_batch=not context.batch_lost)
    prepared.sizes = _sizes_that_run(prepared)
    if prepared.any_batch:
        return prepared
    leading = [tensor.shape[0] for tensor in import_model(checked).inputs if tensor.shape]
    if not all(known(dim) for dim in leading):
        # The source takes any batch by arithmetic on shapes at run time.  That stays in the graph
        # then, and the time-steps run one by one, if three samples at once are right.
        graph, kept = _normalized(checked, findings, {**options, "freeze_batch": False})
        lost, kept.batch_lost = kept.batch_lost, {}
        whole = _prepared(source, checked, graph, kept, any_batch=True)
        whole.sizes = prepared.sizes
        whole.counts_samples = _counts_samples(graph, context)
        if _same_for_three(whole):
            for where, reason in (context.batch_lost if whole.counts_samples else lost).items():
                kept.note("SNNC205", f"the batch axis is not followed: {reason}", node=where)
            return whole
        _check_one_alone(prepared)
    size = prepared.fixed_batch or 1
    taken = "one sample" if size == 1 else f"exactly {size} rows of axis 0"
    for where, reason in context.batch_lost.items():
        context.warn(
            "SNNC205",
            f"the batch axis is lost here: {reason}; the model takes {taken} at a time",
            node=where,
            hint="export it with a batch axis in front, or with a fixed size where axis 0 is none",
        )
    return prepared


def _check_one_alone(prepared: Prepared) -> None:
    """Refuse a source that cannot run with one sample, but with as many as along its other open axes:
    axis 0 is tied to one of them then, as in an adjacency matrix, and is no batch."""
    one = synthetic_feeds(prepared, 1, 0)
    many = {name: np.repeat(array, OPEN_SIZE, axis=0) for name, array in one.items()}
    found = []
    for feeds in (one, many):
        try:
            _checking(runnable(prepared.source.model)[0]).run(None, feeds)
            found.append("")
        except EnvironmentMissing:
            return
        except Exception as error:  # onnxruntime's own classes have no common base
            found.append(str(error).splitlines()[0][:200])
    if found[0] and not found[1]:
        raise refuse(
            "SNNC205",
            f"axis 0 of the inputs is no batch: with one sample the network does not run: {found[0]}",
            hint="export it with a batch axis in front, or with a fixed size of axis 0",
        )


def _inputs_without_samples(checked: onnx.ModelProto) -> list[Finding]:
    """The inputs of which there can be no sample i: data is samples along axis 0, of as many for
    every input."""
    inputs = import_model(checked).inputs
    sizes = {tensor.name: tensor.shape[0] for tensor in inputs if tensor.shape}
    open_names = [name for name, size in sizes.items() if not known(size) or size == 0]
    # Beside an input of any number of samples, one that was exported for one sample takes any, too.
    first = next(iter(open_names), next(iter(sizes), ""))
    wanted = 1 if open_names else sizes.get(first)
    findings = []
    for tensor in inputs:
        if tensor.shape == []:
            text = f"input '{tensor.name}' is a single number, without an axis for the samples"
            hint = "make it a constant, or an input of shape [N, 1]"
            findings.append(Finding("SNNC205", text, hint=hint))
        elif tensor.name in sizes.keys() - set(open_names) and sizes[tensor.name] != wanted:
            text = (
                f"input '{tensor.name}' has {sizes[tensor.name]} along axis 0, where '{first}' has "
                f"{'any number' if open_names else wanted} of samples"
            )
            hint = "give it an axis for the samples in front, or make it a constant"
            findings.append(Finding("SNNC205", text, hint=hint))
    return findings


def _counts_samples(graph: Graph, frozen: Context) -> bool:
    """Whether nothing but the number of samples at once, read as a value behind the last rectifier,
    makes samples depend on each other.

    In front of a rectifier it would change currents, and no threshold would do for every batch.
    """
    values = frozen.by_batch.values
    if not values or any(node.name not in values for node in _lost_nodes(graph, frozen)):
        return False
    reached = reachable_from(graph, lambda node: node.name in values, set(), lambda node: True)
    return not any(
        rectifier(node) is not None and id(tensor) in reached
        for node in graph.nodes
        for tensor in node.inputs
    )


def _lost_nodes(graph: Graph, frozen: Context) -> list[Node]:
    return [node for node in graph.nodes if label(node) in frozen.batch_lost]


def _same_for_three(prepared: Prepared) -> bool:
    """Whether any batch size can be shown to work, which needs onnxruntime."""
    try:
        check_batch(prepared, 0)
    except (Refused, EnvironmentMissing):
        return False
    return True


def _prepared(
    source: Source, checked: onnx.ModelProto, graph: Graph, context: Context, any_batch: bool
) -> Prepared:
    return Prepared(
        source=source,
        graph=graph,
        ann=_as_model(graph),
        context=context,
        inputs=[_spec(tensor) for tensor in graph.inputs],
        any_batch=any_batch,
        checked_model=checked,
    )


def _normalized(
    checked: onnx.ModelProto, findings: list[Finding], options: dict[str, Any]
) -> tuple[Graph, Context]:
    graph, context = _imported(checked, findings)
    run_passes(normalization_passes(**options), graph, context)
    infer_shapes(graph)
    return graph, context


def _imported(checked: onnx.ModelProto, findings: list[Finding]) -> tuple[Graph, Context]:
    context = Context(findings=list(findings))
    graph = import_model(checked)
    context.output_types = {
        output.name: np.dtype(output.dtype) for output in graph.outputs if output.dtype is not None
    }
    return graph, context


def _as_model(graph: Graph) -> onnx.ModelProto:
    model = export_model(graph)
    name_batch(model.graph)
    model.ir_version = dialect.MAX_IR_VERSION
    return model


def _spec(tensor: Tensor) -> InputSpec:
    shape = tuple(int(dim) if known(dim) else None for dim in tensor.shape or ())
    return InputSpec(tensor.name, shape, np.dtype(tensor.dtype))


# --- checks that run the network ---


def _checking(model: onnx.ModelProto, optimize: bool = True) -> Any:
    """A session that runs a few times only, on one thread."""
    optimize = optimize and len(model.graph.node) <= calib.LARGE_GRAPH
    return create_session(model, threads=1, optimize=optimize)


def in_float32(checked: onnx.ModelProto) -> onnx.ModelProto:
    """A checked model computed in float32 inside (`ToFloat32`), and otherwise as it is."""
    if not has_other_floats(checked):
        return checked
    graph, context = _imported(checked, [])
    run_passes([ToFloat32()], graph, context)
    return _as_model(graph)


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
        _checking(source)
    except EnvironmentMissing:
        raise
    except Exception as error:  # onnxruntime's own classes have no common base
        if type(error).__name__ == "NotImplemented":
            copy = onnx.ModelProto()
            copy.CopyFrom(source)
            return in_float32(verify_input(copy)[0]), str(error).splitlines()[0][:200]
    return source, ""


def _sizes_that_run(prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """`Prepared.sizes`: one number for all that is open, with which the source runs."""
    inputs = prepared.inputs
    if not any(None in spec.shape[1:] for spec in inputs):
        return {spec.name: _sample_shape(spec, OPEN_SIZE) for spec in inputs}
    try:
        session = _checking(runnable(prepared.source.model)[0])
    except Exception:  # whoever needs a session tells why there is none
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
    """Seeded standard-normal inputs; sizes that the source leaves open are those of `Prepared.sizes`.

    Where the network takes one size only, each of the `samples` is a whole input.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in prepared.inputs:
        inner = prepared.sizes.get(spec.name, _sample_shape(spec, OPEN_SIZE))
        shape = (samples * (prepared.fixed_batch or 1), *inner)
        if spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.zeros(shape, spec.dtype)
    return feeds


def check_batch(prepared: Prepared, seed: int) -> None:
    """Compare three samples at once with the same three one by one, in onnxruntime; where outputs
    depend on how many run at once, with what the source makes of the three.

    Where they differ, the proof of `track_batch` was wrong for this network: Refused.
    """
    if not prepared.any_batch:
        return
    feeds = synthetic_feeds(prepared, 3, seed)
    try:
        session = _checking(prepared.ann)
        together = session.run(None, feeds)
        if prepared.counts_samples:
            alone = [_checking(runnable(prepared.source.model)[0]).run(None, feeds)]
        else:
            parts = [{n: a[i : i + 1] for n, a in feeds.items()} for i in range(3)]
            alone = [session.run(None, part) for part in parts]
    except EnvironmentMissing:
        raise
    except Exception as error:  # onnxruntime's own classes have no common base
        reason = str(error).splitlines()[0][:300]
        for spec in prepared.inputs:
            if 0 in spec.shape[1:]:
                raise refuse(
                    "SNNC107",
                    f"input '{spec.name}' holds nothing, its size along axis "
                    f"{spec.shape.index(0, 1)} is 0, and with nothing it does not run: {reason}",
                    hint="export it with a size there, or with a name where any will do",
                ) from None
        if not prepared.sizes:
            raise refuse(
                "SNNC205",
                "the sizes that the source leaves open are not free: with no number for all of them "
                f"that was tried does it run: {reason}",
                hint="export it with the sizes that it takes, or compile it with data of these sizes",
            ) from None
        raise refuse(
            "SNNC205",
            f"the network does not run with three samples: {reason}",
            hint="export the model with a dynamic batch axis",
        ) from None
    for index, (name, place) in enumerate(prepared.output_axes.items()):
        whole, single = np.atleast_1d(together[index]), [np.atleast_1d(run[index]) for run in alone]
        if whole.dtype.kind != "f":
            continue
        axis = place if isinstance(place, int) else _seen_axis(whole, single)
        joined = single[0] if place == CONSTANT else _joined(single, axis)
        bound = BATCH_TOLERANCE * float(np.abs(whole).max(initial=0.0))
        if joined.shape != whole.shape or np.abs(joined - whole).max(initial=0) > bound:
            raise refuse(
                "SNNC205",
                f"three samples at once give another '{name}' than "
                + ("the source" if prepared.counts_samples else "one by one"),
                hint="export the model with a dynamic batch axis",
            )
        if place != CONSTANT and all(one.shape[axis] == 1 for one in single):
            prepared.context.batch_axis[name] = axis


def _seen_axis(together: Array, alone: list[Array]) -> int:
    """The axis along which the samples lie in an output whose batch was not followed; 0 where no other
    can be it."""
    for axis, size in enumerate(together.shape):
        if all(one.ndim == together.ndim for one in alone) and size == sum(
            one.shape[axis] for one in alone
        ):
            return axis
    return 0


def _joined(alone: list[Array], axis: int) -> Array:
    """The outputs of single samples along an axis; empty where their other sizes differ."""
    others = {tuple(np.delete(one.shape, axis)) for one in alone}
    return np.concatenate(alone, axis=axis) if len(others) == 1 else np.zeros(0)


def check_source(prepared: Prepared, feeds: Mapping[str, Array]) -> None:
    """Compare the normalized ANN with the source file itself, on one batch, in onnxruntime.

    A quantized source is compared without its rounding, which is dropped on purpose; a note says how
    much it does.  Where they differ, a pass or the opset conversion was wrong for this network:
    Refused, naming the output, rather than converting another network than the one given.
    """
    one = prepared.for_source(feeds)
    given = without_maps(prepared.source.model)
    # Before the first spiking layer and behind the last one, the file's own rounding stays.
    kept = {
        tensor.name
        for node in prepared.graph.nodes
        for tensor in node.outputs
        if node.op == "QuantizeLinear"
    }
    try:
        exact = unrounded(given, kept)
    except NotUnrounded as error:
        prepared.context.note(
            "SNNC208",
            "the source was not compared with the normalized network, because it cannot be computed "
            f"without rounding: {error}",
        )
        return
    source, why = runnable(exact)
    if why:
        prepared.context.note(
            "SNNC208",
            "the normalized network was compared with the source computed in float32, because "
            f"onnxruntime does not run it as it stands: {why}",
        )
    try:
        # Optimized, products with weights of few bits would run in kernels of few bits: some of
        # them saturate, others round their input as well.
        narrow = any(node.op_type == "DequantizeLinear" for node in source.graph.node)
        session = _checking(source, optimize=not narrow)
        expected = session.run(None, one)
        rounded = expected if exact is given else _checking(runnable(given)[0]).run(None, one)
    except Exception as error:  # onnxruntime's own classes have no common base
        prepared.context.note(
            "SNNC208",
            "the source was not compared with the normalized network, because onnxruntime does not "
            f"run it: {str(error).splitlines()[0][:200]}",
        )
        return
    found = _checking(prepared.ann).run(None, one)
    for output, first, second, as_given in zip(
        prepared.graph.outputs, expected, found, rounded, strict=True
    ):
        quantized = output.name in kept
        if not (quantized or np.asarray(first).dtype.kind == "f"):
            continue
        wide = np.asarray(first, np.float64)
        if not np.isfinite(wide).all():
            continue
        scale = float(np.abs(wide).max(initial=0))
        change = float(np.abs(wide - second).max(initial=0)) if wide.size else 0.0
        # What differs little may round to the next integer.
        if wide.shape != np.shape(second) or change > SOURCE_TOLERANCE * scale + quantized:
            raise refuse(
                "SNNC208",
                f"the normalized network gives another '{output.name}' than the source: "
                f"{change:.3g} of {scale:.3g}",
                hint="please report it with the model",
            )
        if exact is not given and wide.shape == np.shape(as_given):
            share = float(np.abs(wide - as_given).max(initial=0))
            prepared.context.note(
                "SNNC206",
                f"without its rounding the source gives another '{output.name}' by up to "
                f"{share:.3g} of {scale:.3g}, on one sample",
            )
    _check_samples_alike(prepared, session, feeds)


def _check_samples_alike(prepared: Prepared, session: Any, feeds: Mapping[str, Array]) -> None:
    """Refuse a source, of which this is a session, that computes a sample otherwise among three than
    alone, as by its place.

    One that does not run with three, or gives outputs of other shapes then, was exported for one
    sample.
    """
    if not prepared.any_batch or prepared.counts_samples:
        return
    enough = all(len(array) >= 3 for array in feeds.values())
    three = {n: a[:3] for n, a in (feeds if enough else synthetic_feeds(prepared, 3, 0)).items()}
    if any(isinstance(entry.shape[0], int) and entry.shape[0] for entry in session.get_inputs()):
        return
    try:
        expected = session.run(None, three)
    except Exception:  # onnxruntime's own classes have no common base
        return
    found = _checking(prepared.ann).run(None, three)
    for output, first, second in zip(prepared.graph.outputs, expected, found, strict=True):
        if np.asarray(first).dtype.kind != "f" or np.shape(first) != np.shape(second):
            continue
        scale = float(np.abs(second).max(initial=0))
        change = float(np.abs(np.asarray(first, np.float64) - second).max(initial=0))
        if np.isfinite(first).all() and change > SOURCE_TOLERANCE * scale:
            raise refuse(
                "SNNC205",
                f"the source computes '{output.name}' of a sample otherwise among three samples than "
                f"alone: {change:.3g} of {scale:.3g}",
                hint="export it so that all samples are treated alike",
            )


def measure_folds(prepared: Prepared, feeds: Mapping[str, Array]) -> None:
    """Measure what folding changed: every layer's output in the source and in the normalized ANN.

    The rounding of a quantized source is left out, which is not what folding changed.  Fills
    `LayerFacts.change` with (largest |change|, that over the largest |output|).
    """
    layers = [layer for layer in prepared.context.layers.values() if layer.folded]
    made = {name for node in prepared.checked_model.graph.node for name in node.output}
    made &= {tensor.name for node in prepared.graph.nodes for tensor in node.outputs}
    names = [layer.output for layer in layers if layer.output in made]
    if not names:
        return
    one = prepared.for_source(feeds)
    source = in_float32(prepared.checked_model)
    with contextlib.suppress(NotUnrounded):
        source = unrounded(source)
    before = _checking(with_outputs(source, names)).run(names, one)
    after = _checking(with_outputs(prepared.ann, names)).run(names, one)
    for layer in layers:
        if layer.output in made:
            at = names.index(layer.output)
            change = float(np.abs(before[at] - after[at]).max(initial=0.0))
            largest = float(np.abs(before[at]).max(initial=0.0))
            layer.change = (change, change / largest if largest else 0.0)


def check_folds(prepared: Prepared) -> None:
    """Refuse what folding changed by more than rounding can (after `measure_folds`).

    A fault of one layer is seen best in its own output: behind ten more layers little may be left of
    it.  A quantized source is left out, whose rounding between the layers is dropped on purpose.
    """
    if any("Quantize" in node.op_type for node in prepared.checked_model.graph.node):
        return
    findings = [
        Finding(
            "SNNC208",
            f"folding {' and '.join(layer.folded)} into it changes its output by "
            f"{layer.change[1]:.3g} of the largest",
            node=describe(layer.op, layer.name),
            hint="please report it with the model",
        )
        for layer in prepared.context.layers.values()
        if layer.change is not None and layer.change[1] > SOURCE_TOLERANCE
    ]
    if findings:
        raise Refused(*findings)


# --- what the network is for ---

#: What a classifier's scores end in.
_CLASS_FUNCTIONS = ("Softmax", "LogSoftmax", "ArgMax", "Hardmax", "TopK")


def task_of(
    prepared: Prepared, options: Options, labels: Array | None
) -> Literal["classification", "regression"]:
    """Whether the network's outputs are class scores, of which only the largest matters.

    They are if the user says so; if a Softmax or an arg-max is computed from them; or if they are
    [N, classes] and the calibration data has labels, or they come from an image or a sequence.  An
    output of the size of the input is a reconstruction, float outputs of several shapes are those of a
    detector, and all else is regression.
    """
    if options.task != "auto":
        return options.task
    floats = [
        one for one in prepared.graph.outputs if np.dtype(one.dtype or np.float32).kind == "f"
    ]
    if (
        len({str((output.shape or ())[1:]) for output in floats}) > 1
    ):  # whatever the batch is called
        return "regression"
    if any(node.op in _CLASS_FUNCTIONS for node in prepared.graph.nodes):
        return "classification"
    sizes = {prod(dim or 0 for dim in spec.shape[1:]) for spec in prepared.inputs}
    flat = [output.shape for output in prepared.graph.outputs if len(output.shape or ()) == 2]
    scores = [shape[1] for shape in flat if known(shape[1]) and 1 < shape[1] not in sizes]
    structured = any(len(spec.shape) > 2 for spec in prepared.inputs)
    return "classification" if scores and (labels is not None or structured) else "regression"


def resolve(
    prepared: Prepared, options: Options, *, data: bool = True, labels: Array | None = None
) -> Options:
    """The options with everything that was left open chosen for this network (`Options.resolved`).

    A note says why thresholds do not grow where they would by default, but for the network.
    """
    graph = prepared.graph
    task, depth = task_of(prepared, options, labels), calib.depth_of(graph)
    reason = hindrance(graph)
    found = options.resolved(task, data, depth, reason)
    if reason and found.growth != options.resolved(task, data, depth).growth:
        prepared.context.note("SNNC310", f"thresholds do not grow: {reason}")
    return found
