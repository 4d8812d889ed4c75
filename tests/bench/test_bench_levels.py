"""bench/levels.py: what its page says of its rows, and that no row is measured twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bench.levels as levels
from bench.networks import CLASSIFIERS

ROW: dict[str, Any] = {
    "case": "kws", "setting": "rate:8", "asked": "auto", "correct": "weights", "weights": "float32",
    "draw": 0, "images": 100, "ann": 90.0, "drop": 1.0, "agreement": 95.0, "error": 0.2,
}  # fmt: skip
CONTENT: dict[str, Any] = {"command": "python bench/levels.py", "environment": {"numpy": "2"}}


def test_the_page_has_the_mean_over_the_draws_and_a_table_for_each_kind() -> None:
    rows = [ROW, {**ROW, "draw": 1, "drop": 2.0, "agreement": 93.0, "error": 0.4}]
    rows += [{**ROW, "setting": "rate:16"}, {**ROW, "weights": "int8"}]
    rows += [{"case": "toycar", "setting": "radix:6", "asked": "auto", "weights": "float32", "draw": 0,
              "images": 9, "error": 0.1, "lost": 0.02}]  # fmt: skip
    text = levels.page({**CONTENT, "rows": rows})
    lines = text.splitlines()
    assert (
        "## --correct auto, weights float32" in lines and "## --correct auto, weights int8" in lines
    )
    assert "| network | ANN | samples | draws | rate:8 | rate:16 | radix:6 |" in lines
    assert "| kws | 90.0 | 100 | 2 | 1.5 (94.0; 0.300) | 1.0 (95.0; 0.200) |  |" in lines
    assert any("AUC -0.0200" in line for line in lines)


def test_what_the_file_has_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that finds all its rows reads no data at all; one more setting is measured alone."""
    options = levels.parser().parse_args(
        ["--json", str(tmp_path / "rows.json"), "--settings", "rate:8", "radix:3"]
    )
    measured: list[str] = []

    def measure(case: Any, data: Any, test: Any, ann: Any, given: Any, samples: int) -> Any:
        measured.append(given["setting"])
        return {**ROW, **given}

    monkeypatch.setattr(levels, "measured", measure)
    monkeypatch.setattr(levels, "Data", lambda *given: _Data())
    monkeypatch.setattr(levels, "reference", lambda *given: None)
    content = {**CONTENT, "rows": [ROW]}
    for _ in range(2):
        levels.measure(CLASSIFIERS["kws"], options, tmp_path, content)
    assert measured == ["radix:3"]
    assert len(levels.read_json(tmp_path / "rows.json")["rows"]) == 2


class _Data:
    model = "none"

    def test(self, limit: int | None) -> None:
        return None
