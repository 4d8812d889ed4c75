"""`snnc merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snncompiler.analysis.parts import merge as merged
from snncompiler.cli.common import Debug, Json, Quiet
from snncompiler.cli.eval import Predictions, check_predictions, show_evaluation


def merge(
    parts: Annotated[
        list[Path], typer.Argument(help="What snnc eval --shard wrote, all parts in any order.")
    ],
    predictions: Predictions = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put the parts of an evaluation together: the output is that of snnc eval on all the data."""
    check_predictions(predictions, as_json)
    show_evaluation(merged(parts), predictions, as_json, quiet)
