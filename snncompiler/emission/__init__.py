"""From the normalized ANN and its calibration to the emitted file, and back."""
