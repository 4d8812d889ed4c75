"""The files of an export to C: header, source, test vectors, a program that compares, Makefile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snncompiler.emission.targets.c.kernels import WINDOW
from snncompiler.emission.targets.c.program import KINDS, Program, comment, folded, number_of
from snncompiler.version import __version__

Array = NDArray[Any]
#: The type and the size of every output.
Outputs = Sequence[tuple[str, int]]


def _prototypes(program: Program, outputs: Outputs) -> dict[str, str]:
    """The declaration of every function, by its phase."""
    found = [f"{kind} *output_{index}" for index, (kind, _) in enumerate(outputs)]
    state = f"{program.name}_state *s"
    if not program.streams:
        return {"run": f"void {program.name}_run({', '.join([*program.parameters, *found])})"}
    return {
        "reset": f"void {program.name}_reset({state})",
        "begin": f"void {program.name}_input({', '.join([state, *program.parameters])})",
        "step": f"void {program.name}_step({state})",
        "answer": f"void {program.name}_answer({', '.join([f'const {state}', *found])})",
    }


def header(program: Program, outputs: Outputs) -> str:
    guard = f"{program.name.upper()}_H"
    told = {
        "reset": "Forget everything: the next step is the first.",
        "begin": "The input from now on: at the start, and whenever it changes.",
        "step": "One time-step of all layers.",
        "answer": "The outputs, decoded from the steps so far.",
        "run": "A window of time-steps. Its buffers are static, so one call at a time.",
    }
    layers = [f"    {number}: {comment(name)}" for number, name in enumerate(program.layers)]
    lines = [
        f"/* {program.name}: a spiking network, written by snnc {__version__} from",
        f" * {comment(program.compiled.metadata['snnc.source'])}.",
        " *",
        *[f" * Output {index}: {comment(name)}" for index, name in enumerate(program.outputs)],
        " *",
        " * Spiking layers, as SNNC_ON_SPIKES counts them:",
        *[f" * {line}" for line in layers],
        " */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "#include <stdint.h>",
        "",
        f"#define {program.name.upper()}_STEPS {program.compiled.steps}",
        f"#define {program.name.upper()}_LAYERS {len(program.layers)}",
        *[
            f"#define {program.name.upper()}_INPUT_{index} {program.samples[0][entry.name].size}"
            for index, entry in enumerate(program.compiled.inputs)
        ],
        *[
            f"#define {program.name.upper()}_OUTPUT_{index} {size}"
            for index, (_, size) in enumerate(outputs)
        ],
        "",
    ]
    if program.streams:
        lines += [
            "typedef struct {",
            "    int64_t step; /* time-steps that are done */",
            *program.members,
            f"}} {program.name}_state;",
            "",
        ]
    for phase, prototype in _prototypes(program, outputs).items():
        lines += [f"/* {told[phase]} */", f"{prototype};", ""]
    return "\n".join([*lines, "#endif", ""])


def source(program: Program, bodies: Mapping[str, list[str]], outputs: Outputs) -> str:
    now = {
        "step": ["const int64_t start = s->step, end = start + 1;"],
        "answer": ["const int64_t end = s->step, start = end - 1;"],
    }
    used = ["(void)start;", "(void)end;"]
    lines = [
        f"/* {program.name}: see {program.name}.h. Written by snnc {__version__}. */",
        f'#include "{program.name}.h"',
        "",
        "#include <float.h>",
        "#include <limits.h>",
        "#include <math.h>",
        "#include <stddef.h>",
        "",
        "#if INT_MAX < 2147483647",
        "#error int has to have 32 bits",
        "#endif",
        "#if FLT_EVAL_METHOD != 0",
        "#error floats have to be computed as floats (on 32-bit x86: -msse2 -mfpmath=sse)",
        "#endif",
        "",
        "/* Called with the spikes of every layer: its number, bytes of 0 or 1, and how many. */",
        "#ifndef SNNC_ON_SPIKES",
        "#define SNNC_ON_SPIKES(layer, spikes, count) ((void)0)",
        "#endif",
        "",
        *([WINDOW] if program.windows else []),
        *program.kernels.values(),
        *[f"static const window {name} = {text};" for text, name in program.windows.items()],
        *[f"static const {kind} {name}{body}" for (kind, body), name in program.data.items()],
        *[
            f"static {kind} {kind.removesuffix('_t')}s[{size}];"
            for kind, size in sorted(program.buffers.items())
        ],
        "",
    ]
    for phase, prototype in _prototypes(program, outputs).items():
        lines += [f"{prototype} {{"]
        body = now.get(phase, []) + (used if phase in now else []) + bodies.get(phase, [])
        if phase == "reset":
            body = ["s->step = 0;", *program.starts]
        if phase == "step":
            body = [*body, "s->step = end;"]
        lines += [f"    {line}" for line in body] + ["}", ""]
    return "\n".join(lines)


def _answers(program: Program) -> int:
    """How many answers there are to a sample."""
    return program.compiled.steps if program.streams else 1


def vectors(program: Program, outputs: Outputs) -> str:
    """Samples, the outputs that onnxruntime gives (after every step), and its spikes."""
    answers: list[list[Array]] = [[] for _ in outputs]
    spikes = np.zeros((len(program.samples), len(program.layers)), np.int64)
    for number, sample in enumerate(program.samples):
        program.trial.reset()
        for _ in range(_answers(program)):
            seen = program.trial.run(sample)
            spikes[number] += [int(seen[name].sum()) for name in program.layers]
            for kept, name in zip(answers, program.outputs, strict=True):
                kept.append(seen[name])
    lines = [f"/* Written by snnc {__version__}: what onnxruntime computes. */", ""]
    lines += [f"#define VECTORS {len(program.samples)}", f"#define ANSWERS {_answers(program)}", ""]
    arrays = [
        (f"input_{index}", KINDS[entry.dtype], [sample[entry.name] for sample in program.samples])
        for index, entry in enumerate(program.compiled.inputs)
    ]
    arrays += [(f"output_{index}", kind, answers[index]) for index, (kind, _) in enumerate(outputs)]
    arrays.append(("spikes", "int64_t", list(spikes)))
    for name, kind, rows in arrays:
        values = np.concatenate([np.ravel(row) for row in rows])
        numbers = folded(", ".join(map(number_of(kind), values.tolist())))
        lines += [f"static const {kind} vector_{name}[] = {{", numbers, "};", ""]
    return "\n".join(lines)


def check(program: Program, outputs: Outputs) -> str:
    """A program that compares every answer and the number of every layer's spikes."""
    big = program.name.upper()
    inputs = ", ".join(
        f"vector_input_{index} + n * {big}_INPUT_{index}"
        for index in range(len(program.compiled.inputs))
    )
    found = ", ".join(f"output_{index}" for index in range(len(outputs)))
    compare = [
        f"            different += memcmp(output_{index}, vector_output_{index} "
        f"+ (n * ANSWERS + t) * {big}_OUTPUT_{index}, sizeof output_{index}) != 0;"
        for index in range(len(outputs))
    ]
    if program.streams:
        start = [
            f"        {program.name}_reset(&state);",
            f"        {program.name}_input(&state, {inputs});",
        ]
        step = [
            f"            {program.name}_step(&state);",
            f"            {program.name}_answer(&state, {found});",
        ]
        state = [f"    static {program.name}_state state;"]
    else:
        start, state = [], []
        step = [f"            {program.name}_run({inputs}, {found});"]
    lines = [
        f"/* Does {program.name}.c compute what onnxruntime does? Written by snnc {__version__}. */",
        "#include <stdint.h>",
        "#include <stdio.h>",
        "#include <string.h>",
        "",
        "static void count_spikes(int layer, const uint8_t *spikes, int count);",
        "#define SNNC_ON_SPIKES(layer, spikes, count) count_spikes(layer, spikes, count)",
        f'#include "{program.name}.c"',
        '#include "vectors.h"',
        "",
        f"static int64_t counted[{big}_LAYERS];",
        "",
        "static void count_spikes(int layer, const uint8_t *spikes, int count) {",
        "    for (int i = 0; i < count; i++) counted[layer] += spikes[i];",
        "}",
        "",
        "int main(void) {",
        *state,
        *[
            f"    static {kind} output_{index}[{big}_OUTPUT_{index}];"
            for index, (kind, _) in enumerate(outputs)
        ],
        "    int different = 0;",
        "    int64_t spikes = 0;",
        "    for (int n = 0; n < VECTORS; n++) {",
        "        memset(counted, 0, sizeof counted);",
        *start,
        "        for (int t = 0; t < ANSWERS; t++) {",
        *step,
        *compare,
        "        }",
        f"        for (int layer = 0; layer < {big}_LAYERS; layer++) {{",
        "            spikes += counted[layer];",
        f"            different += counted[layer] != vector_spikes[n * {big}_LAYERS + layer];",
        "        }",
        "    }",
        '    printf("%d samples, %d answers each, %lld spikes: %d differ\\n", VECTORS,',
        "           ANSWERS, (long long)spikes, different);",
        "    return different != 0;",
        "}",
        "",
    ]
    return "\n".join(lines)


def makefile(program: Program) -> str:
    name = program.name
    return "\n".join(
        [
            f"# {name}, written by snnc {__version__}: `make` compiles it, `make check` compares it",
            "# with what onnxruntime computes, `make size` tells what it needs.",
            "CC ?= cc",
            "SIZE ?= size",
            "CFLAGS ?= -O2",
            "# Floats as they are written: no product is added before it is rounded.",
            "STRICT = -std=c99 -pedantic -Wall -Wextra -Werror -ffp-contract=off",
            "",
            ".PHONY: all check size clean",
            f"all: {name}.o",
            "",
            f"{name}.o: {name}.c {name}.h",
            f"\t$(CC) $(CFLAGS) $(STRICT) -c {name}.c -o $@",
            "",
            f"check: check.c vectors.h {name}.c {name}.h",
            "\t$(CC) $(CFLAGS) $(STRICT) check.c -o run_check -lm",
            "\t$(RUN) ./run_check",
            "",
            f"size: {name}.o",
            f"\t$(SIZE) {name}.o",
            "",
            "clean:",
            f"\trm -f {name}.o run_check",
            "",
        ]
    )
