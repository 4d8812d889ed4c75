"""Convert every real network at hand, the structural ones, and the generated ones; one table.

    python bench/zoo.py [--material DIR] [--networks DIR] [--steps 32,128,512] [--limit N]
        [--only NAME] [--rows FILE] [--write PAGE]

Real networks are those that `material.json` lists in the folder `SNNC_MATERIAL`.  The structural ones
are `light_*.onnx` of the `onnx` package; their constant weights, which give one output for every
input, are replaced by seeded random ones.  Generated ones are those that `tests/zoo/generate.py` wrote
into the folder `--networks`.  Each is checked, compiled with thresholds at the maxima of
up to 64 calibration samples, and run on up to 16 other samples, in a child process of its own.

A network that would run for longer than `--seconds`, or six times that if it is a real one, gets fewer
samples and then fewer time-steps; the table says how many it got.  That it converges is then shown on
one sample, or on four where that takes little time, with thresholds at their maxima: T is quadrupled
until the error is small and has at least halved.

With `--rows` every row is kept as soon as it is measured, under a digest of the network, its data, the
compiler's source, the libraries and the options; a run that was cut goes on there.  A row of anything
else is measured again.  The exit code is 1 if a network neither converged nor was refused as it must.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.zoo_page import cells, page, right, summary  # noqa: E402

Array = NDArray[Any]
Row = dict[str, Any]

CALIBRATION, TEST = 64, 16
#: Convergence: T from 32 to 32,768, each four times the one before.  It is shown where the relative
#: error is at most SMALL and at most half of that at T/4 (1/T would make it a quarter), or at most
#: EXACT, where float32's rounding begins: the rates of some networks are exact at every T.
LADDER = tuple(32 * 4**power for power in range(6))
SMALL, EXACT = 0.2, 1e-5
#: Real networks, whose samples say more, get so many times the seconds of the others.
REAL_TIME = 6
#: The ladder is climbed up to here in any case, where that takes no more than `--seconds`.
AT_LEAST = 512
#: A structural network holds these and is no ReLU network then.
NONLINEAR = {"LRN"}


# --- the structural networks ---


def light_folder() -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light_names() -> list[str]:
    return sorted(path.stem for path in light_folder().glob("light_*.onnx"))


def light(name: str, *, width: int = 1, size: int = 0, seed: int = 0) -> onnx.ModelProto:
    """A structural network with seeded weights: He-scaled, batch-norm variances 0.5 to 1.5.

    `width` divides the number of channels of every layer; `size` is the height and width of the input
    where the network takes any.  Class scores are scaled to a deviation of 1.
    """
    model = onnx.load(light_folder() / f"{name}.onnx")
    graph = model.graph
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in fills:
        values[node.output[0]] = np.zeros(values.pop(node.input[0]), np.float32)
        graph.node.remove(node)
    unsqueezed = {node.output[0]: node for node in graph.node if node.op_type == "Unsqueeze"}
    for node in graph.node:
        for index, given in enumerate(node.input):
            source = unsqueezed[given].input[0] if given in unsqueezed else given
            if source in values:
                role = (node.op_type, index)
                values[source] = _weights(rng, role, values[source], node, width)
    given_size = {"data_0": size} if size else {}
    inputs = [
        _resized(entry, given_size) for entry in graph.input if _is_data(entry, values, fills)
    ]
    del graph.input[:], graph.initializer[:], graph.value_info[:]
    graph.input.extend(inputs)
    for key, array in values.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), key)
        graph.initializer.append(tensor)
        graph.input.append(helper.make_tensor_value_info(key, tensor.data_type, array.shape))
    for output in graph.output:
        dim = output.type.tensor_type.shape.dim[1]
        dim.dim_value //= width
    _spread_scores(model, inputs[0])
    return model


def _spread_scores(model: onnx.ModelProto, data: onnx.ValueInfoProto) -> None:
    """Scale the last layer to class scores of deviation 1: else a Softmax says one class for all."""
    from snncompiler.runtime.session import create_session

    softmax, gemm = model.graph.node[-1], model.graph.node[-2]
    if softmax.op_type != "Softmax" or gemm.op_type != "Gemm":
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(
        helper.make_tensor_value_info(gemm.output[0], onnx.TensorProto.FLOAT, None)
    )
    shape = [dim.dim_value for dim in data.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    scores = create_session(probe).run(None, {data.name: x})[0]
    weights = [n.input[0] for n in model.graph.node if n.output[0] == gemm.input[1]]
    for tensor in model.graph.initializer:
        if tensor.name in (*gemm.input[1:], *weights):
            scaled = numpy_helper.to_array(tensor) / scores.std()
            tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))


def _is_data(
    entry: onnx.ValueInfoProto, values: Mapping[str, Array], fills: list[onnx.NodeProto]
) -> bool:
    return entry.name not in values and entry.name not in {node.input[0] for node in fills}


def _resized(entry: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> onnx.ValueInfoProto:
    for axis in (2, 3):
        if entry.name in sizes:
            entry.type.tensor_type.shape.dim[axis].dim_value = sizes[entry.name]
    return entry


def _weights(
    rng: np.random.Generator, role: tuple[str, int], old: Array, node: onnx.NodeProto, width: int
) -> Array:
    """New values for a constant, by the operator that reads it and the place where it does."""
    shape = list(old.shape)
    if role == ("Reshape", 1):
        # [1, features] after the convolutions, or [classes, features] of the weights.
        return np.maximum(old // width, 1) if old.size == 2 and old.min() > 0 else old
    if role == ("Reshape", 0):
        shape[-2:] = [size // width for size in shape[-2:]]
        return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)
    if role in (("Conv", 1), ("Gemm", 1)):
        shape[0] //= width
        shape[1] //= width if shape[1] > 3 else 1
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        fan_in = shape[0] if role[0] == "Gemm" and not transposed else int(np.prod(shape[1:]))
        scale = np.sqrt((2.0 if role[0] == "Conv" else 1.0) / fan_in)
        return np.asarray(rng.standard_normal(shape) * scale, np.float32)
    if old.ndim != 1 or role[0] not in ("Conv", "Gemm", "BatchNormalization", "Mul", "Add"):
        return old
    shape[0] //= width
    if role in (("BatchNormalization", 1), ("BatchNormalization", 4)) or role[0] == "Mul":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


# --- the material ---


def material_root(given: str | None = None) -> Path:
    """The folder with `material.json`: the one given, else SNNC_MATERIAL, or `material` in it."""
    folder = ROOT / (given or os.environ.get("SNNC_MATERIAL", "../shared"))
    return folder if (folder / "material.json").is_file() else folder / "material"


#: Networks for pictures that have no data set of their own: they get the material's pictures of people,
#: preprocessed as their authors say (pixels of 0 to 255, -1 to 1, and 0 to 1).
PICTURES: dict[str, Row] = {
    "face_resnet_dlib_tfjs13": {"layout": "NHWC", "scale": 1, "size": [150, 150]},
    "blazeface_front128_mediapipe": {
        "layout": "NHWC",
        "scale": 127.5,
        "shift_after": -1,
        "size": [128, 128],
    },
    "denoise_waifu2x_json13": {"layout": "NCHW", "scale": 255, "size": [46, 46]},
}


def entries(root: Path) -> dict[str, Row]:
    """What `material.json` lists, by model name; empty where it is absent."""
    path = root / "material.json"
    if not path.is_file():
        return {}
    listed = json.loads(path.read_text(encoding="utf-8"))
    found = {Path(entry["model"]).stem: entry for entry in listed}
    for name in PICTURES.keys() & found.keys():
        if found[name]["data"] is None:
            found[name] |= {"data": "sets/ultraface_imgs", "preprocess": PICTURES[name]}
    return found


def generated(folder: Path) -> dict[str, Row]:
    """What `tests/zoo/generate.py` wrote into a folder, by model name, as `entries` lists them."""
    found: dict[str, Row] = {}
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        made = f"{model.producer_name} {model.producer_version}".removesuffix(" None")
        kind = next((kind for end, kind in EXPORTERS.items() if path.stem.endswith(end)), GENERATED)
        row: Row = {"model": str(path.resolve()), "exporter": made, "family": kind}
        reasons = [p.value for p in model.metadata_props if p.key == "zoo.must_refuse"]
        found[path.stem] = row | {"data": None, "preprocess": {}}
        if reasons:
            found[path.stem]["must_refuse"] = reasons[0]
    return found


#: The families of the summary; generated networks by the exporter that their names end with.
REAL, STRUCTURAL = "real networks", "structural networks of the `onnx` package"
GENERATED = "seeded weights"
EXPORTERS = {
    "_ts17": "seeded weights, PyTorch by TorchScript",
    "_dynamo20": "seeded weights, PyTorch by torch.export",
    "_tf15": "seeded weights, Keras by tf2onnx",
}


def family(entry: Row | None) -> str:
    """That of what `entries` or `generated` lists; a structural network has no entry."""
    return STRUCTURAL if entry is None else str(entry.get("family", REAL))


def preprocess_of(how: Mapping[str, Any]) -> Any:
    """The steps of `material.json` as one `snncompiler.Preprocess`, None where nothing is to be done.

    ((x + shift)·multiply / divide / scale + shift_after - mean) / std = (x / s - m) / std.
    """
    from snncompiler import Preprocess

    steps = {"shift", "multiply", "divide", "scale", "shift_after", "mean", "std"}
    if not steps & set(how) and not how.get("layout"):
        return None
    scale = float(how.get("divide", 1)) * float(how.get("scale", 1)) / float(how.get("multiply", 1))
    mean = np.asarray(how.get("mean", [0.0]), np.float64)
    mean = mean - float(how.get("shift", 0)) / scale - float(how.get("shift_after", 0))
    size = how.get("size")
    return Preprocess(
        layout=how.get("layout"),
        scale=scale,
        mean=tuple(mean.tolist()) if mean.any() else None,
        std=tuple(how["std"]) if "std" in how else None,
        size=(size, size) if isinstance(size, int) else None,
        resize=(size[0], size[1]) if isinstance(size, list) else None,
        bgr=bool(how.get("bgr", False)),
    )


def stored(path: Path, how: Mapping[str, Any], wanted: tuple[int | None, ...]) -> Any:
    """What to give to `load_data`: the path, or arrays where the samples have to be cut from it."""
    if path.suffix in (".jpg", ".png"):
        from PIL import Image

        # A single picture, of which a network with one channel takes the luminance over 255.
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("YCbCr"), np.float32)
        return pixels[None, None, ..., 0] / np.float32(255)
    if path.suffix != ".npz":
        return path
    with np.load(path, allow_pickle=False) as archive:
        values = archive["x"]
    sizes = [dim for dim in wanted[1:] if dim is not None]
    last = values.shape[-1]
    if len(sizes) == 1 and values.ndim == 3 and sizes[0] != values[0].size:
        # Recordings of frames; a sample is a window of some frames: 20 windows of each recording.
        frames = sizes[0] // last
        cut = np.concatenate([values[:, i : i + 20] for i in range(frames)], axis=2)
        values = cut.reshape(-1, sizes[0])
    if "shape" in how:
        values = values.reshape(len(values), *how["shape"])
    return values.astype(how["dtype"]) if "dtype" in how else values


def calibration_set(path: Path) -> Path:
    """The training set that belongs to a test set, or the set itself."""
    for other in ("train*", "calib*"):
        found = sorted(path.parent.glob(path.name.replace("test", other)))
        if "test" in path.name and found:
            return found[0]
    return path


@dataclass(frozen=True)
class Samples:
    """Feeds to calibrate with and others to run, and a word on where they come from."""

    calibration: Any
    test: Any
    note: str


def samples_of(entry: Row | None, root: Path, prepared: Any) -> Samples:
    """The data of a network: its own set, or seeded random input."""
    from snncompiler.network.data import Dataset, load_data
    from snncompiler.pipeline import synthetic_feeds

    inputs = prepared.inputs
    if entry is None or entry["data"] is None:
        count = CALIBRATION + TEST if entry is not None else 16 + TEST
        feeds = synthetic_feeds(prepared, count, 0)
        whole = Dataset(feeds)
        return Samples(_part(whole, 0, count - TEST), _part(whole, count - TEST, count), "random")
    path, how = root / entry["data"], entry["preprocess"]
    step = preprocess_of(how)
    whole = load_data(stored(path, how, inputs[0].shape), inputs, step)
    other = calibration_set(path)
    if other != path:
        train = load_data(stored(other, how, inputs[0].shape), inputs, step)
        return Samples(_part(train, 0, CALIBRATION), _part(whole, 0, TEST), "own")
    if len(whole) == 1:
        return Samples(whole, whole, "own, the same")
    cut = min(CALIBRATION, len(whole) // 2)
    return Samples(_part(whole, 0, cut), _part(whole, cut, cut + TEST), "own")


def _part(data: Any, start: int, stop: int) -> Any:
    from snncompiler.network.data import Dataset

    return Dataset({name: array[start:stop] for name, array in data.feeds.items()})


# --- one network, in a process of its own ---


def measure(
    name: str,
    root: Path,
    steps: list[int],
    limit: int,
    seconds: float,
    networks: Path | None = None,
    *,
    timeout: float = 900,
    threads: int = 2,
) -> Row:
    """Check, compile and run one network, within `timeout` seconds where it can be foreseen."""
    from snncompiler import Refused
    from snncompiler.emission.compiled import read_compiled
    from snncompiler.ir.settings import Options
    from snncompiler.pipeline import calibrated, compile_model, emit, prepare

    begun = time.perf_counter()
    listed = entries(root) | (generated(networks) if networks else {})
    entry = listed.get(name)
    model = onnx.load(root / entry["model"]) if entry else light(name)
    row = describe(model, entry) | {"family": family(entry)}
    seconds *= REAL_TIME if row["family"] == REAL else 1
    options = Options(threshold="max", correction="none", readout="mean", steps=steps[0])
    try:
        prepared = prepare(model)
        data = samples_of(entry, root, prepared)
        started = time.process_time()  # of all threads; a busy machine does not change it much
        compiled = compile_model(model, options, data.calibration)
        row["compile"] = time.process_time() - started
    except Refused as error:
        errors = [f for f in error.findings if f.severity == "error"]
        texts = [f"{f.code} {f.message}" for f in errors]
        row |= {"result": "refused", "codes": sorted({f.code for f in errors}), "reasons": texts}
        row["nodes"] = [f.node for f in errors]
        return row
    row |= {"result": "converted", "data": data.note, "calibration": len(data.calibration)}
    written = read_compiled(compiled.model)
    row["loop"] = written.options.unroll == "loop"
    row |= run(model, written, data.test.head(limit), steps, seconds, threads)
    # Once more with thresholds at the maxima of the samples that are run: nothing clips then, and
    # what is left is the quantization alone.
    quick = row["per step"] * 4 * AT_LEAST <= seconds / 2
    own = data.test.head(4 if quick else 1)
    unclipped = emit(prepared, calibrated(prepared, options, own), options)
    left = timeout - (time.perf_counter() - begun)
    row["own"] = len(own)
    row["ladder"] = climb(model, read_compiled(unclipped), own, seconds, left / 2, threads)
    row["converged"] = converged([error for _, error in row["ladder"]])
    return row


def describe(model: onnx.ModelProto, entry: Row | None) -> Row:
    counts = Counter(node.op_type for node in model.graph.node)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {
        "exporter": entry["exporter"] if entry else f"{producer} (onnx package)",
        "opset": max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        "operators": dict(counts.most_common()),
        "relu": not (entry or {}).get("must_refuse") and not NONLINEAR & set(counts),
        "must_refuse": (entry or {}).get("must_refuse", ", ".join(sorted(NONLINEAR & set(counts)))),
    }


def run(
    model: onnx.ModelProto,
    compiled: Any,
    data: Any,
    steps: list[int],
    seconds: float,
    threads: int,
) -> Row:
    """Agreement and relative error at every T that the time allows, on as many samples."""
    from snncompiler.network.batching import filled
    from snncompiler.runtime.session import create_session

    snn = create_session(compiled.model, threads=threads)
    count, chosen = len(data), sorted(steps)
    one = filled(data.feeds, slice(0, 1), compiled.batch_size(1))
    started = time.perf_counter()
    snn.run(None, {**one, **compiled.overrides(steps=chosen[0])})
    per_step = (time.perf_counter() - started) / chosen[0]
    # Fewer samples first, and fewer steps where even a single one takes too long.
    while count > 1 and per_step * count * sum(chosen) > seconds:
        count -= 1
    while len(chosen) > 1 and per_step * sum(chosen) > seconds:
        chosen.pop()
    data = data.head(count)
    ann = run_ann(model, data, compiled, threads)
    row: Row = {"samples": count, "results": {}, "per step": per_step}
    inputs = int(np.prod(next(iter(data.feeds.values())).shape[1:]))
    for total in chosen:
        outputs = gathered(snn, data, compiled, 4, compiled.overrides(steps=total))
        error, agreement = compare(ann, outputs, inputs)
        row["results"][str(total)] = {"error": error, "agreement": agreement}
    return row


def climb(
    model: onnx.ModelProto, compiled: Any, data: Any, seconds: float, left: float, threads: int
) -> list[tuple[int, float]]:
    """T and relative error up the ladder, until convergence is shown or `left` seconds are over.

    Once it is shown, it goes on up to AT_LEAST where that takes no more than `seconds`.
    """
    from snncompiler.runtime.session import create_session

    snn = create_session(compiled.model, threads=threads)
    ann = run_ann(model, data, compiled, threads)
    begun, taken = time.perf_counter(), 0.0
    found: list[tuple[int, float]] = []
    for total in LADDER:
        shown = converged([error for _, error in found])
        foreseen = time.perf_counter() - begun + 4 * taken
        if foreseen > (seconds if shown else left) or (shown and total > AT_LEAST):
            break
        started = time.perf_counter()
        outputs = gathered(snn, data, compiled, 4, compiled.overrides(steps=total))
        taken = time.perf_counter() - started
        error, _ = compare(ann, outputs, 0)
        if error is None:  # no output of floats that is not zero
            break
        found.append((total, error))
    return found


def converged(errors: list[float]) -> bool:
    """Whether the last of the errors, T quadrupled from each to the next, shows convergence."""
    if len(errors) < 2:
        return False
    return errors[-1] <= EXACT or errors[-1] <= min(SMALL, errors[-2] / 2)


def gathered(
    session: Any, data: Any, compiled: Any, size: int, more: Mapping[str, Array] | None = None
) -> list[Any]:
    """The outputs of a source or a compiled network on all samples, `size` of them at once if it takes
    any number; the compiled file says along which axes they lie."""
    from snncompiler.network.batching import Gathered, batches, filled

    given = {tensor.name for tensor in compiled.inputs}
    dims = [one.shape[0] for one in session.get_inputs() if one.name in given and one.shape]
    fixed = next((dim for dim in dims if isinstance(dim, int)), compiled.fixed_batch)
    outputs = [Gathered(axis) for axis in compiled.output_axes.values()]
    for part in batches(len(data), fixed or compiled.batch_size(size)):
        values = session.run(None, {**filled(data.feeds, part, fixed), **(more or {})})
        count = part.stop - part.start
        for output, value in zip(outputs, values, strict=True):
            output.add(value, count, fixed or count)
    return outputs


def run_ann(model: onnx.ModelProto, data: Any, compiled: Any, threads: int = 2) -> list[Any]:
    """The source's outputs, one sample at a time where it takes that."""
    from snncompiler.runtime.session import create_session

    return gathered(create_session(model, threads=threads), data, compiled, 1)


