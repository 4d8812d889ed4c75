"""What comes in: models, data, and the normalized ANN with its numeric checks."""
