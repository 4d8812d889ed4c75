"""What the RMP-SNN paper (Han, Srinivasan, Roy, CVPR 2020) says, measured; one command for each part.

    python bench/paper.py mechanism|reset|alpha|poisson|all [--networks NAME,..] [--write PAGE.md]

    mechanism   one neuron: output rate against input rate for soft and hard reset
    reset       soft and hard reset, each at its own best α, to T = 2048: accuracy, steps, activity
    alpha       α from 1 down: accuracy, saturated and silent neurons, η and the bounds of each layer
    poisson     Poisson input over 5 seeds, beside constant input
    all         everything

Networks are compiled with `paper=True` and an initial potential of 0: no bias, no batch-norm, θ of a
layer from the largest current of the running network, the mean of all steps as the read-out, nothing
corrected.  The networks come with the compiler, and so do the digits.  The pictures of CIFAR-10 lie
in the folder that `SNNC_MATERIAL` names (see bench/zoo.py), or are given by `--test` and `--train`:
a zip of pictures with a folder for each class, or an .npz with x and y.

`--calibration` training pictures set the thresholds; `--held-out` others choose α, by the mean
agreement with the ANN at T/4, T/2 and T of `--search-steps`.  Accuracy is that of the first `--images`
test pictures in a seeded order, and beyond T = 512 of the first `--long` of them.  What is not given
is the network's own (NETWORKS): deeper networks take longer, so fewer pictures run.  `--results
FOLDER` keeps what was measured, a file for each network; what is there is not measured again, so begin
anew where the compiler or a network has changed.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import snncompiler
from bench.accuracy import environment, markdown, paired_interval
from bench.networks import Stored, stored
from bench.zoo import material_root
from snncompiler.calibration.window import is_neuron
from snncompiler.cli.plots import new_figure
from snncompiler.emission.compiled import read_compiled
from snncompiler.errors import SnncError
from snncompiler.ir.graph import with_outputs
from snncompiler.network.data import Preprocess, load_data
from snncompiler.runtime.reference import hard_reset_neuron, rmp_neuron
from snncompiler.runtime.session import create_session

Array = NDArray[Any]
Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
Reset = Literal["soft", "hard"]
Encode = Literal["constant", "poisson"]
RESETS: tuple[Reset, Reset] = ("soft", "hard")
INPUTS: tuple[Encode, Encode] = ("constant", "poisson")
#: T of a curve; beyond SHORT on fewer pictures.  Tables show the powers of two.
CURVE = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
SHORT = 512
ALPHA_STEPS = (64, 128, 256, 512)
SEEDS = 5
#: The currents of a layer are looked at over so many steps of so many test pictures.
BOUND_STEPS, BOUND_IMAGES, BOUND_BATCH = 256, 16, 2
#: Of the mechanism: steps, η of the table and the lines of the plot, and input rates.
STEPS = 2048
ETAS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5, 2.5)
RATES = tuple(k / 20 for k in range(1, 21))
#: The input rate at which the plot shows the output over η.
FINE_RATE = 0.4


@dataclass(frozen=True)
class Sizes:
    """How much is measured of a network; each is an option too.

    calibration, held_out: training pictures for the thresholds, and to choose α over T up to
    `search_steps`.  images: test pictures; beyond T = SHORT, up to `most`, only `long` of them.
    """

    alphas: tuple[float, ...] = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)
    calibration: int = 32
    held_out: int = 100
    search_steps: int = 256
    images: int = 400
    long: int = 100
    most: int = CURVE[-1]

    @property
    def measured(self) -> Row:
        """Those that change what a kept measurement says."""
        names = ("calibration", "held_out", "search_steps", "images", "long")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Network:
    """A network with its data, which lies below the material or the repository."""

    name: str
    test: str
    train: str
    preprocess: Preprocess
    sizes: Sizes = Sizes()


_CIFAR = Preprocess(scale=255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
_PICTURES = ("sets/cifar10_test_jpegq75.zip", "sets/cifar10_train_jpegq75.zip")
#: A picture takes the ResNet seven times as long as the VGG.
_SLOW = Sizes(
    alphas=(0.7, 0.5, 0.4, 0.3),
    calibration=8,
    held_out=32,
    search_steps=128,
    images=100,
)
NETWORKS = {
    network.name: network
    for network in (
        Network("rmp-resnet20-cifar10", *_PICTURES, _CIFAR, _SLOW),
        Network("rmp-vgg16-eighth-cifar10", *_PICTURES, _CIFAR),
        Network(
            "digits-cnn", "models/digits_test.npz", "models/digits_train.npz", Preprocess(scale=16)
        ),
    )
}
DEFAULT = ("rmp-resnet20-cifar10", "rmp-vgg16-eighth-cifar10")


# --- the mechanism: one neuron ---


def regular_spikes(rates: Array, steps: int) -> Array:
    """[steps, len(rates)]: evenly spaced spikes, round(rate·steps) of them."""
    counts = np.round(np.asarray(rates) * steps).astype(np.int64)
    t = np.arange(steps + 1, dtype=np.int64)[:, None]
    # In whole numbers: the count up to step t is floor(t·count / steps).
    spikes: Array = np.diff(t * counts // steps, axis=0).astype(np.float32)
    return spikes


def random_spikes(rates: Array, steps: int, seed: int = 0) -> Array:
    """[steps, len(rates)]: independent at each step."""
    drawn = np.random.default_rng(seed).random((steps, len(rates)))
    return (drawn < np.asarray(rates)).astype(np.float32)


def output_rates(spikes: Array, etas: Sequence[float], reset: str) -> Array:
    """Mean output of a neuron with θ = 1 and V_in = η: [len(etas), input rates]."""
    operator = rmp_neuron if reset == "soft" else hard_reset_neuron
    steps, rates = spikes.shape
    # Folded: step t of every (η, rate) pair, one row a step.
    current = np.einsum("e,tr->ter", np.asarray(etas, np.float32), spikes)
    fired, _ = operator(
        current.reshape(steps, -1), np.float32(1) * np.ones(1), np.zeros(1, np.float32), steps
    )
    rates_out: Array = fired.mean(axis=0, dtype=np.float64).reshape(len(etas), rates)
    return rates_out


def ideal(eta: float, rates: Array) -> Array:
    """min(η·f_in, 1): what soft reset keeps."""
    return np.minimum(eta * np.asarray(rates), 1.0)


def hard_slope(eta: float) -> float:
    """f_out / f_in of hard reset on equal input spikes: one output for each ceil(1/η) of them."""
    return 1.0 / max(1, int(np.ceil(np.round(1 / eta, 9))))


def mechanism() -> Row:
    """Input and output rates of every kind of spikes, reset and η, as plain data."""
    rates = np.array(RATES)
    found: Row = {"etas": list(ETAS), "kinds": {}}
    for kind, spikes in (
        ("regular", regular_spikes(rates, STEPS)),
        ("random", random_spikes(rates, STEPS)),
    ):
        one: Row = {"rates": spikes.mean(axis=0, dtype=np.float64).tolist()}
        for reset in RESETS:
            one[reset] = output_rates(spikes, ETAS, reset).tolist()
        found["kinds"][kind] = one
    fine = [k / 20 for k in range(2, 53)]
    even = regular_spikes(np.array([FINE_RATE]), STEPS)
    found["fine"] = {"etas": fine}
    for reset in RESETS:
        found["fine"][reset] = (output_rates(even, fine, reset)[:, 0] / even.mean()).tolist()
    return found


def largest_loss(found: Row, kind: str, reset: str, index: int) -> float:
    """The largest |f_out - min(η·f_in, 1)| over the input rates."""
    one = found["kinds"][kind]
    wanted = ideal(found["etas"][index], np.array(one["rates"]))
    return float(np.abs(np.array(one[reset][index]) - wanted).max())


def mechanism_text(found: Row) -> str:
    rows = []
    for index, eta in enumerate(found["etas"]):
        regular = found["kinds"]["regular"]
        slope = [regular[r][index][0] / regular["rates"][0] for r in RESETS]
        losses = [
            f"{largest_loss(found, kind, reset, index):.4f}"
            for reset in RESETS
            for kind in ("regular", "random")
        ]
        low = f"{slope[0]:.3f}", f"{slope[1]:.3f}", f"{hard_slope(eta):.3f}"
        rows.append([f"{eta:g}", *low, *losses])
    columns = ["η", "f_out/f_in soft", "f_out/f_in hard", "1/ceil(1/η)"]
    columns += [f"loss {reset}, {kind}" for reset in RESETS for kind in ("regular", "random")]
    return (
        "One neuron, θ = 1, v0 = 0, whose every input spike brings V_in = η·θ, over "
        f"{STEPS} steps; the numpy reference operators. Input rates f_in from {RATES[0]:g} to "
        f"{RATES[-1]:g}, as evenly spaced spikes (regular) or independent ones (random). f_out/f_in "
        f"is that of regular spikes at f_in = {RATES[0]:g}; the loss is the largest "
        f"|f_out − min(η·f_in, 1)| over all f_in. One spike more or less is {1 / STEPS:.4f}.\n\n"
        + markdown(columns, rows)
    )


# --- statistics ---


def merged(first: Row, second: Row | None) -> Row:
    """The results of two sets of pictures, by T; activity is that of the first."""
    if second is None:
        return first
    both = {
        steps: {**one, "predictions": one["predictions"] + second[steps]["predictions"]}
        for steps, one in first.items()
        if steps in second
    }
    return {**first, **both}


def accuracies(row: Row, labels: Sequence[int], images: int | None = None) -> dict[int, float]:
    """Accuracy by T, where there are at least `images` pictures, on the first of them."""
    found: dict[int, float] = {}
    for steps, result in row["results"].items():
        given = np.array(result["predictions"][:images])
        if images is None or len(given) == images:
            found[int(steps)] = float((given == np.array(labels)[: len(given)]).mean())
    return found


def drop(result: Row, labels: Sequence[int], ann: Sequence[int]) -> tuple[float, float, float]:
    """The drop in accuracy and its paired 95 % interval, as shares."""
    given = np.array(result["predictions"])
    truth, of_ann = (np.array(values)[: len(given)] for values in (labels, ann))
    differences = (of_ann == truth).astype(np.float64) - (given == truth)
    return (float(differences.mean()), *paired_interval(differences))


def steps_to(curve: Mapping[int, float], wanted: float) -> int | None:
    """The first T with this accuracy; None for never."""
    return next((steps for steps in sorted(curve) if curve[steps] >= wanted - 1e-9), None)


@dataclass(frozen=True)
class Race:
    """How soon each reset is at an accuracy: hard reset's best one, or one near it."""

    wanted: float
    hard: int | None
    soft: int | None

    def __str__(self) -> str:
        if self.hard is None or self.soft is None:
            return "never"
        return f"{self.hard / self.soft:.2g}"


