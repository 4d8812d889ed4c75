"""Small helpers over onnx-graphsurgeon: import, export, lookup, rewiring, sorting, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from snncompiler.errors import refuse
from snncompiler.findings import describe
from snncompiler.ir.operators import Outputs, record

# It prints warnings to standard output, which belongs to results; what matters we say ourselves.
G_LOGGER.severity = G_LOGGER.ERROR

Graph: TypeAlias = gs.Graph
Node: TypeAlias = gs.Node
Tensor: TypeAlias = gs.Tensor

#: A run-time value may not have more elements than this for one sample: 8 GiB in float32.
MAX_VALUES = 1 << 31

#: Where a Slice ends that takes all there is.
WHOLE_AXIS = np.iinfo(np.int32).max

#: Constants up to this many elements are shown to the shape inference as data (Reshape targets,
#: pads, axes); larger ones are weights.
_DATA_ELEMENTS = 4096


#: The batch dimension in our graphs.  No dimension of a source is called so (`import_model`), and
#: what we write has a readable name for it (`track_batch.name_batch`).
BATCH = "snnc:batch"


def import_model(model: onnx.ModelProto) -> Graph:
    """The gs graph of `model`; every node gets a name, unique in the graph, and none of its
    dimensions is our batch."""
    graph = gs.import_onnx(model)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.shape is not None:
            tensor.shape = [None if dim in ("", BATCH) else dim for dim in tensor.shape]
    taken = {node.name for node in graph.nodes}
    seen: set[str] = set()
    for number, node in enumerate(graph.nodes):
        # What has a name of its own keeps it.
        if not node.name or node.name in seen:
            node.name = unique_name(node.name or f"{node.op}_{number}", taken)
        seen.add(node.name)
    names = tensor_names(graph)
    for index, output in enumerate(graph.outputs):
        if isinstance(output, gs.Constant):
            # Anchors, for one.  Every output of ours is the output of a node.
            read = gs.Variable(output.name, output.dtype, output.shape)
            output.name = unique_name(f"{output.name}/constant", names)
            name = unique_name(f"{read.name}/output", taken)
            graph.nodes.append(gs.Node("Identity", name, inputs=[output], outputs=[read]))
            graph.outputs[index] = read
    return graph


def export_model(graph: Graph) -> onnx.ModelProto:
    """The graph as a model, nodes sorted, unused constants left out."""
    sort_nodes(graph)
    domains = graph.import_domains
    # The export adds the domains of the nodes to this list, which a copy of the graph shares.
    graph.import_domains = list(domains or [])
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    graph.import_domains = domains
    return model


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, or `name_2`, `name_3` ... where it is taken; the result counts as taken."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def name_apart(graph: Graph, older: Sequence[Node]) -> None:
    """Give every node that is not among the `older` ones a name that no other node has."""
    kept = {id(node) for node in older}
    taken = {node.name for node in graph.nodes if id(node) in kept}
    for node in graph.nodes:
        if id(node) not in kept:
            node.name = unique_name(node.name, taken)


def free_root(model: onnx.ModelProto, wanted: str) -> str:
    """`wanted`, or `wanted_2` ... where a tensor or node of the model has a name below it.

    Names that begin with the result and a slash are free in the graph and in all its subgraphs.
    """
    taken: set[str] = set()
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        for entry in (*graph.input, *graph.output, *graph.initializer):
            taken.add(entry.name)
        for node in graph.node:
            taken.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
    return unique_name(wanted, {name.split("/", 1)[0] for name in taken if "/" in name})


def tensor_names(graph: Graph) -> set[str]:
    names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        names.update(tensor.name for tensor in (*node.inputs, *node.outputs))
    return names


def value(tensor: Tensor) -> NDArray[Any] | None:
    """The array of a constant tensor, None for any other."""
    if not isinstance(tensor, gs.Constant):
        return None
    held = tensor._values
    if isinstance(held, LazyValues) and held.tensor.data_type == onnx.TensorProto.STRING:
        # graphsurgeon exports text only from the tensor that it came in, so that stays.
        return np.asarray(held.load())
    array: NDArray[Any] = tensor.values
    return array


def held_as(array: NDArray[Any]) -> NDArray[Any] | LazyValues:
    """What a constant holds: the array, or text in the form in which graphsurgeon exports it."""
    if array.dtype.kind not in "OUS":
        return array
    kind = onnx.TensorProto.STRING
    text: Any = [str(one).encode() for one in array.reshape(-1)]
    return LazyValues(onnx.helper.make_tensor("text", kind, array.shape, text))


def is_live(tensor: Tensor) -> bool:
    """Whether the tensor is computed at run time: no constant and no omitted optional input."""
    return not isinstance(tensor, gs.Constant) and not tensor.is_empty()


def constant(name: str, values: NDArray[Any], taken: set[str]) -> gs.Constant:
    return gs.Constant(unique_name(name, taken), np.ascontiguousarray(values))


def producer(tensor: Tensor) -> Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def readers(tensor: Tensor, graph: Graph) -> int:
    """How many nodes and graph outputs read the tensor."""
    return len(tensor.outputs) + sum(1 for output in graph.outputs if output is tensor)


def label(node: Node) -> str:
    return describe(node.op, node.name)


def input_at(node: Node, index: int) -> Tensor | None:
    """Input `index`, None where the optional input is omitted."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


