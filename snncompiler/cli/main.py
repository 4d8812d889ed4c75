"""The command line: `snnc check | compile | run | eval | verify | trace | export | info | doctor`.

Results go to standard output, everything else to standard error.  Exit codes: 0 done, 1 the model or
the data is refused, 2 wrong usage, 3 something is missing in the environment, 4 our own fault,
130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from snncompiler.cli.check import check
from snncompiler.cli.common import guarded
from snncompiler.cli.compile import compile
from snncompiler.cli.doctor import doctor
from snncompiler.cli.eval import eval
from snncompiler.cli.export import export
from snncompiler.cli.info import info
from snncompiler.cli.merge import merge
from snncompiler.cli.observe import observe
from snncompiler.cli.options import expanded
from snncompiler.cli.run import run
from snncompiler.cli.trace import trace
from snncompiler.cli.verify import verify
from snncompiler.version import __version__

app = typer.Typer(
    help="Compile trained ReLU networks in ONNX into spiking networks that onnxruntime runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"snnc {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for command in (check, observe, compile, run, eval, merge, verify, trace, export, info, doctor):
    app.command(name=command.__name__)(guarded(expanded(command)))


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
