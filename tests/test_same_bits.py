"""Networks in whole numbers give the same bits, however they are run; nothing is allowed for.

Networks, T, bits, neurons, K, threads, instruction sets and batches are drawn.  The specification is
`loop` by the function bodies of stock onnxruntime, on one thread, with one sample after the other; in
layered time, where there is no loop, the spiking file in this way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, codes, parse
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from random_networks import Network, networks

from snncompiler import pipeline
from snncompiler.analysis.whole import Way, bits_of, off_grid
from snncompiler.emission.metadata import grid_of
from snncompiler.errors import Refused
from snncompiler.ir.growth import STEADY
from snncompiler.ir.settings import Coding, Options
from snncompiler.ir.spikes import Spikes
from snncompiler.ir.whole import Weights
from snncompiler.passes.lower.collapse_time import collapse_time
from snncompiler.passes.lower.lower_events import lower_events
from snncompiler.runtime import Stream, create_session, library, library_path

#: To shrink a network takes minutes; what failed can be read as it is.
CHEAP = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
#: Why a random network has no whole numbers, or the pass before has no spikes for it.
REFUSALS = {"SNNC110", "SNNC205", "SNNC221", "SNNC223"}
#: More steps are not written out.
WRITTEN_STEPS = 5

_BEST = library.cpu_isa() if library_path() is not None else None
#: Instruction sets of this processor below the best one.
LESSER = [
    isa
    for isa in library.ISAS[: library.ISAS.index(_BEST) if _BEST else 0]
    if isa != "dotprod"  # of another processor
]

#: Answers every line, the path of a file and that of its feeds, with the bits of its outputs.
WORKER = """
import sys, hashlib, numpy as np
from snncompiler.runtime import create_session
for line in sys.stdin:
    model, feeds = line.split()
    outputs = create_session(model, threads=1).run(None, dict(np.load(feeds)))
    bits = b"".join(np.ascontiguousarray(one).tobytes() for one in outputs)
    print(hashlib.sha256(bits).hexdigest(), flush=True)
"""


@dataclass
class Machines:
    """A process for every instruction set below the best one, which reads its limit once; each is
    started when it is asked for the first time."""

    folder: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def agree(self, model: onnx.ModelProto, x: Array, wanted: str, thorough: bool) -> None:
        """On all of them, or on one."""
        onnx.save(model, self.folder / "snn.onnx")
        np.savez(self.folder / "feeds.npz", x=x)
        for isa in LESSER if thorough else LESSER[-1:]:
            process = self._process(isa)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{self.folder / 'snn.onnx'} {self.folder / 'feeds.npz'}\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == wanted, isa

    def _process(self, isa: str) -> subprocess.Popen[str]:
        if isa not in self.processes:
            self.processes[isa] = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env={**os.environ, "SNNC_MAX_ISA": isa},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self.processes[isa]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(tmp_path_factory.mktemp("machines"))
    yield made
    for process in made.processes.values():
        process.terminate()
        process.communicate()


# --- what is drawn ---


@st.composite
def pictures(draw: Callable[[Any], Any]) -> Network:
    """A network for pictures with as many channels as kernels by events and by digits take: layers of
    all kinds, residual sums, pooling, and rectifiers with an upper bound."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    weights: dict[str, Array] = {"low": np.array(0, np.float32), "high": np.array(1.5, np.float32)}
    used: Counter[str] = Counter()
    channels, side = draw(st.sampled_from([3, 8, 16, 19])), draw(st.sampled_from([5, 8, 9]))
    shape = (channels, side, side)
    text: list[str] = []
    current = "x"

    def constant(*sizes: int, fan: int = 1) -> str:
        name = f"w{len(weights)}"
        weights[name] = np.asarray(rng.standard_normal(sizes) * np.sqrt(2 / fan), np.float32)
        return name

    def conv(source: str, outputs: int, kernel: int, group: int = 1) -> str:
        inputs = channels // group
        held = constant(outputs, inputs, kernel, kernel, fan=inputs * kernel * kernel)
        bias, pad = constant(outputs, fan=40), kernel // 2
        name = f"c{len(text)}"
        attributes = f"group = {group}, pads = [{pad}, {pad}, {pad}, {pad}]"
        text.append(f"{name} = Conv <{attributes}> ({source}, {held}, {bias})")
        return name

    def rectified(source: str) -> str:
        name, kind = f"r{len(text)}", draw(st.sampled_from(["Relu", "Relu", "Clip"]))
        text.append(f"{name} = {kind} ({source}{', low, high' if kind == 'Clip' else ''})")
        used[kind] += 1
        return name

    channels = draw(st.sampled_from([16, 32]))
    first, channels = channels, shape[0]
    current, channels = rectified(conv(current, first, 3)), first
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "depthwise", "residual", "mean", "max"]))
        used[kind] += 1
        if kind == "plain":
            wider = draw(st.sampled_from([16, 24, 32]))
            current, channels = rectified(conv(current, wider, 3)), wider
        elif kind == "depthwise":
            inner = rectified(conv(current, channels, 3, channels))
            current = rectified(conv(inner, channels, 1))
        elif kind == "residual":
            inner = conv(rectified(conv(current, channels, 3)), channels, 3)
            text.append(f"s{len(text)} = Add ({inner}, {current})")
            current = rectified(f"s{len(text) - 1}")
        else:
            op = "MaxPool" if kind == "max" else "AveragePool"
            text.append(f"p{len(text)} = {op} <kernel_shape = [2, 2]> ({current})")
            current = rectified(conv(f"p{len(text) - 1}", channels, 1))
            side -= 1
    text.append(f"m = GlobalAveragePool ({current})  f = Flatten (m)")
    text.append(f"y = MatMul (f, {constant(channels, 5)})")
    size = ",".join(map(str, shape))
    model = parse(f"g (float[N,{size}] x) => (float[N,5] y) {{ {'  '.join(text)} }}", weights)
    return Network(model, np.asarray(rng.standard_normal((6, *shape)), np.float32), used)


