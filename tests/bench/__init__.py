"""What the package costs, measured side by side in one run: whole processes, alternating, medians
with their spread.

`interpreters` says which Pythons there are, `processes` reads what a process used, `idle`, `boots`
and `transfers` are the measurements, `peers` the same of others' agents, `servers` a fast TLS file
server that both sides of a transfer use.
"""
