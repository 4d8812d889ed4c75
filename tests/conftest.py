"""Settings of all tests: hypothesis is reproducible, leaves nothing behind; workers share the cores."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "snnc",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("snnc")

#: Every pass is looked after: what it leaves has to be a sound graph (`snncompiler.ir.check`).
os.environ.setdefault("SNNC_CHECK_PASSES", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker for every core: libraries that start a thread for every core would fight over them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden anew (make golden)"
    )
