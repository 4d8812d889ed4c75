"""Sessions of onnxruntime for ANNs and compiled networks."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
from google.protobuf.message import DecodeError

from snncompiler.errors import EnvironmentMissing, UsageError
from snncompiler.ir import dialect
from snncompiler.passes.lower.collapse_time import collapse_time, has_layers
from snncompiler.passes.lower.drive_neurons import drive_neurons
from snncompiler.passes.lower.fuse_counts import fuse_counts
from snncompiler.passes.lower.inline_bodies import inline_bodies
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import cuda, library
from snncompiler.runtime.cuda import CUDA

if TYPE_CHECKING:
    import onnxruntime

Device = Literal["cpu", "cuda", "auto"]
CPU = "CPUExecutionProvider"

#: onnxruntime's optimizer takes longer than the calibration itself on graphs of more nodes.
LARGE_GRAPH = 4000


def import_onnxruntime() -> Any:
    """The onnxruntime module.  Raises EnvironmentMissing with the remedy if it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentMissing(
            f"onnxruntime is not installed ({error})",
            hint='pip install "snnc[cpu]", or "snnc[gpu]" for CUDA; the two exclude each other',
        ) from error
    return onnxruntime


def create_session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    native: bool | Literal["auto"] = "auto",
    events: bool = True,
    provider_options: Mapping[str, Any] | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session for a model given as a path, as bytes or as a ModelProto.

    device: "cuda" never falls back to the CPU.  "auto" takes CUDA if it works; if onnxruntime has CUDA
        but it does not work, a RuntimeWarning says why.  CUDA and cuDNN are loaded from where pip has
        put them, and a small network is run before the session is made.
    threads: the number of intra-op threads; None leaves onnxruntime's default.
    optimize: False leaves out onnxruntime's graph optimizations, whose time grows faster than the
        graph.
    native: True requires the native library, False leaves it out, and "auto" uses it if it is installed
        for the device.  Without it, the function bodies in the model run.
    events: let the native library compute on the CPU by events, in those layers of a compiled network
        that have such a form (`snncompiler.passes.lower.lower_events`).  Sums are then added in another
        order than by onnxruntime's convolutions.  A layered network in whole numbers computes with the
        counts of its spikes instead (`snncompiler.passes.lower.collapse_time`) and gives the same bits;
        one of real weights computes all steps in one pass, and its sums are added in another order.
        The session is made from a file that is deleted
        afterwards, so it cannot change its providers (`set_providers`).  False leaves every layer as it
        stands in the file.  So does an onnxruntime that cannot load the lowered network; a
        RuntimeWarning says so.
    provider_options: those of onnxruntime's CUDA provider, such as `device_id`,
        `cudnn_conv_algo_search`, `enable_cuda_graph`, `user_compute_stream`.  TF32 is off unless
        `use_tf32` is 1.
    On CUDA a compiled network has the chunk K that suits the GPU's memory (`snncompiler.runtime.cuda`),
    and with the native library its neurons drive their currents themselves
    (`snncompiler.passes.lower.drive_neurons`).  A layered network computes all steps in one pass there,
    too, unless `events` is False: one convolution in float32 and one neuron a layer, in whole numbers
    with the same bits.
    Raises EnvironmentMissing for what is missing or broken, UsageError for provider options on the CPU
    and for a file that was lowered for the CPU on CUDA.
    """
    if device == "cpu" and provider_options:
        raise UsageError("provider options are for CUDA", hint="device='cuda' or 'auto'")
    if device not in ("cpu", "cuda", "auto") or native not in (True, False, "auto"):
        raise UsageError(f"unknown device {device!r} or choice of native kernels {native!r}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads} is out of range", hint="at least 1")
    ort = import_onnxruntime()
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(source, os.PathLike):
        source = os.fspath(source)

    def options_of() -> Any:
        options = _quiet(ort)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        return options

    def on_cpu() -> Any:
        options = options_of()
        registered = _register(options, native, cuda=False)
        if events and registered:
            try:
                lowered = by_events(options)
            except Exception as error:
                # The lowering is proved to be right; whether this onnxruntime loads it is not.
                warnings.warn(f"not computed by events: {error}", RuntimeWarning, stacklevel=3)
                lowered = None
            if lowered is not None:
                return lowered
            options.enable_mem_pattern = True
        return ort.InferenceSession(source, options, providers=[CPU])

    def by_events(options: Any) -> Any:
        """A session of the lowered model; None where nothing can be lowered."""
        lowered = _by_events(source)
        if lowered is None:
            return None
        # A plan for all tensors of a run at once takes up to a third more memory, and is no faster
        # (docs/explanation/performance.md).
        options.enable_mem_pattern = False
        # onnxruntime keeps bytes as long as the session, and holds the weights of a file twice while it
        # reads it; a file of weights beside it is mapped, and stays so when it is deleted.
        folder = partial(tempfile.TemporaryDirectory, prefix="snnc-", ignore_cleanup_errors=True)
        with suppress(OSError), folder() as place:
            file = Path(place, "lowered.onnx")
            onnx.save_model(lowered, file, save_as_external_data=True, location="weights")
            del lowered
            return ort.InferenceSession(os.fspath(file), options, providers=[CPU])
        # No file can be written, and the lowered model has given its weights away: lower it again.
        lowered = _by_events(source)
        assert lowered is not None
        return ort.InferenceSession(lowered.SerializeToString(), options, providers=[CPU])

    def on_cuda() -> Any:
        chosen = cuda.options_of(provider_options)
        if CUDA not in ort.get_available_providers():
            raise EnvironmentMissing(
                f"this onnxruntime {ort.__version__} was built without CUDA", hint=cuda.REMEDY
            )
        check_cuda(ort, native, chosen.get("device_id", "0"))
        options = options_of()
        registered = _register(options, native, cuda=True)
        given, ours = source, _ours(source)
        if ours is not None:
            cuda.check_kind(ours)
            if not _has_external_data(ours):
                fitted = cuda.fit(ours, _memory(ort, chosen.get("device_id", "0")))
                collapsed = _without_time(ours, kernels=registered) if events else None
                ours = ours if collapsed is None else collapsed
                driven = registered and drive_neurons(ours)
                changed = fitted or driven or collapsed is not None
                given = ours.SerializeToString() if changed else source
        made = ort.InferenceSession(given, options, providers=[(CUDA, chosen), CPU])
        if CUDA not in made.get_providers():
            raise EnvironmentMissing(
                "onnxruntime could not start CUDA with these provider options",
                hint=", ".join(f"{key}={value}" for key, value in chosen.items()),
            )
        return made

    if device == "cuda":
        return on_cuda()
    if device == "auto" and CUDA in ort.get_available_providers():
        try:
            return on_cuda()
        except (EnvironmentMissing, UsageError) as error:
            warnings.warn(f"on the CPU: {error}", RuntimeWarning, stacklevel=2)
    return on_cpu()


#: Libraries and devices with which CUDA runs.
_running: set[tuple[str, str]] = set()


def _quiet(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised too, and told by us
    return options


def check_cuda(ort: Any, native: bool | Literal["auto"] = "auto", device: str = "0") -> None:
    """Raises EnvironmentMissing where CUDA does not run, with the part that is missing or too old."""
    options = _quiet(ort)
    said = cuda.preload(ort)
    registered = _register(options, native, cuda=True)
    path = library.library_path() if registered else None
    if (str(path), device) in _running:
        return
    fault = cuda.fault_of(ort, options, device)
    if fault:
        kernels = library.inspect_library(path)["cuda"] if path else None
        why = cuda.why_not(cuda.versions(ort), kernels, f"{fault} {said}".strip())
        raise EnvironmentMissing(
            f"onnxruntime could not start CUDA on this machine: {why}", hint=cuda.REMEDY
        )
    _running.add((str(path), device))


def _memory(ort: Any, device: str) -> int:
    """Bytes of a GPU's memory, 0 where they are not known."""
    found = cuda.devices(ort)
    return found[int(device)].memory if device.isdecimal() and int(device) < len(found) else 0


