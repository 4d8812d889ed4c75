"""Running compiled networks: sessions, streams, the native library, the numpy reference."""

from snncompiler.runtime.doctor import doctor
from snncompiler.runtime.library import library_path, register
from snncompiler.runtime.session import create_session, import_onnxruntime
from snncompiler.runtime.stream import Stream

__all__ = ["Stream", "create_session", "doctor", "import_onnxruntime", "library_path", "register"]
