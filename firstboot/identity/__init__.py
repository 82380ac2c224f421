"""The identity that enrollment gave this host, sealed to it."""
