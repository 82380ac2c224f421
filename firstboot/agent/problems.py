"""Present problems, each with a code, a sentence and a hint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

from firstboot.agent.artifacts import spool
from firstboot.agent.artifacts.spool import Census
from firstboot.base.clock import instant
from firstboot.base.documents import lenient
from firstboot.exchange.handover import REENROLL, key_ends
from firstboot.exchange.verdicts import FAILED, REFUSED, ROLLED_BACK, Seen

# Verdict -> its word in a sentence
ENDS = {REFUSED: "is refused", FAILED: "failed", ROLLED_BACK: "was unhealthy"}
SIGN, SOURCE = (
    "the control plane must sign it again",
    "check the mirror or store that serves bundles",
)
# Code of a verdict -> what to do; the runbook has each with its meaning.
ADVICE = {
    "bad_signature": SIGN,
    "unknown_key": "byteor-firstboot trust shows the trusted keys; perhaps they were rotated",
    "wrong_environment": "assign one that was made for this environment",
    "rolled_back_sequence": "roll back at the control plane, with a higher sequence",
    "equivocation": "two deployments have one sequence: find out who signed them",
    "expired": "deploy it again; check this host's clock (timedatectl)",
    "bundle_digest": SOURCE,
    "bundle_size": SOURCE,
    "spec_hash": SOURCE,
    "malformed_bundle": "build the bundle again",
    "unsafe_archive": "build the bundle again",
    "approval": "approve it again at the control plane",
    "no_room": "free some space on the disk; it is tried again",
    "rollback_failed": "act now: neither deployment is healthy; deploy one that is",
}
# As far as deployments' times may be off (contract 3): beyond it, they wait.
LARGEST_SKEW_S = 300.0
# Keys are rotated with overlap (contract 2.5): a last one so near its end was not.
KEYS_END_S = 14 * 86400.0


@dataclass(frozen=True)
class Problem:
    """One problem; `code` is stable, the sentences hold no secret."""

    code: str
    detail: str
    hint: Optional[str] = lenient()

    def shown(self) -> dict[str, str | None]:
        return asdict(self)


def of_the_expiry(expires_at: str | None, now: float) -> Iterable[Problem]:
    """Yield the runtime key's end, from 14 days before it."""
    said = key_ends(expires_at, now)
    if said is not None:
        code = "runtime_key_expired" if "expired" in said else "runtime_key_expires"
        yield Problem(code, said, REENROLL)


def of_the_clock(skew_s: float | None) -> Iterable[Problem]:
    """Yield a skew too large for the times of deployments."""
    if skew_s is not None and abs(skew_s) > LARGEST_SKEW_S:
        side = "ahead of" if skew_s > 0 else "behind"
        detail = f"this host's clock is {abs(skew_s):.0f} s {side} the control plane's"
        yield Problem("clock_skew", detail, "check time synchronisation (timedatectl)")


def of_the_spool(shown: Mapping[str, Any]) -> Iterable[Problem]:
    """Yield what was refused, and a spool that takes nothing more."""
    there = Census(shown["pending"], shown["quarantined"], shown["bytes"])
    if there.quarantined:
        many = "s" if there.quarantined > 1 else ""
        detail = f"{there.quarantined} artifact{many} refused, kept in quarantine"
        hint = "byteor-agent status says why; byteor-agent retry ID, or remove them"
        yield Problem("artifact_quarantined", detail, hint)
    if not there.room_for(1):
        detail = (
            f"the spool is full: it holds {there.pending + there.quarantined} artifacts, "
            f"{there.bytes >> 20} MiB (at most {spool.MOST_ENTRIES} and "
            f"{spool.MOST_BYTES >> 20} MiB); new ones are refused"
        )
        hint = "fix what keeps artifacts from being sent; what is in quarantine may be removed"
        yield Problem("spool_full", detail, hint)


def of_the_activation(seen: Seen, now: float) -> Iterable[Problem]:
    """Yield what the activator's files say is wrong."""
    if seen.fault is not None:
        yield Problem("activation_unreadable", seen.fault, "systemctl status byteor-activate")
    if seen.activator is not None:
        detail = f"the activator cannot do its work: {seen.activator.message}"
        hint = seen.activator.hint or "journalctl -u byteor-activate"
        yield Problem("activation_failing", detail, hint)
    refused = (seen.signing_keys or {}).get("refused")
    if isinstance(refused, dict):
        detail = f"a signing key set was rejected: {refused.get('code')}: {refused.get('detail')}"
        hint = "if the control plane confirms its keys: byteor-firstboot trust --reset"
        yield Problem("signing_keys_refused", detail, hint)
    end = instant(seen.keys_end)
    if end is not None and end - now < KEYS_END_S:
        word = "end" if end > now else "ended"
        detail = (
            f"the signing keys {word} at {seen.keys_end}: nothing new is activated after that,"
            " what is active stays"
        )
        hint = "rotate the signing keys at the control plane"
        if end <= now:
            hint += ", then byteor-firstboot trust --reset here"
        yield Problem(f"signing_keys_{word}", detail, hint)
    if seen.shadowed:
        detail = (
            "/etc/byteor/spec.kv is a regular file: a runtime that reads it does not see what is"
            " deployed"
        )
        hint = "move it away; systemd-tmpfiles --create makes the link"
        yield Problem("spec_shadowed", detail, hint)
    if (seen.last_verdict or {}).get("verdict") in ENDS:
        yield _of_the_deployment(seen.last_verdict or {}, seen.deployment)


def _of_the_deployment(verdict: Mapping[str, Any], active: Mapping[str, Any] | None) -> Problem:
    """Return what is wrong with the deployment that is assigned, and what to do by its code."""
    kind, code = verdict["verdict"], verdict["code"] or ""
    named, tried = "an unverified envelope", ""
    if verdict["deployment_id"] is not None:
        named = f"deployment {verdict['deployment_id']}, sequence {verdict['sequence']},"
        tried = f"{verdict['deployment_id']}-{verdict['sequence']}"
    why = ": ".join(filter(None, (code, verdict["reason"])))
    stays = f"{active['deployment_id']} is active" if active is not None else "nothing is active"
    if kind == ROLLED_BACK:
        stays = stays.replace(" is active", " is active again")
    hint = ADVICE.get("approval" if code.startswith("approval_") else code)
    if hint is None and kind == REFUSED:
        hint = "byteor-agent deployments shows it; make it again at the control plane"
    if hint is None:
        hint = "fix its cause (output: /var/lib/byteor/activation/outcomes), then: "
        hint += f"byteor-agent retry {tried}"
    return Problem(f"deployment_{kind}", f"{named} {ENDS[kind]}: {why}; {stays}", hint)


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """Return each code and sentence once, in order."""
    return list(dict.fromkeys(problems))
