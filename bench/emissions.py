"""One digest for every emitted file: shows that a change of the compiler's code changes no emission.

    python bench/emissions.py [--material DIR] [--only NETWORK] [--few] [--write FILE]
        [--against FILE] [--keep DIR]

Compiles the bundled networks, the stored small ones of `tests/zoo` and the real ones that
`material.json` in the folder `SNNC_MATERIAL` lists, each in every form: every way to unroll and to
emit, every neuron, encoding, threshold and correction.  For each (network, form) there are three
SHA-256: of the graph (nodes, weights, functions, inputs, outputs), of its doc strings, and of the
metadata.  A refusal is noted by its codes.

    git stash; python bench/emissions.py --write before.json; git stash pop
    python bench/emissions.py --against before.json

`--against` lists what differs from an earlier run, and exits with 1 where a graph does.  Digests are
those of one machine and one onnxruntime, whose rounding the thresholds depend on.  `--keep` writes the
emitted files as well, to look into a difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import Message

import snncompiler
from snncompiler import Calibration, Dataset, Refused, UsageError
from snncompiler.emission.compiled import read_compiled
from snncompiler.pipeline import prepare

sys.path.insert(0, str(Path(__file__).resolve().parent))
import zoo

Digests = dict[str, dict[str, str]]  # of one network: form -> what was found

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6
#: A network whose samples or file are larger than this is compiled in few forms, on two samples.
LARGE_SAMPLE, LARGE_FILE = 20_000, 4_000_000

#: Emitted from one calibration with the defaults.
FORMS: dict[str, dict[str, Any]] = {
    "fold": {},
    "fold chunk 4": {"chunk": 4},
    "loop": {"unroll": "loop"},
    "steps": {"unroll": "steps", "steps": 3},
    "step": {"emit": "step"},
    "cuda-graph": {"emit": "cuda-graph", "batch": 2},
    "fp16": {"precision": "fp16"},
    "fp16 step": {"precision": "fp16", "emit": "step"},
    "cpu": {"target": "cpu"},
    "cpu loop": {"target": "cpu", "unroll": "loop"},
    "mean": {"readout": "mean"},
    "ramp": {"readout": "ramp:2"},
    "delay": {"readout": "delay:2"},
    "delay step": {"readout": "delay:2", "emit": "step"},
    "uncorrected": {"correction": "none"},
    "uncorrected steps": {"correction": "none", "unroll": "steps", "steps": 3},
}

#: Each with a calibration of its own.
CALIBRATED: dict[str, dict[str, Any]] = {
    "signed": {"neuron": "signed:2"},
    "signed loop": {"neuron": "signed:1", "unroll": "loop"},
    "burst": {"neuron": "burst:4"},
    "burst cpu": {"neuron": "burst:4", "target": "cpu"},
    "layered rate": {"timing": "layered"},
    "layered radix": {"timing": "layered", "coding": "radix"},
    "hard": {"reset": "hard"},
    "hard step": {"reset": "hard", "emit": "step"},
    "poisson": {"encode": "poisson", "seed": 7},
    "poisson loop": {"encode": "poisson", "unroll": "loop"},
    "paper": {"paper": True, "strict": False},
    "paper strict": {"paper": True},
    "average pooling": {"maxpool": "average"},
    "average pooling loop": {"maxpool": "average", "unroll": "loop"},
    "analog": {"allow_analog": True},
    "analog step": {"allow_analog": True, "emit": "step"},
    "per layer": {"per_channel": False, "initial": 0.25, "alpha": 0.9},
    "max": {"threshold": "max", "correction": "none"},
    "mmse": {"threshold": "mmse", "correction": "bias"},
    "percentile": {"threshold": "percentile", "percentile": 99.0, "correction": "potential"},
    "vin-max": {"threshold": "vin-max"},
    "grows": {"threshold": "balance", "growth": "0.9@1,1@3,1.2@5"},
    "grows loop": {"threshold": "balance", "growth": "0.9@1,1.2@5", "unroll": "loop"},
    "classifier": {"task": "classification", "tau": 200.0},
}

#: Without data.
BARE: dict[str, dict[str, Any]] = {"no data": {}, "no data, no growth": {"growth": "none"}}

#: What large networks are compiled in.
OF_LARGE = {"fold", "loop", "step", "fp16", "cpu", "signed", "average pooling", "no data"}


@dataclass(frozen=True)
class Network:
    """A network to compile, and where its data come from."""

    name: str
    path: Path
    entry: Mapping[str, Any]
    root: Path

    def samples(self) -> tuple[Dataset, bool]:
        """Samples to calibrate with, and whether the network is large.  Raises Refused."""
        data = zoo.samples_of(self.entry, self.root, prepare(self.path)).calibration
        values = max(prod(array.shape[1:]) for array in data.feeds.values())
        large = values > LARGE_SAMPLE or self.path.stat().st_size > LARGE_FILE
        return data.head(2 if large else 8), large


def networks(material: str | None) -> Iterator[Network]:
    """The bundled networks, the stored ones, and those of the material where it is there."""
    entry = {"data": None, "preprocess": {}}
    for folder in (ROOT / "models", ROOT / "tests" / "zoo" / "stored"):
        for path in sorted(folder.glob("*.onnx")):
            yield Network(path.stem, path, entry, ROOT)
    root = zoo.material_root(material)
    for name, listed in sorted(zoo.entries(root).items()):
        yield Network(name, root / listed["model"], listed, root)


def digests(model: onnx.ModelProto) -> dict[str, str]:
    """SHA-256 of the model without its metadata and doc strings, and of these."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    bare.producer_version = ""
    words = list(_without_words(bare))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries.pop("snnc.version", None)
    return {
        "graph": hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest(),
        "doc strings": hashlib.sha256("\n".join(words).encode()).hexdigest(),
        "metadata": hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest(),
    }


