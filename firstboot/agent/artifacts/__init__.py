"""Artifacts on their way to the control plane."""
