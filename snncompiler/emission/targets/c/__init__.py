"""C99: the network in whole numbers, a golden model for hardware people, and for microcontrollers.

Spikes are bytes, weights are whole numbers of 8 bits (or 16), currents and potentials `int32_t`.
Where the file puts a real input on its grid, and behind the last spike, it computes in floats, and so
does the C, in the same order.  So all spikes and all outputs are those of the file, bit for bit.

A streaming network is one time-step (`--emit step`): `NAME_input` puts an input on the grid and adds up
the current of the first layer, `NAME_step` is one time-step, `NAME_answer` decodes the steps so far.
In layered time (`--emit window`) `NAME_run` is a whole window.  Memory is static: a struct of the
states, and buffers that tensors share where they are not alive at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from snncompiler.emission.compiled import CompiledFile
from snncompiler.emission.targets.base import Exported
from snncompiler.emission.targets.c import files
from snncompiler.emission.targets.c.program import BYTES, Program
from snncompiler.errors import UsageError

Array = NDArray[Any]


def export(compiled: CompiledFile, name: str, samples: Sequence[Mapping[str, Array]]) -> Exported:
    """The files of a network in C.

    name: of the network, the beginning of what the header declares.  samples: inputs [1, ...] for test
    vectors, with which `make check` compares.
    Raises UsageError for a file of another form, and Refused, with all that C is not written for.
    """
    layered = compiled.options.layered
    form = "window" if layered else "step"
    if not compiled.grid.layers:
        raise UsageError(
            "the C target takes networks in whole numbers", hint="compile it with --weights int8"
        )
    if compiled.options.emit != form or compiled.options.target == "cpu":
        raise UsageError(
            f"the C target takes {'whole windows' if layered else 'single steps'} of this time",
            hint=f"compile it with --emit {form} and no --target",
        )
    program = Program(compiled, name, samples)
    bodies, outputs = program.translate()
    texts = {
        f"{name}.h": files.header(program, outputs),
        f"{name}.c": files.source(program, bodies, outputs),
        "vectors.h": files.vectors(program, outputs),
        "check.c": files.check(program, outputs),
        "Makefile": files.makefile(program),
    }
    return Exported(
        {file: text.encode() for file, text in texts.items()},
        {
            "bytes of constants": program.data_bytes,
            "bytes of states": program.state_bytes,
            "bytes of buffers": sum(BYTES[kind] * n for kind, n in program.buffers.items()),
        },
        tuple(program.notes),
    )
