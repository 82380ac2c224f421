"""The reference control plane: stands in for the hosted service in tests, demo and rehearsals;
strict, nasty, drivable.

It serves the nine requests of contract section 2 over HTTPS with a throw-away CA, as a process of
its own, and imports nothing from `firstboot`. A breach of the contract by the client is refused and
recorded as a *violation*; the fixture `control_plane` fails a test at whose end violations remain.
State is one SQLite file and survives restarts.

From a test::

    def test_lost_reply(control_plane):
        token = control_plane.mint()                                  # single use, an hour
        control_plane.fault("enroll", "drop", when="after")           # commits, then says nothing
        ...                                                           # run the client against
        control_plane.base_url assert len(control_plane.agents()) == 1

From a shell (the same words)::

    python -m tests.controlplane --state DIR serve --port 8443 python -m tests.controlplane --state
    DIR mint | agents --watch | requests --watch | violations python -m tests.controlplane --state
    DIR deploy [FILE…] [--broken CODE] | rotate [--retire] | approve spec.kv | faults python -m
    tests.controlplane --state DIR faults add heartbeat problem --option status=503 --option times=3

Words of `ControlPlane`: start stop kill restart close wait_stopped · base_url store_url ca_pem
ca_path pid · mint environment operator_token agents delete revoke expire scopes · requests
violations clear_violations · fault faults clear_faults configure · rotate key_sets deploy approve
reports artifacts · reset close_idle wait_for.

Faults are ``fault(operation, kind, **options)``. Operations: enroll list heartbeat latest bundle
status signing-keys artifacts healthz store (the object store), or ``*``. Kinds and their options:
`faults.KINDS`. Schedule: `when` (before or after the commit), `skip`, `times` (None: no limit),
`after_s`, `for_s`, `probability` with `seed`, `agent_id`, `host`. Switches of
``configure(**settings)``: `plane.SETTINGS`. What ``deploy(broken=…, variant=…)`` can break:
`spoil.SPOILERS` and `spoil.HISTORY`; what ``rotate(broken=…)`` can: `keysets.BREAKS`. `examine`
reads contract 2.5 and 3 a second time, for the control plane's own tests; `vectors` writes
tests/vectors; `plain` is a host in a few lines of plain HTTP.

Needs, all in the test extra: cryptography jsonschema pyyaml python-multipart starlette trustme
uvicorn; its own tests also httpx and schemathesis.
"""

from __future__ import annotations

from tests.controlplane.process import ControlPlane, PlaneError

__all__ = ["ControlPlane", "PlaneError"]