def compare(ann: list[Any], snn: list[Any], input_size: int) -> tuple[float | None, float | None]:
    """Relative error of all float outputs; agreement of the arg-max where they are class scores."""
    from snncompiler.network.batching import differing, squares

    error = norm = 0.0
    agreement = None
    for wanted, found in zip(ann, snn, strict=True):
        if wanted.parts[0].dtype.kind != "f" or differing(found.parts, wanted.parts):
            continue
        more = squares(found, wanted.parts)
        error, norm = error + more[0], norm + more[1]
        size = wanted.parts[0].size
        vector = isinstance(wanted.axis, int) and size == max(wanted.parts[0].shape, default=1)
        if agreement is None and vector and wanted.even and size not in (1, input_size):
            pairs = zip(found.parts, wanted.parts, strict=True)
            agreement = float(np.mean([a.argmax() == b.argmax() for a, b in pairs]))
    return (float(np.sqrt(error / norm)) if norm else None), agreement


# --- all of them, each in a process of its own ---


def child(name: str, options: argparse.Namespace) -> Row:
    """`measure` in a process of its own; what went wrong where it did not end well."""
    command = [sys.executable, __file__, "--child", name, "--steps", options.steps]
    command += ["--limit", str(options.limit), "--seconds", str(options.seconds)]
    command += ["--timeout", str(options.timeout), "--jobs", str(options.jobs)]
    for option in ("material", "networks"):
        if given := getattr(options, option):
            command += [f"--{option}", str(given)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_of(options.jobs))}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=options.timeout,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"result": "failed", "reasons": [f"no end after {options.timeout:g} s"]}
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"result": "failed", "reasons": [said[:200]]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row | {"seconds": time.perf_counter() - started}


