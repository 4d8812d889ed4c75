"""The generated pages are up to date, and every code that is raised is listed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from snncompiler.diagnostics import CODES

ROOT = Path(__file__).resolve().parent.parent


def test_generated_pages_are_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_codes_that_are_used_are_those_that_are_listed() -> None:
    sources = [*(ROOT / "snncompiler").glob("*.py"), *(ROOT / "passes").glob("*.py")]
    sources += (ROOT / "runtime").glob("*.py")
    assert len(sources) > 20
    used: set[str] = set()
    for source in sources:
        if source.name != "diagnostics.py":
            used |= set(re.findall(r"SNNC\d{3}", source.read_text(encoding="utf-8")))
    assert used == set(CODES)