def constant_input(node: Node, index: int) -> NDArray[Any] | None:
    tensor = input_at(node, index)
    return None if tensor is None else value(tensor)


def axes_of(node: Node, rank: int, input_index: int = 1) -> list[int] | None:
    """The `axes` of a Squeeze, Unsqueeze, Reduce... as non-negative numbers; None for "all".

    They are an attribute in older opsets and an input in newer ones; an input that is not a
    constant counts as unknown and raises ValueError.
    """
    axes = node.attrs.get("axes")
    tensor = input_at(node, input_index)
    if axes is None and tensor is not None:
        found = value(tensor)
        if found is None:
            raise ValueError("its axes are computed at run time")
        axes = found.reshape(-1).tolist()
    if axes is None:
        return None
    return [int(axis) % rank for axis in axes] if rank else []


def replace_uses(old: Tensor, new: Tensor, graph: Graph, keep: Iterable[Node] = ()) -> None:
    """Let every reader of `old` read `new` instead, but for the nodes in `keep`.

    A graph output keeps its name: `new` takes it over.
    """
    kept = {id(node) for node in keep}
    for node in list(old.outputs):
        if id(node) in kept:
            continue
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
    for index, output in enumerate(graph.outputs):
        if output is old:
            old.name, new.name = new.name, old.name
            graph.outputs[index] = new


def remove_node(node: Node) -> None:
    node.inputs.clear()
    node.outputs.clear()


