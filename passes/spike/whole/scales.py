"""Which scale every label of a network has (`records`): as small as the weights allow, the largest of
which fits the bits that were asked for, while no sum exceeds 2^24 and the thresholds are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from snncompiler.ir.graph import Node, value
from snncompiler.ir.whole import EXACT
from snncompiler.passes.grids import Floats, Real
from snncompiler.passes.spike.whole.records import (
    FREE,
    LEAST_THRESHOLD,
    Current,
    Kind,
    Labels,
    LabelTable,
    Layer,
    Neuron,
    Rounded,
    Whole,
    odd,
    port_of,
    rows_with,
    spread,
)

#: The most that a threshold is: a finer grid tells nothing more of a weight than its own bits do.
LARGEST_THRESHOLD = (1 << 14) - 1
#: Thresholds of neurons whose currents are rounded and not summed from weights, which leave the choice.
ROUNDED_THRESHOLD = (1 << 12) - 1
#: The same where the current is static: it is multiplied by DRIVE_UNIT-ths where thresholds grow; and
#: the most where weights read more than spikes.
STATIC_THRESHOLD = (1 << 16) - 1
#: Levels of a sum that a layer reads, where it has more than the layer's own sums bear.
SUM_LEVELS = (1 << 8) - 1
#: The same in layered time, where a current of few levels would hide those of the neuron.
WINDOW_SUM_LEVELS = (1 << 16) - 1
#: Parts of the scale with which the largest weight just fits that are tried where there are few bits.
PARTS = np.linspace(1.0, 0.5, 26)


class Scales:
    """table: of the labels.  added: a constant that is added, or a bias: the node, the place of its
    input, what it is added to.  wide: label -> how many times as large as its sums may be what is made
    of them.  ratios: by how much the threshold behind a spike was rounded, by its number, which this
    finds; owners: the label of its neuron.  levels, most, step: as `WholeNumbers` has them.
    """

    def __init__(
        self,
        table: LabelTable,
        layers: Sequence[Layer],
        rounded: Sequence[Rounded],
        neurons: Sequence[Neuron],
        added: Sequence[tuple[Node, int, Labels]],
        wide: Mapping[int, float],
        ratios: list[float],
        owners: Sequence[int],
        levels: int,
        most: int,
        step: int,
    ) -> None:
        self.layers, self.rounded, self.neurons, self.added = layers, rounded, neurons, added
        self.ratios, self.owners, self.wide = ratios, owners, wide
        self.levels, self.most, self.step = levels, most, step
        count = len(table.parents)
        self.root = np.array([table.root(one) for one in range(count)])
        #: By root: the least that a scale may be for the bits of weights; the bound of sums; and what
        #: rounding may add to it, in whole numbers.
        self.least, self.bound, self.slack = (np.zeros(count) for _ in range(3))
        self.scale = np.full(count, np.nan)
        #: Roots without a scale that holds all.
        self.crowded: set[int] = set()

    def settle(self) -> list[Node]:
        """Choose the scales, the scale of a label as soon as all that it depends on is known.

        Returns the nodes whose output flows back into their input without a neuron between them, of
        which there is no scale.
        """
        count = len(self.scale)
        wide = np.ones(count)
        for one, factor in self.wide.items():
            wide[self.root[one]] = max(wide[self.root[one]], factor)
        thetas: dict[int, list[float]] = {}
        caps: dict[int, int] = {}
        for neuron in self.neurons:
            theta = spread(value(port_of(neuron.node, "threshold")), neuron.labels.ndim)
            pairs = np.broadcast_arrays(theta, self.root[neuron.labels])
            for one, place in zip(*(pair.reshape(-1) for pair in pairs), strict=True):
                thetas.setdefault(int(place), []).append(float(one))
                caps[int(place)] = STATIC_THRESHOLD if neuron.rounded else ROUNDED_THRESHOLD
        waiting = np.zeros(count, np.int64)
        weighed: set[int] = set()
        records: list[Layer | Rounded] = [*self.layers, *self.rounded]
        for made in records:
            np.add.at(waiting, self.root[made.labels], 1)
            if isinstance(made, Layer):
                of_weights = set(self.root[made.labels].reshape(-1).tolist())
                plain = isinstance(made.source, Whole) and made.source.bound == self.levels
                cap = LARGEST_THRESHOLD if plain or made.is_coefficient else STATIC_THRESHOLD
                for root in of_weights:
                    caps[root] = max(cap, caps.get(root, 0) if root in weighed else 0)
                weighed |= of_weights
        for node, index, labels in self.added:
            values = spread(value(node.inputs[index]), labels.ndim)
            size, roots = np.broadcast_arrays(np.abs(values), self.root[labels])
            most = np.zeros(count)
            np.maximum.at(most, roots, size)
            self.bound += most
            self.slack += (most > 0).astype(np.float64)
        left = set(np.unique(self.root[FREE + 1 :]).tolist())
        by_root: dict[int, list[Neuron]] = {}
        for neuron in self.neurons:
            for root in set(self.root[neuron.labels].reshape(-1).tolist()):
                by_root.setdefault(root, []).append(neuron)
        patient = True
        while left:
            ready = [one for one in records if self._known(one.source, patient)]
            ids = {id(one) for one in ready}
            records = [one for one in records if id(one) not in ids]
            for made in ready:
                self._account(made)
                np.add.at(waiting, self.root[made.labels], -1)
            chosen = [root for root in left if waiting[root] == 0]
            for root in chosen:
                if np.isnan(self.scale[root]):
                    self.scale[root] = self._chosen(
                        root, thetas.get(root, []), caps, float(wide[root])
                    )
            for neuron in {id(n): n for root in chosen for n in by_root.get(root, [])}.values():
                self._set_ratios(neuron)
            left -= set(chosen)
            if not chosen and not ready:
                if not patient:
                    return list({id(one.node): one.node for one in records}.values())
                # Spikes flow back into the sums from which they come: what they are worth has to be
                # taken as it was meant.
                patient = False
        return []

    def _known(self, source: Kind, patient: bool) -> bool:
        """Whether the unit of a value is known; of spikes, if one is `patient`, what they are worth."""
        if isinstance(source, Real) or (isinstance(source, Whole) and not patient):
            return True
        labels = (
            source.labels if isinstance(source, Current) else np.asarray(self.owners)[source.trains]
        )
        return not np.isnan(self.scale[self.root[labels[labels != FREE]]]).any()

    def of(self, labels: Labels) -> Floats:
        """The scales of labels, 1 where any scale fits."""
        found = self.scale[self.root[labels]]
        return np.where(labels == FREE, 1.0, found)

    def bounds(self, labels: Labels) -> Floats:
        """What sums are at most in size, in real numbers."""
        return np.where(labels == FREE, 0.0, self.bound[self.root[labels]])

    def _account(self, one: Layer | Rounded) -> None:
        """What a node says of the scales of its labels."""
        roots = self.root[one.labels]
        if isinstance(one, Rounded):
            if isinstance(one.source, Current):
                size = self.bounds(one.source.labels)
            elif isinstance(one.source, Whole):
                size = one.source.unit * one.source.bound
            else:
                size = np.array(max(abs(one.source.low), abs(one.source.high)))
            sizes, places = np.broadcast_arrays(np.abs(one.factor) * size, roots)
            sizes = one.bound = np.asarray(one.places * sizes, np.float64)
            most = np.zeros(len(self.bound))
            np.maximum.at(most, places, sizes)
            self.bound += most
            self.slack += (most > 0).astype(np.float64)
            if one.reader is not None:
                self._link(one)
            return
        roots = roots.reshape(-1)
        one.rows = self.rows(one)
        sizes = np.abs(one.rows)
        if isinstance(one.source, Current):
            reach = np.abs(rows_with(one.node, one.weights, self.bounds(one.source.labels)))
        else:
            assert isinstance(one.source, Whole)
            reach = sizes * one.source.bound
        # A weight is rounded by half a step at most, for each of the inputs' numbers.
        loose = 0.5 * one.step * np.divide(reach, sizes, out=np.zeros_like(reach), where=sizes > 0)
        one.bound = reach.sum(axis=1)
        top = sizes.max(axis=1, initial=0.0) / (one.step * one.most)
        if one.step > 1:
            top = top * _best_parts(one.rows, top * one.step, one.most)
        np.maximum.at(self.least, roots, top)
        most, slack = np.zeros(len(self.bound)), np.zeros(len(self.bound))
        np.maximum.at(most, roots, one.bound)
        np.maximum.at(slack, roots, loose.sum(axis=1))
        self.bound += most
        self.slack += slack

    def _link(self, one: Rounded) -> None:
        """The scale of what a layer reads that is a sum itself: as it is where it has few levels, else
        with as many as the layer's sums bear, SUM_LEVELS at most."""
        assert isinstance(one.source, Current) and one.reader is not None
        weights = value(one.reader.inputs[1])
        assert weights is not None
        bounds, scales = self.bounds(one.source.labels), self.of(one.source.labels)
        rows = np.abs(rows_with(one.reader, weights, bounds))
        top = rows.max(axis=1, initial=0.0)
        mass = float((rows.sum(axis=1) / np.where(top > 0, top, 1.0)).max(initial=1.0))
        levels = max(0.9 * EXACT / (mass * self.most * self.step), 1.0)
        most = WINDOW_SUM_LEVELS if self.levels > 1 else SUM_LEVELS
        held = np.maximum(scales, bounds / min(levels, most))
        self.scale[self.root[one.labels]] = np.broadcast_to(held, one.labels.shape)

    def _chosen(
        self, root: int, thetas: list[float], caps: Mapping[int, int], wide: float
    ) -> float:
        """The smallest scale with which the weights fit, no sum exceeds 2^24, and the smallest
        threshold is whole and odd."""
        room = EXACT / wide - self.slack[root] - 2
        if room < EXACT / wide / 4:
            self.crowded.add(root)
            room = EXACT / wide / 4
        least = max(float(self.least[root]), float(self.bound[root]) / room)
        if not thetas:
            return least or 1.0
        theta = min(thetas)
        # A neuron of layered time takes away `levels` thresholds at most.
        cap = min(caps[root], EXACT // (4 * self.levels))
        threshold = cap if least * cap <= theta else int(theta / least)
        threshold -= 1 - threshold % 2
        # A threshold that is small beside the weights becomes larger, and its spikes worth more.
        return theta / threshold if threshold >= LEAST_THRESHOLD else least

    def rows(self, one: Layer) -> Floats:
        """The weights with the unit of what they read, [O, K]."""
        if isinstance(one.source, Current):
            return rows_with(one.node, one.weights, self.of(one.source.labels))
        assert isinstance(one.source, Whole)
        ratios = np.asarray(self.ratios)[one.source.trains]
        return rows_with(one.node, one.weights, one.source.unit * ratios, one.labels.shape)

    def _set_ratios(self, neuron: Neuron) -> None:
        theta = spread(value(port_of(neuron.node, "threshold")), neuron.labels.ndim)
        exact = theta / self.of_neuron(neuron)
        if np.isnan(exact).any():
            return  # some of its scales are still to be chosen
        ratios = odd(exact) / exact
        flat = np.broadcast_to(
            np.where(np.abs(ratios - 1) < 1e-9, 1.0, ratios), neuron.trains.shape
        )
        for train, ratio in zip(neuron.trains.reshape(-1), flat.reshape(-1), strict=True):
            self.ratios[int(train)] = float(ratio)

    def of_neuron(self, neuron: Neuron) -> Floats:
        """The scales of what a neuron receives."""
        scales: Floats = self.scale[self.root[neuron.labels]]
        return scales


def _best_parts(rows: Floats, scales: Floats, most: int) -> Floats:
    """Of each row the part of its scale with which rounding it changes it least: with few bits a
    smaller scale that clips the largest weights may serve the others better.  [O]."""
    best = np.ones(len(rows))
    least = np.full(len(rows), np.inf)
    for part in PARTS:
        scale = np.where(scales > 0, part * scales, 1.0)[:, None]
        kept = np.clip(np.floor(rows / scale + 0.5), -most, most) * scale
        error = np.square(rows - kept).sum(axis=1)
        better = error < least
        best[better], least[better] = part, error[better]
    return best