def threads_of(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def files_under(folder: Path) -> Iterator[Path]:
    """All files, those behind links to folders too, in one order."""
    for at, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(at) / name for name in sorted(names))


def digest_of_source() -> str:
    """Of everything that a row depends on, but for the network, its data and the options."""
    import onnxruntime

    import snncompiler

    found = hashlib.sha256(Path(__file__).read_bytes())
    package = Path(snncompiler.__file__).parent
    for path in files_under(package):
        if path.suffix in (".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu"):
            found.update(f"{path.relative_to(package)}".encode())
            found.update(path.read_bytes())
    versions = (platform.python_version(), np.__version__, onnx.__version__)
    machine = (platform.machine(), os.cpu_count())
    found.update(repr((versions, onnxruntime.__version__, machine)).encode())
    return found.hexdigest()


def digest_of(name: str, entry: Row | None, source: str, options: argparse.Namespace) -> str:
    """The key of a row: the source's digest, the network's bytes, its data's and the options."""
    root = material_root(options.material)
    found = hashlib.sha256(f"{source} {name} {options.steps} {options.limit}".encode())
    found.update(f"{options.seconds} {options.timeout} {options.jobs}".encode())
    model = root / entry["model"] if entry else light_folder() / f"{name}.onnx"
    found.update(model.read_bytes())
    if entry:
        found.update(json.dumps(entry | {"model": ""}, sort_keys=True).encode())
        if entry["data"] is not None:
            data = root / entry["data"]
            for place in sorted({data, calibration_set(data)}):
                for path in files_under(place) if place.is_dir() else [place]:
                    found.update(path.read_bytes())
    return found.hexdigest()


