"""Memory of an evaluation does not depend on the number of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_memory_is_flat_whatever_the_number_of_images() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.data_size", "--images", "1000,8000", "--size", "64"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    few, many = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (few["images"], many["images"]) == (1000, 8000)
    # 7000 images more are 344 MB as they are fed.  Names, labels and classes of so many take 2 MiB;
    # the allocator's own variation between two runs is some 10 MiB.
    assert many["peak_mib"] - few["peak_mib"] < 40
