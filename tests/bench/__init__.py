"""What the package costs, measured side by side in one run: whole processes, alternating, medians
with their spread.

`interpreters` says which Pythons there are, `processes` reads what a process used; `idle`, `boots`,
`transfers`, `redaction` and `crowd` are the measurements, `peers` runs others' agents, `servers` is
a fast TLS file server that both sides of a transfer use. `rows` is the table, `picture` draws it.
"""
