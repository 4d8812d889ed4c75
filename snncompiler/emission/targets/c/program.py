"""The nodes of a compiled network as statements in C."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from snncompiler.emission.compiled import CompiledFile
from snncompiler.emission.targets.c.kernels import function
from snncompiler.emission.targets.trial import Trial
from snncompiler.errors import Refused
from snncompiler.findings import Finding, describe, printable
from snncompiler.ir import dialect

Array = NDArray[Any]

#: The types of C for the types of ONNX that are left; whole numbers have types of their own.
KINDS = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.int64): "int64_t",
    np.dtype(np.int32): "int32_t",
    np.dtype(np.uint8): "uint8_t",
    np.dtype(np.int8): "int8_t",
    np.dtype(np.bool_): "uint8_t",
}
BYTES = {
    "uint8_t": 1,
    "int8_t": 1,
    "int16_t": 2,
    "int32_t": 4,
    "int64_t": 8,
    "float": 4,
    "double": 8,
}
_WHOLE = ("uint8_t", "int8_t", "int16_t", "int32_t")
#: A potential and what is added to it may not leave `int32_t`.
_LARGEST = 2**31 - 1

#: What two tensors are made into one by.
_BINARY = {
    "Add": "{} + {}",
    "Sub": "{} - {}",
    "Mul": "{} * {}",
    "Div": "{} / {}",
    "Max": "{0} > {1} ? {0} : {1}",
    "Min": "{0} < {1} ? {0} : {1}",
    "Greater": "{} > {}",
    "GreaterOrEqual": "{} >= {}",
    "Less": "{} < {}",
    "Equal": "{} == {}",
}
_COMPARES = ("Greater", "GreaterOrEqual", "Less", "Equal")
#: What leaves every value where it is in memory.
_SAME_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")


_AXES = "has {} spatial axes; one and two are written"
#: Behind the last sums: the larger of two inputs is the larger output.
_KEEP_ORDER = ("Softmax", "LogSoftmax", "Sigmoid")


@dataclass(eq=False)
class _Memory:
    """Where values are in C: `text` points to the first one."""

    kind: str
    text: str = ""
    #: The number of the last statement that reads or writes them, in their function.
    last: int = -1


@dataclass(frozen=True, eq=False)
class _Var:
    """A tensor in C.  Several may be the same memory, seen with other shapes."""

    memory: _Memory
    shape: tuple[int, ...]
    value: Array | None = None

    @property
    def kind(self) -> str:
        return self.memory.kind

    @property
    def text(self) -> str:
        return self.memory.text

    @property
    def size(self) -> int:
        return prod(self.shape)


def _var_of(kind: str, shape: tuple[int, ...], text: str = "", value: Array | None = None) -> _Var:
    return _Var(_Memory(kind, text), shape, value)


@dataclass
class _Function:
    """One function of the export: its nodes' statements, and the buffers that they write to."""

    statements: list[Callable[[], list[str]]] = field(default_factory=list)
    #: What the statement with this number makes, in buffers.
    made: list[list[_Var]] = field(default_factory=list)


