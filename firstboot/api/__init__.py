"""The control plane, seen from this host."""