def _without_words(message: Any) -> Iterator[str]:
    """Every doc string below a message, which loses it."""
    for field, value in message.ListFields():
        if field.name == "doc_string":
            yield value
            message.ClearField("doc_string")
        elif field.message_type is not None:
            repeated = not isinstance(value, Message)
            for part in value if repeated else [value]:
                yield from _without_words(part)


def emissions(network: Network, few: bool = False, keep: Path | None = None) -> Digests:
    """What every form of a network is."""
    found: Digests = {}

    def add(form: str, calibration: Calibration | Dataset | None, **options: Any) -> Any:
        streaming = options.get("timing") != "layered"
        options = {"steps": STEPS, **({"schedule_steps": 4} if streaming else {}), **options}
        try:
            model = snncompiler.compile(network.path, calibration=calibration, **options)
        except Refused as refused:
            errors = [one.code for one in refused.findings if one.severity == "error"]
            found[form] = {"refused": " ".join(sorted(errors))}
            return None
        except UsageError:
            found[form] = {"refused": "usage"}
            return None
        found[form] = digests(model)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            onnx.save(model, keep / f"{network.name}.{form.replace(' ', '-')}.onnx")
        return model

    try:
        data, large = network.samples()
    except Refused:
        add("fold", None)
        return found
    wanted = OF_LARGE if large or few else {*FORMS, *CALIBRATED, *BARE}
    first = add("fold", data, **FORMS["fold"])
    for form in [form for form in FORMS if form in wanted and form != "fold" and first]:
        add(form, read_compiled(first).calibration, **FORMS[form])
    for form in [form for form in CALIBRATED if form in wanted]:
        add(form, data, **CALIBRATED[form])
    for form in [form for form in BARE if form in wanted]:
        add(form, None, **BARE[form])
    return found


def differences(before: Mapping[str, Digests], now: Mapping[str, Digests]) -> list[str]:
    """What differs between two runs, a line for each form and what differs of it."""
    lines = []
    for name in sorted({*before, *now}):
        if name not in before or name not in now:
            lines.append(f"{name}: only {'now' if name in now else 'before'}")
            continue
        for form in sorted({*before[name], *now[name]}):
            if form not in before[name] or form not in now[name]:
                lines.append(f"{name}, {form}: only {'now' if form in now[name] else 'before'}")
                continue
            old, new = before[name][form], now[name][form]
            if ("refused" in old) != ("refused" in new):
                became = f"now refused: {new['refused']}" if "refused" in new else "now emitted"
                lines.append(f"{name}, {form}: {became}")
                continue
            lines += [f"{name}, {form}: {what} changed" for what in old if old[what] != new[what]]
    return lines


#: How a line of `differences` ends that tells of no changed emission.
HARMLESS = (": metadata changed", ": doc strings changed", ": only now")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--material", help="the folder with material.json")
    parser.add_argument("--only", action="append", help="this network, may be repeated")
    parser.add_argument("--few", action="store_true", help="few forms of every network")
    parser.add_argument("--write", type=Path, help="the JSON file to write")
    parser.add_argument("--against", type=Path, help="an earlier JSON file to compare with")
    parser.add_argument("--keep", type=Path, help="a folder for the emitted files")
    given = parser.parse_args(arguments)
    made = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    found: dict[str, Digests] = {}
    for network in networks(given.material):
        if given.only and network.name not in given.only:
            continue
        started = time.process_time()
        found[network.name] = emissions(network, given.few, given.keep)
        emitted = sum("graph" in one for one in found[network.name].values())
        seconds = time.process_time() - started
        print(f"{network.name}: {emitted} emissions, {seconds:.1f} s", file=sys.stderr)
        if given.write:
            text = json.dumps({**made, "networks": found}, indent=1)
            given.write.write_text(text + "\n", encoding="utf-8")
    if not given.against:
        return 0
    earlier = json.loads(given.against.read_text(encoding="utf-8"))
    if any(earlier[name] != version for name, version in made.items()):
        print("the earlier run had another onnx or onnxruntime", file=sys.stderr)
    before = earlier["networks"]
    if given.only:
        before = {name: before[name] for name in given.only if name in before}
    if given.few:
        before = {
            name: {form: one for form, one in forms.items() if form in found.get(name, forms)}
            for name, forms in before.items()
        }
    lines = differences(before, found)
    print("\n".join(lines) if lines else "no emission differs")
    return int(any(not line.endswith(HARMLESS) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
