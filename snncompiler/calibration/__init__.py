"""From the ANN and data to thresholds and charges."""
