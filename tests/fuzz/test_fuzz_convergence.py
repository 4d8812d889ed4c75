"""`make fuzz`: what it prints, and what it does with a network that fails or ends its process."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import fuzz_convergence
import numpy as np
import onnx
import pytest
from random_networks import seeded


def test_a_seed_is_a_network() -> None:
    one, two, other = seeded(3), seeded(3), seeded(4)
    assert one.model == two.model and (one.x == two.x).all() and one.options == two.options
    assert one.model != other.model


def test_networks_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuzz", "--count", "2", "--seed", "5", "--processes", "1", "--save", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert fuzz_convergence.main() == 0
    told = capsys.readouterr()
    assert "seeds 5 to 6; events, dense, bodies at T = 16, 64, 256" in told.out
    assert "2 networks within the bound, 0 not" in told.out
    assert not list(tmp_path.iterdir())


def test_networks_are_checked_in_layered_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuzz", "--count", "2", "--seed", "5", "--processes", "1", "--save", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--timing", "layered"])
    assert fuzz_convergence.main() == 0
    told = capsys.readouterr().out
    assert "seeds 5 to 6; rate at T = 6, radix at T = 8" in told
    assert "2 networks within the bound, 0 not" in told and "radix: of the largest" in told


def some_fail(seeds: range, pipe: Connection) -> None:
    """Seed 11 fails, seed 12 ends the process, the others are kept."""
    for seed in seeds:
        pipe.send(("begun", seed, None))
        if seed == 12:
            os._exit(7)
        if seed == 11:
            pipe.send(("failed", seed, "AssertionError: events, T = 16"))
        else:
            pipe.send(("kept", seed, (False, (), 3, 2, {16: 0.1}, 0.2)))
    pipe.send(("done", 0, None))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_is_told_and_saved(
    processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = fuzz_convergence.fuzz(10, 5, processes, tmp_path, some_fail)
    assert sorted(totals.failed) == [11, 12] and totals.networks == 3
    assert (totals.layers, totals.by_events) == (9, 6)
    told = capsys.readouterr().err
    assert "seed 11: AssertionError" in told and "seed 12: its process ended: 7" in told
    assert "--seed 11 --count 1" in told
    network = seeded(11)
    saved = onnx.load(tmp_path / "11.onnx")
    assert saved in (network.model, network.free[0] if network.free else None)
    with np.load(tmp_path / "12.npz") as archive:
        assert np.array_equal(archive["x"], seeded(12).x)
