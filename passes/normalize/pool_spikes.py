"""Let every max pooling between spiking layers pool spikes.

Max pooling is exact on spike trains of one θ in a window.  What else is pooled is rewritten, exactly:

    s·x + b per channel     |s|·max(x) + b, or -|s|·max(-x) + b where s < 0
    f(x) + g(x)             max(f(x)) + max(g(x)), where both rise with the same x, as the two halves of
                            LeakyRelu do
    any other x             max(relu(x)) + max(-relu(-x)): one more spiking layer, which is reported;
                            the second half is left out where x is never negative
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snncompiler.ir.graph import Graph, Node, Tensor, drop_dead, label, producer, tensor_names
from snncompiler.ir.grids import is_rounded
from snncompiler.ir.phases import analyze
from snncompiler.ir.rectifiers import rectifier
from snncompiler.ir.signs import affine_step, course, never_negative, per_channel
from snncompiler.passes.amplitudes import poolable
from snncompiler.passes.base import Context, Pass
from snncompiler.passes.normalize.swap_max_pool import MAX_STEPS, max_over
from snncompiler.passes.rewriting import Writer


@dataclass(frozen=True)
class PoolSpikes(Pass):
    """MaxPool of anything becomes MaxPool of rectifiers' outputs."""

    name: ClassVar[str] = "pool-spikes"
    requires: ClassVar[frozenset[str]] = frozenset({"rectifiers-before-max-pool", "affine-folded"})
    ensures: ClassVar[frozenset[str]] = frozenset({"max-pool-of-spikes"})

    def run(self, graph: Graph, context: Context) -> None:
        writer = Writer(graph, context, tensor_names(graph))
        timing = analyze(graph, lambda node: rectifier(node) is not None)
        for pool in list(graph.nodes):
            temporal = timing.phase(pool) == "temporal"
            if pool.op != "MaxPool" or pool.domain or not temporal or len(pool.outputs) != 1:
                continue
            if not poolable(pool.inputs[0]) and not is_rounded(pool.inputs[0]):
                rewriting = _Rewriting(writer, pool)
                writer.replace(pool, rewriting.most(pool.inputs[0], 1))
                if rewriting.rectified:
                    context.note("SNNC220", _reason(rewriting.rectified), node=rewriting.label)
        drop_dead(graph)


def _reason(rectified: int) -> str:
    halves = "relu(x)" if rectified == 1 else "relu(x) and -relu(-x)"
    return (
        "it pools values that are not spikes with one threshold in a window, so a spiking layer of "
        f"its own sends {halves} of them as spikes first"
    )


class _Rewriting:
    """One pooling, and what it becomes."""

    def __init__(self, writer: Writer, pool: Node) -> None:
        self.writer, self.pool, self.label, self.attrs = writer, pool, label(pool), pool.attrs
        #: How many rectifiers were added.
        self.rectified = 0
        #: What was written already: a value may be read on many ways.
        self.found: dict[tuple[int, int], Tensor] = {}

    def apply(self, op: str, *inputs: Tensor) -> Tensor:
        return self.writer.node(self.pool.name, op, list(inputs))

    def most(self, x: Tensor, sign: int, depth: int = 0) -> Tensor:
        """The maximum of x over every window, its minimum where `sign` is -1."""
        key = (id(x), sign)
        if key not in self.found:
            self.found[key] = self._most(x, sign, depth)
        return self.found[key]

    def _most(self, x: Tensor, sign: int, depth: int) -> Tensor:
        if poolable(x):
            return max_over(self.writer, self.pool, x, np.full((), float(sign)))
        node = producer(x) if depth < MAX_STEPS else None
        step = None if node is None else affine_step(node)
        if node is not None and step is not None and (step.uniform or poolable(step.source)):
            return self._behind(node, step.source, step.uniform, sign, depth + 1)
        if node is not None and node.op in ("Add", "Sub") and not node.domain:
            first, second = node.inputs
            turn = 1 if node.op == "Add" else -1
            one, two = course(first), course(second)
            if one.of == two.of and one.direction == turn * two.direction:
                halves = (
                    self.most(first, sign, depth + 1),
                    self.most(second, turn * sign, depth + 1),
                )
                return self.apply(node.op, *halves)
        return self._rectify(x, sign)

    def _behind(self, node: Node, source: Tensor, uniform: int, sign: int, depth: int) -> Tensor:
        """An affine step per channel, behind the pooling of its source."""
        at = next(index for index, tensor in enumerate(node.inputs) if tensor is source)
        if uniform:
            inputs = list(node.inputs)
            inputs[at] = self.most(source, sign * uniform, depth)
            return self._moved(node, inputs)
        # Slopes of both signs: σ·x is pooled, and multiplied by |s|.
        factors = per_channel(node.inputs[1 - at], source)
        assert factors is not None
        signs = np.where(factors < 0, -1.0, 1.0)
        turned = self.apply("Mul", source, self.writer.numbers(self.pool.name, signs, source))
        sizes = self.writer.numbers(self.pool.name, np.abs(factors), source)
        return self._moved(node, [self.most(turned, sign, depth), sizes])

    def _moved(self, node: Node, inputs: list[Tensor]) -> Tensor:
        result = self.apply(node.op, *inputs)
        norms = self.writer.context.norms
        if node.name in norms:
            norms[result.inputs[0].name] = norms[node.name]
        return result

    def _rectify(self, x: Tensor, sign: int) -> Tensor:
        above = self.apply("Relu", x)
        self.rectified += 1
        most = max_over(self.writer, self.pool, above, np.full((), float(sign)))
        if never_negative(x):
            return most
        below = self.apply("Relu", self.apply("Neg", x))
        self.rectified += 1
        if sign > 0:
            turned = self.writer.node(
                self.pool.name, "MaxPool", [self.apply("Neg", below)], self.attrs
            )
            return self.apply("Add", most, turned)
        return self.apply(
            "Sub", most, self.writer.node(self.pool.name, "MaxPool", [below], self.attrs)
        )
