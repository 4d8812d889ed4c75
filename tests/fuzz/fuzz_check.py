"""Fuzzes the reading and checking of models with atheris (coverage-guided, libFuzzer).

    pip install atheris
    python tests/fuzz/fuzz_check.py [-runs=N] [-max_total_time=SECONDS] [CORPUS]

An answer of ours is fine, a fault of ours is not, nor is any other exception, a crash, more than 2 GiB
of memory or more than 20 s.  The input that did it is written to `crash-...` in the current folder;
`python tests/fuzz/fuzz_check.py crash-...` runs it again.  Without CORPUS, the seeds lie in a
temporary folder.  All other options are those of libFuzzer.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["snncompiler"]):
    from snncompiler import pipeline
    from snncompiler.errors import InternalError, SnncError

from fuzz_seeds import write_seeds
from google.protobuf.message import DecodeError
from mutate import change_fields


def check_bytes(raw: bytes) -> None:
    try:
        pipeline.prepare(bytes(raw))
    except InternalError:
        raise
    except SnncError:
        pass


def mutate(raw: bytes, most: int, seed: int) -> bytes:
    """Changes fields where the bytes are a model, else bytes; bytes at times in any case."""
    rng = random.Random(seed)
    changed = b""
    if rng.random() < 0.8:
        try:
            changed = change_fields(raw, rng)
        except (DecodeError, UnicodeDecodeError, ValueError):
            changed = b""
    if not changed or len(changed) > most:
        changed = bytes(atheris.Mutate(raw, most))
    return changed


def main() -> None:
    given = [word for word in sys.argv[1:] if not word.startswith("-")]
    # libFuzzer wants -runs=N; -runs N is what people type.
    options: list[str] = []
    for word in sys.argv[1:]:
        if options and options[-1] in ("-runs", "-max_total_time") and word.isdigit():
            options[-1] += f"={word}"
            given.remove(word)
        else:
            options.append(word)
    defaults = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=16384", "-len_control=0"]
    with tempfile.TemporaryDirectory() as folder:
        if not given:
            write_seeds(Path(folder))
            options.append(folder)
        atheris.Setup([sys.argv[0], *defaults, *options], check_bytes, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
