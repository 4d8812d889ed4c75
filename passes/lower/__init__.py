"""Precision, function bodies, event-driven operators, driven neurons, and the last check."""
