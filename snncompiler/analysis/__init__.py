"""What a compiled network does: evaluation, diagnosis, verification, traces, counts."""
