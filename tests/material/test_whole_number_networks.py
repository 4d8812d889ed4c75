"""Real networks in whole numbers: every way of running them gives the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from real_networks import Material

from snncompiler.errors import SnncError
from snncompiler.ir.settings import Options
from snncompiler.pipeline import compile_model, prepare, synthetic_feeds
from snncompiler.runtime.session import create_session

#: Two of each kind: residual, plain, depthwise, fully connected, without a batch-norm, a detector.
NETWORKS = (
    "c10_resnet20_aka_bn_ts17", "c10_vgg16slim_avgpool_bn_ts17", "kws_dscnn_tflite13",
    "mnist_vnn21_mnist-net_256x2", "c10_caffe_quick_op12",
    "denoise_waifu2x_json13", "blazeface_front128_mediapipe",
)  # fmt: skip

#: Prints the hash of the outputs of a file: argv has the file, the feeds, by events or not, threads.
PROGRAM = """
import sys, hashlib, numpy as np
from snncompiler.runtime.session import create_session
session = create_session(sys.argv[1], events=sys.argv[3] == "events", threads=int(sys.argv[4]))
outputs = session.run(None, dict(np.load(sys.argv[2])))
print(hashlib.sha256(b"".join(np.ascontiguousarray(o).tobytes() for o in outputs)).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_instruction_set_gives_the_bits_of_the_function_bodies(
    material: Material, name: str, tmp_path: Path
) -> None:
    path = material.root / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{name} is not there")
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Softmax":  # which machines compute in ways of their own
            node.op_type = "Identity"
            del node.attribute[:]
    prepared = prepare(model)
    try:
        compiled = compile_model(model, Options(weights="int8", steps=6))
    except SnncError as error:
        pytest.fail(str(error))
    feeds = synthetic_feeds(prepared, 2 if prepared.any_batch else 1, 3)
    onnx.save(compiled.model, tmp_path / "snn.onnx")
    np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
    session = create_session(compiled.model, native=False, threads=1, optimize=False)
    outputs = session.run(None, dict(feeds))
    wanted = sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in outputs)).hexdigest()
    # Nothing stands behind the last sums that machines compute in ways of their own.
    assert "SNNC224" not in {finding.code for finding in compiled.prepared.findings}
    for most in ("generic", "avx2", "avx512", "amx"):
        for way in (("events", "1"), ("events", "2"), ("dense", "2")):
            found = subprocess.run(
                [sys.executable, "-c", PROGRAM, "snn.onnx", "feeds.npz", *way],
                cwd=tmp_path,
                env={**os.environ, "SNNC_MAX_ISA": most},
                capture_output=True,
                text=True,
                check=True,
            )
            assert found.stdout.strip() == wanted, (most, way)
