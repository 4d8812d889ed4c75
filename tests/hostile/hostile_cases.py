"""The hostile inputs: what each one is, the command that meets it, and what the user gets."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from helpers import Array, parse, random
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[Path], object]

CHECK = "check net.onnx"
COMPILE = "compile net.onnx -o out.onnx"
LINEAR = "g (float[N,2] x) => (float[N,2] y) { h = MatMul (x, w)  y = Relu (h) }"
SHIFTED = """g (float[N,2] x) => (float[N,2] y)
    { c = Constant <value_float = 1.0> ()  h = Add (x, c)  y = Relu (h) }"""
CONV = "g (float[N,4,8,8] x) => (float[N,?,?,?] y) { h = Conv %s (x, w)  y = Relu (h) }"
W = np.arange(4, dtype=np.float32).reshape(2, 2)
#: An escape sequence, carriage return, bell, the one-byte CSI, and text that runs right to left.
NASTY = "a\x1b[31m\r\x07\x9b2J\u202eb"


@dataclass(frozen=True)
class Case:
    """One input and one command.  `codes`: of the errors, or of all findings where it succeeds."""

    row: int
    what: str
    make: Make
    code: int = 1
    codes: str = ""
    args: str = CHECK
    said: str = ""
    #: Files that the command may write.
    writes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    #: CPU seconds beyond those of an empty run.
    seconds: float = 20.0
    timeout: float = 30.0
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.row:02} {self.what}"


# --- models ---


def linear(**weights: Array) -> onnx.ModelProto:
    return parse(LINEAR, weights or {"w": W})


def network(text: str, weights: Mapping[str, Array] | None = None, **header: Any) -> Make:
    """Writes the model of a text."""
    return lambda folder: save(folder, parse(text, weights, **header))


def relu(body: str, **header: Any) -> Make:
    """Writes a network of one input and output around `body`, which makes y of x."""
    return network(f"g (float[N,2] x) => (float[N,2] y) {{ {body} }}", **header)


def conv(attributes: str, *shape: int, text: str = CONV) -> Make:
    return network(text % attributes, {"w": random(0, *(shape or (4, 4, 3, 3)))})


def edited(change: Callable[[onnx.ModelProto], object], text: str = "") -> Make:
    """Writes a changed linear model, or a changed model of a text."""

    def make(folder: Path) -> None:
        model = parse(text) if text else linear()
        change(model)
        save(folder, model)

    return make


def save(folder: Path, model: onnx.ModelProto) -> None:
    (folder / "net.onnx").write_bytes(model.SerializeToString())


def raw(content: bytes) -> Make:
    return lambda folder: (folder / "net.onnx").write_bytes(content)


def weight(**fields: Any) -> Make:
    """Writes the linear model with its weight changed."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, content in fields.items():
            if isinstance(content, list):
                tensor.ClearField(name)
                getattr(tensor, name).extend(content)
            elif content is None:
                tensor.ClearField(name)
            else:
                setattr(tensor, name, content)

    return edited(change)


def external(prepare: Make | None = None, **entries: object) -> Make:
    """Writes the linear model with its weight in `w.bin`, or wherever the entries say."""

    def make(folder: Path) -> None:
        model = linear()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in {"location": "w.bin", **entries}.items():
            tensor.external_data.add(key=key, value=str(entry))
        (folder / "w.bin").write_bytes(W.tobytes())
        (folder / "secret.bin").write_bytes(W.tobytes())
        if prepare:
            prepare(folder)
        save(folder, model)

    return make


def linked(folder: Path) -> None:
    """Replaces w.bin by a symbolic link."""
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("/etc/passwd")


def hard_linked(folder: Path) -> None:
    (folder / "w.bin").unlink()
    os.link(folder / "secret.bin", folder / "w.bin")


