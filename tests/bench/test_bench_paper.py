"""The bench of the paper's claims: one neuron, statistics, bounds, seeds, a small run's page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

import snncompiler  # noqa: E402
from bench import accuracy, paper  # noqa: E402
from snncompiler.runtime.session import create_session  # noqa: E402

Array = NDArray[Any]


# --- one neuron ---


def test_regular_spikes_are_as_many_and_as_even_as_the_rate_says() -> None:
    rates = np.array([0.05, 0.3, 0.75, 1.0])
    spikes = paper.regular_spikes(rates, 200)
    assert set(np.unique(spikes)) <= {0.0, 1.0}
    assert spikes.sum(axis=0).tolist() == [10, 60, 150, 200]
    for column in spikes.T:
        gaps = np.diff(np.flatnonzero(column))
        assert gaps.max() - gaps.min() <= 1


def test_random_spikes_have_the_rate_and_a_seed() -> None:
    rates = np.array([0.2, 0.9])
    spikes = paper.random_spikes(rates, 4000)
    assert spikes.mean(axis=0) == pytest.approx(rates, abs=0.03)
    assert np.array_equal(spikes, paper.random_spikes(rates, 4000))
    assert not np.array_equal(spikes, paper.random_spikes(rates, 4000, seed=1))


@pytest.mark.parametrize("make", [paper.regular_spikes, paper.random_spikes])
def test_soft_reset_keeps_the_rate_and_hard_reset_loses_the_residual(make: Any) -> None:
    steps, rates, etas = 1000, np.array([0.1, 0.5, 1.0]), [0.3, 0.6, 1.0, 2.0]
    spikes = make(rates, steps)
    given = spikes.mean(axis=0)
    soft, hard = (paper.output_rates(spikes, etas, reset) for reset in ("soft", "hard"))
    for index, eta in enumerate(etas):
        # One spike is 1/T; random spikes may leave a few that wait where the neuron nearly saturates.
        assert soft[index] == pytest.approx(paper.ideal(eta, given), abs=0.002 + 0.03 * (eta > 1))
        assert hard[index] == pytest.approx(paper.hard_slope(eta) * given, abs=0.002)


def test_what_hard_reset_keeps() -> None:
    assert [paper.hard_slope(eta) for eta in (0.25, 0.3, 0.5, 0.6, 0.99, 1, 3)] == [
        *(1 / 4, 1 / 4, 1 / 2, 1 / 2, 1 / 2),
        *(1, 1),
    ]
    assert paper.hard_slope(0.1 + 0.2) == 1 / 4
    assert paper.hard_slope(1 / 3) == 1 / 3


def test_the_table_of_the_mechanism() -> None:
    found = paper.mechanism()
    text = paper.mechanism_text(found)
    assert text.count("\n| ") == 1 + len(paper.ETAS)
    for index, eta in enumerate(paper.ETAS):
        soft = paper.largest_loss(found, "regular", "soft", index)
        assert soft <= 3 / paper.STEPS
        if eta != 1:
            assert paper.largest_loss(found, "regular", "hard", index) > soft


# --- statistics ---


def results(**predictions: list[int]) -> dict[str, Any]:
    return {
        steps[1:]: {"predictions": values, "firing": 0.1, "layers": [[0.1, 0.0, 0.0]]}
        for steps, values in predictions.items()
    }


def test_pictures_of_two_runs_are_put_together_where_both_have_them() -> None:
    first = results(t16=[1, 2], t2048=[3, 3])
    assert paper.merged(first, None) is first
    both = paper.merged(first, results(t16=[4, 5, 6]))
    assert both["16"]["predictions"] == [1, 2, 4, 5, 6]
    assert both["2048"]["predictions"] == [3, 3]
    row = {"results": both}
    labels = [1, 2, 4, 0, 0]
    assert paper.accuracies(row, labels) == {16: 0.6, 2048: 0.0}
    assert paper.accuracies(row, labels, 2) == {16: 1.0, 2048: 0.0}
    assert paper.accuracies(row, labels, 5) == {16: 0.6}


def test_a_drop_is_on_the_pictures_that_ran() -> None:
    labels, ann = [0, 1, 2, 3], [0, 1, 2, 0]
    middle, low, high = paper.drop({"predictions": [0, 0]}, labels, ann)
    assert middle == 0.5
    assert (low, high) == accuracy.paired_interval(np.array([0.0, 1.0]))


def test_the_race_of_both_resets() -> None:
    hard = {16: 0.1, 64: 0.6, 256: 0.89, 512: 0.9, 1024: 0.9}
    soft = {16: 0.2, 64: 0.9, 256: 0.95}
    one = paper.race(hard, soft)
    assert (one.wanted, one.hard, one.soft, str(one)) == (0.9, 512, 64, "8")
    near = paper.race(hard, soft, 0.01)
    assert (near.hard, near.soft, str(near)) == (256, 64, "4")
    never = paper.race(soft, hard)
    assert never.soft is None and str(never) == "never"


def test_the_best_alpha() -> None:
    assert paper.best_alpha({1.0: 0.1, 0.5: 0.9, 0.3: 0.9, 0.2: 0.5}) == 0.5
    assert paper.search_steps(256) == (64, 128, 256)
    assert paper.search_steps(2) == (1, 2)
    row = {"results": results(t8=[1, 1], t16=[1, 2])}
    assert paper.agreement(row, [1, 2]) == 0.75


def test_channels_by_the_bounds() -> None:
    largest = np.array([2.0, 2.0, 0.5, -1.0, 1.0])
    drive = np.array([0.5, 1.5, 0.1, -2.0, 0.99])
    found = paper.bounds(largest, drive, np.array([1.0]))
    assert found == {
        "channels": 5,
        "eta": 2.0,
        "median": 1.0,
        "within": 2,
        "above": 1,
        "below": 1,
        "silent": 1,
    }


def test_mean_and_deviation() -> None:
    assert paper.spread([1.0, 3.0]) == pytest.approx((2.0, np.sqrt(2)))
    assert paper.spread([1.0]) == (1.0, 0.0)


# --- the command ---


def test_the_command_names_no_folder() -> None:
    given = "all --results r --images 9 --material=m --models x --threads 1 --write paper.md"
    shown = "python bench/paper.py all --images 9 --write paper.md"
    assert paper.command_line(given.split()) == shown


def test_options_come_before_the_sizes_of_a_network() -> None:
    options = paper.parse(["reset", "--alphas", "1,0.5", "--long", "7"])
    for network in paper.NETWORKS.values():
        sizes = paper.sizes_of(network, options)
        assert (sizes.alphas, sizes.long) == ((1.0, 0.5), 7)
        assert sizes.images == network.sizes.images
    with pytest.raises(SystemExit):
        paper.parse(["reset", "--alphas", "0"])


def test_results_of_other_sizes_are_not_gone_on_with(tmp_path: Path) -> None:
    network = paper.NETWORKS["digits-cnn"]
    content = {"asked": {"images": 3}, "parts": {}, "rows": {}}
    (tmp_path / "digits-cnn.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="was measured with"):
        paper.begin(paper.parse(["all", "--results", str(tmp_path)]), network)


def test_a_seed_changes_the_random_input_and_nothing_else() -> None:
    network = paper.NETWORKS["digits-cnn"]
    with np.load(ROOT / network.test) as archive:
        images = archive["x"][:4]
    model = snncompiler.compile(
        ROOT / "models" / "digits-cnn.onnx",
        calibration=images,
        preprocess=network.preprocess,
        paper=True,
        steps=16,
    )
    feeds = {"input": images.transpose(0, 3, 1, 2).astype(np.float32) / 16}
    runs = [
        create_session(one).run(None, feeds)[0]
        for one in (model, paper.with_seed(model, 0), paper.with_seed(model, 3))
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    constant = snncompiler.compile(
        ROOT / "models" / "digits-cnn.onnx", calibration=images, preprocess=network.preprocess
    )
    with pytest.raises((KeyError, ValueError)):
        paper.with_seed(constant, 1)


@pytest.mark.slow
def test_a_small_run_gives_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "paper.md"
    pytest.importorskip("matplotlib")
    for name, value in (
        ("CURVE", (16, 32, 64, 96)),
        ("SHORT", 64),
        ("ALPHA_STEPS", (32, 64)),
        ("SEEDS", 2),
        ("BOUND_STEPS", 8),
        ("BOUND_IMAGES", 4),
        ("STEPS", 100),
    ):
        monkeypatch.setattr(paper, name, value)
    few = "--images 12 --long 4 --most 96 --calibration 1 --held-out 6 --search-steps 32"
    command = f"paper.py all --networks digits-cnn --alphas 0.5 {few} --results {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", [*command, "--write", str(page)])
    paper.main()
    text = page.read_text(encoding="utf-8")
    assert str(tmp_path) not in text.replace(f"--write {page}", "")
    pictures = re.findall(r"\]\((.*?\.svg)\)", text)
    assert len(pictures) == 4
    for name in pictures:
        assert 1000 < (tmp_path / name).stat().st_size < 120_000
    for title in ("The claims", "One neuron", "soft and hard reset", "α", "Poisson input"):
        assert re.search(rf"^## .*{title}$", text, re.MULTILINE)
    assert "| T = 64 |" in text and "4 beyond T = 64" in text and "T ≤ 96" in text
    assert "nan" not in text

    # Kept results are not measured again, and give the same page.
    monkeypatch.setattr(paper.Bench, "compiled", None)
    monkeypatch.setattr(paper.Bench, "_evaluate", None)
    capsys.readouterr()
    paper.main()
    assert page.read_text(encoding="utf-8") == text
