"""Which fault hits which request: specifications, schedules, and a count of what was seen and hit.

A fault names an operation (or ``*``), a kind, and when: `skip` matching requests first (skip=2 is
"the third"), then hit `times` (None: no limit), only between `after_s` and `after_s + for_s` from
its making, with `probability` drawn from `seed`. `agent_id` or `host` (client address, agent name
or host name) narrows it to one host.
"""

from __future__ import annotations

import builtins
import json
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.controlplane import tls
from tests.controlplane.contract import operations
from tests.controlplane.store import Store

# kind -> its options with their defaults. `when` says on which side of the commit it happens.
KINDS: dict[str, dict[str, Any]] = {
    "drop": {"reset": False},
    "cut": {"at": 20, "reset": False},
    "delay": {"seconds": 1.0},
    "hang": {},
    "drip": {"count": 1, "every_s": 1.0},
    "status": {
        "status": 503,
        "body": "",
        "content_type": "application/problem+json",
        "headers": {},
    },
    "problem": {"status": 503, "code": "unavailable", "headers": {}},
    "html": {"status": 200},
    "garbage": {},
    "wrong_length": {"declared": 10_000},
    "huge": {"size": 80_000_000, "declared": True},
    "redirect": {"status": 302, "location": "https://127.0.0.1:1/elsewhere"},
    "crash": {},
    "date": {"offset_s": 3600.0},
    "tls": {"mode": "expired"},
}
BEFORE_BY_DEFAULT = (
    "drop",
    "delay",
    "hang",
    "status",
    "problem",
    "html",
    "garbage",
    "huge",
    "redirect",
    "wrong_length",
)
CONNECTION = "connection"  # the operation of TLS faults: no request is known yet


class BadFault(ValueError):
    """A fault that makes no sense; the text says why."""


@dataclass
class Fault:
    """One specification, with what has become of it."""

    operation: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    when: str = "before"
    skip: int = 0
    times: int | None = 1
    after_s: float = 0.0
    for_s: float | None = None
    probability: float = 1.0
    seed: int = 0
    agent_id: str | None = None
    host: str | None = None
    id: int = 0
    made_at: float = 0.0
    seen: int = 0
    hits: int = 0

    def wants(self, now: float) -> bool:
        """Count one matching request and decide; deterministic in the order of requests."""
        if now < self.made_at + self.after_s or (
            self.times is not None and self.hits >= self.times
        ):
            return False
        if self.for_s is not None and now > self.made_at + self.after_s + self.for_s:
            return False
        self.seen += 1
        if self.seen <= self.skip:
            return False
        if random.Random(f"{self.seed}:{self.seen}").random() >= self.probability:
            return False
        self.hits += 1
        return True


class Faults:
    """The scheduled faults, kept in the store so that a crash of ours forgets none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults: list[Fault] = []
        self.reload()

    def reload(self) -> None:
        rows = self._store.all("SELECT * FROM faults ORDER BY id")
        self._faults = [
            Fault(
                **{
                    **json.loads(row["spec"]),
                    "id": row["id"],
                    "made_at": row["at"],
                    "seen": row["seen"],
                    "hits": row["hits"],
                }
            )
            for row in rows
        ]

    def add(self, operation: str, kind: str, **words: Any) -> int:
        """Schedule; words are the schedule's and the kind's options. Return the fault's id."""
        if kind not in KINDS:
            raise BadFault(f"no fault {kind}; there are {', '.join(sorted(KINDS))}")
        if kind == "tls":
            operation = CONNECTION
            if words.get("mode", "expired") not in tls.MODES:
                raise BadFault(
                    f"no TLS fault {words.get('mode')}; there are {', '.join(tls.MODES)}"
                )
        elif operation not in (*operations(), "*", "store"):
            raise BadFault(
                f"no operation {operation}; there are {', '.join(operations())}, store and *"
            )
        schedule = {
            "when",
            "skip",
            "times",
            "after_s",
            "for_s",
            "probability",
            "seed",
            "agent_id",
            "host",
        }
        unknown = set(words) - schedule - set(KINDS[kind])
        if unknown:
            raise BadFault(f"the fault {kind} has no {', '.join(sorted(unknown))}")
        given = {name: value for name, value in words.items() if name in schedule}
        given.setdefault("when", "before" if kind in BEFORE_BY_DEFAULT else "after")
        # A span of time or a probability without a count means every matching request in it.
        if ("for_s" in given or "probability" in given) and "times" not in given:
            given["times"] = None
        options = {
            **KINDS[kind],
            **{name: value for name, value in words.items() if name not in schedule},
        }
        fault = Fault(operation, kind, options, **given)
        fault.made_at = time.time()
        spec = {
            k: v for k, v in asdict(fault).items() if k not in ("id", "made_at", "seen", "hits")
        }
        fault.id = self._store.run(
            "INSERT INTO faults VALUES (NULL, ?, ?, 0, 0)", json.dumps(spec), fault.made_at
        )
        self._faults.append(fault)
        return fault.id

    def clear(self) -> None:
        self._store.run("DELETE FROM faults")
        self._faults = []

    def list(self) -> builtins.list[dict[str, Any]]:
        return [asdict(fault) for fault in self._faults]

    def pick(
        self, operation: str, *, agent_id: str | None = None, hosts: Any = ()
    ) -> builtins.list[Fault]:
        """The faults that hit this request, in the order in which they were made."""
        now, picked = time.time(), []
        for fault in self._faults:
            if fault.operation != operation and not (
                fault.operation == "*" and operation not in (CONNECTION, "store")
            ):
                continue
            if fault.agent_id not in (None, agent_id) or (
                fault.host is not None and fault.host not in hosts
            ):
                continue
            seen, hits = fault.seen, fault.hits
            if fault.wants(now):
                picked.append(fault)
            if (seen, hits) != (fault.seen, fault.hits):
                self._store.run(
                    "UPDATE faults SET seen = ?, hits = ? WHERE id = ?",
                    fault.seen,
                    fault.hits,
                    fault.id,
                )
        return picked

    def for_handshake(self) -> str | None:
        """The mode of the TLS fault that hits the handshake now beginning."""
        picked = self.pick(CONNECTION)
        return str(picked[0].options["mode"]) if picked else None
