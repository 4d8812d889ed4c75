"""Neurons for rectifiers, and spikes between the layers."""
