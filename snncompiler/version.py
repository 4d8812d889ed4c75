"""The version, also written into every emitted file."""

__version__ = "0.1.0"