def kept_rows(path: Path | None) -> dict[str, Row]:
    """The rows of earlier runs by their keys; a line that was cut counts for nothing."""
    found: dict[str, Row] = {}
    if path is None or not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[content["key"]] = content["row"]
    return found


def all_rows(names: Mapping[str, Row | None], options: argparse.Namespace) -> dict[str, Row]:
    """A row for every network, `--jobs` at a time; printed, and kept, as they come."""
    steps = options.steps.split(",")
    source, kept, lock = digest_of_source(), kept_rows(options.rows), threading.Lock()

    def one(name: str) -> Row:
        key = digest_of(name, names[name], source, options)
        row = kept.get(key) or {"family": family(names[name])} | child(name, options)
        if row.get("source", source) != source:
            row = {"result": "failed", "reasons": ["the compiler's source changed during the run"]}
        if options.rows and key not in kept and row["result"] != "failed":
            options.rows.parent.mkdir(parents=True, exist_ok=True)
            with lock, options.rows.open("a", encoding="utf-8") as file:
                # A line of its own, even behind one that was cut.
                file.write("\n" + json.dumps({"key": key, "row": row}))
        texts = cells(name, row, steps)
        print(" | ".join([f"{row.get('seconds', 0):.0f} s", name, *texts[4:]]), flush=True)
        return row

    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


