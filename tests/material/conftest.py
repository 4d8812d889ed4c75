"""Where the real networks and data lie.

SNNC_MATERIAL names the folder with `material.json`, `models/` and `sets/`, or the one above it; a
relative path starts at the repository, and the default is `../shared`.  Without it these tests are
skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_networks import Material

HERE = Path(__file__).resolve().parent
GIVEN = HERE.parents[1] / os.environ.get("SNNC_MATERIAL", "../shared")
ROOT = GIVEN if (GIVEN / "material.json").is_file() else GIVEN / "material"
THERE = (ROOT / "material.json").is_file()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.resolve().parents:
            item.add_marker(pytest.mark.material)
            if not THERE:
                reason = f"SNNC_MATERIAL: there is no material.json in {GIVEN}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def material() -> Material:
    return Material(ROOT)
