"""`snncompiler.compile` and `snncompiler.check`: the commands of the same names, in Python."""

from __future__ import annotations

import os
from typing import Any, Literal

import onnx

from snncompiler.analysis.constraints import constraints
from snncompiler.ir.settings import (
    DEFAULT_STEPS,
    Correction,
    Emit,
    MaxPooling,
    Method,
    Options,
    Target,
    Task,
    Unroll,
)
from snncompiler.network.data import Preprocess
from snncompiler.pipeline import (
    CALIBRATION_SAMPLES,
    CalibrationLike,
    Progress,
    compile_model,
    prepare,
)


def compile(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    calibration: CalibrationLike = None,
    steps: int = DEFAULT_STEPS,
    task: Task = "auto",
    threshold: Method = "auto",
    percentile: float = 99.9,
    tau: float = 500.0,
    per_channel: bool | None = None,
    alpha: float | Literal["auto"] = 1.0,
    correction: Correction = "auto",
    schedule_steps: int = 32,
    growth: str = "auto",
    readout: str = "auto",
    neuron: str = "binary",
    unroll: Unroll = "fold",
    chunk: int | None = None,
    reset: Literal["soft", "hard"] = "soft",
    initial: float | None = None,
    encode: Literal["auto", "constant", "poisson"] = "auto",
    paper: bool = False,
    strict: bool | None = None,
    seed: int = 0,
    allow_analog: bool = False,
    maxpool: MaxPooling = "exact",
    emit: Emit = "window",
    batch: int | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    target: Target = "portable",
    samples: int | None = CALIBRATION_SAMPLES,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """Compile a trained ReLU network into a spiking one (RMP-SNN, Han, Srinivasan, Roy, CVPR 2020).

    model: path, bytes or ModelProto of the ANN; it is not changed.
    calibration: data as for `snncompiler.network.data.load_data`, of which `samples` are drawn by
        `seed` (all for None), or a Calibration, which no option may contradict; without it, thresholds
        come from batch-norm statistics or synthetic input, and nothing is corrected.
    steps: time-steps T.  task: what the outputs are; it chooses whatever is left at "auto" or None
        (docs/explanation/accuracy.md).
    threshold, percentile, tau, per_channel, alpha: how θ follows from the ANN's activations, or for
        `vin-max` from the running network's currents; alpha scales it (the paper's α), "auto" searches.
    correction, schedule_steps: charges that correct the running network, found layer by layer.
    growth: how θ grows with time: `none`, or factors and the steps, from 1, from which they hold, as
        `1.15@33,1.3@65`.
    readout: `mean`, `ramp:P` (step t weighs t^P; `ramp` is `ramp:1`) or `delay:D` (the first D steps do
        not count).
    neuron: `binary`; `burst:G` fires up to G spikes a step, `signed:G` also takes them back.
    reset: soft (RMP) or hard.  initial: membrane potential at the start, in units of θ.
    encode: the input as a `constant` current, or as signed random spikes (`poisson`).
    paper: the paper's setting: strict, poisson, vin-max per layer, initial 0, no correction.
    unroll, chunk: `fold` (chunks of K steps), `loop` or `steps`.
    emit: `window`, `step` (one step, states outside: `runtime.Stream`) or `cuda-graph` (K = T and
        `batch` baked in, no control flow).  precision: fp16 halves weights and currents, for GPUs.
    target: `portable`, which sessions on the CPU lower by themselves, or `cpu`: lowered to the
        event-driven operators in the file already.
    allow_analog: keep nonlinear operators between spiking layers exact, though not spiking.
    maxpool: `average` replaces max pooling by average pooling, which changes the network.
    strict: refuse bias and batch-norm, as the paper does; None: with `paper` alone.

    Returns the spiking network: the same inputs and outputs as the ANN, [N, ...].
    Raises Refused (the model or the data), UsageError (an option), EnvironmentMissing (onnxruntime).
    """
    options = Options(
        steps=steps,
        task=task,
        threshold=threshold,
        percentile=percentile,
        tau=tau,
        per_channel=per_channel,
        alpha=alpha,
        correction=correction,
        schedule_steps=schedule_steps,
        growth=growth,
        readout=readout,
        neuron=neuron,
        unroll=unroll,
        chunk=chunk,
        reset=reset,
        initial=initial,
        encode=encode,
        paper=paper,
        strict=strict,
        seed=seed,
        allow_analog=allow_analog,
        maxpool=maxpool,
        emit=emit,
        batch=batch,
        precision=precision,
        target=target,
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
