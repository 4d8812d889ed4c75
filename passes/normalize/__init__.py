"""The normalized ANN: rectifiers, linear layers without batch-norm, a known batch axis."""
