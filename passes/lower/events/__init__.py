"""The parts of `lower_events`: a Loop's body, spike trains as bytes, currents, and layers."""
