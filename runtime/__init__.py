"""Running compiled networks: sessions, and the numpy reference of every operator."""

from snncompiler.runtime.session import create_session, import_onnxruntime

__all__ = ["create_session", "import_onnxruntime"]
