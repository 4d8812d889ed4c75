"""From a model file to the normalized ANN: load, verify, normalize, and check what was done.

The normalized ANN computes what the source computes (`check_source`), with rectifiers spelled as Relu
or Clip, linear layers with their batch-norms folded, and a known batch axis.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snncompiler.errors import EnvironmentMissing, Refused, refuse
from snncompiler.findings import Finding
from snncompiler.ir.graph import (
    Graph,
    Node,
    Tensor,
    import_model,
    infer_shapes,
    known,
    label,
    reachable_from,
)
from snncompiler.ir.pixels import REAL_INPUT, InputType
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.settings import MaxPooling, Options
from snncompiler.network.checks import check_batch
from snncompiler.network.data import InputSpec
from snncompiler.network.load import Source, load
from snncompiler.network.pixels import of_pixels
from snncompiler.network.prepared import (
    OPEN_SIZE,
    Prepared,
    as_model,
    checking_session,
    imported,
    runnable,
    sizes_that_run,
    synthetic_feeds,
)
from snncompiler.passes.base import Context, Pass, Watch, run_passes
from snncompiler.passes.lower.spell_rounding import SpellRounding
from snncompiler.passes.normalize.check_constraints import CheckConstraints
from snncompiler.passes.normalize.fold_affine import FoldAffine
from snncompiler.passes.normalize.fold_batch_norm import FoldBatchNorm
from snncompiler.passes.normalize.fold_forward import FoldForward
from snncompiler.passes.normalize.pool_spikes import PoolSpikes
from snncompiler.passes.normalize.pure_spikes import PureSpikes
from snncompiler.passes.normalize.sink_offsets import SinkOffsets
from snncompiler.passes.normalize.spell_max_pool import SpellMaxPool
from snncompiler.passes.normalize.swap_max_pool import SwapMaxPool
from snncompiler.passes.normalize.track_batch import TrackBatch
from snncompiler.passes.normalize.unify_linear import UnifyLinear
from snncompiler.passes.source.average_max_pool import AverageMaxPool
from snncompiler.passes.source.code_activations import CodeActivations
from snncompiler.passes.source.drop_fake_quant import DropFakeQuant
from snncompiler.passes.source.fold_constants import FoldConstants
from snncompiler.passes.source.keep_rounding import KeepRounding
from snncompiler.passes.source.remove_noops import RemoveNoops
from snncompiler.passes.source.spell_linear import SpellLinear
from snncompiler.passes.source.spell_ml import SpellMl
from snncompiler.passes.source.spell_quantized import SpellQuantized
from snncompiler.passes.source.spell_rectifiers import SpellRectifiers
from snncompiler.passes.source.to_float32 import ToFloat32
from snncompiler.passes.source.verify_input import verify_input

Array = NDArray[Any]


def normalization_passes(
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    pure: bool = False,
    freeze_batch: bool = True,
    keep_rounding: bool = False,
    layered: bool = False,
) -> list[Pass]:
    """The graph passes from the checked source to the normalized ANN, in order."""
    return [
        SpellMl(),
        ToFloat32(),
        SpellQuantized(),
        FoldConstants(freeze_batch),
        KeepRounding() if keep_rounding else DropFakeQuant(),
        *([AverageMaxPool()] if maxpool == "average" else []),  # of real values, not of integers
        SpellLinear(),
        *([CodeActivations()] if layered and allow_analog else []),
        SpellRectifiers(),
        RemoveNoops(),
        TrackBatch(),
        UnifyLinear(),
        SpellMaxPool(),
        SwapMaxPool(),
        FoldBatchNorm(),
        FoldAffine(),
        PoolSpikes(),
        SinkOffsets(),
        FoldForward(),
        *([PureSpikes()] if pure else []),
        CheckConstraints(strict, allow_analog, layered),
    ]


def prepare(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    strict: bool = False,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    pure: bool = False,
    keep_rounding: bool = False,
    layered: bool = False,
    input_type: InputType = REAL_INPUT,
    watch: Watch | None = None,
) -> Prepared:
    """Load, verify and normalize a model; `watch` is shown the graph after every pass.

    keep_rounding: a quantized source is rounded as it is, for layered time.  layered: for layered time,
    in which analog activations may be coded in spikes.  input_type: what the network takes in place of
    the source's inputs.

    Raises Refused with every finding.
    """
    source = of_pixels(load(model), input_type)
    checked, findings = verify_input(source.model)
    options: dict[str, Any] = {
        "strict": strict, "allow_analog": allow_analog, "maxpool": maxpool, "pure": pure,
        "keep_rounding": keep_rounding, "layered": layered,
    }  # fmt: skip
    no_samples = _inputs_without_samples(checked)
    try:
        graph, context = _normalized(checked, findings, options, watch)
    except Refused as refused:
        raise Refused(*no_samples, *refused.findings) from None
    if no_samples:
        raise Refused(*no_samples)
    prepared = _prepared(source, checked, graph, context, any_batch=not context.batch_lost)
    prepared.sizes = sizes_that_run(prepared)
    if prepared.any_batch:
        return prepared
    leading = [tensor.shape[0] for tensor in import_model(checked).inputs if tensor.shape]
    if not all(known(dim) for dim in leading):
        # The source takes any batch by arithmetic on shapes at run time.  That stays in the graph
        # then, and the time-steps run one by one, if three samples at once are right.
        graph, kept = _normalized(checked, findings, {**options, "freeze_batch": False}, watch)
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
            hint="export it with a batch axis in front, or with a fixed size where axis 0 is no batch",
        )
    return prepared


def prepared_again(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    options: Options,
    keep_rounding: bool = False,
) -> Prepared:
    """The normalized ANN as it was when a file was compiled with these options."""
    return prepare(
        model,
        allow_analog=options.allow_analog,
        maxpool=options.maxpool,
        pure=options.pure,
        keep_rounding=keep_rounding,
        layered=options.layered,
        input_type=options.input_type,
    )


def _check_one_alone(prepared: Prepared) -> None:
    """Refuse a source that cannot run with one sample, but with as many as along its other open axes:
    axis 0 is tied to one of them then, as in an adjacency matrix, and is no batch."""
    one = synthetic_feeds(prepared, 1, 0)
    many = {name: np.repeat(array, OPEN_SIZE, axis=0) for name, array in one.items()}
    found = []
    for feeds in (one, many):
        try:
            checking_session(runnable(prepared.source.model)[0]).run(None, feeds)
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
    spelled = graph
    if context.keeps_rounding:
        spelled = graph.copy()
        run_passes([SpellRounding()], spelled, replace(context, observer=None))
    return Prepared(
        source=source,
        graph=graph,
        ann=as_model(spelled),
        context=context,
        inputs=[_spec(tensor) for tensor in graph.inputs],
        any_batch=any_batch,
        checked_model=checked,
    )


def _normalized(
    checked: onnx.ModelProto,
    findings: list[Finding],
    options: dict[str, Any],
    watch: Watch | None,
) -> tuple[Graph, Context]:
    graph, context = imported(checked, findings)
    context.observer = watch("normalize") if watch else None
    run_passes(normalization_passes(**options), graph, context)
    context.observer = None
    infer_shapes(graph)
    return graph, context


def _spec(tensor: Tensor) -> InputSpec:
    shape = tuple(int(dim) if known(dim) else None for dim in tensor.shape or ())
    return InputSpec(tensor.name, shape, np.dtype(tensor.dtype))
