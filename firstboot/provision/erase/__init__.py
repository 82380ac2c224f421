"""Root, every boot: find the copies of a spent token, overwrite them in place, and say truthfully what remains."""
