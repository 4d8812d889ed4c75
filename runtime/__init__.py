"""Running compiled networks: sessions, streams, the native library, the numpy reference."""

from typing import TYPE_CHECKING, Any

from snncompiler.runtime.doctor import doctor
from snncompiler.runtime.library import library_path, register
from snncompiler.runtime.session import create_session, import_onnxruntime

if TYPE_CHECKING:
    from snncompiler.runtime.stream import Stream

__all__ = ["Stream", "create_session", "doctor", "import_onnxruntime", "library_path", "register"]


def __getattr__(name: str) -> Any:
    """`Stream` is imported when it is asked for: it reads compiled files, and so needs the compiler,
    which itself needs sessions from here."""
    if name == "Stream":
        from snncompiler.runtime.stream import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