def runs_events() -> bool:
    """Whether sessions on the CPU compute by events where they can: the native library is there."""
    return library.library_path() is not None


def runs_on_cuda() -> bool:
    """Whether sessions can be made for CUDA: onnxruntime has it, and a small network runs there."""
    ort = import_onnxruntime()
    if CUDA not in ort.get_available_providers():
        return False
    try:
        check_cuda(ort)
    except EnvironmentMissing:
        return False
    return True


def _ours(source: str | bytes) -> onnx.ModelProto | None:
    """A model with operators of ours; None for anything else."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if dialect.DOMAIN.encode() not in data:
            return None
        return onnx.load_model_from_string(data)
    except (OSError, DecodeError):
        return None  # onnxruntime says what is wrong with it


def _has_external_data(model: onnx.ModelProto) -> bool:
    external = onnx.TensorProto.EXTERNAL
    return any(tensor.data_location == external for tensor in _tensors(model.graph))


def _by_events(source: str | bytes) -> onnx.ModelProto | None:
    """A compiled network with its layers in event-driven form, or by counts if it is layered, and with
    driven neurons in the others; None where there is nothing of these."""
    model = _ours(source)
    if model is None or _has_external_data(model):
        return None
    lowered = collapse_time(model) if has_layers(model) else lower_events(model)
    driven, fused = drive_neurons(lowered.model), fuse_counts(lowered.model)
    return lowered.model if lowered.changed or driven or fused else None


def _without_time(model: onnx.ModelProto, *, kernels: bool) -> onnx.ModelProto | None:
    """A layered network without time, of operators that CUDA has; None where it keeps its time.

    With our `kernels` all layers become such of levels, each one convolution and one neuron in float32.
    Where that cannot be, and without the kernels, those in whole numbers of 8 bits become standard
    operators on counts.
    """
    if not has_layers(model):
        return None
    lowered = collapse_time(model, levels=kernels)
    wanted = ("LevelNeuron", "CountConv") if kernels else ("CountConv",)
    if not any(note.operator.startswith(wanted) for note in lowered.layers):
        return None
    return inline_bodies(lowered.model)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from _tensors(attribute.g)


def _register(options: Any, native: bool | Literal["auto"], *, cuda: bool) -> bool:
    """Register the native library; whether it is in use."""
    if not native:
        return False
    path = library.library_path()
    if path is None:
        if native is True:
            raise EnvironmentMissing("the native library is not built", hint=library.REMEDY)
        return False
    if cuda and not library.inspect_library(path).get("cuda"):
        # Its CPU kernels would take every neuron off the GPU; the function bodies stay there.
        if native is True:
            raise EnvironmentMissing(
                f"the native library {path} was built without CUDA",
                hint=f"{library.REMEDY} where nvcc is found",
            )
        return False
    return library.register(options)
