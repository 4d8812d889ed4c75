"""Checks that run the network: its batch axis, its outputs beside the source's, what folds changed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from snncompiler.errors import EnvironmentMissing, Refused, refuse
from snncompiler.findings import Finding, describe
from snncompiler.ir.graph import OWN, cut_at, with_outputs
from snncompiler.network.batching import CONSTANT
from snncompiler.network.prepared import (
    Prepared,
    checking_session,
    in_float32,
    runnable,
    synthetic_feeds,
)
from snncompiler.network.unrounded import NotUnrounded, unrounded
from snncompiler.passes.source.to_base_opset import without_maps

Array = NDArray[Any]

#: Relative tolerance of the batch check.  Convolutions and matrix products of other batch sizes may
#: sum in another order: a few hundred float32 roundings of 2^-24 each, with room to spare.
BATCH_TOLERANCE = 1e-4


#: Relative tolerance against the source: folding rounds every weight once, and the roundings of tens of
#: layers add up; float16 sources are computed in float32 on purpose, and keep 11 bits.
SOURCE_TOLERANCE = 1e-2

#: The share of integers that may differ where a layer is fed with the source's own: of sums of floats
#: in another order, one in ten thousand was measured; but before a rounding that is not followed, one
#: that differs changes many.  Two may in any case.
OTHER_INTEGERS = 0.05

#: The same of root mean squares where both are rounded: a single value of few bits that falls to the
#: other side changes its output by some percent; a wrong network differs by as much as it is.
ROUNDED_TOLERANCE = 0.1


def check_batch(prepared: Prepared, seed: int) -> None:
    """Compare three samples at once with the same three one by one, in onnxruntime; where outputs
    depend on how many run at once, with what the source makes of the three.

    Where they differ, the proof of `track_batch` was wrong for this network: Refused.
    """
    if not prepared.any_batch:
        return
    feeds = synthetic_feeds(prepared, 3, seed)
    try:
        session = checking_session(prepared.ann)
        together = session.run(None, feeds)
        if prepared.counts_samples:
            alone = [checking_session(runnable(prepared.source.model)[0]).run(None, feeds)]
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

    A quantized source is compared without its rounding, where it is dropped on purpose; a note says how
    much it does.  Where it is kept, sums of another order may round to the next integer, and so on
    behind them: what is compared then is the mean squared change.  Where they differ, a pass or the
    opset conversion was wrong for this network: Refused, naming the output, rather than converting
    another network than the one given.
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
        exact = given if prepared.context.keeps_rounding else unrounded(given, kept)
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
        session = checking_session(source, optimize=not narrow)
        expected = session.run(None, one)
        rounded = (
            expected if exact is given else checking_session(runnable(given)[0]).run(None, one)
        )
    except Exception as error:  # onnxruntime's own classes have no common base
        prepared.context.note(
            "SNNC208",
            "the source was not compared with the normalized network, because onnxruntime does not "
            f"run it: {str(error).splitlines()[0][:200]}",
        )
        return
    found = checking_session(prepared.ann).run(None, one)
    for output, first, second, as_given in zip(
        prepared.graph.outputs, expected, found, rounded, strict=True
    ):
        quantized = output.name in kept
        if not (quantized or np.asarray(first).dtype.kind == "f"):
            continue
        wide = np.asarray(first, np.float64)
        if not np.isfinite(wide).all():
            continue
        scale, change, tolerance = _difference(prepared, wide, second)
        # What differs little may round to the next integer.
        if wide.shape != np.shape(second) or change > tolerance * scale + quantized:
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
    if prepared.context.keeps_rounding:
        _check_roundings(prepared, source, session, one)
    _check_samples_alike(prepared, session, feeds)


def _check_roundings(
    prepared: Prepared, source: onnx.ModelProto, session: Any, feeds: Mapping[str, Array]
) -> None:
    """Refuse a normalized network of which a part between two roundings gives other integers than the
    source's, fed with the source's own: more of them than sums in another order make, or, where all
    roundings are followed, some by more than one level.

    Of a source that computes in floats (QDQ): one that computes in integers may do so in kernels that
    saturate.
    """
    roundings = _roundings(prepared.ann, source)
    if not roundings:
        return
    wanted = list(roundings.values())
    # As the session that compares the outputs: without the optimizer.
    values = dict(
        zip(
            roundings,
            checking_session(with_outputs(source, wanted), optimize=False).run(wanted, dict(feeds)),
            strict=True,
        )
    )
    names = [f"{name}{OWN}" for name in roundings]
    own = checking_session(cut_at(prepared.ann, roundings)).run(names, {**feeds, **values})
    scales = {
        node.output[0]: node.input[1] for node in prepared.ann.graph.node if node.op_type == "Mul"
    }
    constants = {tensor.name: tensor for tensor in prepared.ann.graph.initializer}
    rounds = sum(node.op_type == "Round" for node in prepared.ann.graph.node)
    most = 1.5 if rounds == len(roundings) else np.inf
    for (name, value), found in zip(values.items(), own, strict=True):
        scale = numpy_helper.to_array(constants[scales[name]])
        levels = np.abs(found.astype(np.float64) - value) / scale
        different = int(np.count_nonzero(levels > 0.5))
        if levels.max(initial=0) > most or different > max(2, OTHER_INTEGERS * levels.size):
            raise refuse(
                "SNNC208",
                f"the normalized network rounds '{name}' otherwise than the source, with the source's "
                f"own integers before it: {different:,} of {levels.size:,}, by up to "
                f"{levels.max():.0f} levels",
                hint="please report it with the model",
            )


def _roundings(ann: onnx.ModelProto, source: onnx.ModelProto) -> dict[str, str]:
    """What is rounded in the normalized network, and the same value in the source.

    What the same operators read is the same: rounding and max pooling may have changed places.
    """
    made = {name: node for node in ann.graph.node for name in node.output}
    before = {
        name: (node, node.name or f"{node.op_type}_{number}")  # as `import_model` names it
        for number, node in enumerate(source.graph.node)
        for name in node.output
    }
    found = {}
    for node in source.graph.node:
        first, called = before.get(node.input[0], (node, "")) if node.input else (node, "")
        if (node.op_type, first.op_type) != ("DequantizeLinear", "QuantizeLinear"):
            continue
        for name in (node.output[0], f"{called}/dequantizelinear"):
            chain = [made.get(name)]
            while chain[-1] is not None and len(chain) < 4:
                chain.append(made.get(chain[-1].input[0]))
            ops = [one.op_type if one is not None else "" for one in chain]
            alike = _read_by(ann, name) == _read_by(source, node.output[0]) != []
            if ops == ["Mul", "Clip", "Round", "Div"] and alike:
                found[name] = node.output[0]
    return found


def _read_by(model: onnx.ModelProto, name: str) -> list[str]:
    """The operators that read a tensor."""
    return sorted(node.op_type for node in model.graph.node if name in node.input)


def _difference(prepared: Prepared, first: Array, second: Array) -> tuple[float, float, float]:
    """How large an output is, by how much another computation of it differs, and the share of its size
    by which it may."""
    if not first.size or np.shape(first) != np.shape(second):
        return 0.0, 0.0, SOURCE_TOLERANCE
    if prepared.context.keeps_rounding:
        return _root_mean_square(first), _root_mean_square(first - second), ROUNDED_TOLERANCE
    return float(np.abs(first).max()), float(np.abs(first - second).max()), SOURCE_TOLERANCE


def _root_mean_square(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


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
    found = checking_session(prepared.ann).run(None, three)
    for output, first, second in zip(prepared.graph.outputs, expected, found, strict=True):
        if np.asarray(first).dtype.kind != "f" or np.shape(first) != np.shape(second):
            continue
        wide = np.asarray(first, np.float64)
        scale, change, tolerance = _difference(prepared, wide, second)
        if np.isfinite(first).all() and change > tolerance * scale:
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
    if not prepared.context.keeps_rounding:
        with contextlib.suppress(NotUnrounded):
            source = unrounded(source)
    before = checking_session(with_outputs(source, names)).run(names, one)
    after = checking_session(with_outputs(prepared.ann, names)).run(names, one)
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
