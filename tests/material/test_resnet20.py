"""The CIFAR-10 ResNet-20: both exports of PyTorch, folded and not, on exact test images."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from real_networks import Material

import snncompiler
from snncompiler.analysis.instrument import Watched, watch
from snncompiler.emission.compiled import read_compiled
from snncompiler.emission.save import save
from snncompiler.runtime.session import create_session

EXPORTS = ("c10_resnet20_aka_bn_ts17", "c10_resnet20_aka_folded_dynamo20")
PREPROCESS = snncompiler.Preprocess(
    layout="NCHW", scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


Build = Callable[[str, int], onnx.ModelProto]


@pytest.fixture(scope="module")
def build(material: Material) -> Build:
    """An export compiled with so many calibration images, once."""

    @cache
    def built(name: str, samples: int) -> onnx.ModelProto:
        return snncompiler.compile(
            material.model(name),
            calibration=material.set("cifar10_train4k_lossless.npz"),
            preprocess=PREPROCESS,
            samples=samples,
        )

    return built


def images(material: Material, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    values, labels = material.samples(EXPORTS[0], count)
    assert labels is not None
    return values, labels


def test_check_tells_what_was_folded(material: Material) -> None:
    found = []
    for name in EXPORTS:
        report = snncompiler.check(material.model(name))
        found.append(len(report["rectifiers"]))
        folded = [layer for layer in report["linear_layers"] if layer["folded"]]
        assert len(folded) == (19 if "bn" in name else 0)
    assert found == [19, 19]


def drops(
    material: Material, name: str, snn: onnx.ModelProto, steps: list[int], limit: int | None
) -> dict[int, float]:
    """Points of top-1 that the SNN loses, by T."""
    found = snncompiler.evaluate(
        material.model(name),
        snn,
        material.set("cifar10_test_lossless.npz"),
        steps=steps,
        limit=limit,
        preprocess=PREPROCESS,
    )
    assert found.ann_accuracy is not None
    lost = {}
    for result in found.results:
        assert result.accuracy is not None
        lost[result.steps] = 100 * (found.ann_accuracy - result.accuracy)
    print(f"{name}: ANN {100 * found.ann_accuracy:.2f} % of {found.samples}, lost {lost}")
    return lost


@pytest.mark.slow
def test_accuracy_on_100_images(material: Material, build: Build) -> None:
    name = EXPORTS[0]
    # The demand is 3 points on all 370 images, calibrated with 256; on 100 of them one image is a
    # whole point.  A quarter of the calibration images is enough for it here.
    assert drops(material, name, build(name, 64), [32], 100)[32] <= 3.0 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_accuracy_on_all_images(material: Material, build: Build, name: str) -> None:
    lost = drops(material, name, build(name, 256), [8, 16, 32, 64, 128], None)
    assert lost[16] <= 3.0 and lost[32] <= 1.5 and lost[64] <= 1.0
    # One image is 0.27 points: more steps may lose three of them by chance, not more.  What is above
    # the ANN is chance as well, and goes as the network comes nearer to it.
    ordered = [max(lost[steps], 0.0) for steps in (8, 16, 32, 64, 128)]
    assert all(later <= earlier + 0.82 for earlier, later in itertools.pairwise(ordered))


@pytest.mark.parametrize("name", [EXPORTS[0], pytest.param(EXPORTS[1], marks=pytest.mark.slow)])
def test_every_way_to_unroll_gives_the_same_spikes(material: Material, name: str) -> None:
    """`loop`, `steps` and `fold` (K = 4, 16) at T = 16, on 4 images.

    Convolutions over K·N samples may sum in another order than over N.  A current within a rounding
    of θ then moves a spike, which later layers carry on; so at most one neuron in a thousand may
    count other spikes, and a moved spike changes the outputs by at most some of their largest values'
    1/T.
    """
    values, _ = images(material, 68)
    calibration, test = values[4:], values[:4]
    ways: list[dict[str, Any]] = [
        {"unroll": "loop"},
        {"unroll": "steps"},
        {"unroll": "fold", "chunk": 4},
        {"unroll": "fold", "chunk": 16},
    ]
    counts, outputs = [], []
    calibrated = read_compiled(
        snncompiler.compile(material.model(name), calibration=calibration)
    ).calibration
    for way in ways:
        snn = snncompiler.compile(material.model(name), calibration=calibrated, steps=16, **way)
        watched = watch(snn)
        names = [Watched.output(layer, "count") for layer in watched.layers]
        assert len(names) == 19
        session = create_session(watched.model, events=False)
        input_name = snn.graph.input[0].name
        values_of = session.run([snn.graph.output[0].name, *names], {input_name: test})
        outputs.append(values_of[0])
        counts.append(np.concatenate([count.ravel() for count in values_of[1:]]))
    assert counts[0].sum() > 10_000
    for way, count, output in zip(ways[1:], counts[1:], outputs[1:], strict=True):
        moved = float((count != counts[0]).mean())
        largest = float(np.abs(output - outputs[0]).max())
        print(f"{name} {way}: {moved:.2e} of the counts differ, outputs by {largest:.3g}")
        assert moved <= 1e-3, way
        assert largest <= np.abs(outputs[0]).max() / 16, way


#: Runs a file in onnxruntime alone; the package cannot be imported.
ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("snncompiler", "onnx", "onnx_graphsurgeon"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import hashlib, numpy, onnxruntime
try:
    import snncompiler
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {session.get_inputs()[0].name: numpy.load(sys.argv[2])})
print(hashlib.sha256(logits.tobytes()).hexdigest(), *logits.shape)
"""


@pytest.mark.parametrize("name", EXPORTS)
def test_the_file_runs_alone_with_the_same_bytes(
    material: Material, build: Build, name: str, tmp_path: Path
) -> None:
    values, _ = images(material, 4)
    snn = build(name, 64 if name == EXPORTS[0] else 4)
    save(snn, tmp_path / "snn.onnx")
    np.save(tmp_path / "x.npy", values)
    # Without the native kernels, which take other code: their own tests compare them.
    session = create_session(snn, threads=1, native=False)
    (logits,) = session.run(None, {snn.graph.input[0].name: values})
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "snn.onnx", tmp_path / "x.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(logits.tobytes()).hexdigest(), "4", "10"]