def race(hard: Mapping[int, float], soft: Mapping[int, float], less: float = 0.0) -> Race:
    """To hard reset's best accuracy minus `less`."""
    wanted = max(hard.values()) - less
    return Race(wanted, steps_to(hard, wanted), steps_to(soft, wanted))


def search_steps(most: int) -> tuple[int, ...]:
    """The T at which α is judged."""
    return tuple(sorted({max(1, most // part) for part in (4, 2, 1)}))


def agreement(row: Row, ann: Sequence[int], steps: Iterable[int] = ()) -> float:
    """The mean over these T, or over all."""
    truth = np.array(ann)
    given = [np.array(row["results"][str(t)]["predictions"]) for t in steps or row["results"]]
    return float(np.mean([(one == truth[: len(one)]).mean() for one in given]))


def best_alpha(scores: Mapping[float, float]) -> float:
    """The α with the highest score; of equals the one nearest 1."""
    return max(scores, key=lambda alpha: (scores[alpha], -abs(alpha - 1)))


def bounds(largest: Array, drive: Array, threshold: Array) -> Row:
    """Channels of a layer by the paper's bounds f_in·V_in < V_th <= V_in.

    largest: V_in of each channel, the largest current of a step.  drive: f_in·V_in, the largest mean
    current of a neuron.  Above: no step's current reaches θ.  Below: a neuron gets θ or more at every
    step, so it saturates.  Silent: nothing positive comes.
    """
    largest, drive, threshold = np.broadcast_arrays(largest, drive, threshold)
    silent = largest <= 0
    below = ~silent & (drive >= threshold)
    above = ~silent & ~below & (threshold > largest)
    eta = largest / threshold
    return {
        "channels": int(largest.size),
        "eta": float(eta.max()),
        "median": float(np.median(eta)),
        "within": int((~silent & ~below & ~above).sum()),
        "above": int(above.sum()),
        "below": int(below.sum()),
        "silent": int(silent.sum()),
    }


def with_seed(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The compiled network with another seed of its random input."""
    name = {entry.key: entry.value for entry in model.metadata_props}["snnc.seed_input"]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            old = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(old, seed), name))
            return copy
    raise ValueError(f"the model has no input {name!r} for a seed")


# --- measuring ---


@dataclass(frozen=True)
class Setting:
    """One way to compile."""

    reset: Reset
    encode: Encode
    alpha: float

    def __str__(self) -> str:
        return f"{self.reset} {self.encode} α={self.alpha:g}"


class Bench:
    """Measures one network and keeps what it finds: `content` is plain data."""

    def __init__(self, network: Network, options: argparse.Namespace, content: Row) -> None:
        self.network = network
        self.options = options
        self.sizes = sizes_of(network, options)
        self.content = content
        self.model = options.models / f"{network.name}.onnx"
        self.files: dict[Setting, onnx.ModelProto] = {}
        self.parts: dict[str, tuple[Array, Array]] = {}

    def part(self, name: str) -> tuple[Array, Array]:
        """Pictures and labels: "calibration", "held-out" or "test"."""
        if name not in self.parts:
            sizes = self.sizes
            counts = {"calibration": sizes.calibration, "held-out": sizes.held_out}
            if name == "test":
                source, rows = chosen_rows(self._stored("test"), 0, sizes.images)
            else:
                start = 0 if name == "calibration" else sizes.calibration
                source, rows = chosen_rows(self._stored("train"), start, counts[name])
            assert source.labels is not None
            self.parts[name] = source.read(rows), source.labels[rows]
        return self.parts[name]

    def _stored(self, which: str) -> Stored:
        given = getattr(self.options, which)
        listed = getattr(self.network, which)
        bundled = ROOT / listed
        path = given or (bundled if bundled.is_file() else self.options.root / listed)
        return stored(Path(path), {})

    def compiled(self, setting: Setting) -> onnx.ModelProto:
        if setting not in self.files:
            self.files[setting] = snncompiler.compile(
                self.model,
                calibration=self.part("calibration")[0],
                samples=None,
                preprocess=self.network.preprocess,
                paper=True,
                reset=setting.reset,
                encode=setting.encode,
                alpha=setting.alpha,
                initial=0.0,
            )
        return self.files[setting]

    def row(
        self,
        part: str,
        setting: Setting,
        steps: Sequence[int],
        seed: int = 0,
        least: Sequence[int] = (),
    ) -> Row:
        """The predictions and the activity at every T.  Any kept row with all `least` T will do."""
        key = f"{part} {setting} seed {seed}"
        kept: Row | None = self.content["rows"].get(key)
        if kept and all(str(count) in kept["results"] for count in least or steps):
            return kept
        started = time.perf_counter()
        model = self.compiled(setting)
        between = time.perf_counter()
        if seed:
            model = with_seed(model, seed)
        images, labels = self.part(part)
        short = [count for count in steps if count <= SHORT]
        long = self.sizes.long if short != list(steps) else len(images)
        first = self._evaluate(part, model, images[:long], labels[:long], steps, 0)
        rest = None
        if long < len(images):
            rest = self._evaluate(part, model, images[long:], labels[long:], short, long)
        row: Row = {"seconds": [between - started, time.perf_counter() - between]}
        self.content["rows"][key] = row | {"results": merged(first, rest)}
        self.keep(key)
        kept = self.content["rows"][key]
        return kept

    def _evaluate(
        self,
        part: str,
        model: onnx.ModelProto,
        images: Array,
        labels: Array,
        steps: Sequence[int],
        start: int,
    ) -> Row:
        found = snncompiler.evaluate(
            self.model,
            model,
            {"x": images, "y": labels},
            steps=steps,
            preprocess=self.network.preprocess,
            threads=self.options.threads,
        )
        about = self.content["parts"].setdefault(part, {"labels": [], "ann": []})
        assert found.ann_predictions is not None
        about["labels"][start : start + len(labels)] = labels.tolist()
        about["ann"][start : start + len(labels)] = list(found.ann_predictions)
        results: Row = {}
        for one in found.results:
            assert one.predictions is not None
            results[str(one.steps)] = {
                "predictions": list(one.predictions),
                "firing": one.firing_rate,
                "layers": [[x.firing_rate, x.saturated, x.silent] for x in one.layers],
            }
        return results

    def bounds(self, setting: Setting) -> list[Row]:
        """For every layer, where θ lies between the bounds."""
        key = f"bounds {setting}"
        if key not in self.content["rows"]:
            self.content["rows"][key] = {"layers": self._bounds(setting)}
            self.keep(key)
        layers: list[Row] = self.content["rows"][key]["layers"]
        return layers

    def _bounds(self, setting: Setting) -> list[Row]:
        window = snncompiler.compile(
            self.model,
            calibration=read_compiled(self.compiled(setting)).calibration,
            paper=True,
            reset=setting.reset,
            encode=setting.encode,
            alpha=setting.alpha,
            initial=0.0,
            steps=BOUND_STEPS,
            emit="cuda-graph",
            batch=BOUND_BATCH,
        )
        neurons = [node for node in window.graph.node if is_neuron(node)]
        values = {tensor.name: tensor for tensor in window.graph.initializer}
        names = list(dict.fromkeys(node.input[0] for node in neurons))
        session = create_session(with_outputs(window, names), threads=self.options.threads)
        (spec,) = read_compiled(window).inputs
        images, _ = self.part("test")
        data = load_data(images[:BOUND_IMAGES], [spec], self.network.preprocess).feeds[spec.name]
        largest: dict[str, Array] = {}
        drive: dict[str, Array] = {}
        for start in range(0, len(data) - BOUND_BATCH + 1, BOUND_BATCH):
            feeds = {spec.name: data[start : start + BOUND_BATCH]}
            for name, current in zip(names, session.run(names, feeds), strict=True):
                steps = max(len(current) // BOUND_BATCH, 1)
                channels = current.shape[1]
                split = current.reshape(steps, BOUND_BATCH, channels, -1)
                most = split.max(axis=(0, 1, 3))
                mean = split.mean(axis=0, dtype=np.float64).max(axis=(0, 2))
                largest[name] = np.maximum(largest.get(name, most), most)
                drive[name] = np.maximum(drive.get(name, mean), mean)
        return [
            {
                "layer": node.name,
                **bounds(
                    largest[node.input[0]],
                    drive[node.input[0]],
                    numpy_helper.to_array(values[node.input[1]]).reshape(-1),
                ),
            }
            for node in neurons
        ]

    def keep(self, key: str) -> None:
        print(f"{self.network.name}: {key}: {self.told(key)}", file=sys.stderr, flush=True)
        folder = self.options.results
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self.network.name}.json"
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self.content), encoding="utf-8")
            part.replace(path)

    def told(self, key: str) -> str:
        """A kept row in words."""
        row = self.content["rows"][key]
        if "results" not in row:
            return "done"
        about = self.content["parts"][key.split()[0]]
        shown = [f"T={t} {a:.3f}" for t, a in accuracies(row, about["labels"]).items()]
        return f"{row['seconds'][0]:.0f} + {row['seconds'][1]:.0f} s, {', '.join(shown)}"

    # What each part of the page needs.

    def scores(self, reset: Reset, encode: Encode) -> dict[float, float]:
        """Agreement with the ANN on the held-out pictures for each α of the grid."""
        steps = search_steps(self.sizes.search_steps)
        found = {}
        for alpha in self.sizes.alphas:
            row = self.row("held-out", Setting(reset, encode, alpha), steps)
            found[alpha] = agreement(row, self.content["parts"]["held-out"]["ann"])
        return found

    def best(self, reset: Reset, encode: Encode) -> Setting:
        return Setting(reset, encode, best_alpha(self.scores(reset, encode)))

    def steps(self, most: int | None = None) -> list[int]:
        """The T of a curve."""
        return [t for t in CURVE if t <= (most or self.sizes.most)]

    def curve(self, setting: Setting, seed: int = 0) -> Row:
        return self.row("test", setting, self.steps(SHORT if seed else None), seed)

    def by_alpha(self, alpha: float) -> Row:
        return self.row("test", Setting("soft", "constant", alpha), ALPHA_STEPS, 0, ALPHA_STEPS)

    @property
    def test(self) -> tuple[list[int], list[int]]:
        """Labels and the ANN's predictions of the test pictures."""
        about = self.content["parts"]["test"]
        return about["labels"], about["ann"]

    @property
    def ann(self) -> float:
        labels, ann = self.test
        return float((np.array(labels) == np.array(ann)).mean())


def sizes_of(network: Network, options: argparse.Namespace) -> Sizes:
    """The network's own, but what the options say."""
    given = {name: getattr(options, name) for name in vars(network.sizes)}
    return replace(network.sizes, **{k: v for k, v in given.items() if v is not None})


def chosen_rows(source: Stored, start: int, count: int) -> tuple[Stored, Array]:
    """`count` samples from place `start` on of a seeded order, but no more than there are."""
    order = np.random.default_rng(0).permutation(source.count)
    if start >= source.count:
        raise SystemExit(f"there are only {source.count} pictures, {start + count} are asked for")
    return source, order[start : start + count]


# --- the parts of the page ---


def powers(steps: Iterable[int]) -> list[int]:
    """Those that are powers of two."""
    return [t for t in steps if t & (t - 1) == 0]


Curves = Mapping[tuple[Reset, Encode], tuple[Setting, Row]]


def reset_text(bench: Bench) -> str:
    curves: Curves = {
        (reset, encode): (bench.best(reset, encode), bench.curve(bench.best(reset, encode)))
        for encode in INPUTS
        for reset in RESETS
    }
    labels, ann = bench.test
    sizes, steps = bench.sizes, powers(bench.steps())
    long = min(sizes.long, len(labels))

    def table(cell: Callable[[Row, int], str]) -> str:
        rows = [
            [encode, reset, f"{setting.alpha:g}", *(cell(row, t) for t in steps)]
            for (reset, encode), (setting, row) in curves.items()
        ]
        return markdown(["input", "reset", "α", *(f"T = {t}" for t in steps)], rows)

    def drop_cell(row: Row, t: int) -> str:
        middle, low, high = (100 * x for x in drop(row["results"][str(t)], labels, ann))
        return f"{middle:.1f} [{low:.1f}, {high:.1f}]"

    right = np.mean(np.array(labels)[:long] == np.array(ann)[:long])
    first = f" (T ≤ {SHORT}) and {100 * right:.1f} on the first {long} of them (T > {SHORT})"
    at = ", ".join(map(str, search_steps(sizes.search_steps)))
    held = len(bench.content["parts"]["held-out"]["ann"])
    return "\n".join(
        [
            f"α of each reset, by the mean agreement with the ANN at T = {at} on {held} held-out "
            "training pictures, in percent:\n",
            search_table(bench),
            f"Accuracy in percent; the ANN has {100 * bench.ann:.1f} on the {len(labels)} pictures"
            f"{first if sizes.most > SHORT else ''}:\n",
            table(lambda row, t: f"{100 * accuracies(row, labels)[t]:.1f}"),
            "Drop in points with its paired 95 % interval (in the plot, fewer pictures are dashed):\n",
            table(drop_cell),
            "Agreement with the ANN in percent:\n",
            table(lambda row, t: f"{100 * agreement(row, ann, [t]):.1f}"),
            "Steps to the accuracy, or the agreement with the ANN, that hard reset has at its best, "
            "and to 1 point less. Near the end accuracy fluctuates by a few pictures, less than the "
            "intervals, so the first T at the very best, or that there is none, may be chance; "
            "agreement fluctuates less:\n",
            race_table(bench, curves),
            f"Activity on {long if sizes.most > SHORT else len(labels)} pictures: spikes per 100 "
            "neurons and step (relative), and spikes per neuron over the run (absolute); the mean over "
            "layers of the share of saturated (neuron, picture) pairs, and of neurons that never fire, "
            "in percent:\n",
            activity_table(bench, curves),
        ]
    )


def search_table(bench: Bench) -> str:
    """The score of every α."""
    alphas = sorted(bench.sizes.alphas, reverse=True)
    rows = []
    for encode in INPUTS:
        for reset in RESETS:
            scores = bench.scores(reset, encode)
            cells = [f"{100 * scores[alpha]:.1f}" for alpha in alphas]
            rows.append([encode, reset, *cells, f"{best_alpha(scores):g}"])
    return markdown(["input", "reset", *(f"α = {a:g}" for a in alphas), "chosen"], rows)


def race_table(bench: Bench, curves: Curves) -> str:
    """Which reset is how soon where hard reset is at its best."""
    labels, ann = bench.test
    ranges = {SHORT: len(labels)}
    if bench.sizes.most > SHORT:
        ranges[bench.sizes.most] = min(bench.sizes.long, len(labels))
    rows = []
    for encode in INPUTS:
        for most, images in ranges.items():
            for what, truth in (("accuracy", labels), ("agreement", ann)):
                hard, soft = (
                    accuracies(curves[reset, encode][1], truth, images)
                    for reset in ("hard", "soft")
                )
                for less in (0.0, 0.01):
                    one = race(hard, soft, less)
                    goal = f"best {what}" + (f" − {100 * less:g}" if less else "")
                    cells = [f"{100 * one.wanted:.1f}", str(one.hard), str(one.soft or "never")]
                    rows.append([encode, f"T ≤ {most}", str(images), goal, *cells, str(one)])
    columns = ["input", "T", "pictures", "goal", "that is, %", "T hard", "T soft"]
    return markdown([*columns, "T hard / T soft"], rows)


def activity_table(bench: Bench, curves: Curves) -> str:
    """Relative and absolute activity, saturated and silent shares."""
    rows = []
    for (reset, encode), (setting, row) in curves.items():
        for t in sorted({64, SHORT, bench.sizes.most}):
            result = row["results"][str(t)]
            layers = np.array(result["layers"])
            cells = [f"{100 * result['firing']:.2f}", f"{result['firing'] * t:.2f}"]
            cells += [f"{100 * layers[:, k].mean():.2f}" for k in (1, 2)]
            rows.append([encode, reset, f"{setting.alpha:g}", str(t), *cells])
    columns = ["input", "reset", "α", "T", "per 100 and step", "per neuron", "saturated", "silent"]
    return markdown(columns, rows)


def alpha_text(bench: Bench) -> str:
    alphas = sorted(bench.sizes.alphas, reverse=True)
    rows, layered = [], []
    for alpha in alphas:
        row = bench.by_alpha(alpha)
        labels, ann = bench.test
        result = row["results"][str(SHORT)]
        layers = np.array(result["layers"])
        found = accuracies(row, labels)
        middle, low, high = (100 * x for x in drop(result, labels, ann))
        rows.append(
            [
                f"{alpha:g}",
                *(f"{100 * found[t]:.1f}" for t in ALPHA_STEPS),
                f"{middle:.1f} [{low:.1f}, {high:.1f}]",
                f"{100 * result['firing']:.2f}",
                f"{100 * layers[:, 1].mean():.2f}",
                f"{100 * layers[:, 1].max():.1f}",
                f"{100 * layers[:, 2].mean():.1f}",
                f"{100 * layers[:, 2].max():.1f}",
            ]
        )
    for alpha in alphas:
        for one in bench.bounds(Setting("soft", "constant", alpha)):
            layered.append((alpha, one))
    totals = []
    for alpha in alphas:
        ones = [one for at, one in layered if at == alpha]
        channels = sum(one["channels"] for one in ones)
        cells = [f"{100 * sum(one[k] for one in ones) / channels:.1f}" for k in _KINDS]
        etas = [one["eta"] for one in ones]
        totals.append([f"{alpha:g}", f"{min(etas):.2f} to {max(etas):.2f}", *cells])
    best = bench.best("soft", "constant").alpha
    detail = [
        [
            one["layer"],
            f"{one['eta']:.2f}",
            f"{one['median']:.2f}",
            str(one["channels"]),
            *(str(one[k]) for k in _KINDS),
        ]
        for alpha, one in layered
        if alpha == best
    ]
    columns = ["α", *(f"T = {t}" for t in ALPHA_STEPS), f"drop at T = {SHORT}"]
    columns += ["spikes per 100 and step", "saturated", "worst layer", "silent", "worst layer"]
    return "\n".join(
        [
            f"Soft reset, constant input, {len(labels)} pictures, ANN {100 * bench.ann:.1f} %. "
            f"Accuracy in percent; activity, saturated and silent shares in percent at T = {SHORT}, "
            "the mean over layers and the worst layer:\n",
            markdown(columns, rows),
            "η of the layers, V_in^max / V_th with the largest current on test pictures, and the "
            "channels by the paper's bounds f_in·V_in < V_th ≤ V_in, in percent of all; "
            f"{BOUND_IMAGES} test pictures, {BOUND_STEPS} steps. V_in is the largest current of the "
            "channel in one step, f_in·V_in the largest mean current of one of its neurons. Above: "
            "V_th > V_in, several steps must add up. Below: V_th ≤ f_in·V_in, a neuron saturates. "
            "Silent: nothing positive comes. The current of the first layer is constant, so that no "
            "V_th is within.\n",
            markdown(["α", "η of the layers", *_KINDS], totals),
            f"The layers at α = {best:g}: η, that of the median channel, and numbers of channels:\n",
            markdown(["layer", "η", "median channel", "channels", *_KINDS], detail),
        ]
    )


_KINDS = ("within", "above", "below", "silent")


def poisson_text(bench: Bench) -> str:
    poisson, constant = bench.best("soft", "poisson"), bench.best("soft", "constant")
    curves = [bench.curve(poisson, seed) for seed in range(SEEDS)]
    other = bench.curve(constant)
    labels, ann = bench.test
    rows = []
    for t in powers(t for t in CURVE if t <= SHORT):
        mean, deviation = spread([accuracies(row, labels)[t] for row in curves])
        fixed = accuracies(other, labels)[t]
        middle, low, high = (100 * x for x in drop(other["results"][str(t)], labels, ann))
        # An image's difference is its mean over the seeds: the interval is about the images.
        right = np.mean(
            [np.array(r["results"][str(t)]["predictions"]) == labels for r in curves], 0
        )
        d = (np.array(ann) == labels) - right
        interval = [100 * x for x in paired_interval(d)]
        rows.append(
            [
                str(t),
                f"{100 * mean:.1f} ± {100 * deviation:.2f}",
                f"{100 * d.mean():.1f} [{interval[0]:.1f}, {interval[1]:.1f}]",
                f"{100 * fixed:.1f}",
                f"{middle:.1f} [{low:.1f}, {high:.1f}]",
            ]
        )
    columns = ["T", f"Poisson, α = {poisson.alpha:g}", "drop", f"constant, α = {constant.alpha:g}"]
    return (
        f"Soft reset, each input at its own best α, {len(labels)} pictures, ANN "
        f"{100 * bench.ann:.1f} %. Poisson: mean ± standard deviation of the accuracy over {SEEDS} "
        f"seeds (0 to {SEEDS - 1}), in percent, and the drop in points with its 95 % interval over "
        "the pictures:\n\n" + markdown([*columns, "drop"], rows)
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# --- plots ---


def draw_mechanism(found: Row) -> Any:
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, 3)
    for reset, axes in zip(RESETS, panels, strict=False):
        for index, eta in enumerate(found["etas"]):
            for kind, style, places in (
                ("regular", "-", slice(1, None, 2)),
                ("random", ".", slice(3, None, 4)),
            ):
                one = found["kinds"][kind]
                label = f"η = {eta:g}" if kind == "regular" else None
                x, y = one["rates"][places], one[reset][index][places]
                axes.plot(x, y, style, color=f"C{index}", ms=3, label=label)
        axes.set_title(f"f_out, {reset} reset", fontsize="medium")
        axes.set_xlabel("f_in")
    panels[0].legend(fontsize="x-small")
    for reset in RESETS:
        panels[2].plot(
            found["fine"]["etas"], found["fine"][reset], color=_COLORS[reset], label=reset
        )
    panels[2].set_title(f"f_out / f_in at f_in = {FINE_RATE:g}", fontsize="medium")
    panels[2].set_xlabel("η = V_in / V_th")
    panels[2].legend(fontsize="x-small")
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def _against_steps(axes: Any, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(powers(CURVE), [str(t) for t in powers(CURVE)], fontsize="x-small")
    axes.set_xlabel("T")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)


_COLORS = {"soft": "C0", "hard": "C3"}


def draw_reset(bench: Bench) -> Any:
    figure = new_figure(11, 3.6)
    panels = figure.subplots(1, 3)
    labels, _ = bench.test
    for encode, axes in zip(INPUTS, panels, strict=False):
        for reset in RESETS:
            setting = bench.best(reset, encode)
            row = bench.curve(setting)
            found = accuracies(row, labels)
            for line, few in (("-", False), ("--", True)):
                shown = [t for t in found if (t > SHORT) == few]
                axes.plot(
                    shown,
                    [100 * found[t] for t in shown],
                    line,
                    marker="o",
                    ms=3,
                    color=_COLORS[reset],
                    label=None if few else f"{reset}, α = {setting.alpha:g}",
                )
            steps = bench.steps()
            panels[2].plot(
                steps,
                [100 * row["results"][str(t)]["firing"] for t in steps],
                "-" if encode == "constant" else ":",
                color=_COLORS[reset],
                label=f"{reset}, {encode}",
            )
        axes.axhline(100 * bench.ann, color="gray", lw=0.8, label="ANN")
        _against_steps(axes, f"accuracy %, {encode} input")
        axes.legend(fontsize="x-small")
    _against_steps(panels[2], "spikes per 100 neurons and step")
    panels[2].legend(fontsize="x-small")
    return figure


def draw_alpha(bench: Bench) -> Any:
    figure = new_figure(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    alphas = sorted(bench.sizes.alphas, reverse=True)
    rows = [bench.by_alpha(alpha) for alpha in alphas]
    labels, _ = bench.test
    for t in ALPHA_STEPS:
        left.plot(
            alphas, [100 * accuracies(row, labels)[t] for row in rows], "o-", ms=3, label=f"T = {t}"
        )
    left.axhline(100 * bench.ann, color="gray", lw=0.8, label="ANN")
    left.set_title("accuracy %, soft reset, constant input", fontsize="medium")
    layers = [np.array(row["results"][str(SHORT)]["layers"]) for row in rows]
    for k, what in ((1, "saturated"), (2, "silent")):
        shares = np.array([[100 * v[:, k].mean(), 100 * v[:, k].max()] for v in layers])
        right.plot(alphas, shares[:, 0], "o-", ms=3, color=f"C{k}", label=f"{what}, mean")
        right.plot(alphas, shares[:, 1], ":", color=f"C{k}", label=f"{what}, worst layer")
    right.set_title(f"% of neurons at T = {SHORT}", fontsize="medium")
    for axes in (left, right):
        axes.set_xlabel("α")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    return figure


def draw_poisson(bench: Bench) -> Any:
    figure = new_figure(5.2, 3.6)
    axes = figure.subplots()
    poisson, constant = bench.best("soft", "poisson"), bench.best("soft", "constant")
    curves = [bench.curve(poisson, seed) for seed in range(SEEDS)]
    labels, _ = bench.test
    steps = [t for t in CURVE if t <= SHORT]
    spreads = [spread([100 * accuracies(row, labels)[t] for row in curves]) for t in steps]
    axes.errorbar(
        steps,
        [mean for mean, _ in spreads],
        [deviation for _, deviation in spreads],
        fmt="o-",
        ms=3,
        capsize=3,
        label=f"Poisson, α = {poisson.alpha:g}, {SEEDS} seeds",
    )
    fixed = accuracies(bench.curve(constant), labels)
    label = f"constant, α = {constant.alpha:g}"
    axes.plot(steps, [100 * fixed[t] for t in steps], "s--", ms=3, label=label)
    axes.axhline(100 * bench.ann, color="gray", lw=0.8, label="ANN")
    _against_steps(axes, "accuracy %, soft reset")
    axes.legend(fontsize="x-small")
    return figure


def save(figure: Any, path: Path) -> None:
    """As a small SVG with text as text, the same bytes for the same data."""
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    # Hundredths of a point are enough.
    path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", drawn.getvalue()), encoding="utf-8")


# --- the claims ---


def network_row(bench: Bench) -> list[str]:
    """What was measured how, for the page."""
    sizes = bench.sizes
    more = f", {min(sizes.long, len(bench.test[0]))} beyond T = {SHORT}" * (sizes.most > SHORT)
    return [
        bench.network.name,
        f"{100 * bench.ann:.1f}",
        f"{len(bench.test[0])}{more}",
        str(sizes.calibration),
        f"{len(bench.content['parts']['held-out']['ann'])}",
        ", ".join(f"{alpha:g}" for alpha in sorted(sizes.alphas, reverse=True)),
    ]


def claims(bench: Bench) -> list[list[str]]:
    """What the paper says of its networks, and what this one does."""
    labels, ann = bench.test
    last = bench.steps()[-1]
    shown = sorted({64, SHORT, last})
    losses, races, activity = [], [], []
    for encode in INPUTS:
        setting = bench.best("soft", encode)
        row = bench.curve(setting)
        middle, low, high = (100 * x for x in drop(row["results"][str(last)], labels, ann))
        losses.append(f"{middle:.1f} [{low:.1f}, {high:.1f}] ({encode})")
        other = bench.curve(bench.best("hard", encode))
        for what, truth in (("accuracy", labels), ("agreement", ann)):
            hard, soft = (accuracies(one, truth, len(labels)) for one in (other, row))
            one = race(hard, soft, 0.01)
            races.append(
                f"{one} ({what}, {encode}, {100 * one.wanted:.1f} %: T = {one.hard} hard, "
                f"{one.soft or 'never'} soft)"
            )
        firing = [f"{100 * row['results'][str(t)]['firing']:.1f}" for t in shown]
        activity.append(f"{', '.join(firing)} ({encode}, α = {setting.alpha:g})")
    pictures = len(row["results"][str(last)]["predictions"])
    by_alpha = {a: accuracies(bench.by_alpha(a), labels) for a in bench.sizes.alphas}
    tops = ", ".join(
        f"{best_alpha({a: found[t] for a, found in by_alpha.items()}):g} at T = {t}"
        for t in ALPHA_STEPS
    )
    ends = ", ".join(f"{a:g}: {100 * by_alpha[a][SHORT]:.0f} %" for a in _ends(by_alpha))
    return [
        [
            "soft reset is near loss-less at T = 2048 (drop 0 to 0.3)",
            f"drop at T = {last} on {pictures} pictures: {'; '.join(losses)}",
        ],
        [
            "hard reset's best accuracy in 2 to 8 times fewer steps",
            f"T hard / T soft to hard reset's best less 1 point, T ≤ {SHORT}, "
            f"{len(labels)} pictures: {'; '.join(races)}",
        ],
        [
            "spike activity of about 1 to 2 %",
            f"spikes of soft reset per 100 neurons and step at T = {', '.join(map(str, shown))}: "
            f"{'; '.join(activity)}",
        ],
        [
            "α below 1 trades accuracy for latency",
            f"best α {tops} (soft reset, constant input); at the ends of the grid, T = {SHORT}, {ends}",
        ],
    ]


def _ends(values: Iterable[float]) -> tuple[float, float]:
    return max(values), min(values)


# --- the page ---


INTRO = """# The RMP-SNN paper, measured

Generated by `{command}`, with {environment}.

This page tests claims of B. Han, G. Srinivasan, K. Roy, "RMP-SNN: Residual Membrane Potential
Neuron for Enabling Deeper High-Accuracy and Low-Latency Spiking Neural Network", CVPR 2020. The
networks have the paper's constraints (no bias, no batch-norm, average pooling, dropout while
training). They are compiled with its settings: the initial potential is 0, θ of a layer is the
largest current of the running network times α, the read-out is the mean of all steps, and nothing
is corrected. So these are not the figures of this compiler's defaults ([accuracy](accuracy.md)).
The networks are smaller and less trained than the paper's. The largest currents are those of few
pictures over the compiler's 256 steps, and the accuracy is that of few pictures: mind the
intervals, which are 95 % and paired (`bench/accuracy.py` has the formula).

"""
SECTIONS = ("mechanism", "reset", "alpha", "poisson")
TITLES = {
    "reset": "soft and hard reset",
    "alpha": "α",
    "poisson": "Poisson input",
}
TEXTS: dict[str, Callable[[Bench], str]] = {
    "reset": reset_text,
    "alpha": alpha_text,
    "poisson": poisson_text,
}
DRAWINGS: dict[str, Callable[[Bench], Any]] = {
    "reset": draw_reset,
    "alpha": draw_alpha,
    "poisson": draw_poisson,
}


def page(options: argparse.Namespace, benches: Sequence[Bench], command: str) -> str:
    """Measures what is missing; writes the plots beside the page."""
    wanted = SECTIONS if options.part == "all" else (options.part,)

    def picture(name: str, make: Callable[[], Any]) -> str:
        if not options.write:
            return ""
        file = options.write.with_name(f"{options.write.stem}-{name}.svg")
        save(make(), file)
        return f"![{name}]({file.name})\n\n"

    texts: dict[str, str] = {}
    if "mechanism" in wanted:
        found = mechanism()
        drawn = picture("mechanism", lambda: draw_mechanism(found))
        texts["mechanism"] = f"## One neuron\n\n{drawn}{mechanism_text(found)}"
    for bench in benches:
        name = bench.network.name
        for part in wanted:
            if part in TEXTS:
                text = TEXTS[part](bench)
                drawn = picture(f"{part}-{name}", lambda b=bench, p=part: DRAWINGS[p](b))  # type: ignore[misc]
                texts[f"{part} {name}"] = f"## {name}: {TITLES[part]}\n\n{drawn}{text}"
    found_claims = ""
    if options.part == "all" and benches:
        rows = [[b.network.name, *row] for b in benches for row in claims(b)]
        columns = ["network", "the paper", "here, with constant and with Poisson input"]
        found_claims = f"## The claims\n\n{markdown(columns, rows)}\n"
        columns = ["network", "ANN %", "test pictures", "for θ", "to choose α", "α tried"]
        found_claims += markdown(columns, [network_row(bench) for bench in benches]) + "\n"
    versions = ", ".join(f"{k} {v}" for k, v in environment(options.threads).items())
    intro = INTRO.format(command=command, environment=versions)
    return intro + found_claims + "\n".join(texts.values())


# --- the command ---


def command_line(given: Sequence[str]) -> str:
    """The command, without what names folders of this machine."""
    left, shown = list(given), []
    while left:
        one = left.pop(0)
        name, _, value = one.partition("=")
        if name in ("--material", "--results", "--models", "--test", "--train", "--threads"):
            left = left if value else left[1:]
        else:
            shown.append(one)
    return " ".join(["python bench/paper.py", *shown])


def alphas(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not values or min(values) <= 0:
        raise ValueError(text)
    return values


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(*SECTIONS, "all"))
    parser.add_argument("--networks", default=",".join(DEFAULT), help="names, with commas between")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "models", help="folder of the networks"
    )
    parser.add_argument("--material", help="folder with the pictures; default SNNC_MATERIAL")
    parser.add_argument("--test", type=Path, help="test pictures, a zip or .npz")
    parser.add_argument("--train", type=Path, help="training pictures, a zip or .npz")
    parser.add_argument("--alphas", type=alphas, help="α to try, with commas between")
    parser.add_argument("--calibration", type=int, help="pictures for the thresholds")
    parser.add_argument("--held-out", type=int, help="training pictures to choose α")
    parser.add_argument("--search-steps", type=int, help="T up to which α is chosen")
    parser.add_argument("--images", type=int, help="test pictures")
    parser.add_argument("--long", type=int, help=f"test pictures beyond T = {SHORT}")
    parser.add_argument("--most", type=int, choices=CURVE[CURVE.index(SHORT) :], help="largest T")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder for what was measured")
    parser.add_argument("--write", type=Path, help="write the page here, and the plots beside it")
    return parser.parse_args(arguments)


def begin(options: argparse.Namespace, network: Network) -> Row:
    """Nothing, or what an earlier run with the same pictures has found."""
    asked = sizes_of(network, options).measured
    content: Row = {"asked": asked, "parts": {}, "rows": {}}
    path = options.results / f"{network.name}.json" if options.results else None
    if path and path.is_file():
        old: Row = json.loads(path.read_text(encoding="utf-8"))
        if old["asked"] != asked:
            raise SystemExit(f"{path} was measured with {old['asked']}, not {asked}")
        return old
    return content


def main() -> None:
    options = parse(sys.argv[1:])
    options.root = material_root(options.material)
    names = [] if options.part == "mechanism" else options.networks.split(",")
    if missing := [name for name in names if name not in NETWORKS]:
        raise SystemExit(f"no network {missing[0]!r}: {', '.join(NETWORKS)}")
    benches = [Bench(NETWORKS[n], options, begin(options, NETWORKS[n])) for n in names]
    try:
        text = page(options, benches, command_line(sys.argv[1:]))
    except (SnncError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