def drop_dead(graph: Graph) -> None:
    """Remove the nodes whose outputs nobody reads, and their now unread producers."""
    wanted = {id(tensor) for tensor in graph.outputs}
    alive: list[Node] = []
    sort_nodes(graph)
    for node in reversed(graph.nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            alive.append(node)
            wanted.update(id(tensor) for tensor in node.inputs)
        else:
            remove_node(node)
    graph.nodes = alive[::-1]


def sort_nodes(graph: Graph) -> None:
    """Sort the nodes topologically, keeping their order where it is already right."""
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    done: set[int] = set()
    order: list[Node] = []
    for root in graph.nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            if id(node) in done:
                stack.pop()
                continue
            missing = [
                before
                for tensor in node.inputs
                for before in tensor.inputs
                if id(before) not in done and id(before) in position
            ]
            if missing:
                stack.extend(reversed(missing))
            else:
                done.add(id(node))
                order.append(node)
                stack.pop()
    graph.nodes = order


def rank(tensor: Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def known_rank(tensor: Tensor) -> int:
    """The rank of a tensor; Refused where the shape inference did not find it."""
    found = rank(tensor)
    if found is None:
        raise refuse("SNNC110", f"the rank of '{tensor.name}' cannot be inferred")
    return found


def known(dim: object) -> bool:
    return isinstance(dim, (int, np.integer))


def _type_of(tensor: Tensor) -> onnx.TypeProto | None:
    if tensor.dtype is None:
        return None
    kind: onnx.TypeProto = OnnxExporter.export_value_info_proto(tensor, False).type
    return kind


def infer_node(node: Node, opset: int) -> None:
    """Set dtype and shape of the outputs of one node from its inputs.

    Where the operator or a dimension is unknown, they stay unknown.  Raises Refused, with the node,
    where the inference finds the node wrong.
    """
    try:
        schema = onnx.defs.get_schema(node.op, opset, node.domain or "")
    except onnx.defs.SchemaError:
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in node.inputs:
        if tensor.is_empty():
            continue
        found = _type_of(tensor)
        if found is None:
            return
        types[tensor.name] = found
        if isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape)) <= _DATA_ELEMENTS:
            data[tensor.name] = OnnxExporter.export_tensor_proto(tensor)
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            OnnxExporter.export_node(node),
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid(node.domain or "", opset)],
            ir_version=10,
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise refuse("SNNC110", reason, node=label(node), hint="the exporter wrote it so") from None
    if node.op == "ArrayFeatureExtractor" and rank(node.inputs[0]) == 1:
        # ONNX does not infer it: one row of the picked values.
        picked = node.inputs[1].shape or [None]
        shape = [1, prod(picked) if all(known(dim) for dim in picked) else None]
        node.outputs[0].dtype, node.outputs[0].shape = node.inputs[0].dtype, shape
        return
    told = record(node.op).outputs if node.domain == "ai.onnx.ml" else None
    if told is not None:
        for tensor, (kind, shape) in zip(node.outputs, _OUTPUTS[told](node), strict=False):
            tensor.dtype = tensor.dtype if kind is None else np.dtype(kind)
            tensor.shape = shape
        return
    for tensor in node.outputs:
        if tensor.name in inferred and inferred[tensor.name].HasField("tensor_type"):
            kind = inferred[tensor.name].tensor_type
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            tensor.shape = [_dim(dim) for dim in kind.shape.dim] if kind.HasField("shape") else None
            _check_size(node, tensor)
    for axis in _axes_left_alone(node):
        shape = node.outputs[0].shape
        if shape is not None and shape[axis] is None:
            shape[axis] = node.inputs[0].shape[axis]


def _axes_left_alone(node: Node) -> list[int]:
    """The axes that an operator with a factor or a range for each of its axes leaves as they are.

    ONNX infers nothing along an axis of unknown size there, though once as much, or all of it, is that
    size again: without this the batch would be lost behind every Resize.
    """
    scaled = record(node.op).factors is not None
    if not (scaled or node.op == "Slice") or not node.inputs[0].shape:
        return []
    axes = list(range(len(node.inputs[0].shape)))
    if not scaled:
        starts, ends = constant_input(node, 1), constant_input(node, 2)
        listed, steps = constant_input(node, 3), constant_input(node, 4)
        at_run_time = [listed is None and input_at(node, 3) is not None]
        at_run_time += [steps is None and input_at(node, 4) is not None]
        if starts is None or ends is None or any(at_run_time):
            return []
        named = axes[: len(starts)] if listed is None else [axes[int(axis)] for axis in listed]
        steps = np.ones_like(starts) if steps is None else steps
        whole = (starts == 0) & (ends >= WHOLE_AXIS) & (steps == 1)
        return [axis for axis, all_of_it in zip(named, whole, strict=True) if all_of_it]
    factors = axis_factors(node)
    mode = node.attrs.get("coordinate_transformation_mode", "")
    axes = [axes[int(axis)] for axis in node.attrs.get("axes", axes)]
    if factors is None or factors.size != len(axes) or mode == "tf_crop_and_resize":
        return []
    return [axis for axis, factor in zip(axes, factors, strict=True) if factor == 1]


def axis_factors(node: Node) -> NDArray[Any] | None:
    """What a Resize, Tile or Upsample multiplies the size of each axis by, where it is constant."""
    at = record(node.op).factors
    return None if at is None else constant_input(node, at)


