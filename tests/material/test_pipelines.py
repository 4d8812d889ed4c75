"""Real networks as pipelines of layers: the answers of the whole window, image behind image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from real_networks import Material

from snncompiler import pipeline
from snncompiler.emission.compiled import read_compiled
from snncompiler.ir.settings import Options
from snncompiler.ir.whole import Weights
from snncompiler.runtime.session import create_session
from snncompiler.runtime.stream import Stream


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"),
    [("c10_resnet20_aka_bn_ts17", "int8"), ("kws_dscnn_tflite13", "float32")],
)
def test_image_behind_image_the_pipeline_gives_the_bits_of_the_window(
    material: Material, name: str, weights: str
) -> None:
    """In whole numbers because all sums are exact; in float32 because convolutions of one sample and of
    several add up alike."""
    options = Options(
        timing="layered", coding="radix", steps=4, correct="none", weights=Weights.parse(weights)
    )
    compiled = pipeline.compile_model(
        str(material.model(name)), options, material.calibration(name, 16)
    )
    stepped = pipeline.emit(compiled.prepared, compiled.calibration, replace(options, emit="step"))
    x, _ = material.samples(name, 3)
    (entry,) = read_compiled(stepped).inputs
    images = [{entry.name: one[None]} for one in x]
    session = create_session(compiled.model, events=False, threads=1)
    stream, depth = Stream(stepped, threads=1), read_compiled(compiled.model).depth
    done = []
    for image, answer in zip(images, stream.answers(images), strict=True):
        done.append(stream.steps_done)
        for found, wanted in zip(answer.values(), session.run(None, image), strict=True):
            assert np.array_equal(found, wanted)
    assert done == [(depth + 1 + number) * 4 for number in range(3)]
