"""The setup hook: builds the native library with the machine's C++ compiler (and nvcc, if any).

Everything else is in pyproject.toml.  Without a compiler the installation goes on: compiled networks
then run on the function bodies that they carry, and `snnc doctor` says so.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
PLACE = Path("snncompiler", "runtime", "_native")


def builder() -> ModuleType:
    """runtime/build.py, loaded by its path: the package's dependencies are not there yet."""
    spec = importlib.util.spec_from_file_location(
        "snnc_build", HERE / "snncompiler" / "runtime" / "build.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildWithLibrary(build_py):
    """Also builds the native library, into the package that is being built."""

    def run(self) -> None:
        super().run()
        native = builder()
        out = (HERE if self.editable_mode else Path(self.build_lib)) / PLACE
        # A library left by an earlier build must not pass for this one's.
        shutil.rmtree(out, ignore_errors=True)
        try:
            native.build(out)
        except native.BuildFailed as error:
            print(f"snnc: the native library was not built: {error}", file=sys.stderr)
            print("snnc: networks will run on the function bodies they carry", file=sys.stderr)


class WheelWithLibrary(bdist_wheel):
    """py3-none-<platform> with the library inside, py3-none-any without."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.bdist_dir) / PLACE
        self.root_is_pure = not any(built.glob("*snnc*"))
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelWithLibrary})