# --- the command ---


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--material", help="folder with material.json; default SNNC_MATERIAL")
    parser.add_argument("--networks", type=Path, help="folder that tests/zoo/generate.py wrote")
    parser.add_argument("--steps", default="32,128,512")
    parser.add_argument("--limit", type=int, default=TEST, help="samples that are run")
    parser.add_argument("--seconds", type=float, default=10, help="for the runs of one network")
    parser.add_argument("--timeout", type=float, default=2400, help="for one network, in seconds")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--rows", type=Path, help="keep the rows here, and take up what is kept")
    parser.add_argument("--write", help="write the page here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = material_root(options.material)
    steps = [int(text) for text in options.steps.split(",")]
    if options.child:
        row = measure(
            options.child,
            root,
            steps,
            options.limit,
            options.seconds,
            options.networks,
            timeout=options.timeout,
            threads=threads_of(options.jobs),
        )
        print(json.dumps(row | {"source": digest_of_source()}))
        return
    if not entries(root):
        print("there is no material.json: no real networks", file=sys.stderr)
    made = generated(options.networks) if options.networks else {}
    names = entries(root) | dict.fromkeys(light_names()) | made
    rows = all_rows({n: e for n, e in names.items() if (options.only or "") in n}, options)
    given = list(sys.argv[1:])
    if "--material" in given:
        at = given.index("--material")
        given = given[:at] + given[at + 2 :]
    text = page(
        rows,
        " ".join(["python bench/zoo.py", *given]),
        steps=options.steps.split(","),
        seconds=(options.seconds, REAL_TIME * options.seconds),
        small=SMALL,
        least=AT_LEAST,
    )
    if options.write:
        Path(options.write).write_text(text, encoding="utf-8")
    print(summary(rows))
    sys.exit(not all(map(right, rows.values())))


if __name__ == "__main__":
    main()
