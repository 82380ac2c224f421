"""What is wrong with this agent now, each with a code, a sentence and what to do: for the heartbeat and for status."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Dict, Iterable, List, Optional

from firstboot.handover import REENROLL, Handover, key_ends

# As far as deployments' times may be off (contract 3): beyond it, they wait.
LARGEST_SKEW_S = 300.0


@dataclass(frozen=True)
class Problem:
    """`code` is stable and for programs; `detail` and `hint` are sentences without a secret."""

    code: str
    detail: str
    hint: Optional[str] = None

    def shown(self) -> Dict[str, Optional[str]]:
        return asdict(self)


def of_the_key(handed: Handover, now: float) -> Iterable[Problem]:
    """The runtime key's own end, from 14 days before it."""
    return of_the_expiry(handed.expires_at, now)


def of_the_expiry(expires_at: Optional[str], now: float) -> Iterable[Problem]:
    """The same, for one who has no key but only the date of its end."""
    said = key_ends(expires_at, now)
    if said is not None:
        yield Problem("runtime_key_expired" if "expired" in said else "runtime_key_expires", said, REENROLL)


def of_the_clock(skew_s: Optional[float]) -> Iterable[Problem]:
    """A clock that is too far from the plane's for the times of deployments and certificates."""
    if skew_s is not None and abs(skew_s) > LARGEST_SKEW_S:
        side = "ahead of" if skew_s > 0 else "behind"
        detail = f"this host's clock is {abs(skew_s):.0f} s {side} the plane's"
        yield Problem("clock_skew", detail, "check time synchronisation (timedatectl)")


def unique(problems: Iterable[Problem]) -> List[Problem]:
    """Each code and sentence once, in order."""
    return list(dict.fromkeys(problems))
