"""Unprivileged, resident, on the network: the loops that run from the three handed-over values alone."""
