"""What every target gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snncompiler.findings import Finding


@dataclass(frozen=True)
class Exported:
    """An export: its files by name, figures of it by what they are, and what is to be said of it."""

    files: Mapping[str, bytes]
    figures: Mapping[str, int]
    findings: tuple[Finding, ...] = ()
