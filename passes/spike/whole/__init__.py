"""Parts of the pass `whole-numbers`."""
