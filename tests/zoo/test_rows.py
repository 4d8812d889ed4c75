"""What `bench/zoo.py` makes of its rows: the verdict, the summary, and the rows that it keeps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from networks import bench

STORED = Path(__file__).with_name("stored")
Row = dict[str, Any]


def converging(**changed: Any) -> Row:
    row = {"result": "converted", "relu": True, "family": "f", "converged": True}
    return row | {"ladder": [[32, 0.2], [128, 0.05]]} | changed


def refused(**changed: Any) -> Row:
    row = {"result": "refused", "relu": False, "family": "g", "must_refuse": "LRN"}
    return row | {"reasons": ["SNNC202 LRN", "SNNC202 LRN"]} | changed


def options(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    given = {"material": str(tmp_path), "networks": STORED, "steps": "8,32", "limit": 2}
    given |= {"seconds": 5.0, "timeout": 100.0, "jobs": 1, "rows": tmp_path / "rows.jsonl"}
    return argparse.Namespace(**(given | changed))


def test_convergence_is_shown_by_a_small_error_that_halves() -> None:
    assert bench.converged([0.3, 0.1, 0.05])
    assert bench.converged([9e-8, 9e-8]), "exact at every T, but for rounding"
    assert not bench.converged([0.05])
    assert not bench.converged([0.9, 0.3]), "falls, but is not small yet"
    assert not bench.converged([0.3, 0.05, 0.04]), "small, but stays"


def test_the_summary_counts_families_and_names_what_is_wrong() -> None:
    rows = {"a": converging(), "b": refused(), "c": converging(converged=False)}
    rows |= {"d": refused(relu=True), "e": converging(relu=False)}
    rows["x"] = {"result": "failed", "family": "f", "reasons": ["no end"]}
    assert [name for name, row in rows.items() if bench.right(row)] == ["a", "b"]
    text = bench.summary(rows)
    assert text.startswith("2 of 6 networks (33%) convert and converge, or are")
    assert "| f | 4 | 1 | 0 | 3 |" in text and "| g | 2 | 0 | 1 | 1 |" in text
    assert "| all | 6 | 1 | 1 | 4 |" in text
    assert "- `b` holds LRN: SNNC202 LRN (x2)" in text
    wrong = text.split("Neither:")[1]
    assert [name for name in rows if f"- `{name}`: " in wrong] == ["c", "d", "e", "x"]


def test_a_kept_row_is_taken_up_for_the_same_bytes_alone(tmp_path: Path) -> None:
    listed = bench.generated(STORED)
    entry, source = listed["gcn_ts17"], bench.digest_of_source()
    key = bench.digest_of("gcn_ts17", entry, source, options(tmp_path))
    assert key == bench.digest_of("gcn_ts17", entry, source, options(tmp_path))
    others = [
        bench.digest_of("gcn_ts17", entry, "another source", options(tmp_path)),
        bench.digest_of("gcn_ts17", entry, source, options(tmp_path, steps="8,64")),
        bench.digest_of("gcn_ts17", entry, source, options(tmp_path, limit=1)),
        bench.digest_of("gcn_ts17", listed["stgcn_ts17"], source, options(tmp_path)),
    ]
    assert len({key, *others}) == 5


def test_a_run_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = bench.generated(STORED)
    names = {name: listed[name] for name in ("gcn_ts17", "stgcn_ts17")}
    measured: list[str] = []

    def child(name: str, _: argparse.Namespace) -> Row:
        measured.append(name)
        if name == "stgcn_ts17" and len(measured) == 2:
            return {"result": "failed", "reasons": ["cut"]}
        return refused(source=bench.digest_of_source())

    monkeypatch.setattr(bench, "child", child)
    first = bench.all_rows(names, options(tmp_path))
    assert [row["result"] for row in first.values()] == ["refused", "failed"]
    kept = tmp_path / "rows.jsonl"
    kept.write_text(kept.read_text() + '\n{"key": "half of a li')
    second = bench.all_rows(names, options(tmp_path))
    assert measured == ["gcn_ts17", "stgcn_ts17", "stgcn_ts17"]
    assert [row["result"] for row in second.values()] == ["refused", "refused"]
    assert second["gcn_ts17"] == json.loads(kept.read_text().splitlines()[1])["row"]
    assert bench.all_rows(names, options(tmp_path)) == second and len(measured) == 3


def test_a_row_of_another_source_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "child", lambda name, options: refused(source="edited meanwhile"))
    names = {"gcn_ts17": bench.generated(STORED)["gcn_ts17"]}
    rows = bench.all_rows(names, options(tmp_path))
    assert rows["gcn_ts17"]["result"] == "failed" and not bench.right(rows["gcn_ts17"])
    assert not (tmp_path / "rows.jsonl").exists()
