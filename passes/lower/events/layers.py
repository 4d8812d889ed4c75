"""The nodes of a body that become event-driven operators: neurons, max pooling and sums over time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from snncompiler.ir import dialect
from snncompiler.ir.symbolic import attributes_of
from snncompiler.passes.lower.events.body import TO_LAST, Body, Stays, is_drive, per_channel
from snncompiler.passes.lower.events.currents import Currents, collect, convolved
from snncompiler.passes.lower.events.signals import NEURONS, Signal, Signals


def neuron(signals: Signals, node: onnx.NodeProto) -> str:
    """Emit one layer; the name of its operator."""
    body = signals.body
    if node.op_type not in NEURONS:
        raise Stays(f"{node.op_type} has no event-driven form")
    if body.half:
        raise Stays("float16 is not computed by events")
    scheduled = node.op_type == "ScheduledRMPNeuron"
    parts = Currents(body.layer_shape(node.input[0]))
    shape, channels, flat = parts.shape, parts.channels, parts.flat
    threshold = per_channel(body.value(node.input[1]), shape)
    schedule = np.zeros((1, channels), np.float32)
    if scheduled:
        rows = body.value(node.input[3])
        schedule = np.stack([per_channel(row, shape) for row in rows])
    start, steps = (node.input[-2] if scheduled else None), node.input[-1]
    index = body.state(node, 2, 1)
    initial = per_channel(body.initial(index), shape)

    label = node.name or node.output[0]
    inputs: list[str]
    attributes: dict[str, Any] = {}
    source = body.maker.get(node.input[0])
    driven = source if source is not None and is_drive(source) else None
    if driven or attributes_of(node).get("static_current", 0):
        current, drive = driven.input[:2] if driven else (node.input[0], "")
        if not body.is_static(current):
            raise Stays(f"`{current}` is not computed outside the Loop")
        if driven and (driven.input[3] != steps or start not in (None, driven.input[2])):
            raise Stays(f"Drive `{driven.name}` counts other steps")
        if not drive:
            drive = body.constant(f"{label}/drive", np.ones(1, np.float32))
        operator, inputs = "EventNeuron", [_channels_last(body, current, flat), drive]
        start = start or (driven.input[2] if driven else None)
    else:
        collect(signals, node.input[0], steps, parts)
        operator, inputs, attributes = convolved(body, label, parts)
        inputs.append(_static_part(body, label, parts))
    if start is None:
        start = body.constant(f"{label}/start", np.array(0, np.int64))
    inputs += [
        body.constant(f"{label}/threshold_row", threshold),
        node.input[2],
        body.constant(f"{label}/schedule_rows", schedule),
        start,
        steps,
    ]
    spikes, membrane = node.output
    events = body.name(f"{spikes}/events")
    body.nodes.append(
        helper.make_node(
            operator,
            inputs,
            [events, membrane],
            name=node.name,
            domain=dialect.DOMAIN,
            **attributes,
        )
    )
    body.loop.input[index] = body.constant(f"{label}/membrane_row", initial, outside=True)
    body.restore(index, flat)
    signals.found[spikes] = Signal(events, channels)
    body.back(events, spikes, flat)
    if flat:
        signals.flat.add(events)
    return operator


def _static_part(body: Body, label: str, parts: Currents) -> str:
    """The bias, or the static currents with it, channels last."""
    bias = np.zeros(parts.channels, np.float32)
    for part in parts.bias:
        bias = bias + part
    total = body.constant(f"{label}/bias_row", bias, outside=bool(parts.static))
    for name in parts.static:
        total = body.emit(
            body.before,
            "Add",
            [_channels_last(body, name, parts.flat), total],
            f"{label}/static",
        )
    return total


def _channels_last(body: Body, name: str, flat: bool) -> str:
    """A static tensor with its channels last, made once outside the Loop."""
    for node in body.before:
        if node.op_type in ("Transpose", "Unsqueeze") and node.input[0] == name:
            return str(node.output[0])
    wanted = f"{name}/channels_last"
    if flat:
        axes = body.constant(f"{name}/axes", np.array([1, 2]), outside=True)
        return body.emit(body.before, "Unsqueeze", [name, axes], wanted)
    return body.emit(body.before, "Transpose", [name], wanted, perm=TO_LAST)


def max_pool(signals: Signals, node: onnx.NodeProto) -> None:
    """Exact max pooling, on bytes."""
    body = signals.body
    signal = signals.found.get(node.input[0])
    maker = body.maker.get(node.input[0])
    if maker is not None and maker.op_type == "Concat":
        # Side by side, where all of them are those of lowered layers.
        known = all(name in signals.found for name in maker.input)
        signal = signals.of(node.input[0]) if known else None
    attributes = attributes_of(node)
    kernel = list(attributes["kernel_shape"])
    if signal is None or signal.matrix is not None or signal.stride != (1, 1) or signal.flat:
        raise Stays("not the spikes of a lowered layer")
    if (
        len(kernel) != 2
        or attributes.get("ceil_mode", 0)
        or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"")
    ):
        raise Stays("a window without an event-driven form")
    index = body.state(node, 1, 1)
    if body.initial(index).size != 1:
        raise Stays("starts from a tensor")
    events = body.name(f"{node.output[0]}/events")
    body.nodes.append(
        helper.make_node(
            "EventMaxPool",
            [signal.events, node.input[1], node.input[2]],
            [events, node.output[1]],
            name=node.name,
            domain=dialect.DOMAIN,
            kernel_shape=kernel,
            strides=list(attributes.get("strides") or (1, 1)),
            pads=list(attributes.get("pads") or (0, 0, 0, 0)),
            dilations=list(attributes.get("dilations") or (1, 1)),
        )
    )
    body.restore(index, False)
    signals.found[node.output[0]] = replace(signal, events=events)
    body.back(events, node.output[0], False)


def time_sum(signals: Signals, node: onnx.NodeProto) -> None:
    """A sum over time of bytes; what the Loop hands on gets its channels back outside."""
    body = signals.body
    weighted = node.op_type == "WeightedTimeSum"
    place = 2 if weighted else 1
    source = node.input[0]
    signal = signals.found.get(source)
    if signal is None or signal.matrix is not None or signal.stride != (1, 1) or signal.flat:
        raise Stays("not the spikes of a lowered layer")
    index = body.state(node, place, 0)
    if body.initial(index).size != 1:
        raise Stays("starts from a tensor")
    steps = node.input[-1]
    if weighted:
        weights = node.input[1]
    else:
        one = body.constant(f"{node.name}/one", np.ones(1, np.int64))
        shape = body.emit(body.nodes, "Reshape", [steps, one], f"{node.name}/shape")
        unit = body.constant(f"{node.name}/unit", np.ones((), np.float32))
        weights = body.emit(body.nodes, "Expand", [unit, shape], f"{node.name}/weights")
    body.nodes.append(
        helper.make_node(
            "EventSum",
            [signal.events, weights, node.input[place], steps],
            list(node.output),
            name=node.name,
            domain=dialect.DOMAIN,
        )
    )
    body.restore(index, signal.events in signals.flat)