STREAMING = st.builds(
    Options,
    steps=st.integers(1, 20),
    weights=st.sampled_from([2, 4, 8, 8, 8, 11, 16]).map(Weights),
    neuron=st.sampled_from(["binary"] * 3 + ["burst:3", "signed:1", "signed:4"]).map(Spikes.parse),
    encode=st.sampled_from(["auto"] * 3 + ["poisson"]),
    growth=st.sampled_from(["auto", "auto", STEADY]),
    maxpool=st.sampled_from(["exact", "exact", "average"]),
    per_channel=st.booleans(),
)
CODES: tuple[tuple[Coding, int], ...] = (
    ("rate", 1), ("rate", 3), ("rate", 8), ("radix", 2), ("radix", 4), ("radix", 8),
)  # fmt: skip
LAYERED = st.builds(
    lambda code, **more: Options(timing="layered", coding=code[0], steps=code[1], **more),
    code=st.sampled_from(CODES),
    weights=st.sampled_from([2, 4, 8, 8, 11]).map(Weights),
    correct=st.sampled_from(["none", "bias", "weights"]),
    per_channel=st.booleans(),
)
NETWORKS = st.one_of(networks(), pictures())


# --- what is checked ---


def compiled(network: Network, options: Options) -> pipeline.Compiled | None:
    """None where the network is refused for a reason of its own."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for node in model.graph.node:
        if node.op_type == "Softmax":  # which machines compute in ways of their own
            node.op_type = "Identity"
            del node.attribute[:]
    try:
        made = pipeline.compile_model(model, options, network.x)
    except Refused as refused:
        assert {finding.code for finding in refused.findings} <= REFUSALS, refused.findings
        event("refused")
        return None
    event("converted")
    assert off_grid(made.model, grid_of(made.model)) == []
    return made


def digest(outputs: list[Array]) -> str:
    bits = b"".join(np.ascontiguousarray(one).tobytes() for one in outputs)
    return sha256(bits).hexdigest()


def one_by_one(model: onnx.ModelProto, x: Array) -> list[Array]:
    """All outputs by the function bodies, one sample after the other."""
    session = create_session(model, native=False, threads=1, optimize=False)
    parts = [session.run(None, {"x": x[at : at + 1]}) for at in range(len(x))]
    return [np.concatenate(found) for found in zip(*parts, strict=True)]


#: By events or by counts, and dense.
SESSIONS: tuple[dict[str, Any], ...] = (
    {"threads": 1},
    {"threads": 2, "events": False},
    {"threads": 2},
)


def assert_batches_agree(
    model: onnx.ModelProto, x: Array, first: int, wanted: str, thorough: bool
) -> None:
    """Whole, and in two parts where `first` says how many samples the first has."""
    for way in SESSIONS if thorough else SESSIONS[:1]:
        session = create_session(model, **way)
        assert digest(session.run(None, {"x": x})) == wanted, way
        if first:
            parts = [session.run(None, {"x": part}) for part in (x[:first], x[first:])]
            assert digest([np.concatenate(found) for found in zip(*parts, strict=True)]) == wanted


def check_streaming(
    network: Network, options: Options, chunk: int, first: int, machines: Machines, thorough: bool
) -> None:
    """Of a streaming network; `thorough`: all forms in all ways, else the one that is the default."""
    made = compiled(network, options)
    if made is None:
        return
    x, prepared = network.x, made.prepared

    def form(**more: Any) -> onnx.ModelProto:
        return pipeline.emit(prepared, made.calibration, replace(options, **more))

    loop = form(unroll="loop", chunk=None)
    # Behind a Softmax, for one, outputs may differ in their last bits; spikes never do.
    exact = "SNNC224" not in codes(prepared.findings)
    event(f"outputs exact: {exact}")
    feeds, outputs = {"x": x}, ["y"] if exact and network.model.graph.output[0].name == "y" else []
    spikes = bits_of(Way("", loop, native=False), feeds, outputs)
    forms = {"fold": form(unroll="fold", chunk=chunk)}
    if thorough:
        forms["loop"] = loop
    if options.steps <= WRITTEN_STEPS:
        forms["steps"] = form(unroll="steps", chunk=None)
    for name, model in forms.items():
        for events in (False, True)[: 1 if name == "steps" else 2]:
            way = Way(name, model, events=events, threads=2)
            assert bits_of(way, feeds, outputs) == spikes, (name, events)
    if not exact:
        return
    poisson = options.encode == "poisson"  # whose spikes depend on the place in the batch
    alone = create_session(loop, native=False, threads=1).run(None, feeds) if poisson else []
    wanted = digest(alone or one_by_one(loop, x))
    for model in forms.values():
        assert_batches_agree(model, x, 0 if poisson else first, wanted, thorough)
    machines.agree(forms["fold"], x, wanted, thorough)
    lowered = lower_events(forms["fold"]).layers
    event(f"by events: {sum(bool(note.operator) for note in lowered)} of {len(lowered)}")
    if poisson:
        return  # a stream brings its own spikes
    stream = Stream(form(emit="step", unroll="fold", chunk=None), threads=1)
    found = [stream.step(feeds) for _ in range(options.steps)][-1]
    assert digest([found[name] for name in stream.outputs]) == wanted


def check_layered(
    network: Network, options: Options, first: int, machines: Machines, thorough: bool
) -> None:
    made = compiled(network, options)
    if made is None or "SNNC224" in codes(made.prepared.findings):
        return
    wanted = digest(one_by_one(made.model, network.x))
    assert_batches_agree(made.model, network.x, first, wanted, thorough)
    machines.agree(made.model, network.x, wanted, thorough)
    lowered = collapse_time(made.model).layers
    event(f"by counts: {sum(bool(note.operator) for note in lowered)} of {len(lowered)}")


@settings(CHEAP, max_examples=4)
@given(network=NETWORKS, options=STREAMING, chunk=st.integers(1, 9), first=st.integers(1, 3))
def test_streaming_networks(
    machines: Machines, network: Network, options: Options, chunk: int, first: int
) -> None:
    check_streaming(network, options, chunk, first, machines, thorough=False)


@settings(CHEAP, max_examples=4)
@given(network=NETWORKS, options=LAYERED, first=st.integers(1, 3))
def test_layered_networks(
    machines: Machines, network: Network, options: Options, first: int
) -> None:
    check_layered(network, options, first, machines, thorough=False)


@pytest.mark.slow
@settings(CHEAP, max_examples=150)
@given(network=NETWORKS, options=STREAMING, chunk=st.integers(1, 30), first=st.integers(1, 3))
def test_many_streaming_networks(
    machines: Machines, network: Network, options: Options, chunk: int, first: int
) -> None:
    check_streaming(network, options, chunk, first, machines, thorough=True)


@pytest.mark.slow
@settings(CHEAP, max_examples=150)
@given(network=NETWORKS, options=LAYERED, first=st.integers(1, 3))
def test_many_layered_networks(
    machines: Machines, network: Network, options: Options, first: int
) -> None:
    check_layered(network, options, first, machines, thorough=True)
