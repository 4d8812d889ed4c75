"""Precision, function bodies, event-driven operators, and the last check."""
