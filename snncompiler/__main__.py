"""`python -m snncompiler` is `snnc`."""

from snncompiler.cli import main

main()
