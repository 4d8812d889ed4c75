"""Shapes of the tensors of an ONNX graph and of the Loops in it, in numbers and symbols.

Whatever a file says about its own tensors, only its inputs are believed; all else is inferred, node by
node, by onnx's own rules and, where those give up on a symbol, by ours.  Two dimensions that are equal
here are equal in every run.  Two that differ may still be equal, but that is not proved.

A symbol is a name of ours, never one of the file: a dimension of an input, floor((d + a) / b) of
another one as windows make it, a product of two, or what only the run tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, TypeProto, helper, numpy_helper

from snncompiler.ir import dialect
from snncompiler.ir.operators import record

#: A number, or the name of one.
Dim = int | str
Shape = tuple[Dim, ...]
#: What a rule finds: a dimension is None where it finds none.
Found = Sequence[Dim | None]

#: Constants up to this many elements are shown to onnx's inference; larger ones are weights.
_DATA_ELEMENTS = 4096
#: Slices that go to the end of an axis end here or later.
END = 2**31 - 1
#: The names of onnx's own domain.
_ONNX = ("", "ai.onnx")

#: Operators of ours whose first output has a row for every step of a static first input.
_SPREAD = ("Drive", "PoissonEncoder")
#: Operators of ours whose first output has the shape of their first input.
_SAME = ("RunningMean", "Telescope")
#: Operators of ours that add up the steps of their first input.
_SUMS = ("TimeSum", "WeightedTimeSum")


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


class Shapes:
    """The shapes of a model: `of` a tensor, None where not even its rank is known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._types: dict[str, TypeProto] = {}
        self._data: dict[str, TensorProto] = {}
        #: The elements of integer tensors of at most one axis.
        self._numbers: dict[str, Shape] = {}
        self._symbols: dict[Any, str] = {}
        #: floor((base + add) / by): symbol -> base, add, by.
        self._ratios: dict[str, tuple[str, int, int]] = {}
        #: Products: symbol -> what was multiplied.
        self._factors: dict[str, tuple[Dim, Dim]] = {}
        self._graph(model.graph)

    def of(self, name: str) -> Shape | None:
        found = self._types.get(name)
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        return tuple(d.dim_param or d.dim_value for d in found.tensor_type.shape.dim)

    def number(self, name: str) -> Dim | None:
        """The value of an integer tensor of one element."""
        found = self._numbers.get(name, ())
        return found[0] if len(found) == 1 else None

    def numbers(self, name: str) -> Shape | None:
        """The elements of an integer tensor of at most one axis."""
        return self._numbers.get(name)

    def product(self, one: Dim, two: Dim) -> Dim:
        if isinstance(one, int) and isinstance(two, int):
            return one * two
        if one == 1 or two == 1:
            return two if one == 1 else one
        name = self._symbol(("product", *sorted((one, two), key=str)))
        self._factors[name] = (one, two)
        return name

    def quotient(self, whole: Dim, part: Dim) -> Dim | None:
        """`whole` / `part` where it is known to be a dimension."""
        if isinstance(whole, int) and isinstance(part, int):
            return whole // part if part and whole % part == 0 else None
        if part == 1:
            return whole
        one, two = self._factors.get(str(whole), (None, None))
        return two if one == part else one if two == part else None

    # --- symbols ---

    def _symbol(self, key: Any) -> str:
        """The name of what `key` tells apart."""
        return self._symbols.setdefault(key, f"d{len(self._symbols)}")

    def _ratio(self, dim: Dim, add: int, by: int) -> Dim:
        """floor((dim + add) / by); one of a ratio is a ratio."""
        if isinstance(dim, int):
            return (dim + add) // by
        base, before, divisor = self._ratios.get(dim, (dim, 0, 1))
        ratio = (base, before + add * divisor, divisor * by)
        if ratio[1:] == (0, 1):
            return base
        name = self._symbol(("ratio", *ratio))
        self._ratios[name] = ratio
        return name

    # --- the walk ---

    def _graph(self, graph: onnx.GraphProto, body: bool = False) -> None:
        overridable = {entry.name for entry in graph.input}
        for tensor in graph.initializer:
            if tensor.name not in overridable:
                self._constant(tensor.name, tensor)
        for index, entry in enumerate(graph.input):
            if body and index >= 2:
                # A state: it may come in as a scalar that broadcasts.
                self._set(entry.name, entry.type.tensor_type.elem_type, None)
            else:
                self._input(entry)
        for node in graph.node:
            if node.op_type == "Loop":
                self._loop(node)
            else:
                self._node(node)

    def _constant(self, name: str, tensor: TensorProto) -> None:
        self._set(name, tensor.data_type, tuple(tensor.dims))
        if prod(tensor.dims) <= _DATA_ELEMENTS:
            self._data[name] = tensor
            values = numpy_helper.to_array(tensor)
            if values.dtype in (np.int64, np.int32) and values.ndim <= 1:
                self._numbers[name] = tuple(values.reshape(-1).tolist())

    def _input(self, entry: onnx.ValueInfoProto) -> None:
        """A tensor from outside; equal names in the file are equal dimensions."""
        kind = entry.type.tensor_type
        if not kind.HasField("shape"):
            self._set(entry.name, kind.elem_type, None)
            return
        dims: list[Dim | None] = []
        for dim in kind.shape.dim:
            if dim.HasField("dim_value"):
                dims.append(dim.dim_value)
            else:
                dims.append(self._symbol(("named", dim.dim_param)) if dim.dim_param else None)
        self._set(entry.name, kind.elem_type, self._filled(dims, ("of", entry.name)))
        self._only_number(entry.name)

    def _loop(self, node: onnx.NodeProto) -> None:
        (body,) = (entry.g for entry in node.attribute if entry.name == "body")
        self._graph(body, body=True)
        for name, entry in zip(node.output, body.output[1:], strict=False):
            self._set(name, entry.type.tensor_type.elem_type, None)

    def _node(self, node: onnx.NodeProto) -> None:
        if node.domain == dialect.DOMAIN:
            outputs = self._ours(node)
        else:
            outputs = self._by_onnx(node)
            rule = _RULES.get(node.op_type) if node.domain in _ONNX else None
            if rule is not None and node.output[0] in outputs:
                kind, known = outputs[node.output[0]]
                outputs[node.output[0]] = (kind, _merged(known, rule(self, node)))
        for index, name in enumerate(node.output):
            if name in outputs:
                kind, dims = outputs[name]
                key = self._key(node, index)
                self._set(name, kind, None if dims is None else self._filled(dims, key))
                self._evaluate(node, name)

    def _by_onnx(self, node: onnx.NodeProto) -> dict[str, tuple[int, Found | None]]:
        """Types and shapes of the outputs by onnx's own inference; no entry where it says nothing."""
        if any(name and name not in self._types for name in node.input):
            return {}
        domain = "" if node.domain in _ONNX else node.domain
        opset = self._opsets.get(node.domain, self._opsets.get(domain, 1))
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, domain)
            inferred = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in node.input if name},
                {name: self._shown(name) for name in node.input if self._is_shown(name)},
                opset_imports=[helper.make_opsetid(domain, opset)],
                ir_version=dialect.MAX_IR_VERSION,
            )
        except (
            onnx.defs.SchemaError,
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
        ):
            return {}
        found: dict[str, tuple[int, Found | None]] = {}
        for name, kind in inferred.items():
            if kind.HasField("tensor_type"):
                tensor = kind.tensor_type
                dims = [
                    dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                    for dim in tensor.shape.dim
                ]
                found[name] = (tensor.elem_type, dims if tensor.HasField("shape") else None)
        return found

    def _is_shown(self, name: str) -> bool:
        numbers = self._numbers.get(name)
        return name in self._data or bool(numbers and all(isinstance(n, int) for n in numbers))

    def _shown(self, name: str) -> TensorProto:
        """The values of a tensor that has the same ones in every run."""
        if name in self._data:
            return self._data[name]
        kind = self._types[name].tensor_type.elem_type
        values = np.array(self._numbers[name], helper.tensor_dtype_to_np_dtype(kind))
        axes = len(self.of(name) or ())
        return numpy_helper.from_array(values if axes else values.reshape(()), name)

    def _ours(self, node: onnx.NodeProto) -> dict[str, tuple[int, Found | None]]:
        """The first output of an operator of ours; of states the type alone."""
        if node.op_type in dialect.COUNTING_OPERATORS:
            ports = dialect.COUNTING_OPERATORS[node.op_type].outputs
            kinds = {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}
            return {
                name: (kinds[port.type], ()) for name, port in zip(node.output, ports, strict=True)
            }
        given = self.of(node.input[0])
        outputs: dict[str, tuple[int, Found | None]] = {
            name: (TensorProto.FLOAT, None) for name in node.output
        }
        if not given:
            return outputs
        kind = self._types[node.input[0]].tensor_type.elem_type
        static = node.op_type in dialect.NEURONS and attributes_of(node).get("static_current", 0)
        if static or node.op_type in _SPREAD:
            steps = self.number(node.input[-1])
            lead = None if steps is None else self.product(steps, given[0])
            outputs[node.output[0]] = (kind, (lead, *given[1:]))
        elif node.op_type in dialect.NEURONS or node.op_type in _SAME:
            outputs[node.output[0]] = (kind, given)
        elif node.op_type in _SUMS:
            steps = self.number(node.input[-1])
            samples = None if steps is None else self.quotient(given[0], steps)
            outputs[node.output[0]] = (TensorProto.FLOAT, (samples, *given[1:]))
        elif node.op_type == "SpikeMaxPool":
            outputs[node.output[0]] = (kind, _pool(self, node))
        return outputs

    # --- results ---

    def _key(self, node: onnx.NodeProto, index: int) -> Any:
        """What the unknown dimensions of an output are called by.

        Two nodes that agree in what their shapes follow from agree in their shapes.
        """
        ours = node.domain == dialect.DOMAIN
        if ours:
            source = "shapes" if node.op_type == "SpikeMaxPool" else None
        else:
            source = record(node.op_type).shape_from if node.domain in _ONNX else None
        if source is None:
            return ("of", node.output[index])
        given: list[Any] = []
        for place, name in enumerate(node.input[:1] if ours else node.input):
            if not place or source == "shapes":
                given.append(self.of(name) or name)
            elif name in self._data:
                given.append(numpy_helper.to_array(self._data[name]).tobytes())
            else:
                given.append(self._numbers.get(name, name))
        listed = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
        return (node.op_type, tuple(listed), tuple(given), index)

    def _filled(self, dims: Found, key: Any) -> Shape:
        return tuple(
            self._symbol((key, axis)) if dim is None else dim for axis, dim in enumerate(dims)
        )

    def _set(self, name: str, kind: int, shape: Shape | None) -> None:
        self._types[name] = helper.make_tensor_type_proto(kind, shape)

    def _evaluate(self, node: onnx.NodeProto, name: str) -> None:
        """The elements of an integer output, where they can be followed."""
        kind = self._types[name].tensor_type.elem_type
        if kind not in (TensorProto.INT64, TensorProto.INT32):
            return
        found = self._followed(node)
        if found is not None:
            self._numbers[name] = found
        else:
            self._only_number(name)

    def _only_number(self, name: str) -> None:
        """An integer of one element that only the run tells is a number with a name."""
        kind = self._types[name].tensor_type.elem_type
        if self.of(name) in ((), (1,)) and kind in (TensorProto.INT64, TensorProto.INT32):
            self._numbers[name] = (self._symbol(("value", name)),)

    def _followed(self, node: onnx.NodeProto) -> Shape | None:
        given = [self._numbers.get(name) for name in node.input]
        attributes = attributes_of(node)
        if node.op_type == "Constant" and "value" in attributes:
            values = numpy_helper.to_array(attributes["value"])
            return tuple(values.reshape(-1).tolist()) if values.ndim <= 1 else None
        if node.op_type == "Constant" and "value_ints" in attributes:
            return tuple(attributes["value_ints"])
        if node.op_type == "Constant" and "value_int" in attributes:
            return (int(attributes["value_int"]),)
        if node.op_type == "Shape":
            shape = self.of(node.input[0])
            start, end = attributes.get("start", 0), attributes.get("end")
            return None if shape is None else shape[start:end]
        if not given or any(numbers is None for numbers in given):
            return None
        known = [numbers for numbers in given if numbers is not None]
        if node.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast"):
            return known[0]
        if node.op_type == "Concat":
            return tuple(number for numbers in known for number in numbers)
        if node.op_type == "Gather" and all(isinstance(place, int) for place in known[1]):
            places = [int(place) for place in known[1]]
            inside = all(-len(known[0]) <= place < len(known[0]) for place in places)
            return tuple(known[0][place] for place in places) if inside else None
        return None