def folder_instead(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").mkdir()


def pipe_instead(folder: Path) -> None:
    (folder / "w.bin").unlink()
    os.mkfifo(folder / "w.bin")


def functions(*bodies: str, call: str = "f0") -> Make:
    header = f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,2] x) => (float[N,2] y) {{ y = local.{call} (x) }}"""
    spelled = [f'<domain: "local", opset_import: ["" : 17, "local" : 1]> {body}' for body in bodies]
    return lambda folder: save(folder, onnx.parser.parse_model("\n".join([header, *spelled])))


def chain_of_functions(count: int) -> Make:
    """Each function calls the next one, once: nothing grows but the depth."""
    bodies = [f"f{i} (a) => (b) {{ b = local.f{i + 1} (a) }}" for i in range(count)]
    return functions(*bodies, f"f{count} (a) => (b) {{ b = Relu (a) }}")


BILLION_LAUGHS = [
    *(
        f"f{i} (a) => (b) {{ h = local.f{i + 1} (a)  b = local.f{i + 1} (h) }}"
        for i in range(60)
    ),
    "f60 (a) => (b) { b = Relu (a) }",
]  # fmt: skip


def chain(count: int) -> Make:
    """A chain of convolutions, rectifiers, sums and identities."""

    def make(folder: Path) -> None:
        nodes = []
        for i in range(count):
            inputs = {0: [f"t{i}", "w"], 2: [f"t{i}", f"t{i}"]}.get(i % 4, [f"t{i}"])
            op = ("Conv", "Relu", "Add", "Identity")[i % 4]
            nodes.append(helper.make_node(op, inputs, [f"t{i + 1}"]))
        shape: list[str | int | None] = ["N", 1, 2, 2]
        graph = helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(f"t{count}", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.full((1, 1, 1, 1), 0.5, np.float32), "w")],
        )
        opsets = [helper.make_opsetid("", 17)]
        save(folder, helper.make_model(graph, opset_imports=opsets, ir_version=8))

    return make


def nested(depth: int) -> Make:
    """If within If within If, spelled in bytes: protobuf itself writes no more than 100 levels."""

    def part(number: int, content: bytes) -> bytes:
        size, encoded = len(content), b""
        while size > 127:
            size, encoded = size >> 7, encoded + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + encoded + bytes([size]) + content

    def make(folder: Path) -> None:
        leaf = helper.make_node("Relu", ["x"], ["y"]).SerializeToString()
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
        output_part = part(12, output.SerializeToString())
        graph = part(1, leaf) + part(2, b"leaf") + output_part
        names = part(1, b"c") + part(2, b"y") + part(4, b"If")
        for _ in range(depth):
            # AttributeProto: name = 1, g = 6, type = 20 (GRAPH is 5).
            branch = part(6, graph) + b"\xa0\x01\x05"
            graph = part(1, names + part(5, part(1, b"then_branch") + branch))
            graph += part(2, b"level") + output_part
        inputs = parse("g (float[N,2] x, bool c) => (float[N,2] y) { y = Relu (x) }")
        for entry in inputs.graph.input:
            graph += part(11, entry.SerializeToString())
        inputs.ClearField("graph")
        (folder / "net.onnx").write_bytes(inputs.SerializeToString() + part(7, graph))

    return make


def subgraph(operator: str) -> Make:
    body = "(float[N,2] v) => (float[N,2] u) { u = Relu (v) }"
    texts = {
        "If": """g (float[N,2] x, bool c) => (float[N,2] y) { [n] y = If (c) <
            then_branch = t () => (float[N,2] u) { u = Relu (x) },
            else_branch = e () => (float[N,2] v) { v = Neg (x) }> }""",
        "Loop": """g (float[N,2] x, bool c, int64 m) => (float[N,2] y) { [n] y = Loop (m, c, x) <
            body = b (int64 i, bool k, float[N,2] v) => (bool l, float[N,2] u)
            { l = Identity (k)  u = Relu (v) }> }""",
        "Scan": f"""g (float[N,2] x) => (float[N,2] y)
            {{ [n] y = Scan <num_scan_inputs = 1, body = b {body}> (x) }}""",
    }
    return network(texts[operator])


def batch_norm(attributes: str = "", variance: float = 1.0, outputs: str = "b") -> Make:
    one = np.ones(4, np.float32)
    text = f"""g (float[N,4] x) => (float[N,4] y)
        {{ {outputs} = BatchNormalization {attributes} (x, one, one, one, var)  y = Relu (b) }}"""
    return network(text, {"one": one, "var": np.full(4, variance, np.float32)})


def of_type(kind: int) -> Make:
    """Writes a network whose weight is of a type that cannot be converted."""
    size = 16 if kind == TensorProto.COMPLEX128 else 8 if kind == TensorProto.COMPLEX64 else 1
    size = 2 if kind == TensorProto.BFLOAT16 else size
    return weight(data_type=kind, raw_data=bytes(4 * size))


def nan_in_constant(folder: Path) -> None:
    model = linear()
    nan = numpy_helper.from_array(np.array([np.nan], np.float32))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=nan))
    save(folder, model)


def empty_bias(folder: Path) -> None:
    model = parse(CONV % "", {"w": random(0, 4, 4, 3, 3)})
    model.graph.node[0].input.append("")
    save(folder, model)


def reference(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ref_attr_name = "slope"


def set_size(model: onnx.ModelProto, size: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size


def with_sparse(folder: Path) -> None:
    model = linear()
    dense = model.graph.initializer.pop()
    values = numpy_helper.from_array(W.reshape(-1)[1:], dense.name)
    indices = numpy_helper.from_array(np.arange(1, 4))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))
    save(folder, model)


def strings(folder: Path) -> None:
    model = linear()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.array([["a", "b"], ["c", "d"]], object), "w")
    )
    save(folder, model)


# --- names ---


def _named(place: str) -> onnx.ModelProto:
    """A network that is refused or warned about, with a nasty name in `place`."""
    text = "g (float[N,2] x) => (float[N,2] y) { h = MatMul (x, w)  s = Sigmoid (r)  r = Relu (h)"
    model = parse(text + "  y = Relu (s) }", {"w": W})
    graph = model.graph
    if place == "node":
        graph.node[2].name = NASTY
    elif place == "tensor":
        graph.node[1].input[0] = graph.node[2].output[0] = NASTY
    elif place == "input":
        graph.input[0].name = graph.node[0].input[0] = NASTY
        graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64
    elif place == "output":
        graph.output[0].name = NASTY
    elif place == "weight":
        graph.initializer[0].name = graph.node[0].input[1] = NASTY
        graph.initializer[0].raw_data = b"short"
    elif place == "operator":
        graph.node[2].op_type = NASTY
    elif place == "domain":
        graph.node[2].domain = NASTY
    elif place == "opset domain":
        model.opset_import.add(domain=NASTY, version=1 << 40)
    elif place == "attribute":
        graph.node[2].attribute.append(helper.make_attribute(NASTY, 1))
    elif place == "string attribute":
        graph.node[0].CopyFrom(
            helper.make_node("Conv", ["x", "w"], ["h"], auto_pad=NASTY, name="conv")
        )
    elif place == "dimension":
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = NASTY
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    elif place == "graph":
        graph.name = NASTY
        graph.node[1].input[0] = "nothing"
    elif place == "function":
        caller = helper.make_node(NASTY, ["a"], ["b"], domain="local")
        opsets = [helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", NASTY, ["a"], ["b"], [caller], opsets))
        model.opset_import.add(domain="local", version=1)
        graph.node.append(helper.make_node(NASTY, ["y"], ["z"], domain="local"))
    elif place == "location":
        tensor = graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"../{NASTY}")
    elif place == "version":
        model.metadata_props.add(key="snnc.version", value=NASTY)
    elif place == "rectifier":
        del graph.node[1]
        graph.node[1].name, graph.node[1].op_type = NASTY, "Relu"
        graph.node[1].output[0] = "s"
    else:
        raise KeyError(place)
    return model


#: Where the name is -> the code of the refusal; none where the network is converted.
PLACES = {
    "node": "SNNC202",
    "tensor": "SNNC202",
    "input": "SNNC109",
    "output": "SNNC103",
    "weight": "SNNC107",
    "operator": "SNNC106",
    "domain": "SNNC106",
    "opset domain": "SNNC102",
    "attribute": "SNNC110",
    "string attribute": "SNNC110",
    "dimension": "SNNC110",
    "graph": "SNNC103",
    "function": "SNNC112",
    "location": "SNNC113",
    "version": "SNNC114",
    "rectifier": "",
}


def _name_cases() -> list[Case]:
    cases = []
    for place, codes in PLACES.items():
        for how in ("", " --json"):

            def make(folder: Path, place: str = place) -> None:
                save(folder, _named(place))

            cases.append(Case(19, place + how, make, 1 if codes else 0, codes, CHECK + how))
    return cases


def _latin_dimension(folder: Path) -> None:
    model = parse("g (float[N,A,2] x) => (float[N,A,2] y) { y = Relu (x) }")
    content = model.SerializeToString().replace(b"\x12\x01A", b"\x12\x01\xff")
    (folder / "net.onnx").write_bytes(content)


def _latin(folder: Path) -> None:
    content = linear().SerializeToString().replace(b"MatMul", b"Mat\xff\xfel")
    (folder / "net.onnx").write_bytes(content)


# --- data ---


class Payload:
    """What a pickle may do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


