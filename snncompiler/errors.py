"""The exceptions of the project: one small tree, an exit code each.

SnncError
├── Refused             1  the model or the data is refused; every finding is in `.findings`
├── UsageError          2  an option or an argument is wrong
├── EnvironmentMissing  3  a package, the native library or a device is missing
└── InternalError       4  a fault of the compiler itself; names the pass
"""

from __future__ import annotations

from collections.abc import Sequence

from snncompiler.findings import Finding


class SnncError(Exception):
    """Base of all errors that the project raises on purpose."""

    exit_code = 4

    def __init__(self, *findings: Finding) -> None:
        self.findings: Sequence[Finding] = findings
        super().__init__("\n".join(str(finding) for finding in findings))


class Refused(SnncError):
    """The model or the data is refused."""

    exit_code = 1


class UsageError(SnncError):
    """An option or an argument is wrong."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", code: str = "SNNC501") -> None:
        super().__init__(Finding(code, message, hint=hint))


class EnvironmentMissing(SnncError):
    """A package, the native library or a device is missing."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Finding("SNNC503", message, hint=hint))


class InternalError(SnncError):
    """A fault of the compiler itself."""

    exit_code = 4

    def __init__(self, message: str, hint: str = "please report it with the model") -> None:
        super().__init__(Finding("SNNC504", message, hint=hint))


def refuse(code: str, message: str, node: str = "", hint: str = "") -> Refused:
    """A refusal with a single finding."""
    return Refused(Finding(code, message, node=node, hint=hint))
