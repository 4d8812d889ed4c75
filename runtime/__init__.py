"""Running compiled networks: sessions, the native library, the numpy reference of every operator."""

from snncompiler.runtime.doctor import doctor
from snncompiler.runtime.library import library_path, register
from snncompiler.runtime.session import create_session, import_onnxruntime

__all__ = ["create_session", "doctor", "import_onnxruntime", "library_path", "register"]