X = np.random.default_rng(0).random((4, 2), np.float32)


def data(**arrays: Array) -> Make:
    def make(folder: Path) -> None:
        save(folder, linear())
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]

    return make


def other_model(folder: Path) -> None:
    data(x=X)(folder)
    save(folder, linear(w=W + 1))


def npz_of(member: bytes, cut: int | None = None) -> Make:
    """An archive with an array of these bytes, cut off where asked."""

    def make(folder: Path) -> None:
        save(folder, linear())
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", member)
        (folder / "data.npz").write_bytes(content.getvalue()[:cut])

    return make


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def huge_png(folder: Path) -> None:
    """An image of 60 000 x 60 000 pixels, as its header says."""

    def part(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b""))
    save(folder, parse((CONV % "").replace("N,4", "N,3"), {"w": random(0, 4, 3, 3, 3)}))
    (folder / "images").mkdir()
    (folder / "images" / "0_a.png").write_bytes(content + part(b"IEND", b""))


CALIBRATED = f"{COMPILE} --calibration data.npz"


# --- places to write to ---


def beside(prepare: Make) -> Make:
    def make(folder: Path) -> None:
        save(folder, linear())
        prepare(folder)

    return make


def old_output(folder: Path) -> None:
    (folder / "out.onnx").write_bytes(b"an old file")


# --- libraries ---


def library(content: bytes) -> Make:
    """A compiled network (by the test), data, and a file named as the native library."""

    def make(folder: Path) -> None:
        np.savez(folder / "data.npz", x=X)
        (folder / "lib.so").write_bytes(content)

    return make


def elf(machine: int, kind: int = 3) -> bytes:
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", kind, machine, 1)
    return head + bytes(16) + struct.pack("<Q", 64) + bytes(4000)


LIBRARY = {"SNNC_LIBRARY": "lib.so"}
RUN = "run net.snn.onnx --input data.npz"

_HUGE = f"s = Constant <value_ints = [{1 << 20}, {1 << 20}]> ()"