class Program:
    """A network on its way to C: what its functions, its constants and its memory are."""

    def __init__(
        self, compiled: CompiledFile, name: str, samples: Sequence[Mapping[str, Array]]
    ) -> None:
        self.compiled, self.name, self.samples = compiled, name, samples
        self.graph = compiled.model.graph
        self.trial = Trial(compiled)
        self.seen = self.trial.run(samples[0])
        self.constants = {e.name: numpy_helper.to_array(e) for e in self.graph.initializer}
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.outputs = [self._scores(name) for name in compiled.outputs]
        self.vars: dict[str, _Var] = {}
        self.kernels: dict[str, str] = {}
        self.data: dict[tuple[str, str], str] = {}
        self.windows: dict[str, str] = {}
        self.data_bytes = 0
        self.parameters: list[str] = []
        self.members: list[str] = []
        self.state_bytes = 0
        self.starts: list[str] = []
        self.layers: list[str] = []
        self.functions = {phase: _Function() for phase in ("begin", "step", "answer", "run")}
        self.buffers: dict[str, int] = {}

    def _scores(self, name: str) -> str:
        """An output; where its last operators keep the order of the classes, what stands before them.

        Their exponentials are computed by machines in ways of their own.
        """
        makers = {output: node for node in self.graph.node for output in node.output}
        while name in makers and makers[name].op_type in _KEEP_ORDER:
            node = makers[name]
            text = f"{describe(node.op_type, node.name)} is left out: the output is what it reads"
            self.notes.append(Finding("SNNC405", text, severity="note", node=node.name))
            name = node.input[0]
        return name

    @property
    def streams(self) -> bool:
        """Whether it runs step by step; else a window at once."""
        return bool(self.compiled.states)

    def translate(self) -> tuple[dict[str, list[str]], list[tuple[str, int]]]:
        """The statements of every function, and the type and size of every output.

        Raises Refused with all that C is not written for.
        """
        phases = self._phases()
        nodes = [node for node in self.graph.node if phases.get(node.output[0])]
        last = "answer" if self.streams else "run"
        readers: dict[str, set[str]] = {name: {last} for name in self.outputs}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, set()).add(phases[node.output[0]])
        self._inputs(readers)
        for node in nodes:
            self._translate(node, phases[node.output[0]], readers)
        if self.findings:
            raise Refused(*self.findings)
        outputs = [self._output(index, name, last) for index, name in enumerate(self.outputs)]
        return {phase: self._body(made) for phase, made in self.functions.items()}, outputs

    # --- what is computed when ---

    def _phases(self) -> dict[str, str]:
        """The function in which each tensor is made; none for constants and for what nobody needs."""
        depends: dict[str, set[str]] = {name: set() for name in self.constants}
        depends |= {entry.name: {"input"} for entry in self.compiled.inputs}
        depends |= {name: {"time"} for name in self.compiled.states}
        for node in self.graph.node:
            found: set[str] = set().union(*(depends.get(name, set()) for name in node.input))
            depends |= {name: found for name in node.output}
        makers = {name: node for node in self.graph.node for name in node.output}
        after_step = set(self.compiled.states.values())
        of_states = _ancestors(after_step, makers)
        wanted = _ancestors({*self.outputs, *after_step}, makers)
        phases: dict[str, str] = {}
        for node in self.graph.node:
            for name in node.output:
                if not depends[name]:
                    self.constants[name] = self.seen.get(name, np.zeros(0))
                elif node.output[0] not in wanted and name not in wanted:
                    continue
                elif not self.compiled.states:
                    phases[node.output[0]] = "run"
                elif depends[name] == {"input"}:
                    phases[node.output[0]] = "begin"
                else:
                    step = any(out in of_states for out in node.output)
                    phases[node.output[0]] = "step" if step else "answer"
        return phases

    def _inputs(self, readers: Mapping[str, set[str]]) -> None:
        """The inputs; one that a step reads by itself is kept."""
        for index, entry in enumerate(self.compiled.inputs):
            shape = self.samples[0][entry.name].shape
            given = _var_of(KINDS[entry.dtype], shape, f"input_{index}")
            self.parameters.append(f"const {given.kind} *{given.text}")
            self.vars[entry.name] = given
            if readers.get(entry.name, set()) & {"step", "answer"}:
                kept = self.vars[entry.name] = _var_of(given.kind, shape)
                self._keep(kept, entry.name)
                self._loop("begin", "{}", kept, given)

    def _output(self, index: int, name: str, phase: str) -> tuple[str, int]:
        """Copies an output to where the caller wants it; its type and size."""
        var = self._var(name)
        kind = KINDS[self.seen[name].dtype]
        self._loop(phase, f"({kind}){{}}", _var_of(kind, var.shape, f"output_{index}"), var)
        return kind, var.size

    def _keep(self, var: _Var, name: str) -> None:
        """The tensor is a member of the struct, as another function reads it."""
        member = f"kept_{len(self.members)}"
        var.memory.text = f"s->{member}"
        self._member(member, var.kind, var.size, name)

    def _member(self, member: str, kind: str, size: int, what: str) -> None:
        self.members.append(f"    {kind} {member}[{size}]; /* {comment(what)} */")
        self.state_bytes += BYTES[kind] * size

    # --- nodes ---

    def _translate(self, node: onnx.NodeProto, phase: str, readers: Mapping[str, set[str]]) -> None:
        own = node.domain == dialect.DOMAIN
        writer = getattr(self, f"_write_{node.op_type.lower()}", None) if own else None
        if not own:
            if node.op_type in _BINARY:
                writer = self._write_binary
            elif node.op_type in _SAME_VALUES:
                writer = self._write_alias
            else:
                writer = getattr(self, f"_write_onnx_{node.op_type.lower()}", None)
        if writer is None:
            self._refuse(node, "has no form in C")
            self._forget(node)
            return
        try:
            writer(node, phase)
        except _NoForm as error:
            self._refuse(node, str(error))
            self._forget(node)
            return
        for name in node.output:
            var = self.vars.get(name)
            if var and not var.text and readers.get(name, set()) - {phase}:
                self._keep(var, name)

    def _refuse(self, node: onnx.NodeProto, why: str) -> None:
        text = f"{describe(node.op_type, node.name)} {why}"
        hint = "docs/how-to/export.md lists what the C target takes"
        self.findings.append(Finding("SNNC405", text, node=node.name, hint=hint))

    def _forget(self, node: onnx.NodeProto) -> None:
        """What a refused node would have made, so that the others are looked at as well."""
        for name in node.output:
            if name in self.seen:
                self.vars.setdefault(name, _var_of("int32_t", self.seen[name].shape, "0"))

    def _var(self, name: str, kind: str | None = None) -> _Var:
        """The tensor of this name; a constant as one of `kind`, where it holds its values."""
        if name in self.vars:
            return self.vars[name]
        value = self.constants[name]
        if kind in _WHOLE and not _is_whole(value):
            kind = None
        return self._constant_var(value, kind or KINDS[value.dtype], name)

    def _value(self, node: onnx.NodeProto, place: int) -> Array:
        """A constant input."""
        name = node.input[place]
        if name not in self.constants:
            raise _NoForm(f"has no constant as its input '{name}'")
        return np.asarray(self.constants[name])

    def _make(self, node: onnx.NodeProto, phase: str, kind: str, place: int = 0) -> _Var:
        """A new tensor for an output."""
        name = node.output[place]
        var = _var_of(kind, self.seen[name].shape)
        self.vars[name] = var
        return var

    def _emit(
        self,
        phase: str,
        lines: Callable[[], list[str]],
        reads: Sequence[_Var],
        made: Sequence[_Var],
    ) -> None:
        function = self.functions[phase]
        function.statements.append(lines)
        function.made.append(list(made))
        for var in (*reads, *made):
            var.memory.last = len(function.statements) - 1

    def _write_alias(self, node: onnx.NodeProto, phase: str) -> None:
        self._alias(node, self._var(node.input[0]), phase)

    def _alias(self, node: onnx.NodeProto, var: _Var, phase: str) -> None:
        """The output is the input, seen with another shape; what the caller gives is copied."""
        if var.text.startswith("input_"):
            copied = self._make(node, phase, var.kind)
            self._loop(phase, "{}", copied, _Var(var.memory, copied.shape))
            return
        self.vars[node.output[0]] = _Var(var.memory, self.seen[node.output[0]].shape)

    def _write_onnx_round(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._var(node.input[0])
        if x.kind in (*_WHOLE, "int64_t"):
            self._alias(node, x, phase)
            return
        # A whole number from here on; where it is only made wider, nothing asks for an integer.
        widened = all(
            reader.op_type == "Cast" for reader in self.graph.node if node.output[0] in reader.input
        )
        kind = "int32_t" if x.kind == "float" and not widened else x.kind
        if kind == "int32_t" and np.abs(self.seen[node.output[0]]).max(initial=0) > _LARGEST:
            raise _NoForm("rounds to numbers that int32_t does not hold")
        y = self._make(node, phase, kind)
        call = "rintf" if x.kind == "float" else "rint"
        self._loop(phase, f"({kind}){call}({{}})", y, x)

    def _write_onnx_cast(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._var(node.input[0])
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(_attributes(node)["to"]))
        kind = KINDS.get(dtype)
        if kind is None:
            raise _NoForm(f"casts to {dtype}")
        if x.kind in _WHOLE and kind == "float":
            self._alias(node, x, phase)
        else:
            self._loop(phase, f"({kind}){{}}", self._make(node, phase, kind), x)

    def _write_binary(self, node: onnx.NodeProto, phase: str) -> None:
        if len(node.input) != 2:
            raise _NoForm(f"has {len(node.input)} inputs")
        known = [self.vars.get(name) for name in node.input]
        exact = all(var is None or var.kind in _WHOLE for var in known)
        wanted = "int32_t" if exact and node.op_type != "Div" else None
        a, b = (self._var(name, wanted) for name in node.input)
        dtype = self.seen[node.output[0]].dtype
        kind = KINDS[dtype]
        inner = KINDS[np.dtype(np.result_type(*(self._dtype(name) for name in node.input)))]
        if a.kind in _WHOLE and b.kind in _WHOLE and node.op_type != "Div":
            kind = inner = "int32_t"
        if node.op_type in _COMPARES:
            kind = "uint8_t"
        y = self._make(node, phase, kind)
        operands = [f"(({inner}){{{place}}})" for place in (0, 1)]
        expression = _BINARY[node.op_type]
        text = expression.format(*operands)
        self._loop(phase, f"({kind})({text})", y, a, b)

    def _dtype(self, name: str) -> np.dtype[Any]:
        array = self.constants.get(name, self.seen.get(name))
        if array is None:
            array = self.samples[0][name]
        return array.dtype

    def _loop(self, phase: str, expression: str, y: _Var, *inputs: _Var) -> None:
        """y[i] = expression of the inputs, which are broadcast to the shape of y."""

        def lines() -> list[str]:
            sizes, strides = _collapsed(y.shape, [x.shape for x in inputs])
            letters = "ijklmn"[: len(sizes)]
            at = [f"{x.text}[{_sum(letters, row)}]" for x, row in zip(inputs, strides, strict=True)]
            loops = " ".join(
                f"for (int {letter} = 0; {letter} < {size}; {letter}++)"
                for letter, size in zip(letters, sizes, strict=True)
            )
            whole = _sum(letters, [prod(sizes[place + 1 :]) for place in range(len(sizes))])
            return [f"{loops} {y.text}[{whole}] = {expression.format(*at)};".strip()]

        self._emit(phase, lines, inputs, [y])

    def _write_onnx_conv(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._reads_whole(node)
        weight = self._value(node, 1)
        if weight.ndim not in (3, 4):
            raise _NoForm(_AXES.format(weight.ndim - 2))
        attributes = _attributes(node)
        w = self._constant_var(weight, _least(weight), node.input[1])
        bias = self._optional(node, 2)
        y = self._make(node, phase, "int32_t")
        shape = self._window(x, y, attributes, weight.shape[2:])
        call = self._kernel("conv", X=x.kind, Y="int32_t", W=w.kind, B="int32_t")
        images = x.shape[0]
        self._emit(
            phase,
            lambda: [f"{call}({x.text}, {y.text}, {w.text}, {bias}, &{shape}, {images});"],
            [x],
            [y],
        )

    def _write_onnx_gemm(self, node: onnx.NodeProto, phase: str) -> None:
        attributes = _attributes(node)
        if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
            raise _NoForm("has factors alpha or beta")
        if attributes.get("transA", 0):
            raise _NoForm("transposes its input")
        weight = self._value(node, 1)
        self._dense(node, phase, weight.T if attributes.get("transB", 0) else weight)

    def _write_onnx_matmul(self, node: onnx.NodeProto, phase: str) -> None:
        self._dense(node, phase, self._value(node, 1))

    def _dense(self, node: onnx.NodeProto, phase: str, weight: Array) -> None:
        x = self._var(node.input[0])
        if weight.ndim != 2 or not _is_whole(weight):
            raise _NoForm("has weights that are no matrix of whole numbers")
        if x.kind not in (*_WHOLE, "double"):
            raise _NoForm("multiplies real numbers, whose sums depend on their order")
        w = self._constant_var(np.ascontiguousarray(weight), _least(weight), node.input[1])
        kind = "double" if x.kind == "double" else "int32_t"
        bias = self._optional(node, 2, kind)
        y = self._make(node, phase, kind)
        call = self._kernel("dense", X=x.kind, Y=kind, W=w.kind, B=kind)
        sizes = f"{weight.shape[0]}, {weight.shape[1]}, {x.size // weight.shape[0]}"
        self._emit(
            phase, lambda: [f"{call}({x.text}, {y.text}, {w.text}, {bias}, {sizes});"], [x], [y]
        )

    def _write_onnx_averagepool(self, node: onnx.NodeProto, phase: str) -> None:
        attributes = self._pools(node)
        if set(attributes.get("dilations", [1])) != {1}:
            raise _NoForm("has dilated windows")
        self._average(node, phase, attributes, attributes["kernel_shape"])

    def _write_onnx_maxpool(self, node: onnx.NodeProto, phase: str) -> None:
        attributes = self._pools(node)
        if len(node.output) > 1:
            raise _NoForm("tells the places of the largest values")
        x = self._var(node.input[0])
        y = self._make(node, phase, x.kind)
        shape = self._window(x, y, attributes, attributes["kernel_shape"])
        call = self._kernel("largest", X=x.kind)
        images = x.shape[0]
        self._emit(phase, lambda: [f"{call}({x.text}, {y.text}, &{shape}, {images});"], [x], [y])

    def _pools(self, node: onnx.NodeProto) -> dict[str, Any]:
        """The attributes of a pooling.  What lies outside of the input takes no part in it."""
        attributes = _attributes(node)
        if attributes.get("ceil_mode", 0) and attributes.get("count_include_pad", 0):
            raise _NoForm("averages windows that reach beyond the padding, and counts it")
        if len(attributes["kernel_shape"]) not in (1, 2):
            raise _NoForm(_AXES.format(len(attributes["kernel_shape"])))
        return attributes

    def _write_onnx_globalaveragepool(self, node: onnx.NodeProto, phase: str) -> None:
        self._average(node, phase, {}, self._var(node.input[0]).shape[2:])

    def _average(
        self, node: onnx.NodeProto, phase: str, attributes: Mapping[str, Any], kernel: Sequence[int]
    ) -> None:
        x = self._reads_whole(node)
        if len(kernel) not in (1, 2):
            raise _NoForm(_AXES.format(len(kernel)))
        y = self._make(node, phase, "float")
        shape = self._window(x, y, attributes, kernel)
        call = self._kernel("average", X=x.kind, Y="float")
        images = x.shape[0]
        self._emit(phase, lambda: [f"{call}({x.text}, {y.text}, &{shape}, {images});"], [x], [y])

    def _write_onnx_transpose(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._var(node.input[0])
        order = _attributes(node).get("perm", list(reversed(range(len(x.shape)))))
        steps = _strides(x.shape)
        self._view(node, phase, x, 0, [steps[axis] for axis in order])

    def _write_onnx_slice(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._var(node.input[0])
        starts, ends = self._value(node, 1), self._value(node, 2)
        given = len(node.input)
        axes = self._value(node, 3) if given > 3 and node.input[3] else np.arange(len(starts))
        steps = self._value(node, 4) if given > 4 and node.input[4] else np.ones_like(starts)
        strides, offset = _strides(x.shape), 0
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            first = range(x.shape[axis])[int(start) : int(end) : int(step)].start
            offset += first * strides[axis]
            strides[axis] *= int(step)
        self._view(node, phase, x, offset, strides)

    def _view(
        self, node: onnx.NodeProto, phase: str, x: _Var, offset: int, strides: Sequence[int]
    ) -> None:
        """A copy of values that lie `strides` apart."""
        y = self._make(node, phase, x.kind)

        def lines() -> list[str]:
            letters = "ijklmn"[: len(y.shape)]
            loops = " ".join(
                f"for (int {letter} = 0; {letter} < {size}; {letter}++)"
                for letter, size in zip(letters, y.shape, strict=True)
            )
            to, source = _sum(letters, _strides(y.shape)), _sum(letters, strides)
            return [f"{loops} {y.text}[{to}] = {x.text}[{offset} + {source}];"]

        self._emit(phase, lines, [x], [y])

    def _write_onnx_concat(self, node: onnx.NodeProto, phase: str) -> None:
        parts = [self._var(name, "int32_t") for name in node.input]
        axis = _attributes(node)["axis"]
        kinds = {part.kind for part in parts}
        y = self._make(node, phase, kinds.pop() if len(kinds) == 1 else "int32_t")
        if any(kind not in _WHOLE for kind in kinds):
            raise _NoForm("joins whole numbers and real ones")
        axis %= len(y.shape)
        outer, row = prod(y.shape[:axis]), prod(y.shape[axis:])

        def lines() -> list[str]:
            done, found = 0, []
            for part in parts:
                size = prod(part.shape[axis:])
                found.append(
                    f"for (int i = 0; i < {outer}; i++) for (int j = 0; j < {size}; j++) "
                    f"{y.text}[i * {row} + {done} + j] = {part.text}[i * {size} + j];"
                )
                done += size
            return found

        self._emit(phase, lines, parts, [y])

    def _write_onnx_pad(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._var(node.input[0])
        attributes = _attributes(node)
        pads = self._value(node, 1)
        filler = self._value(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(())
        if attributes.get("mode", b"constant") != b"constant" or filler.any() or pads.min() < 0:
            raise _NoForm("pads with something else than zeros")
        if len(node.input) > 3 and node.input[3]:
            raise _NoForm("pads axes that it names")
        y = self._make(node, phase, x.kind)

        def lines() -> list[str]:
            letters = "ijklmn"[: len(x.shape)]
            loops = " ".join(
                f"for (int {letter} = 0; {letter} < {size}; {letter}++)"
                for letter, size in zip(letters, x.shape, strict=True)
            )
            strides = _strides(y.shape)
            offset = sum(int(pad) * s for pad, s in zip(pads, strides, strict=False))
            return [
                f"for (int i = 0; i < {y.size}; i++) {y.text}[i] = 0;",
                f"{loops} {y.text}[{offset} + {_sum(letters, strides)}] = "
                f"{x.text}[{_sum(letters, _strides(x.shape))}];",
            ]

        self._emit(phase, lines, [x], [y])

    def _write_onnx_gather(self, node: onnx.NodeProto, phase: str) -> None:
        table = self._value(node, 0)
        if table.ndim != 1:
            raise _NoForm("looks up something else than single numbers")
        place, x = self._var(node.input[1]), self._constant_var(table, None, node.input[0])
        y = self._make(node, phase, x.kind)
        self._emit(
            phase,
            lambda: [
                f"for (int i = 0; i < {y.size}; i++) {y.text}[i] = {x.text}[{place.text}[i]];"
            ],
            [place],
            [y],
        )

    def _write_onnx_range(self, node: onnx.NodeProto, phase: str) -> None:
        if self.seen[node.output[0]].size != 1:
            raise _NoForm("counts more than one step")
        self._alias(node, self._var(node.input[0]), phase)

    # --- our operators ---

    def _write_timesteps(self, node: onnx.NodeProto, phase: str) -> None:
        """Which step it is: a member of the state counts, and every function looks at it."""
        start, one, end = node.output[:3]
        self.vars[start] = _var_of("int64_t", (), "(&start)")
        self.vars[end] = _var_of("int64_t", (), "(&end)")
        self.constants[one] = self.seen[one]

    def _write_drive(self, node: onnx.NodeProto, phase: str) -> None:
        x, time, drive = self._var(node.input[0]), self._var(node.input[2]), self._value(node, 1)
        if not _is_whole(self.seen[node.output[0]]):
            raise _NoForm("drives a current that is no whole number")
        d, last = self._constant_var(drive, "float", node.input[1]), drive.size - 1
        y = self._make(node, phase, "int32_t")
        now = f"{time.text}[0]"

        def lines() -> list[str]:
            factor = f"{d.text}[{now} < {last} ? {now} : {last}]"
            value = f"(int32_t)((float){x.text}[i] * {factor})"
            return [f"for (int i = 0; i < {y.size}; i++) {y.text}[i] = {value};"]

        self._emit(phase, lines, [x], [y])

    def _write_rmpneuron(self, node: onnx.NodeProto, phase: str) -> None:
        self._fire(node, phase)

    def _write_scheduledrmpneuron(self, node: onnx.NodeProto, phase: str) -> None:
        schedule = _without_repeats(self._value(node, 3))
        rows = len(schedule)
        threshold = self._value(node, 1)
        charges = np.broadcast_to(
            schedule, (rows, *np.broadcast_shapes(threshold.shape, schedule.shape[1:]))
        )
        if not charges.any():
            self._fire(node, phase)
            return
        size = self.seen[node.output[0]].shape
        channels, inner = _per_channel(charges.shape[1:], size)
        if (channels, inner) != _per_channel(threshold.shape, size):
            raise _NoForm("has a schedule of another shape than its threshold")
        b = self._constant_var(charges, _least(charges), node.input[3])
        now, last = f"{self._var(node.input[4]).text}[0]", rows - 1
        row = f" + ({now} < {last} ? {now} : {last}) * {channels}" if last else ""
        self._fire(node, phase, b.text + row, b.kind)

    def _fire(
        self, node: onnx.NodeProto, phase: str, charge: str = "NULL", kind: str = "int32_t"
    ) -> None:
        """A neuron with soft reset, to which `charge` adds a number for every channel."""
        x = self._reads_whole(node)
        v = self._state(node, 2, 1, "int32_t")
        threshold = self._value(node, 1)
        theta = self._constant_var(threshold, "int32_t", node.input[1])
        spikes = self._make(node, phase, "uint8_t")
        channels, inner = _per_channel(threshold.shape, spikes.shape)
        call = self._kernel("neuron", X=x.kind, V="int32_t", W="int32_t", B=kind)
        sizes = f"{spikes.size}, {channels}, {inner}"
        told = self._tell(node)
        self._emit(
            phase,
            lambda: [
                f"{call}({x.text}, {spikes.text}, {v.text}, {theta.text}, {charge}, {sizes});",
                f"SNNC_ON_SPIKES({told}, {spikes.text}, {spikes.size});",
            ],
            [x],
            [spikes],
        )

    def _write_layeredrmpneuron(self, node: onnx.NodeProto, phase: str) -> None:
        x = self._reads_whole(node)
        attributes = _attributes(node)
        threshold, start = self._value(node, 1), self._var(node.input[2], "int32_t")
        steps, radix = int(self._value(node, 3)), attributes["radix"]
        if start.kind != "int32_t" or threshold.max() * 2.0 ** (radix * (steps - 1)) > _LARGEST:
            raise _NoForm("has potentials that int32_t does not hold")
        theta = self._constant_var(threshold, "int32_t", node.input[1])
        spikes = self._make(node, phase, "uint8_t")
        sample = (1, *spikes.shape[1:])
        held = 1 if attributes["static_current"] else steps
        call = self._kernel("layered", X=x.kind, V="int32_t", W="int32_t")
        told = self._tell(node)
        numbers = [held, steps, radix, prod(sample)]
        numbers += [*_per_channel(threshold.shape, sample), *_per_channel(start.shape, sample)]
        sizes = ", ".join(map(str, numbers))
        self._emit(
            phase,
            lambda: [
                f"{call}({x.text}, {spikes.text}, {start.text}, {theta.text}, {sizes});",
                f"SNNC_ON_SPIKES({told}, {spikes.text}, {spikes.size});",
            ],
            [x, start],
            [spikes],
        )

    def _write_timesum(self, node: onnx.NodeProto, phase: str) -> None:
        self._sum_over_time(node, phase, None, place=1)

    def _write_weightedtimesum(self, node: onnx.NodeProto, phase: str) -> None:
        self._sum_over_time(node, phase, node.input[1], place=2)

    def _sum_over_time(
        self, node: onnx.NodeProto, phase: str, weights: str | None, place: int
    ) -> None:
        x = self._var(node.input[0])
        steps = int(self._value(node, place + 1))
        weigh = None if weights is None else self._var(weights, "int32_t")
        reads = [x] if weigh is None else [x, weigh]
        exact = all(var.kind in _WHOLE for var in reads)
        kept = node.input[place] in self.compiled.states
        summed = "int32_t" if exact else "float"
        total = self._state(node, place, 0, summed) if kept else self._make(node, phase, summed)
        made = [] if kept else [total]
        if total.kind == "float" and weigh is not None and weigh.value is not None:
            weigh = self._constant_var(weigh.value, "float", str(weights))
        kind = total.kind if weigh is None else weigh.kind
        call = self._kernel("time_sum", X=x.kind, V=total.kind, W=kind)
        if made:
            begun = self._constant_var(self._value(node, place), total.kind, node.input[place])
            self._loop(phase, "{}", total, begun)
        size = total.size

        def lines() -> list[str]:
            by = "NULL" if weigh is None else weigh.text
            return [f"{call}({x.text}, {total.text}, {by}, {steps}, {size});"]

        self._emit(phase, lines, [*reads, total], [])

    def _write_spikemaxpool(self, node: onnx.NodeProto, phase: str) -> None:
        attributes = self._pools(node)
        x, counts = self._reads_whole(node), self._state(node, 1, 1, "int32_t")
        y = self._make(node, phase, "uint8_t")
        shape = self._window(x, y, attributes, attributes["kernel_shape"])
        call = self._kernel("max_pool", X=x.kind, Y="uint8_t", V=counts.kind)
        self._emit(
            phase, lambda: [f"{call}({x.text}, {y.text}, {counts.text}, &{shape});"], [x], [y]
        )

    # --- what statements need ---

    def _reads_whole(self, node: onnx.NodeProto) -> _Var:
        x = self._var(node.input[0])
        if x.kind not in _WHOLE:
            raise _NoForm("reads real numbers")
        return x

    def _state(self, node: onnx.NodeProto, place: int, output: int, kind: str) -> _Var:
        """The state that a node takes and carries on, in place."""
        before, after = node.input[place], node.output[output]
        if self.compiled.states.get(before) != after:
            raise _NoForm(f"does not carry on a state with '{before}'")
        start = self.constants[before]
        copied = self._constant_var(start, kind, f"{before}, at the start")
        shape = self.seen[after].shape
        channels, inner = _per_channel(start.shape, shape)
        member = f"state_{len(self.members)}"
        var = self.vars[after] = _var_of(kind, shape, f"s->{member}")
        self._member(member, kind, var.size, before)
        self.starts.append(
            f"for (int i = 0; i < {var.size}; i++) "
            f"s->{member}[i] = {copied.text}[i / {inner} % {channels}];"
        )
        return var

    def _optional(self, node: onnx.NodeProto, place: int, kind: str = "int32_t") -> str:
        """A constant input, or NULL where there is none."""
        if len(node.input) <= place or not node.input[place]:
            return "NULL"
        return self._constant_var(self._value(node, place), kind, node.input[place]).text

    def _constant_var(self, value: Array, kind: str | None, name: str) -> _Var:
        """A constant, as an array of `kind`."""
        kind = kind or KINDS[value.dtype]
        if kind in _WHOLE and not (_is_whole(value) and _holds(kind, value)):
            raise _NoForm(f"has a constant '{name}' that is not whole")
        numbers = ", ".join(map(number_of(kind), np.ravel(value).tolist()))
        body = f"[{max(value.size, 1)}] = {{ /* {comment(name)} */\n{folded(numbers)}\n}};"
        known = self.data.get((kind, body))
        if known is None:
            known = self.data[kind, body] = f"c_{len(self.data)}"
            self.data_bytes += BYTES[kind] * value.size
        return _var_of(kind, value.shape, known, value)

    def _window(
        self, x: _Var, y: _Var, attributes: Mapping[str, Any], kernel: Sequence[int]
    ) -> str:
        """What a kernel is told of a convolution or of pooling, over one spatial axis or two."""
        axes = len(kernel)
        strides = attributes.get("strides", [1] * axes)
        dilations = attributes.get("dilations", [1] * axes)
        pads = attributes.get("pads", [0] * axes)[:axes]
        if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            odd = attributes["auto_pad"] == b"SAME_LOWER"
            pads = [
                (max((out - 1) * stride + (taps - 1) * dilation + 1 - size, 0) + odd) // 2
                for size, out, taps, stride, dilation in zip(
                    x.shape[2:], y.shape[2:], kernel, strides, dilations, strict=True
                )
            ]

        def both(values: Sequence[int], other: int) -> list[int]:
            return [other] * (2 - axes) + list(values)

        rows = [
            x.shape[1],
            *both(x.shape[2:], 1),
            y.shape[1],
            *both(y.shape[2:], 1),
            *both(kernel, 1),
            *both(strides, 1),
            *both(dilations, 1),
            *both(pads, 0),
            attributes.get("group", 1),
            attributes.get("count_include_pad", 0),
        ]
        text = "{" + ", ".join(map(str, rows)) + "}"
        return self.windows.setdefault(text, f"window_{len(self.windows)}")

    def _kernel(self, kernel: str, **types: str) -> str:
        name, text = function(kernel, **types)
        self.kernels[name] = text
        return name

    def _tell(self, node: onnx.NodeProto) -> int:
        """The number of a spiking layer."""
        self.layers.append(node.output[0])
        return len(self.layers) - 1

    def _body(self, made: _Function) -> list[str]:
        """The statements of a function, after its tensors have got their places in the buffers."""
        alive: list[tuple[_Var, int]] = []
        for number, new in enumerate(made.made):
            alive = [(var, at) for var, at in alive if var.memory.last >= number]
            for var in new:
                if var.text:
                    continue
                at = 0
                same = sorted((at, v.size) for v, at in alive if v.kind == var.kind)
                for begin, size in same:
                    if at + var.size <= begin:
                        break
                    at = max(at, begin + size)
                alive.append((var, at))
                var.memory.text = f"({var.kind.removesuffix('_t')}s + {at})"
                self.buffers[var.kind] = max(self.buffers.get(var.kind, 0), at + var.size)
        return [line for statement in made.statements for line in statement()]


class _NoForm(Exception):
    """Why a node cannot be written."""


def _ancestors(names: set[str], makers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The tensors on which these depend, and they themselves."""
    found: set[str] = set()
    pending = [name for name in names]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += makers[name].input if name in makers else ()
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _is_whole(value: Array) -> bool:
    return bool(np.isfinite(value).all() and (value == np.round(value)).all())


def _holds(kind: str, value: Array) -> bool:
    low, high = (0, 255) if kind == "uint8_t" else _range(kind)
    return bool(value.min(initial=0) >= low and value.max(initial=0) <= high)


def _range(kind: str) -> tuple[int, int]:
    bits = 8 * BYTES[kind]
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _least(value: Array) -> str:
    """The smallest type that holds whole numbers."""
    return next(
        (kind for kind in ("int8_t", "int16_t") if _is_whole(value) and _holds(kind, value)),
        "int32_t",
    )


def _without_repeats(schedule: Array) -> Array:
    """A schedule without rows at its end that are those before: the last one holds from then on."""
    rows = len(schedule)
    while rows > 1 and np.array_equal(schedule[rows - 1], schedule[rows - 2]):
        rows -= 1
    return schedule[:rows]


def _per_channel(shape: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, int]:
    """(channels, inner) of a constant of `shape` that is broadcast to `full`, which is [1, ...].

    Element i takes number i / inner % channels.  Raises _NoForm for any other way to broadcast.
    """
    padded = (1,) * (len(full) - len(shape)) + tuple(shape)
    axes = [axis for axis, size in enumerate(padded) if size != 1]
    if not axes:
        return 1, 1
    first, last = axes[0], axes[-1]
    if padded[first : last + 1] != tuple(full[first : last + 1]):
        raise _NoForm("has thresholds that are broadcast along an axis in the middle")
    return prod(full[first : last + 1]), prod(full[last + 1 :])


def _strides(shape: Sequence[int]) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _collapsed(
    shape: tuple[int, ...], inputs: Sequence[tuple[int, ...]]
) -> tuple[list[int], list[list[int]]]:
    """The loops over `shape`, as few as there can be, and the strides of each input in them."""
    rows = []
    for given in inputs:
        padded = (1,) * (len(shape) - len(given)) + tuple(given)
        steps = _strides(padded)
        rows.append([step if size != 1 else 0 for size, step in zip(padded, steps, strict=True)])
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in inputs]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [row[axis] for row in rows]
        if sizes and all(
            before[-1] == step * size for before, step in zip(strides, here, strict=True)
        ):
            sizes[-1] *= size
            for row, step in zip(strides, here, strict=True):
                row[-1] = step
        else:
            sizes.append(size)
            for row, step in zip(strides, here, strict=True):
                row.append(step)
    return sizes, strides


def _sum(letters: str, strides: Sequence[int]) -> str:
    """The place that loop variables stand for."""
    parts = [
        letter if step == 1 else f"{letter} * {step}"
        for letter, step in zip(letters, strides, strict=True)
        if step
    ]
    return " + ".join(parts) or "0"


def number_of(kind: str) -> Callable[[Any], str]:
    """How numbers of a type are written: floats with as many digits as tell them from all others."""
    if kind == "float":
        return lambda value: f"{np.float32(value)}f"
    if kind == "double":
        return lambda value: str(float(value))
    if kind == "int64_t":
        return lambda value: f"INT64_C({int(value)})"
    return lambda value: str(int(value))


def folded(text: str) -> str:
    return textwrap.fill(text, 118, initial_indent="    ", subsequent_indent="    ")


def comment(text: str) -> str:
    """A name that ends no comment."""
    return printable(text).replace("*/", "* /").replace("/*", "/ *")
