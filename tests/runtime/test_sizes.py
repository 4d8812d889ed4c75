"""The numbers of steps are inputs like any other: none ends the process, whatever it is.

Every case runs in a process of its own, since what went wrong was a write beyond what was allocated;
its memory is limited, so that what is absurd is refused on any machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import parse, random

import snncompiler
from snncompiler.ir import dialect

#: T, or K, or both: products wrap to 0, to small numbers and to negative ones, or are absurd.
NUMBERS = (1 << 62, (1 << 63) - 1, (1 << 61) + 1, 1 << 31, 0, -1, -(1 << 63))

ONE_NODE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
sys.path.insert(0, sys.argv[1])
from one_node import run, session
from snncompiler.ir import dialect
name, numbers = sys.argv[2], json.loads(sys.argv[3])
given = {samples: np.ones((samples, 64, 64, 64), np.float32) for samples in (0, 24)}
attributes = {"kernel_shape": [2, 2]} if name == "SpikeMaxPool" else {}
if name in ("BurstNeuron", "SignedNeuron"):
    attributes["levels"] = 2
said = []
for native in (True, False):
    for static in (0, 1) if name in dialect.NEURONS else (None,):
        more = dict(attributes) if static is None else {**attributes, "static_current": static}
        for which in [p.name for p in dialect.OPERATORS[name].inputs if p.type == "int64"]:
            for number in numbers:
                for samples in (0, 24):
                    feeds = {}
                    for port in dialect.OPERATORS[name].inputs:
                        one = np.array(number if port.name == which else 1, np.int64)
                        table = port.name in ("schedule", "drive", "weights")
                        first = not feeds
                        feeds[port.name] = one if port.type == "int64" else (
                            given[samples] if first else np.ones((1,), np.float32) if table
                            else np.ones((), np.float32))
                    if "schedule" in feeds:
                        feeds["schedule"] = np.ones((1, 1), np.float32)
                    if not native and (samples == 0 or which != "steps"):
                        continue
                    try:
                        shapes = [list(out.shape) for out in run(
                            name, feeds, attributes=more, native=native)]
                    except Exception as error:
                        shapes = [str(error)]
                        session.cache_clear()  # Its arena may hold all the memory there is.
                    said.append([native, which, number, samples, shapes])
print(json.dumps(said))
"""


def child(code: str, *arguments: str) -> Any:
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", dialect.OPERATORS)
def test_no_number_ends_the_process(name: str) -> None:
    said = child(ONE_NODE, str(Path(__file__).parent), name, json.dumps(NUMBERS))
    assert said
    for native, which, number, samples, shapes in said:
        what = (native, which, number, samples, shapes)
        if native and which == "steps" and number < 1:
            assert f"{name} 'my_{name}': `steps` must be at least 1, not {number}" in shapes[0], (
                what
            )
        elif native and which == "start" and number < 0:
            assert "`start` must be at least 0" in shapes[0], what
        elif native and which == "start":
            # However late it is: what depends on the step holds its last value (test_operators.py).
            assert not isinstance(shapes[0], str), what
        elif which == "steps" and samples and number > 1:
            # 24 samples of 2^18 values, 2^31 times: no memory has that.
            assert isinstance(shapes[0], str), what


NETWORK = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
import onnx
from snncompiler.runtime.session import create_session
model = onnx.load(sys.argv[1])
said = []
ways = {"events": {}, "native": {"events": False}, "bodies": {"native": False}}
for feeds in json.loads(sys.argv[2]):
    given = {name: np.array(value, np.int64) for name, value in feeds.items()}
    for way, how in ways.items():
        session = create_session(model, threads=1, **how)
        try:
            session.run(None, {"x": np.ones((24, 2, 64, 64), np.float32), **given})
            said.append([feeds, way, ""])
        except Exception as error:
            said.append([feeds, way, str(error)])
print(json.dumps(said))
"""


@pytest.mark.parametrize("form", ["fold", "loop", "cpu", "poisson", "layered"])
def test_steps_and_chunk_of_a_network(form: str, tmp_path: Path) -> None:
    text = """g (float[N,2,64,64] x) => (float[N,3] y)
    { c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  d = Conv (p, v)  q = Relu (d)
      m = GlobalAveragePool (q)  f = Flatten (m)  y = MatMul (f, z) }"""
    weights = {"w": random(1, 4, 2, 3, 3), "v": random(2, 4, 4, 3, 3), "z": random(3, 4, 3)}
    options: dict[str, dict[str, Any]] = {
        "fold": {"readout": "ramp:2"},
        "loop": {"unroll": "loop", "readout": "delay:1"},
        "cpu": {"target": "cpu"},
        "poisson": {"encode": "poisson"},
        "layered": {"timing": "layered"},
    }
    x = random(4, 4, 2, 64, 64)
    snn = snncompiler.compile(parse(text, weights), calibration=x, steps=4, **options[form])
    onnx.save(snn, tmp_path / "snn.onnx")
    both = form not in ("loop", "layered")
    whole = both or form == "layered"  # many steps at once
    feeds = [
        {"snnc_steps": t, **({"snnc_chunk": t} if both else {})} for t in NUMBERS if whole or t < 1
    ]
    feeds += [{"snnc_steps": 4, "snnc_chunk": k} for k in (0, -1)] if both else []
    for given, way, error in child(NETWORK, str(tmp_path / "snn.onnx"), json.dumps(feeds)):
        assert error, (given, way)
        low = next((name for name, number in given.items() if number < 1), "")
        # The same is wrong in each way: the operator says so, or the name of a node in its body.
        port = {"snnc_steps": "total", "snnc_chunk": "chunk"}.get(low)
        said = f"{port}_must_be_at_least_1" if way == "bodies" else f"`{port}` must be at least 1"
        assert not low or said in error, (given, way, error)
