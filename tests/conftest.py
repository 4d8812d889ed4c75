"""Settings of all tests: hypothesis is reproducible and leaves nothing behind; one thread a session."""

from __future__ import annotations

import os

import onnxruntime
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

# Sessions have one thread unless a test asks for more: two spin while they wait for each other, and
# there is a worker for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class OneThread(onnxruntime.SessionOptions):
    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


onnxruntime.SessionOptions = OneThread


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/emission/golden anew (make golden)"
    )
