"""The words of the compiler: graphs, operators, phases, settings, and our own operators."""
