"""Unprivileged, resident, on the network: works from the three handed-over values alone."""
