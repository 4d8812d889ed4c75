"""Quantized networks in layered time: do the spikes stand for the integers of the source?

    python bench/quantised.py --material DIR [--only NAME,NAME] [--samples 32]
        [--formats QDQ,QOperator] [--types U8S8,U8U8,S8S8] [--rows FILE] [--write PAGE]

Every network of the material is quantized by `onnxruntime.quantization.quantize_static`, on 32 samples
of its own data, with one scale for all weights of a layer and with one for each channel; it is
compiled with `--timing layered --coding radix`, where nothing is calibrated, and run beside the
source, one sample at a time.  A row says

    integers    of the spiking layers, beside the source without onnxruntime's optimizer: how many
                there are, how many differ, and by how many levels at most; and the same of each layer
                alone, fed with the source's own integers
    arg-max     how many samples have another one than the source with the optimizer, and without it;
                and how many differ between these two
    outputs     the largest difference to the source without the optimizer, relative to the largest

With `--rows` every row is kept as soon as it is measured, and a run that was cut goes on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "material")]

from real_networks import Material  # noqa: E402

Array = NDArray[Any]
Row = dict[str, Any]

CALIBRATION = 32
BEGIN, END = "<!-- table of bench/quantised.py -->", "<!-- end of the table -->"


def quantize(path: Path, into: Path, samples: Array, form: str, types: str, channels: bool) -> str:
    """Write the quantized network; the name of its input."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    model = onnx.load(path)
    if next(one.version for one in model.opset_import if not one.domain) < 13:
        # onnxruntime's tool needs it for a scale of each channel.
        model = onnx.version_converter.convert_version(model, 13)
    given = {tensor.name for tensor in model.graph.initializer}
    name = str(next(entry.name for entry in model.graph.input if entry.name not in given))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter([{name: one[None]} for one in samples])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    kinds = {"U": QuantType.QUInt8, "S": QuantType.QInt8}
    quantize_static(
        model,
        str(into),
        Reader(),
        quant_format=QuantFormat[form],
        activation_type=kinds[types[0]],
        weight_type=kinds[types[2]],
        per_channel=channels,
    )
    return name


def outputs(model: bytes, name: str, x: Array, optimized: bool = True) -> Array:
    """The first output, one sample at a time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = [np.ravel(session.run(None, {name: one[None]})[0]) for one in x]
    return np.stack(found).astype(np.float64)


def measure(
    material: Material, name: str, form: str, types: str, channels: bool, count: int
) -> Row:
    """One row: what differs, or why it could not be made."""
    from snncompiler import Refused
    from snncompiler.analysis.integers import compare_integers
    from snncompiler.ir.settings import Options
    from snncompiler.pipeline import compile_model

    row: Row = {"name": name, "format": form, "types": types, "channels": channels}
    x, _ = material.samples(name, count)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        try:
            entry = quantize(
                material.model(name),
                path,
                material.calibration(name, CALIBRATION),
                form,
                types,
                channels,
            )
        except Exception as error:  # of onnxruntime's tool, which has no class of its own for it
            return row | {"not quantized": str(error).splitlines()[0][:160]}
        raw = path.read_bytes()
        try:
            result = compile_model(str(path), Options(timing="layered", coding="radix"))
        except Refused as refused:
            errors = [one for one in refused.findings if one.severity == "error"]
            return row | {"refused": f"{errors[0].code} {errors[0].message}"}
    if not result.prepared.context.keeps_rounding:
        return row | {"refused": "the rounding is not kept"}
    steps = next(e.value for e in result.model.metadata_props if e.key == "snnc.steps")
    values = different = largest = alone = furthest = 0
    half = 0.0
    for one in x:
        found = compare_integers(result.prepared, result.model, {entry: one[None]})
        values, different = values + found.values, different + found.different
        largest = max(largest, found.largest)
        each = compare_integers(result.prepared, result.model, {entry: one[None]}, fed=True)
        alone, furthest = alone + each.different, max(furthest, each.largest)
        half = max(half, each.from_half)
    spiking = outputs(result.model.SerializeToString(), entry, x)
    optimized, plain = outputs(raw, entry, x), outputs(raw, entry, x, optimized=False)

    def others(first: Array, second: Array) -> int:
        return int(np.count_nonzero(first.argmax(1) != second.argmax(1)))

    return row | {
        "steps": int(steps), "layers": len(found.layers), "samples": len(x), "values": values,
        "different": different, "largest": largest, "alone": alone, "furthest alone": furthest,
        "from half": half,
        "argmax optimized": others(spiking, optimized),
        "argmax plain": others(spiking, plain), "argmax between": others(optimized, plain),
        "outputs": float(np.abs(spiking - plain).max() / max(np.abs(plain).max(), 1e-30)),
        "outputs between": float(np.abs(optimized - plain).max() / max(np.abs(plain).max(), 1e-30)),
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """One line for each network and format; the worst of its types and of both kinds of scales."""
    lines = [
        "| network | format | files | T | integers | differ | by at most | each layer alone: differ | "
        "by at most | arg-max differs | outputs differ by | with and without the optimizer by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["format"]), []).append(row)
    for (name, form), group in sorted(groups.items()):
        good = [row for row in group if "values" in row]
        for row in group:
            reason = row.get("refused") or row.get("not quantized")
            if reason and not good:
                lines.append(f"| {name} | {form} | {len(group)} | | {reason} | | | | | | | |")
                break
        if not good:
            continue
        steps = sorted({row["steps"] for row in good})
        values, different = (sum(row[key] for row in good) for key in ("values", "different"))
        other = sum(row["argmax plain"] for row in good)
        samples = sum(row["samples"] for row in good)
        lines.append(
            f"| {name} | {form} | {len(good)} of {len(group)} | {', '.join(map(str, steps))} | "
            f"{values:,} | {different:,} | {max(row['largest'] for row in good)} | "
            f"{sum(row['alone'] for row in good):,} | {max(row['furthest alone'] for row in good)} | "
            f"{other} of {samples} | {max(row['outputs'] for row in good):.2g} | "
            f"{max(row['outputs between'] for row in good):.2g} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--formats", default="QDQ,QOperator")
    parser.add_argument("--types", default="U8S8,U8U8,S8S8")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    material = Material(given.material)
    rows: list[Row] = []
    if given.rows and given.rows.exists():
        rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
    keys = ("name", "format", "types", "channels")
    done = {tuple(row[key] for key in keys) for row in rows}
    names = [name for name in given.only.split(",") if name] or sorted(material.entries)
    for name in names:
        for form in given.formats.split(","):
            for types in given.types.split(","):
                for channels in (False, True):
                    if (name, form, types, channels) in done:
                        continue
                    row = measure(material, name, form, types, channels, given.samples)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    if given.rows:
                        with given.rows.open("a") as file:
                            file.write(json.dumps(row) + "\n")
    lines = table(rows)
    print("\n".join(lines))
    if given.write:
        text = given.write.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        given.write.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))
    return int(any(row.get("argmax plain", 0) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
