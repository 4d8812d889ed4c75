"""The wheel and the source archive: what is in them, and that an installed wheel works on its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snncompiler.runtime.build import find_cxx
from snncompiler.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
#: What `pyproject.toml` asks for to build with.
SETUPTOOLS = 77

#: Hooks of PEP 517, called as pip does.
BUILD = """
import sys
from setuptools import build_meta
_, out, *kinds = sys.argv
for kind in kinds:
    getattr(build_meta, f"build_{kind}")(out)
"""


def execute(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's Python settings, and where no CUDA compiler is found.

    nvcc would only make the library that the wheel carries bigger, and the build some times as long.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    folders = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(f for f in folders if not shutil.which("nvcc", path=f))
    kept |= {"CUDA_HOME": os.devnull, "NVCC": os.devnull}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(*command: object, cwd: Path | None = None) -> str:
    done = execute(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """A virtual environment without pip; its Python."""
    succeed(sys.executable, "-m", "venv", "--without-pip", folder)
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    assert found.exists()
    return found


@pytest.fixture(scope="module", autouse=True)
def no_compiler() -> Iterator[None]:
    """The archives are made where no compiler is found: a library would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        yield


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has a setuptools to build with; this one, if it does."""
    try:
        if int(importlib.metadata.version("setuptools").split(".")[0]) >= SETUPTOOLS:
            return Path(sys.executable)
    except importlib.metadata.PackageNotFoundError:
        pass
    found = environment(tmp_path_factory.mktemp("builder") / "venv")
    wanted = f"setuptools>={SETUPTOOLS}"
    done = execute(sys.executable, "-m", "pip", "--python", found, "install", "-q", wanted)
    if done.returncode:
        pytest.skip(f"{wanted} is neither installed nor to be had: {done.stderr.strip()[-300:]}")
    return found


def copy_of_tree(folder: Path) -> Path:
    """A copy of the working tree without what is built; building leaves nothing in the tree itself."""
    leave = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "__pycache__", "_native", "venv"
    )
    shutil.copytree(ROOT, folder, symlinks=True, ignore=leave)
    return folder


@pytest.fixture(scope="module")
def archives(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    folder = tmp_path_factory.mktemp("archives")
    tree = copy_of_tree(folder / "tree")
    succeed(python, "-c", BUILD, folder, "sdist", "wheel", cwd=tree)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    return set(names)


def expected_in_wheel() -> set[str]:
    """Every Python file of the package, and its data."""
    wanted = {"snncompiler/py.typed"}
    for place, package in (
        ("snncompiler", "snncompiler"),
        ("passes", "snncompiler/passes"),
        ("runtime", "snncompiler/runtime"),
        ("models", "snncompiler/models"),
    ):
        files = (ROOT / place).rglob("*.py")
        wanted |= {f"{package}/{path.relative_to(ROOT / place).as_posix()}" for path in files}
    for kind in ("*.onnx", "*.npz"):
        wanted |= {f"snncompiler/models/{path.name}" for path in (ROOT / "models").glob(kind)}
    return wanted


def test_wheel_holds_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    wheel, _ = archives
    names = names_in(wheel)
    info = f"snnc-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"snncompiler", info}
    wanted = expected_in_wheel()
    assert len(wanted) > 50
    assert len([name for name in wanted if name.endswith((".onnx", ".npz"))]) == 6
    assert wanted <= names, sorted(wanted - names)
    folders = {"/".join(name.split("/")[:2]) for name in names if name.startswith("snncompiler/")}
    assert {f"snncompiler/{name}" for name in ("passes", "runtime", "models")} <= folders
    assert not [name for name in names if "test" in name.rsplit("/", 1)[-1].split("_")[0]]
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.slow
def test_source_archive_builds_the_same_wheel(
    archives: tuple[Path, Path], python: Path, tmp_path: Path
) -> None:
    wheel, source = archives
    with tarfile.open(source) as archive:
        # Python 3.10 and 3.11 know filters from a patch release on.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safe)
    (tree,) = tmp_path.iterdir()
    out = tmp_path / "out"
    out.mkdir()
    succeed(python, "-c", BUILD, out, "wheel", cwd=tree)
    (again,) = out.glob("*.whl")
    assert names_in(again) == names_in(wheel)
    with zipfile.ZipFile(again) as new, zipfile.ZipFile(wheel) as old:
        compared = [name for name in names_in(wheel) if name.endswith((".py", ".onnx", ".npz"))]
        assert len(compared) > 50
        assert all(new.read(name) == old.read(name) for name in compared)


@pytest.mark.slow
def test_a_wheel_carries_the_library(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a compiler; it is found in the installed wheel, and computes."""
    monkeypatch.delenv("CXX")
    if find_cxx() is None:
        pytest.skip("no C++ compiler")
    tree = copy_of_tree(tmp_path / "tree")
    succeed(python, "-c", BUILD, tmp_path, "wheel", cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-none-any" not in wheel.name
    installed, _ = install(wheel, tmp_path)
    code = (
        "from snncompiler import compile, models, runtime\n"
        "import numpy as np\n"
        "session = runtime.create_session(compile(models.path('digits-cnn'), steps=4), native=True)\n"
        "session.run(None, {'input': np.ones((1, 1, 8, 8), np.float32)})\n"
        "print(runtime.library_path())"
    )
    assert "_native" in succeed(installed, "-c", code, cwd=tmp_path)


def install(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """An environment with the wheel, whose dependencies are those of this Python: its Python and where
    its packages are."""
    python = environment(folder / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    succeed(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    site = Path(
        succeed(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    # A line in a .pth file adds the folder, but not the .pth files in it: no editable installation.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python, site


def test_installed_wheel_works_alone(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment of its own, away from the tree."""
    wheel, _ = archives
    python, site = install(wheel, tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    where = succeed(
        python, "-c", "import snncompiler as s; print(s.__version__, s.__file__)", cwd=work
    )
    assert where.split() == [__version__, str(site / "snncompiler" / "__init__.py")]
    snnc = python.with_name("snnc")
    assert succeed(snnc, "--version", cwd=work) == f"snnc {__version__}\n"
    model = succeed(
        python, "-c", "from snncompiler import models; print(models.path('digits-cnn'))", cwd=work
    ).strip()
    assert Path(model).is_relative_to(site)
    assert "Rectifiers" in succeed(snnc, "check", model, cwd=work)
    succeed(snnc, "compile", model, "-o", "a.snn.onnx", "-T", "4", cwd=work)
    assert "digits-cnn.onnx" in succeed(snnc, "info", "a.snn.onnx", cwd=work)
    assert {path.name for path in work.iterdir()} == {"a.snn.onnx"}


def test_dependencies_are_small() -> None:
    """onnxruntime and onnxruntime-gpu exclude each other, so they are extras; torch is for training."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def packages(lines: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", line)[0].lower() for line in lines}

    base = packages(project["dependencies"])
    assert {"onnx", "numpy"} <= base
    assert not {name for name in base if name.startswith(("torch", "onnxruntime"))}
    extras = {name: packages(lines) for name, lines in project["optional-dependencies"].items()}
    assert "onnxruntime" in extras["cpu"] and "onnxruntime-gpu" not in extras["cpu"]
    assert "onnxruntime-gpu" in extras["gpu"] and "onnxruntime" not in extras["gpu"]
    assert "torch" in extras["models"]
    assert project["scripts"] == {"snnc": "snncompiler.cli.main:main"}


def test_importing_the_package_needs_no_base_package_that_is_not_declared() -> None:
    """Neither onnxruntime nor torch nor the test tools are imported by `import snncompiler`."""
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'torch', 'sklearn', 'pytest', 'PIL'): sys.modules[name] = None\n"
        "import snncompiler, snncompiler.cli.main\n"
    )
    succeed(sys.executable, "-c", code)


def test_errors_load_neither_onnx_nor_numpy_nor_rich() -> None:
    """A script that catches our errors, and `snnc --version`, do not wait for them."""
    code = "import sys, snncompiler.errors; print({'onnx', 'numpy', 'rich'} & set(sys.modules))"
    assert succeed(sys.executable, "-c", code).strip() == "set()"
