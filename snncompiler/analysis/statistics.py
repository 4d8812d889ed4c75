"""Statistics of a normalized ANN on data of any size: what thresholds follow from, in parts that merge.

The statistics are those of `calibration/observe`: histograms whose counts are added, and maxima.
What needs the running spiking network (corrections, the paper's thresholds, the search for alpha)
cannot be had in one pass: each layer is settled on what those before it send.  That is done when the
network is compiled, on a few samples.
"""

from __future__ import annotations

import hashlib

from snncompiler.analysis.parts import STATISTICS, Part, Shard
from snncompiler.analysis.tally import Largest, Observed
from snncompiler.calibration.calibrate import Progress
from snncompiler.calibration.observe import Observation, Observer, too_few
from snncompiler.emission.save import serialize
from snncompiler.errors import refuse
from snncompiler.network.data import Dataset, Preprocess
from snncompiler.network.prepared import Prepared
from snncompiler.version import __version__


def observe_part(
    prepared: Prepared,
    dataset: Dataset,
    shard: Shard,
    preprocess: Preprocess,
    progress: Progress | None = None,
) -> Part[Observed]:
    """What the normalized ANN does on one shard of the data, which was preprocessed as is said.

    Shards are cut at whole batches.  Of a network that takes one batch size only, samples that do not
    fill it are left out.  Raises Refused for a sample that does not fit or is damaged, and where an
    activation is not finite.
    """
    fixed = prepared.fixed_batch
    observer = Observer(prepared.ann, prepared.graph, fixed)
    size = observer.size
    count = len(dataset) // fixed if fixed else -(-len(dataset) // size)
    if fixed and not count:
        raise too_few(fixed)
    first = next(iter(dataset.batches(size, None, 0, 1)))
    start, stop = shard.of_batches(count)
    damaged: tuple[str, ...] = ()
    for number, batch in enumerate(dataset.batches(size, None, start, stop), start=1):
        damaged += batch.damaged
        if batch.count and (fixed is None or batch.count == fixed):
            observer.add(batch.feeds)
        if progress:
            progress("observing", number, stop - start)
    about = {
        "kind": STATISTICS,
        "version": __version__,
        "source": prepared.source.name,
        "source_sha256": prepared.source.sha256,
        "ann_sha256": ann_sha256(prepared),
        "samples": len(dataset),
        "data_sha256": dataset.fingerprint(first),
        "preprocess": preprocess.as_dict(),
        "skip_damaged": dataset.skip_damaged,
        "batch": size,
        "findings": [finding.as_dict() for finding in dataset.findings],
    }
    largest = {name: Largest(found) for name, found in observer.largest.items()}
    return Part(about, shard, Observed(observer.samples, observer.histograms, largest, damaged))


def observation_of(part: Part[Observed], prepared: Prepared, preprocess: Preprocess) -> Observation:
    """The statistics of a whole, for the network that is compiled and data preprocessed as is said.

    Raises Refused where they are of another network or preprocessing, and where no sample was read.
    """
    about, what = part.about, ""
    if about["source_sha256"] != prepared.source.sha256:
        what = "another network"
    elif about["ann_sha256"] != ann_sha256(prepared):
        what = "the network with other options"
    elif about["preprocess"] != preprocess.as_dict():
        what = "data with another preprocessing"
    if what:
        raise refuse(
            "SNNC306",
            f"the statistics of {about['source']} are of {what}",
            hint="give snnc observe what snnc compile gets",
        )
    observed = part.tally
    if not observed.samples:
        raise refuse("SNNC303", f"none of the {part.about['samples']:,} samples can be read")
    largest = {name: one.value for name, one in observed.largest.items()}
    return Observation(observed.histograms, observed.samples, largest)


def ann_sha256(prepared: Prepared) -> str:
    """Hash of the normalized ANN."""
    return hashlib.sha256(serialize(prepared.ann)).hexdigest()
