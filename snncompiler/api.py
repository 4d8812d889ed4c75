"""`snncompiler.compile` and `snncompiler.check`: the commands of the same names, in Python."""

from __future__ import annotations

import os
from typing import Any, Literal

import onnx

from snncompiler.calibration import Method
from snncompiler.data import Preprocess
from snncompiler.passes.unroll_time import Emit, Unroll
from snncompiler.pipeline import (
    CALIBRATION_SAMPLES,
    DEFAULT_STEPS,
    CalibrationLike,
    MaxPooling,
    Options,
    Progress,
    compile_model,
    prepare,
)
from snncompiler.report import constraints


def compile(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    calibration: CalibrationLike = None,
    steps: int = DEFAULT_STEPS,
    threshold: Method = "percentile",
    percentile: float = 99.9,
    per_channel: bool = True,
    alpha: float = 1.0,
    unroll: Unroll = "fold",
    chunk: int | None = None,
    reset: Literal["soft", "hard"] = "soft",
    initial: float = 0.5,
    encode: Literal["constant"] = "constant",
    strict: bool = False,
    seed: int = 0,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    emit: Emit = "window",
    batch: int | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    samples: int | None = CALIBRATION_SAMPLES,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """Compile a trained ReLU network into a spiking one (RMP-SNN, Han, Srinivasan, Roy, CVPR 2020).

    model: path, bytes or ModelProto of the ANN; it is not changed.
    calibration: data as for `snncompiler.data.load_data`, of which `samples` are drawn by `seed`
        (all for None), or a Calibration; without it, thresholds come from batch-norm statistics or
        synthetic input.
    steps: time-steps T.  threshold, percentile, per_channel, alpha: how θ follows from the ANN's
        activations; alpha scales it (the paper's α).
    unroll, chunk: `fold` (chunks of K steps), `loop` or `steps`.  reset: soft (RMP) or hard.
    initial: membrane potential at the start, in units of θ.  encode: the input is a constant current.
    emit: `window`, `step` (one step, states outside: `runtime.Stream`) or `cuda-graph` (K = T and
        `batch` baked in, no control flow).  precision: fp16 halves weights and currents, for GPUs.
    allow_analog: keep nonlinear operators between spiking layers exact, though not spiking.
    maxpool: `average` replaces max pooling by average pooling, which changes the network.
    strict: refuse bias and batch-norm, as the paper does.

    Returns the spiking network: the same inputs and outputs as the ANN, [N, ...].
    Raises Refused (the model or the data), UsageError (an option), EnvironmentMissing (onnxruntime).
    """
    options = Options(
        steps=steps,
        threshold=threshold,
        percentile=percentile,
        per_channel=per_channel,
        alpha=alpha,
        unroll=unroll,
        chunk=chunk,
        reset=reset,
        initial=initial,
        encode=encode,
        strict=strict,
        seed=seed,
        allow_analog=allow_analog,
        maxpool=maxpool,
        emit=emit,
        batch=batch,
        precision=precision,
    )
    return compile_model(model, options, calibration, preprocess, samples, progress).model


def check(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    strict: bool = False,
    allow_analog: bool = False,
) -> dict[str, Any]:
    """The constraints report of a network, as plain data (see `snnc check --json`).

    Per rectifier and linear layer: bias, batch-norm, what was folded; pooling; every finding.
    Raises Refused with all findings where the network cannot be converted.
    """
    return constraints(prepare(model, strict=strict, allow_analog=allow_analog))
