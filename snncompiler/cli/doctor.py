"""`snnc doctor`."""

from __future__ import annotations

from snncompiler.cli import tables
from snncompiler.cli.common import Debug, Json, console, print_json
from snncompiler.runtime import doctor as examined


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Show what is installed, which native kernels run, and what is missing."""
    content = examined()
    if as_json:
        print_json(content)
        return
    shown = console()
    rows = [(name, version or "missing") for name, version in content["versions"].items()]
    rows += [
        ("machine", content["machine"]),
        ("instruction set of CPU kernels", content["isa"] or "-"),
    ]
    for part in ("library", "cuda", "compilers"):
        for key, value in content[part].items():
            items = value.items() if isinstance(value, dict) else [("", value)]
            rows += [
                (f"{part}: {key} {inner}".strip(), tables.flat(entry)) for inner, entry in items
            ]
    shown.print(tables.table("snnc doctor", ("", ""), rows))
    for entry in content["missing"]:
        shown.print(f"missing: {entry['what']}: {entry['remedy']}", highlight=False, markup=False)
