"""Presets do what torchvision and Keras do, and a compiled file keeps the preprocessing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, parse, random
from PIL import Image
from typer.testing import CliRunner

import snncompiler
from snncompiler.analysis.trace import trace
from snncompiler.cli.main import app
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import Refused, UsageError
from snncompiler.network.data import InputSpec, Preprocess, load_data
from snncompiler.network.preprocess import PRESETS

SPEC = InputSpec("x", (None, 3, None, None), np.dtype(np.float32))
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def picture(path: Path, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * width)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
    path.mkdir(exist_ok=True)
    image.save(path / "a.png")
    return image


def by_torchvision(image: Image.Image, side: int, crop: int) -> Array:
    """`torchvision.transforms._presets.ImageClassification`, step by step: resize the shorter side
    (`_compute_resized_output_size`), `center_crop`, `convert_image_dtype`, `normalize`."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new = int(side * long / short)
    size = (side, new) if width <= height else (new, side)
    image = image.resize(size, Image.Resampling.BILINEAR)
    top, left = round((image.height - crop) / 2.0), round((image.width - crop) / 2.0)
    pixels = np.asarray(image)[top : top + crop, left : left + crop].astype(np.float32)
    return np.asarray(((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(300, 415), (415, 300), (256, 256), (100, 187), (259, 301)])
@pytest.mark.parametrize(
    ("preset", "side", "crop"),
    [("imagenet", 256, 224), ("imagenet-232", 232, 224), ("inception", 342, 299)],
)
def test_the_presets_of_torchvision(
    tmp_path: Path, size: tuple[int, int], preset: Any, side: int, crop: int
) -> None:
    image = picture(tmp_path / "images", *size)
    (found,) = load_data(tmp_path / "images", [SPEC], Preprocess(preset=preset)).feeds["x"]
    # The same float32 operations in the same order: exact.
    assert np.array_equal(found, by_torchvision(image, side, crop))


@pytest.mark.parametrize("mode", ["tf", "caffe", "torch"])
def test_the_modes_of_keras(mode: Any) -> None:
    """`keras.applications.imagenet_utils.preprocess_input` on float32 arrays, step by step."""
    stored = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    spec = InputSpec("x", (None, 5, 6, 3), np.dtype(np.float32))
    x = stored.astype(np.float32)
    if mode == "tf":
        x = x / np.float32(127.5) - np.float32(1)
    elif mode == "caffe":
        x = x[..., ::-1] - np.float32([103.939, 116.779, 123.68])
    else:
        x = (x / np.float32(255) - MEAN) / STD
    found = load_data(stored, [spec], Preprocess(preset=f"keras-{mode}"))  # type: ignore[arg-type]
    assert np.array_equal(found.feeds["x"], x) and not found.findings


def test_an_option_goes_before_the_preset(tmp_path: Path) -> None:
    picture(tmp_path / "images", 40, 50)
    how = Preprocess(preset="imagenet", resize=(20, 30), size=(10, 10))
    alone = Preprocess(
        resize=(20, 30), size=(10, 10), scale=255.0, mean=MEAN.tolist(), std=STD.tolist()
    )
    found, wanted = (load_data(tmp_path / "images", [SPEC], one).feeds["x"] for one in (how, alone))
    assert found.shape == (1, 3, 10, 10) and np.array_equal(found, wanted)
    assert how.resolved().said == {**PRESETS["imagenet"], "resize": (20, 30), "size": (10, 10)}


def test_a_shorter_side_needs_no_aspect(tmp_path: Path) -> None:
    image = picture(tmp_path / "images", 40, 50)
    found = load_data(tmp_path / "images", [SPEC], Preprocess(resize=(20,), scale=1.0)).feeds["x"]
    wanted = np.asarray(image.resize((25, 20), Image.Resampling.BILINEAR), np.float32)
    assert np.array_equal(found[0], wanted.transpose(2, 0, 1))


def test_a_preset_that_does_not_apply_is_named() -> None:
    stored = np.zeros((2, 3, 224, 224), np.uint8)
    with pytest.raises(UsageError, match="--preset imagenet, with --resize, does not apply"):
        load_data(stored, [SPEC], Preprocess(preset="imagenet"))
    with pytest.raises(UsageError, match="--mean has 3 values, the data has 1 channels"):
        grey = InputSpec("x", (None, 1, 4, 4), np.dtype(np.float32))
        load_data(stored[:, :1, :4, :4], [grey], Preprocess(preset="keras-torch"))
    with pytest.raises(UsageError, match="--preset resnet is unknown"):
        load_data(stored, [SPEC], Preprocess(preset="resnet"))  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", [(), (1, 2, 3), (0,), (-1, 5)])
def test_what_is_no_size(resize: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--resize"):
        Preprocess(resize=resize).check()


@pytest.mark.parametrize(
    "how",
    [
        Preprocess(),
        Preprocess(preset="imagenet"),
        Preprocess(preset="keras-caffe", layout="NHWC"),
        Preprocess(scale=np.float32(16), mean=(0.5,), size=(3, 4), resize=(7,)),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_preprocessing_is_written_and_read(how: Preprocess) -> None:
    text = json.dumps(how.as_dict())
    assert Preprocess.from_dict(json.loads(text)) == how.resolved()


# --- in a compiled file ---

NETWORK = """g (float[N,1,4,4] x) => (float[N,2] y)
{ c = Conv <pads = [1, 1, 1, 1]> (x, a)  h = Relu (c)  f = Flatten (h)  y = MatMul (f, b) }"""
STORED = np.random.default_rng(0).integers(0, 17, (20, 4, 4, 1)).astype(np.uint8)
FED = np.ascontiguousarray(STORED.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(16))
HOW = Preprocess(scale=16.0)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return parse(NETWORK, {"a": random(1, 2, 1, 3, 3), "b": random(2, 32, 2)})


@pytest.fixture(scope="module")
def snn(model: onnx.ModelProto) -> onnx.ModelProto:
    return snncompiler.compile(model, calibration=STORED, preprocess=HOW, steps=8)


def kept(model: onnx.ModelProto) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    found: dict[str, Any] = json.loads(entries["snnc.calibration"])
    return found


def test_a_compiled_file_keeps_the_preprocessing(
    model: onnx.ModelProto, snn: onnx.ModelProto
) -> None:
    assert kept(snn)["preprocess"] == {"scale": 16.0} and read_compiled(snn).preprocess == HOW
    plain = snncompiler.compile(model, calibration=FED, steps=8)
    assert "preprocess" not in kept(plain) and read_compiled(plain).preprocess == Preprocess()
    # Nothing else in the file differs: what is fed is the same.
    for one in (snn, plain):
        assert kept(one) | {"preprocess": {}} == kept(snn) | {"preprocess": {}}
    named = snncompiler.compile(
        model, calibration=STORED, preprocess=Preprocess(preset="keras-tf"), steps=8
    )
    assert kept(named)["preprocess"] == {"scale": 127.5, "mean": [1.0]}


def test_commands_take_it_from_there_and_say_so(
    model: onnx.ModelProto, snn: onnx.ModelProto, tmp_path: Path
) -> None:
    told = snncompiler.evaluate(model, snn, STORED, preprocess=HOW)
    found = snncompiler.evaluate(model, snn, STORED)
    assert found.results == told.results and not told.findings
    (note,) = found.findings
    assert note.code == "SNNC307" and note.severity == "note" and "--scale 16" in note.message
    other = snncompiler.evaluate(model, snn, FED, preprocess=Preprocess(preset="none"))
    assert other.results == told.results and not other.findings
    dataset = load_data(FED, read_compiled(snn).inputs)
    assert snncompiler.evaluate(model, snn, dataset).results == told.results
    assert snncompiler.evaluate(model, snn, FED).results != told.results
    assert snncompiler.verify(model, snn, data=STORED).passed
    recorded, wanted = trace(snn, STORED), trace(snn, STORED, preprocess=HOW)
    assert np.array_equal(recorded.layers[0].membrane, wanted.layers[0].membrane)
    onnx.save(snn, tmp_path / "snn.onnx")
    np.save(tmp_path / "data.npy", STORED)
    command = ["run", str(tmp_path / "snn.onnx"), "--input", str(tmp_path / "data.npy"), "--json"]
    alone, said = (CliRunner().invoke(app, command + more) for more in ([], ["--scale", "16"]))
    assert alone.exit_code == 0 and alone.stdout == said.stdout
    assert "preprocessed as for the calibration" in alone.stderr and not said.stderr


def test_a_preprocessing_of_the_file_that_does_not_fit_the_data(model: onnx.ModelProto) -> None:
    snn = snncompiler.compile(
        model, calibration=STORED, preprocess=Preprocess(scale=16.0, layout="NCHW"), steps=8
    )
    with pytest.raises(UsageError) as caught:
        snncompiler.evaluate(model, snn, FED.reshape(20, 16))
    (finding,) = caught.value.findings
    assert "the compiled file's preprocessing, --layout NCHW --scale 16" in finding.message
    assert "--preset none" in finding.hint


def test_a_calibration_that_is_used_again_keeps_it(
    model: onnx.ModelProto, snn: onnx.ModelProto
) -> None:
    again = snncompiler.compile(model, calibration=read_compiled(snn).calibration, steps=8)
    assert again.SerializeToString(deterministic=True) == snn.SerializeToString(deterministic=True)


def test_what_the_network_does_itself_is_not_done_again(model: onnx.ModelProto) -> None:
    """With --input-type uint8 it makes its input of pixels; what is left to do outside is kept."""
    how = Preprocess(preset="keras-tf", layout="NCHW")
    wanted, found = (
        snncompiler.compile(model, calibration=STORED, preprocess=how, steps=8, input_type=kind)
        for kind in ("float32", "uint8")
    )
    assert kept(found)["preprocess"] == {"layout": "NCHW"}
    # The same float32 operations on the same pixels, inside and outside.
    for one, other in zip(
        snncompiler.evaluate(model, found, STORED).results,
        snncompiler.evaluate(model, wanted, STORED).results,
        strict=True,
    ):
        assert one.predictions == other.predictions
        assert (one.firing_rate, one.relative_error) == (other.firing_rate, other.relative_error)


def test_a_preprocessing_in_a_file_that_is_damaged(snn: onnx.ModelProto) -> None:
    for damage in ({"scale": -1.0}, {"gamma": 2.0}, {"scale": "16"}, [1], "text"):
        broken = onnx.ModelProto()
        broken.CopyFrom(snn)
        entries = {entry.key: entry for entry in broken.metadata_props}
        text = json.dumps({**kept(broken), "preprocess": damage})
        entries["snnc.calibration"].value = text
        entries["snnc.calibration_sha256"].value = hashlib.sha256(text.encode()).hexdigest()
        with pytest.raises(Refused, match="SNNC401"):
            read_compiled(broken)
