"""Decide what first boot does next, from what is on disk: the table of contract 7, pure.

| identity                  | token                | intent               | next                 |
|---------------------------|----------------------|----------------------|----------------------|
| here                      | any                  | any                  | HAND_OFF first; then |
| here                      | any                  | the one it came from | SETTLE               |
| here                      | spent                | any                  | ERASE, once a run    |
| here                      | none, fresh, refused | any                  | DONE                 |
| none                      | fresh, refused       | for token and host   | ENROLL               |
| none, foreign, unreadable | fresh                | none or another      | PREPARE              |
| foreign, unreadable       | fresh                | for token and host   | PREPARE, intent kept |
| none                      | refused              | none or another      | PREPARE once a boot  |
| none                      | refused              | none or another      | else STOP_REFUSED    |
| none                      | spent                | any                  | STOP_LOST            |
| none                      | none                 | durable              | STOP_PROBABLY_SPENT  |
| none                      | none                 | none                 | STOP_NO_TOKEN        |
| foreign                   | none, spent, refused | any                  | STOP_FOREIGN         |
| unreadable                | none, spent, refused | any                  | STOP_UNREADABLE      |

PREPARE sets aside what is not ours and makes a new intent durable; SETTLE marks the token spent and
wipes the intent. It repairs a crash between sealing and marking: an identity that carries the
intent's key was answered to that intent. ERASE comes once cloud-init has finished or does not run,
and then DONE. Before PREPARE comes REACH, until this run has had a TLS session with the address. An
intent for another token or host counts as none for PREPARE, and as durable for STOP_PROBABLY_SPENT.
An identity that could not be looked at is no row: it is a LocalFault, and nothing is set aside for
it. The next step never comes from a counter: a run that was killed anywhere computes it again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from firstboot.identity.store import State
from firstboot.provision.tokens import TokenClass


class IntentState(enum.Enum):
    """The durable intent, seen from the chosen token and this host."""

    NONE = "none"
    OURS = "ours"  # for this token and this host: its key may be used again
    OTHER = "other"  # for another token or host, or ended by a refusal after a lost answer


class Step(enum.Enum):
    """One row's last column; the STOP steps end the run with an exit code."""

    HAND_OFF = "hand off"
    SETTLE = "settle"
    ERASE = "erase"
    DONE = "done"
    REACH = "reach"
    PREPARE = "prepare"
    ENROLL = "enroll"
    STOP_REFUSED = "refused"
    STOP_LOST = "identity lost"
    STOP_PROBABLY_SPENT = "probably spent"
    STOP_NO_TOKEN = "no token"
    STOP_FOREIGN = "foreign"
    STOP_UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Facts:
    """All that the decision rests on; the later ones are of this run and this boot."""

    identity: State
    token: TokenClass | None
    intent: IntentState
    settled: bool = True  # False: the identity that is here was answered to the durable intent
    handed_off: bool = False
    reached: bool = True  # this run has had a TLS session with the control plane
    spent_here: bool = False  # a spent token may be erased now
    erased: bool = False  # this run has tried every one of them
    presented: bool = False  # the refused token was presented in this boot, and nobody said --again


def next_step(facts: Facts) -> Step:
    """Return the step that the table prescribes for `facts`."""
    if facts.identity is State.HERE:
        if not facts.handed_off:
            return Step.HAND_OFF
        if not facts.settled:
            return Step.SETTLE
        return Step.ERASE if facts.spent_here and not facts.erased else Step.DONE
    step = _without_identity(facts)
    return Step.REACH if step is Step.PREPARE and not facts.reached else step


def _without_identity(facts: Facts) -> Step:
    ours = facts.identity is State.NONE and facts.intent is IntentState.OURS
    if facts.token is TokenClass.FRESH:
        return Step.ENROLL if ours else Step.PREPARE
    if facts.identity is not State.NONE:
        return Step.STOP_FOREIGN if facts.identity is State.FOREIGN else Step.STOP_UNREADABLE
    if facts.token is TokenClass.REFUSED:
        if ours:
            return Step.ENROLL
        return Step.STOP_REFUSED if facts.presented else Step.PREPARE
    if facts.token is TokenClass.SPENT:
        return Step.STOP_LOST
    return Step.STOP_NO_TOKEN if facts.intent is IntentState.NONE else Step.STOP_PROBABLY_SPENT
