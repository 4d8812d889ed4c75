"""The native library for the tests: built once, and again when its sources have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from snncompiler.runtime import build


@pytest.fixture(scope="session")
def library() -> Path:
    """The path of an up-to-date native library; skips where there is no C++ compiler."""
    path = build.DEFAULT_OUT / build.LIBRARY_NAME
    info = build.build_info(path) if path.is_file() else None
    if info is not None and info.get("sources") == build.source_digest():
        return path
    if build.find_cxx() is None:
        pytest.skip("no C++ compiler: the native library cannot be built")
    return build.build(cuda=False)