CASES: list[Case] = [
    # 1: not a model
    Case(1, "empty file", raw(b""), codes="SNNC101", said="0 bytes"),
    Case(1, "one byte", raw(b"\x08"), codes="SNNC101", said="1 bytes"),
    Case(1, "cut in half", raw(linear().SerializeToString()[:60]), codes="SNNC101", said="cut off"),
    Case(1, "cut by one byte", raw(linear().SerializeToString()[:-1]), codes="SNNC101"),
    Case(1, "random bytes", raw(np.random.default_rng(0).bytes(4096)), codes="SNNC101"),
    Case(1, "zeros", raw(bytes(4096)), codes="SNNC101"),
    # 2: something else
    Case(2, "HTML page", raw(b"<!DOCTYPE html><html></html>"), codes="SNNC101", said="HTML"),
    Case(2, "git-lfs pointer", raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
         codes="SNNC101", said="git lfs pull"),
    Case(2, "zip or pth", raw(b"PK\x03\x04" + bytes(99)), codes="SNNC101", said="zip"),
    Case(2, "old pth, a pickle", raw(pickle.dumps({"w": Payload()})), codes="SNNC101"),
    Case(2, "HDF5 of Keras", raw(b"\x89HDF\r\n\x1a\n" + bytes(99)), codes="SNNC101", said="HDF5"),
    Case(2, "TensorFlow Lite", raw(bytes(4) + b"TFL3" + bytes(99)), codes="SNNC101"),
    Case(2, "text", raw(b"this is text, no model\n" * 9), codes="SNNC101"),
    # 3: versions
    Case(3, "no graph", edited(lambda m: m.ClearField("graph")), codes="SNNC101"),
    Case(3, "no opset import", edited(lambda m: m.ClearField("opset_import")), codes="SNNC102"),
    Case(3, "opset 999", network(LINEAR, {"w": W}, opset=999), codes="SNNC102", said="7 to"),
    Case(3, "opset 6", network(LINEAR, {"w": W}, opset=6), codes="SNNC102", said="opset 6"),
    Case(3, "ir_version 999", network(LINEAR, {"w": W}, ir=999), codes="SNNC102", said="3 to"),
    Case(3, "opset imported twice", edited(
        lambda m: m.opset_import.append(helper.make_opsetid("", 1 << 40))), codes="SNNC102"),
    Case(3, "output of no type", edited(
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 0)), codes="SNNC110"),
    Case(3, "output of type 65536", edited(
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 1 << 16)),
        codes="SNNC110"),
    Case(3, "value of type 65536", edited(lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("h", 1 << 16, None))), codes="SNNC110"),
    Case(3, "output without a type", edited(lambda m: m.graph.output[0].ClearField("type")),
         codes="SNNC110"),
    Case(3, "attribute of a function in the graph", edited(reference, SHIFTED), codes="SNNC110"),
    Case(8, "negative dimension of the input", edited(
        lambda m: set_size(m, -5), "g (float[N,2] x) => (float[N,?] y) { y = Relu (x) }"),
        codes="SNNC107"),
    Case(8, "overflow times zero", weight(dims=[3, (1 << 63) - 1, 0], raw_data=b""),
         codes="SNNC107"),
    Case(8, "segmented data", edited(lambda m: m.graph.initializer[0].segment.SetInParent()),
         codes="SNNC107"),
    Case(3, "ir_version 0", network(LINEAR, {"w": W}, ir=0), codes="SNNC102"),
    # 4: names
    Case(4, "cycle", relu("[one] a = Add (x, b)  [two] b = Relu (a)  y = Relu (b)"),
         codes="SNNC103", said="'one'"),
    Case(4, "node that reads itself", relu("a = Add (x, a)  y = Relu (a)"), codes="SNNC103"),
    Case(4, "name defined twice", relu("[one] y = Relu (x)  [two] y = Neg (x)"),
         codes="SNNC103", said="'two'"),
    Case(4, "input defined again", relu("x = Relu (x)  y = Relu (x)"), codes="SNNC103"),
    Case(4, "dangling input", relu("y = Add (x, nowhere)"), codes="SNNC103", said="'nowhere'"),
    Case(4, "undefined output", relu("z = Relu (x)"), codes="SNNC103", said="'y'"),
    # 5: order
    Case(5, "nodes not sorted", relu("y = Relu (a)  a = Neg (x)"), 0, "SNNC104"),
    # 6: duplicate initializer
    Case(6, "duplicate initializer", edited(
        lambda m: m.graph.initializer.append(m.graph.initializer[0])), codes="SNNC105", said="'w'"),
    # 7: operators
    Case(7, "unknown operator", relu("[n] y = Rleu (x)"), codes="SNNC106", said="Rleu 'n'"),
    Case(7, "custom domain", relu("a = acme.Spike (x)  y = Relu (a)", imports=', "acme" : 1'),
         codes="SNNC106", said="acme.Spike"),
    Case(7, "domain not imported", relu("y = acme.Relu (x)"), codes="SNNC106"),
    Case(7, "com.microsoft", relu("y = com.microsoft.Gelu (x)", imports=', "com.microsoft" : 1'),
         codes="SNNC106"),
    # 8: data that does not fit
    Case(8, "raw data too short", weight(raw_data=bytes(15)), codes="SNNC107", said="15 bytes"),
    Case(8, "raw data too long", weight(raw_data=bytes(17)), codes="SNNC107", said="16"),
    Case(8, "no data", weight(raw_data=None), codes="SNNC107", said="0 values"),
    Case(8, "negative dimension", weight(dims=[-2, -2]), codes="SNNC107", said="negative"),
    Case(8, "shape that overflows", weight(dims=[1 << 33, 1 << 33]), codes="SNNC107"),
    Case(8, "2^40 elements", weight(dims=[1 << 20, 1 << 20]), codes="SNNC107", seconds=1),
    Case(8, "2^40 elements in the input",
         network(f"g (float[N,{1 << 40}] x) => (float[N,{1 << 40}] y) {{ y = Relu (x) }}"),
         codes="SNNC209", seconds=2),
    Case(8, "2^40 elements in a result", network(
        f"g (float[N,1] x) => (float[N,{1 << 40}] y) {{ s = Constant <value_ints = [1,{1 << 40}]> ()"
        " r = Relu (x)  y = Expand (r, s) }"), codes="SNNC209", seconds=2),
    Case(8, "2^40 elements in a constant", relu(
        _HUGE + " k = ConstantOfShape (s)  m = ReduceMax <keepdims = 0> (k)"
        " h = Add (x, m)  y = Relu (h)"), codes="SNNC209", seconds=2),
    Case(8, "2^40 elements in a range", relu(
        f"a = Constant <value_int = 0> ()  b = Constant <value_int = {1 << 40}> ()"
        " d = Constant <value_int = 1> ()  k = Range (a, b, d)  c = Cast <to = 1> (k)"
        " m = ReduceMax <keepdims = 0> (c)  h = Add (x, m)  y = Relu (h)"),
        codes="SNNC209", seconds=2),
    Case(8, "pads of 2^40", conv(f"<pads = [{1 << 20}, {1 << 20}, 0, 0]>"), codes="SNNC209"),
    # 9: not finite
    Case(9, "NaN", network(LINEAR, {"w": np.where(W == 2, np.nan, W).astype(np.float32)}),
         codes="SNNC108", said="[1, 0]"),
    Case(9, "Inf", network(LINEAR, {"w": np.where(W == 1, np.inf, W).astype(np.float32)}),
         codes="SNNC108", said="[0, 1]"),
    Case(9, "NaN in a Constant", nan_in_constant, codes="SNNC108", said="[0]"),
    Case(9, "double too large for float", network(
        "g (double[N,2] x) => (double[N,2] y) { h = MatMul (x, w)  y = Relu (h) }",
        {"w": np.full((2, 2), 1e300)}), codes="SNNC109",
        said="does not fit float32"),
    # 10: types
    Case(10, "float16 is converted", network(
        LINEAR.replace("float[", "float16["), {"w": W.astype(np.float16)}), 0),
    Case(10, "double is converted", network(
        LINEAR.replace("float[", "double["), {"w": W.astype(np.float64)}), 0),
    Case(10, "int8 weights", network(
        "g (float[N,2] x) => (float[N,2] y) { d = DequantizeLinear (w, s)  h = MatMul (x, d)"
        " y = Relu (h) }", {"w": W.astype(np.int8), "s": np.array(0.5, np.float32)}), 0),
    Case(10, "bfloat16", of_type(TensorProto.BFLOAT16), codes="SNNC109", said="BFLOAT16"),
    Case(10, "float8", of_type(TensorProto.FLOAT8E4M3FN), codes="SNNC109", said="FLOAT8E4M3FN"),
    Case(10, "complex", of_type(TensorProto.COMPLEX64), codes="SNNC109", said="COMPLEX64"),
    Case(10, "type 999", of_type(999), codes="SNNC107", said="999"),
    Case(10, "sparse", with_sparse, codes="SNNC109", said="sparse"),
    Case(10, "strings", strings, codes="SNNC110"),
    # 11: batch normalization
    Case(11, "training mode", batch_norm("<training_mode = 1>"), codes="SNNC110"),
    Case(11, "variance below -eps", batch_norm(variance=-1.0), codes="SNNC207"),
    Case(11, "three outputs", batch_norm("<training_mode = 1>", outputs="b, m, v"),
         codes="SNNC207"),
    Case(11, "shared by two readers", network(
        "g (float[N,4] x) => (float[N,4] y) { b = BatchNormalization (x, o, o, o, o)"
        " r = Relu (b)  n = Neg (b)  q = Relu (n)  y = Add (r, q) }",
        {"o": np.ones(4, np.float32)}), 0),
    Case(11, "parameters are inputs", network(
        "g (float[N,4] x, float[4] s) => (float[N,4] y)"
        " { b = BatchNormalization (x, s, o, o, o)  y = Relu (b) }",
        {"o": np.ones(4, np.float32)}), codes="SNNC205 SNNC207"),
    Case(11, "Conv with an empty bias", empty_bias, 0),
    # 12: convolutions
    Case(12, "group does not divide", conv("<group = 3>", 4, 1, 3, 3), codes="SNNC110"),
    Case(12, "group 0", conv("<group = 0>"), codes="SNNC110", said="group is 0"),
    Case(12, "stride 0", conv("<strides = [0, 1]>"), codes="SNNC110", said="strides"),
    Case(12, "wrong rank", conv("", 4, 4, 3), codes="SNNC110"),
    Case(12, "wrong attribute type", conv("<strides = 1.5>"), codes="SNNC110"),
    Case(12, "kernel larger than the image", conv("", 4, 4, 99, 99), codes="SNNC110"),
    Case(12, "dilation of 2^62", conv(f"<dilations = [{1 << 62}, {1 << 62}]>"), codes="SNNC110"),
    # 13: declared outputs
    Case(13, "declared shape", network(LINEAR.replace("2] y", "3] y"), {"w": W}), codes="SNNC110"),
    Case(13, "declared type", network(LINEAR.replace("float[N,2] y", "int64[N,2] y"), {"w": W}),
         codes="SNNC110"),
    Case(13, "declared rank", network(LINEAR.replace("N,2] y", "N] y"), {"w": W}), codes="SNNC110"),
    # 14: control flow
    *(Case(14, op, subgraph(op), codes="SNNC111", said=f"{op} 'n'") for op in ("If", "Loop", "Scan")),
    # 15: functions
    Case(15, "recursive", functions("f0 (a) => (b) { b = local.f0 (a) }"), codes="SNNC112"),
    Case(15, "mutually recursive", functions(
        "f0 (a) => (b) { b = local.f1 (a) }", "f1 (a) => (b) { b = local.f0 (a) }"),
        codes="SNNC112"),
    Case(15, "billion laughs", functions(*BILLION_LAUGHS), codes="SNNC112", seconds=1),
    Case(15, "billion laughs, no ReLU", functions(
        *(body.replace("Relu", "Neg") for body in BILLION_LAUGHS)), codes="SNNC112", seconds=1),
    Case(15, "function without its body", functions("f1 (a) => (b) { b = Relu (a) }"),
         codes="SNNC106"),
    # 16: size
    Case(16, "chain of 1 000 nodes", chain(1000), 0),
    Case(16, "chain of 4 000 nodes", chain(4000), 0, slow=True),
    Case(16, "chain of 20 000 nodes", chain(20_000), 0, "SNNC304", COMPILE, writes=("out.onnx",),
         seconds=90, timeout=240, slow=True),
    Case(16, "functions 90 deep", chain_of_functions(90), 0),
    Case(16, "functions 5 000 deep", chain_of_functions(5000), codes="SNNC112"),
    Case(16, "If 25 deep", nested(25), codes="SNNC111"),
    Case(16, "If 100 deep", nested(100), codes="SNNC101"),
    # 17: external data
    Case(17, "parent folder", external(location="../w.bin"), codes="SNNC113", said="outside"),
    Case(17, "parent within", external(location="a/../../w.bin"), codes="SNNC113", said="outside"),
    Case(17, "absolute", external(location="/etc/passwd"), codes="SNNC113", said="outside"),
    Case(17, "a device", external(location="/dev/zero"), codes="SNNC113"),
    Case(17, "symbolic link", external(linked), codes="SNNC113", said="link"),
    Case(17, "hard link", external(hard_linked), codes="SNNC113", said="hard link"),
    Case(17, "missing", external(location="none.bin"), codes="SNNC113", said="missing"),
    Case(17, "short", external(length=17), codes="SNNC113", said="16"),
    Case(17, "shorter than the shape", external(length=12), codes="SNNC107", said="12 bytes"),
    Case(17, "folder", external(folder_instead), codes="SNNC113", said="regular file"),
    Case(17, "FIFO", external(pipe_instead), codes="SNNC113", said="regular file"),
    Case(17, "negative offset", external(offset=-1, length=16), codes="SNNC113"),
    Case(17, "9 PiB", external(length=9 << 50), codes="SNNC113", seconds=1),
    Case(17, "9 PiB from a negative offset", external(offset=16 - (9 << 50), length=9 << 50),
         codes="SNNC113", seconds=1),
    Case(17, "memory marker", external(location="*/_ORT_MEM_ADDR_/*", offset=140_000_000_000),
         codes="SNNC113", said="not a file"),
    Case(17, "no location", external(location=""), codes="SNNC113"),
    Case(17, "the model is a FIFO", lambda f: os.mkfifo(f / "net.onnx"), 2, "SNNC501"),
    Case(17, "the model is a folder", lambda f: (f / "net.onnx").mkdir(), 2, "SNNC501"),
    # 18: predicted sizes
    Case(18, "steps over the node budget", network(LINEAR, {"w": W}), 1, "SNNC209",
         f"{COMPILE} --unroll steps -T 10000000", seconds=2),
    Case(18, "a result over 2 GiB", relu(
        "s = Constant <value_ints = [2, 400000000]> ()  k = ConstantOfShape (s)"
        " h = MatMul (x, k)  r = Relu (h)  m = ReduceMean <axes = [1]> (r)"
        " y = Add (m, x)"), 1, "SNNC209", COMPILE, seconds=2),
    # 19: names
    *_name_cases(),
    Case(19, "file name", beside(lambda f: None), 2, "SNNC501", f"check {NASTY.replace(' ', '')}"),
    Case(19, "file name --json", beside(lambda f: None), 2, "SNNC501", f"check {NASTY} --json"),
    Case(19, "invalid UTF-8", _latin, codes="SNNC101"),
    Case(19, "invalid UTF-8 in a dimension", _latin_dimension, codes="SNNC101"),
    Case(19, "invalid UTF-8 --json", _latin, codes="SNNC101", args=CHECK + " --json"),
    # 20: odd shapes
    Case(20, "no ReLU", network(LINEAR.replace("Relu", "Neg"), {"w": W}), codes="SNNC201"),
    Case(20, "no nodes", edited(lambda m: m.graph.ClearField("node")), codes="SNNC103"),
    Case(20, "no nodes, output is input", network("g (float[N,2] x) => (float[N,2] x) { }"),
         codes="SNNC201"),
    Case(20, "no inputs", network("g () => (float[2] y) { c = Constant <value_floats = [1.0, 2.0]> ()"
         " y = Relu (c) }"), codes="SNNC201"),
    Case(20, "zero-size dimension", network(
        "g (float[N,0] x) => (float[N,0] y) { y = Relu (x) }"), 0),
    Case(20, "two inputs, two outputs", network(
        "g (float[N,2] x, float[N,2] z) => (float[N,2] y, float[N,2] v)"
        " { a = Add (x, z)  y = Relu (a)  s = Sub (x, z)  v = Relu (s) }"), 0),
    Case(20, "dynamic height and width", conv("", text=CONV.replace("8,8", "H,W")), 0),
    Case(20, "static batch", conv("", text=CONV.replace("float[N,4", "float[1,4")), 0),
    # 21: operators
    Case(21, "every offender", relu(
        "a = Relu (x)  b = Sigmoid (a)  c = Relu (b)  d = Tanh (c)  e = Relu (d)  f = Erf (e)"
        " y = Relu (f)"), codes="SNNC202", said="Erf"),
    Case(21, "LayerNormalization", network(
        "g (float[N,2] x) => (float[N,2] y) { a = Relu (x)  b = LayerNormalization (a, o)"
        " y = Relu (b) }", {"o": np.ones(2, np.float32)}), codes="SNNC202"),
    Case(21, "product of two live values", relu(
        "a = Relu (x)  b = MatMul (a, c)  c = Transpose (a)  y = Relu (b)"), codes="SNNC202"),
    Case(21, "Softmax at the end", relu("a = Relu (x)  y = Softmax (a)"), 0),
    Case(21, "ReLU6, LeakyRelu and PRelu", network(
        "g (float[N,2] x) => (float[N,2] y) { lo = Constant <value_float = 0.0> ()"
        " hi = Constant <value_float = 6.0> ()  a = Clip (x, lo, hi)  b = LeakyRelu (a)"
        " y = PRelu (b, s) }", {"s": np.full(2, 0.1, np.float32)}), 0),
    # 22: data
    Case(22, "wrong shape", data(x=X[:, :1]), 1, "SNNC302", CALIBRATED, said="[4, 1]"),
    Case(22, "wrong type", data(x=np.array(["a", "b"])), 1, "SNNC302", CALIBRATED),
    Case(22, "complex", data(x=X * 1j), 1, "SNNC302", CALIBRATED),
    Case(22, "wrong name", data(pictures=X), 1, "SNNC302", CALIBRATED, said="pictures"),
    Case(22, "no samples", data(x=X[:0]), 1, "SNNC303", CALIBRATED),
    Case(22, "no arrays", data(), 1, "SNNC302", CALIBRATED),
    Case(22, "NaN", data(x=np.where(X[1, 1] == X, np.nan, X)), 1, "SNNC303", CALIBRATED,
         said="[1, 1]"),
    Case(22, "pickled objects", data(x=np.array([Payload()], object)), 1, "SNNC301", CALIBRATED),
    Case(22, "a pickle", beside(
        lambda f: (f / "data.npz").write_bytes(pickle.dumps(Payload()))), 1, "SNNC301", CALIBRATED),
    Case(22, "cut off", npz_of(npy_header("(4, 2)") + X.tobytes(), 60), 1, "SNNC301", CALIBRATED),
    Case(22, "9 PiB as the header says", npz_of(npy_header(f"({9 << 48}, 2)")), 1, "SNNC301",
         CALIBRATED, seconds=1),
    Case(22, "negative shape", npz_of(npy_header("(-4, 2)") + X.tobytes()), 1, "SNNC301",
         CALIBRATED),
    Case(22, "header that is a call", npz_of(npy_header("__import__('os').getcwd()")), 1, "SNNC301",
         CALIBRATED),
    Case(22, "one constant sample", data(x=np.ones((4, 2), np.float32)), 0, "SNNC303", CALIBRATED,
         writes=("out.onnx",)),
    Case(22, "layer that never fires", data(x=-X), 0, "SNNC305", CALIBRATED, writes=("out.onnx",)),
    Case(22, "image that explodes", huge_png, 1, "SNNC301", f"{COMPILE} --calibration images"),
    Case(22, "empty folder", beside(lambda f: (f / "images").mkdir()), 1, "SNNC303",
         f"{COMPILE} --calibration images"),
    Case(22, "a FIFO", beside(lambda f: os.mkfifo(f / "data.npz")), 2, "SNNC301", CALIBRATED),
    # 23: options
    *(Case(23, option, beside(old_output), 2, "SNNC501", f"{COMPILE} {option}") for option in (
        "-T 0", "-T -1", "-T 1000000000", f"-T {10**30}", "--percentile 0", "--percentile 100.1",
        "--percentile nan", "--alpha 0", "--alpha inf", "--initial 1", "--chunk 0", "--seed -1",
        "--samples -1", "--scale nan", "--emit cuda-graph")),
    # 24: outputs
    Case(24, "output is the input", beside(lambda f: None), 2, "SNNC502",
         "compile net.onnx -o net.onnx"),
    Case(24, "output is a link to the input", beside(
        lambda f: (f / "out.onnx").symlink_to("net.onnx")), 2, "SNNC502", COMPILE),
    Case(24, "output is a hard link to the input", beside(
        lambda f: os.link(f / "net.onnx", f / "out.onnx")), 2, "SNNC502", COMPILE),
    Case(24, "output is a folder", beside(lambda f: (f / "out.onnx").mkdir()), 2, "SNNC502",
         COMPILE),
    Case(24, "output is a FIFO", beside(lambda f: os.mkfifo(f / "out.onnx")), 2, "SNNC502",
         COMPILE),
    Case(24, "output is a device", beside(lambda f: None), 2, "SNNC502",
         "compile net.onnx -o /dev/full"),
    Case(24, "output is a link to itself", beside(
        lambda f: (f / "out.onnx").symlink_to("out.onnx")), 2, "SNNC502", COMPILE),
    Case(24, "input is a link to itself", lambda f: (f / "net.onnx").symlink_to("net.onnx"), 2,
         "SNNC501"),
    Case(24, "output folder is missing", beside(lambda f: None), 2, "SNNC502",
         "compile net.onnx -o nowhere/out.onnx"),
    Case(24, "output folder cannot be written", beside(lambda f: None), 2, "SNNC502",
         "compile net.onnx -o /proc/out.onnx"),
    Case(24, "output name too long", beside(lambda f: None), 2, "SNNC502",
         f"compile net.onnx -o {'o' * 300}.onnx"),
    Case(24, "input name too long", beside(lambda f: None), 2, "SNNC501",
         f"check {'i' * 300}.onnx"),
    Case(24, "data name too long", beside(lambda f: None), 2, "SNNC301",
         f"{COMPILE} --calibration {'i' * 300}.npz"),
    Case(24, "output is the data", data(x=X), 2, "SNNC502",
         "compile net.onnx -o data.npz --calibration data.npz"),
    Case(24, "the disk is full", beside(old_output), 2, "SNNC502", COMPILE,
         limits={"RLIMIT_FSIZE": 4096}),
    # 25: compiled again (net.snn.onnx is written by the test)
    Case(25, "check of a compiled file", beside(lambda f: None), 1, "SNNC114",
         "check net.snn.onnx", said="already compiled by snnc"),
    Case(25, "compile of a compiled file", beside(lambda f: None), 1, "SNNC114",
         "compile net.snn.onnx -o out.onnx", said="already compiled by snnc"),
    # 26: another model
    Case(26, "verify with another model", network(LINEAR, {"w": W + 1}), 1, "SNNC402",
         "verify net.onnx net.snn.onnx"),
    Case(26, "eval with another model", other_model, 1,
         "SNNC402", "eval net.onnx net.snn.onnx --data data.npz"),
    # 27: the native library
    Case(27, "missing", library(b""), 3, "SNNC503", RUN, environment={"SNNC_LIBRARY": "none.so"}),
    Case(27, "empty", library(b""), 3, "SNNC503", RUN, environment=LIBRARY),
    Case(27, "corrupt", library(os.urandom(4096)), 3, "SNNC503", RUN, environment=LIBRARY),
    Case(27, "cut off", library(elf(62)[:60]), 3, "SNNC503", RUN, environment=LIBRARY),
    Case(27, "for another machine", library(elf(243)), 3, "SNNC503", RUN, environment=LIBRARY,
         said="another machine"),
    Case(27, "no shared object", library(elf(62, kind=2)), 3, "SNNC503", RUN, environment=LIBRARY),
    Case(27, "garbage within", library(elf(62)), 3, "SNNC503", RUN, environment=LIBRARY),
    Case(27, "a folder", library(b""), 3, "SNNC503", RUN, environment={"SNNC_LIBRARY": "."}),
    Case(27, "doctor tells", library(elf(243)), 0, "", "doctor", environment=LIBRARY,
         said="another machine"),
]  # fmt: skip
