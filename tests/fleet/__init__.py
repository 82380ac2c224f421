"""Ten thousand agents on a virtual clock: what a fleet does to its plane at a mass boot, in an
outage and after it.

The pauses are those of `firstboot.agent.schedule.Schedule` and the reading of ``Retry-After`` is
`firstboot.api.messages`'s: the very code that a host runs. Only the plane and the time are made up
here, so that an hour of ten thousand hosts takes seconds::

    python -m tests.fleet [--agents N] [--seed N] [--picture FILE]

`planes` says what a plane does to one request, `fleet` is the run, `figures` what is read off it.
"""
