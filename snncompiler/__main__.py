"""`python -m snncompiler` is `snnc`."""

from snncompiler.cli.main import main

main()
