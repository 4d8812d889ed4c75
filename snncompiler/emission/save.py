"""Every byte leaves through here: models, and atomic writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnx

from snncompiler.errors import UsageError, refuse
from snncompiler.network.load import MAX_PROTOBUF


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename.

    Raises UsageError where the folder does not exist or cannot be written; an existing file
    survives then, and nothing stays behind.
    """
    check_writable(path)
    folder = path.parent
    target = path.resolve() if path.is_symlink() else path
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=target.parent)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}", code="SNNC502") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", code="SNNC502") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: Path, sources: tuple[Path, ...] = ()) -> None:
    """Refuse an output path early: its folder is missing, it is no regular file, or it is an input."""
    try:
        problem = _unwritable(path, sources)
    except (OSError, RuntimeError) as error:
        # A name that is too long, a link that leads to itself.
        problem = f"{path} cannot be a file: {getattr(error, 'strerror', None) or error}"
    if problem:
        raise UsageError(problem, code="SNNC502")


def _unwritable(path: Path, sources: tuple[Path, ...]) -> str:
    """Why a file cannot be written, empty if it can."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    target = path.resolve() if path.is_symlink() else path
    if target.is_dir():
        return f"{path} is a folder"
    if target.exists() and not target.is_file():
        return f"{path} is not a regular file"
    if not os.access(target.parent, os.W_OK):
        return f"the folder {target.parent} cannot be written"
    if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
        return f"{path} is the input, which is never overwritten"
    return ""


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same for the same model.  Refused above protobuf's 2 GiB."""
    size = model.ByteSize()
    if size > MAX_PROTOBUF:
        raise refuse(
            "SNNC209", f"the result has {size:,} bytes, more than ONNX's 2 GiB in one file"
        )
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model atomically."""
    raw = serialize(model)
    write_atomically(path, lambda file: file.write(raw))
