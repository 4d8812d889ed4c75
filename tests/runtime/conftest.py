"""The native library for the tests: built once, and again when its sources have changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from one_node import one_node

from snncompiler.errors import EnvironmentMissing
from snncompiler.runtime import build, create_session
from snncompiler.runtime.library import LIBRARY_VARIABLE, inspect_library


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


@pytest.fixture(scope="session")
def built_for_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with CUDA kernels; skips where CUDA does not run."""
    pytest.importorskip("onnxruntime")
    try:
        create_session(one_node("TimeSum"), device="cuda", native=False)
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    path = build.DEFAULT_OUT / build.LIBRARY_NAME
    current = path.is_file() and inspect_library(path)["sources"] == build.source_digest()
    if current and inspect_library(path)["cuda"]:
        return path
    if build.find_nvcc() is None:
        pytest.skip("no library with CUDA kernels, and no nvcc to build one")
    return build.build(Path(tmp_path_factory.mktemp("cuda")), cuda=True)


@pytest.fixture
def cuda_library(built_for_cuda: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sessions find that library."""
    monkeypatch.setenv(LIBRARY_VARIABLE, str(built_for_cuda))
    yield built_for_cuda
