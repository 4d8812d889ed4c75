"""The real networks of the zoo: from the folder SNNC_MATERIAL, or the tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import bench


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder with `material.json`."""
    found: Path = bench.material_root()
    if not (found / "material.json").is_file():
        pytest.skip(f"SNNC_MATERIAL: there is no material.json in {found}")
    return found
