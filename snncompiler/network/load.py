"""Every byte of a model enters here, and leaves through `emission/save.py`.  (Data: `data.py`.)"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor

from snncompiler.errors import Refused, UsageError, refuse
from snncompiler.findings import Finding, printable
from snncompiler.ir.graph import unique_name
from snncompiler.ir.pixels import REAL_INPUT, InputType

#: Protobuf cannot hold more in one message.
MAX_PROTOBUF = (1 << 31) - 1


@dataclass(frozen=True)
class Source:
    """A model as it was given: the proto with its external data loaded, its hash and its name.

    `sha256` is of the model with its data inside, however it came: as a file with or without external
    data, as bytes or as a ModelProto.  `file_sha256` is of a file's bytes and of its external data, by
    which versions before knew it; the same for most models without external data.  `pixels`: what its
    inputs are made of inside the model, which was put there (`network/pixels.py`).
    """

    model: onnx.ModelProto
    sha256: str
    name: str
    file_sha256: str = ""
    pixels: InputType = REAL_INPUT

    def is_known_as(self, sha256: str) -> bool:
        """Whether a compiled file or a calibration with this hash is of the model."""
        return sha256 in (self.sha256, self.file_sha256)


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Read a model from a path, from bytes or from a ModelProto, which is copied.

    Nodes of one name, which onnxruntime does not load, are told apart by numbers.
    Raises Refused where it is no ONNX model or its external data is unsafe or missing; UsageError
    where the path does not exist or is not a file.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        _refuse_external(copy)
        _check_names(copy, "the model")
        return _source(copy, copy.graph.name or "model")
    if isinstance(model, bytes):
        parsed = _parse(model, "the bytes")
        _refuse_external(parsed)
        return _source(parsed, "model", hashlib.sha256(model).hexdigest())
    path = Path(model)
    raw = read_file(path)
    proto = _parse(raw, str(path))
    digest = hashlib.sha256(raw)
    del raw
    _load_external_data(proto, path.parent, digest.update)
    return _source(proto, path.name, digest.hexdigest())


def _source(model: onnx.ModelProto, name: str, file_sha256: str = "") -> Source:
    sha256 = _identity(model)
    _name_nodes_apart(model)
    return Source(model, sha256, name, file_sha256)


def _identity(model: onnx.ModelProto) -> str:
    """The hash of a model with its data inside; of its parts where protobuf cannot hold the whole."""
    if model.ByteSize() <= MAX_PROTOBUF:
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256()
    held = [(tensor, tensor.raw_data) for tensor in _tensors(model) if len(tensor.raw_data) > 1024]
    for tensor, data in held:
        digest.update(data)
        tensor.ClearField("raw_data")
    digest.update(model.SerializeToString(deterministic=True))
    for tensor, data in held:
        tensor.raw_data = data
    return digest.hexdigest()


def _name_nodes_apart(model: onnx.ModelProto) -> None:
    """Number the nodes of one graph that have the same name; it says nothing of what they compute."""
    graphs = [model.graph]
    while graphs:
        nodes = graphs.pop().node
        taken = {node.name for node in nodes}
        seen: set[str] = set()
        for node in nodes:
            if node.name in seen:
                node.name = unique_name(node.name, taken)
            if node.name:
                seen.add(node.name)
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; UsageError says what is wrong with any other path."""
    try:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        if not path.is_file():
            raise UsageError(f"{path} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _parse(raw: bytes, where: str) -> onnx.ModelProto:
    size = f"{where} has {len(raw):,} bytes"
    looks = _looks_like(raw)
    if looks:
        kind, remedy = looks
        raise refuse("SNNC101", f"{size} and is {kind}", hint=remedy)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError:
        raise refuse(
            "SNNC101",
            f"{size} and is not an ONNX model, or is cut off",
            hint="check that the file was written and copied whole",
        ) from None
    _check_names(model, where)
    if not model.HasField("graph"):
        raise refuse("SNNC101", f"{size} and holds no graph", hint="is it really an ONNX model?")
    return model


def _check_names(model: onnx.ModelProto, where: str) -> None:
    """Refuse names that are no UTF-8 text: they could not be told to anyone."""
    try:
        good = all(isinstance(name, str) for name in _names(model))
    except UnicodeDecodeError:
        good = False
    if not good:
        raise refuse(
            "SNNC101", f"{where} has names that are not UTF-8 text", hint="the file is damaged"
        )


def _names(model: onnx.ModelProto) -> Iterator[str]:
    """Every name in the model, its subgraphs and functions, without recursion."""
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (entry.domain for entry in model.opset_import)
    for function in model.functions:
        yield from (function.domain, function.name, *function.input, *function.output)
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield graph.name
            yield from (tensor.name for tensor in graph.initializer)
            for entry in (*graph.input, *graph.output, *graph.value_info):
                yield entry.name
                yield from (dim.dim_param for dim in entry.type.tensor_type.shape.dim)
            nodes += graph.node
        for node in nodes:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield from (attribute.name, attribute.ref_attr_name, attribute.t.name)
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs
        nodes = []


def _looks_like(raw: bytes) -> tuple[str, str] | None:
    """What a file that is certainly no ONNX model is, and what to do."""
    head = raw[:512].lstrip()
    if not raw:
        return "empty", "export or copy the model again"
    if raw.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the model", "run: git lfs pull"
    if head[:1] == b"<" and (b"<html" in head.lower() or b"<!doctype" in head.lower()):
        return "an HTML page, not a model", "download the file itself, not the page about it"
    if raw.startswith(b"PK\x03\x04"):
        return (
            "a zip archive (PyTorch writes .pt and .pth so)",
            "export to ONNX, for example with torch.onnx.export",
        )
    if raw.startswith(b"\x89HDF"):
        return "an HDF5 file (Keras writes .h5 so)", "export to ONNX, for example with tf2onnx"
    if raw[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "export to ONNX, for example with tf2onnx"
    return None


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model, of its subgraphs and functions, without recursion."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs
        nodes = []


def _refuse_external(model: onnx.ModelProto) -> None:
    """A model that is no file has no folder from which its external data could come."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise refuse(
            "SNNC113",
            "the model's weights are external data, but it was not given as a file",
            hint="give the path, or load it with onnx.load, which brings the data in",
        )


def _load_external_data(
    model: onnx.ModelProto, folder: Path, digest: Callable[[bytes], None]
) -> None:
    findings: list[Finding] = []
    external = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        reason = _unsafe(tensor, folder)
        if reason:
            findings.append(
                Finding(
                    "SNNC113",
                    f"external data of tensor '{tensor.name}': {reason}",
                    hint="keep the data file beside the model, or save the model as one file",
                )
            )
    if findings:
        raise Refused(*findings)
    for tensor in external:
        load_external_data_for_tensor(tensor, str(folder))
        digest(tensor.raw_data)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _unsafe(tensor: onnx.TensorProto, folder: Path) -> str:
    """Why the external data of a tensor may not be read; empty if it may."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or location.startswith("*/_ORT_MEM_ADDR_"):
        return f"location '{printable(location)}' is not a file"
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts:
        return f"'{location}' lies outside the model's folder"
    path = folder / relative
    try:
        return _unsafe_file(path, location, entries, folder)
    except (ValueError, OSError) as error:
        return f"'{printable(location)[:200]}' cannot be a file: {error}"


def _unsafe_file(path: Path, location: str, entries: dict[str, str], folder: Path) -> str:
    if path.is_symlink() or folder.resolve() not in path.resolve().parents:
        return f"'{location}' is a link or leads out of the model's folder"
    if not path.exists():
        return f"'{location}' is missing"
    if not path.is_file():
        return f"'{location}' is not a regular file"
    status = path.stat()
    if status.st_nlink > 1:
        return f"'{location}' is a hard link, which may lead out of the model's folder"
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", status.st_size - offset))
    except ValueError:
        return "its offset or length is not a number"
    if offset < 0 or length < 0 or offset + length > status.st_size:
        return (
            f"bytes {offset:,} to {offset + length:,} are asked for, "
            f"'{location}' has {status.st_size:,}"
        )
    return ""