def _as_input(node: Node) -> list[tuple[Any, Any]]:
    return [(np.float32, node.inputs[0].shape)]


def _one_hot(node: Node) -> list[tuple[Any, Any]]:
    count = len(node.attrs.get("cats_int64s") or node.attrs.get("cats_strings") or [])
    shape = node.inputs[0].shape
    return [(np.float32, None if shape is None else [*shape, count])]


def _targets(node: Node) -> list[tuple[Any, Any]]:
    shape, count = node.inputs[0].shape, node.attrs.get("targets", node.attrs.get("n_targets", 1))
    return [(np.float32, [None if shape is None else shape[0], int(count)])]


def _classes(node: Node) -> list[tuple[Any, Any]]:
    shape, keys = node.inputs[0].shape, ("int64s", "ints", "strings")
    labels: list[Any] = next(
        (found for k in keys if (found := node.attrs.get(f"classlabels_{k}"))), []
    )
    samples = None if shape is None else shape[0]
    return [(None, [samples]), (np.float32, [samples, max(len(labels), 1)])]


def _one_number(node: Node) -> list[tuple[Any, Any]]:
    return [(np.float32, [*(node.inputs[0].shape or [None])[:1], 1])]


_OUTPUTS: dict[Outputs, Callable[[Node], list[tuple[Any, Any]]]] = {
    "as-input": _as_input,
    "one-hot": _one_hot,
    "targets": _targets,
    "one-number": _one_number,
    "classes": _classes,
}


def _check_size(node: Node, tensor: Tensor) -> None:
    """Refuse values of impossible or absurd size before anything allocates them."""
    sizes = [int(dim) for dim in tensor.shape or () if known(dim)]
    if any(size < 0 for size in sizes):
        raise refuse("SNNC110", f"its output would have the shape {tensor.shape}", node=label(node))
    if prod(sizes) > MAX_VALUES:
        raise refuse(
            "SNNC209",
            f"its output would have {prod(sizes):,} values a sample",
            node=label(node),
            hint=f"the limit is {MAX_VALUES:,}",
        )


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def infer_shapes(graph: Graph) -> None:
    """Set dtype and shape of every tensor from the inputs on; one pass in topological order."""
    sort_nodes(graph)
    for node in graph.nodes:
        infer_node(node, graph.opset)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` that also returns the named tensors; onnxruntime finds their types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.add(name=name)
    return copy


#: What the names of tensors end with that a cut model makes, where others read what is fed.
OWN = "/own"


def cut_at(
    model: onnx.ModelProto, names: Iterable[str], watching: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """A copy of `model` in which the named tensors are inputs for all that reads them, and what the
    model makes of each is an output with OWN behind its name.

    watching: nodes whose outputs have names that begin with one of these read what the model makes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, own = copy.graph, set(names)
    for node in graph.node:
        watches = bool(watching) and node.output[0].startswith(watching)
        for index, name in enumerate(node.input):
            if watches and name in own:
                node.input[index] = f"{name}{OWN}"
        for index, name in enumerate(node.output):
            if name in own:
                node.output[index] = f"{name}{OWN}"
    for entry in [entry for entry in graph.value_info if entry.name in own]:
        graph.value_info.remove(entry)
    for name in sorted(own):
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        graph.output.append(onnx.ValueInfoProto(name=f"{name}{OWN}"))
    return copy


def reachable_from(
    graph: Graph,
    start: Callable[[Node], bool],
    sources: set[int],
    through: Callable[[Node], bool],
) -> set[int]:
    """ids of the tensors that depend on a tensor in `sources` or on a node for which `start` holds.

    Dependence ends at the nodes for which `through` does not hold.  The nodes are sorted.
    """
    found: set[int] = set()
    for node in graph.nodes:
        depends = any(id(tensor) in found or id(tensor) in sources for tensor in node.inputs)
        if start(node) or (depends and through(node)):
            found.update(id(tensor) for tensor in node.outputs)
    return found