def _merged(known: Found | None, ours: Found | None) -> Found | None:
    """What onnx found, and ours where it found nothing."""
    if known is None or ours is None or len(known) != len(ours):
        return ours if known is None else known
    return [mine if found is None else found for found, mine in zip(known, ours, strict=True)]


# --- rules, for what onnx leaves open ---


def _windowed(shapes: Shapes, given: Shape, kernel: Sequence[int], node: onnx.NodeProto) -> Found:
    """The spatial axes behind a window."""
    attributes = attributes_of(node)
    axes = len(given) - 2
    strides = attributes.get("strides") or [1] * axes
    dilations = attributes.get("dilations") or [1] * axes
    pads = attributes.get("pads") or [0] * 2 * axes
    same = attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
    space: list[Dim | None] = []
    for axis in range(axes):
        stride = int(strides[axis])
        if same:
            add = stride - 1
        else:
            extent = int(dilations[axis]) * (int(kernel[axis]) - 1) + 1
            add = int(pads[axis]) + int(pads[axis + axes]) - extent + stride
        # Rounded up, the last window may still be left out where it begins in the padding.
        space.append(
            None if attributes.get("ceil_mode", 0) else shapes._ratio(given[axis + 2], add, stride)
        )
    return space


def _conv(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given, weights = shapes.of(node.input[0]), shapes.of(node.input[1])
    if weights is None or not all(isinstance(size, int) for size in weights):
        return None
    if given is None:
        return (None, weights[0], *[None] * (len(weights) - 2))
    if len(given) != len(weights):
        return None
    kernel = [int(size) for size in weights[2:]]
    return (given[0], weights[0], *_windowed(shapes, given, kernel, node))


def _pool(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given, kernel = shapes.of(node.input[0]), attributes_of(node).get("kernel_shape")
    if given is None or kernel is None or len(kernel) != len(given) - 2:
        return None
    return (*given[:2], *_windowed(shapes, given, kernel, node))


def _gemm(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given, weights = shapes.of(node.input[0]), shapes.of(node.input[1])
    attributes = attributes_of(node)
    rows = given[1 if attributes.get("transA", 0) else 0] if given and len(given) == 2 else None
    columns = None
    if weights is not None and len(weights) == 2:
        columns = weights[0 if attributes.get("transB", 0) else 1]
    return (rows, columns)


def _pad(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given = shapes.of(node.input[0])
    pads = shapes.numbers(node.input[1]) if len(node.input) > 1 else None
    if given is None or pads is None or len(pads) != 2 * len(given) or len(node.input) > 3:
        return None
    ends = [(before, behind) for before, behind in zip(pads, pads[len(given) :], strict=False)]
    return [
        shapes._ratio(dim, before + behind, 1)
        if isinstance(before, int) and isinstance(behind, int)
        else None
        for dim, (before, behind) in zip(given, ends, strict=True)
    ]


def _slice(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    """Every n-th from the first on; anything else stays open."""
    given = shapes.of(node.input[0])
    if given is None or len(node.input) < 2:
        return None
    listed = [shapes.numbers(name) for name in node.input[1:]]
    if any(numbers is None for numbers in listed):
        return None
    starts, ends, *more = [numbers for numbers in listed if numbers is not None]
    axes = more[0] if more else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 else (1,) * len(starts)
    dims: list[Dim | None] = list(given)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        whole = start == 0 and isinstance(end, int) and end >= END
        if whole and isinstance(axis, int) and isinstance(step, int) and step > 0:
            dims[axis] = shapes._ratio(given[axis], step - 1, step)
        elif isinstance(axis, int):
            dims[axis] = None
        else:
            return None
    return dims


def _reshape(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given, target = shapes.of(node.input[0]), shapes.numbers(node.input[1])
    if given is None or target is None:
        return None
    zeros = bool(attributes_of(node).get("allowzero", 0))
    dims: list[Dim | None] = []
    for axis, size in enumerate(target):
        if size == -1 or (size == 0 and not zeros and axis >= len(given)):
            dims.append(None)
        else:
            dims.append(given[axis] if size == 0 and not zeros else size)
    if target.count(-1) != 1 or dims.count(None) != 1:
        return dims
    # What is left over: numbers divided, symbols cancelled.
    left = Counter(dim for dim in given if isinstance(dim, str))
    taken = Counter(dim for dim in dims if isinstance(dim, str))
    whole = prod(dim for dim in given if isinstance(dim, int))
    part = prod(dim for dim in dims if isinstance(dim, int))
    if not taken - left and part and whole % part == 0:
        rest = list((left - taken).elements())
        if len(rest) < 2:
            dims[dims.index(None)] = shapes.product(whole // part, rest[0] if rest else 1)
    return dims


def _tile(shapes: Shapes, node: onnx.NodeProto) -> Found | None:
    given, repeats = shapes.of(node.input[0]), shapes.numbers(node.input[1])
    if given is None or repeats is None or len(given) != len(repeats):
        return None
    return [shapes.product(dim, times) for dim, times in zip(given, repeats, strict=True)]


_RULES: dict[str, Callable[[Shapes, onnx.NodeProto], Found | None]] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Tile": _tile,
}
