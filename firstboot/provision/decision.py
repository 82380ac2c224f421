"""What first boot does next, from what is on disk: the table of contract section 7 as a pure function.

| identity                  | token                | intent               | next                                        |
|---------------------------|----------------------|----------------------|---------------------------------------------|
| here                      | any                  | the one it came from | SETTLE: the token is spent, wipe the intent |
| here                      | any                  | any                  | HAND_OFF if not yet done; then:             |
| here                      | spent                | any                  | ERASE if it may and has not tried; then DONE|
| here                      | none, fresh, refused | any                  | DONE                                        |
| none                      | fresh, refused       | for token and host   | ENROLL                                      |
| none, foreign, unreadable | fresh                | none or another      | PREPARE: set aside, preflight, intent       |
| none                      | refused              | none or another      | PREPARE once a boot, else STOP_REFUSED      |
| none                      | spent                | any                  | STOP_LOST                                   |
| none                      | none                 | durable              | STOP_PROBABLY_SPENT                         |
| none                      | none                 | none                 | STOP_NO_TOKEN                               |
| foreign                   | none, spent, refused | any                  | STOP_FOREIGN                                |
| unreadable                | none, spent, refused | any                  | STOP_UNREADABLE                             |

The first row repairs a crash between sealing and marking: an identity that carries the intent's key was answered to
that intent. An intent for another token or host counts as none for PREPARE, and as durable for STOP_PROBABLY_SPENT.
The next step never comes from a counter: a run that was killed anywhere computes the same step again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from firstboot.identity.store import State
from firstboot.provision.tokens import TokenClass


class IntentState(enum.Enum):
    """What `intent.json` says, seen from the chosen token and this host."""

    NONE = "none"
    OURS = "ours"  # for this token and this host: its key may be used again
    OTHER = (
        "other"  # durable, but for another token or host, or ended by a refusal after a lost answer
    )


class Step(enum.Enum):
    """One row's last column; the STOP steps end the run with an exit code."""

    SETTLE = "settle"
    HAND_OFF = "hand off"
    ERASE = "erase"
    DONE = "done"
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
    """All that the decision rests on; the later ones say what this run and this boot have done already."""

    identity: State
    token: TokenClass | None
    intent: IntentState
    settled: bool = True  # False: the identity that is here was answered to the durable intent
    handed_off: bool = False
    spent_here: bool = False  # a source holds a spent token, and cloud-init has finished
    erased: bool = False  # this run has tried every one of them
    presented: bool = False  # the refused token was presented in this boot, and nobody said --again


def next_step(facts: Facts) -> Step:
    """Return the step that the table prescribes for `facts`."""
    if facts.identity is State.HERE:
        return _with_identity(facts)
    if facts.token is TokenClass.FRESH:
        ready = facts.identity is State.NONE and facts.intent is IntentState.OURS
        return Step.ENROLL if ready else Step.PREPARE
    if facts.identity is State.FOREIGN:
        return Step.STOP_FOREIGN
    if facts.identity is State.UNREADABLE:
        return Step.STOP_UNREADABLE
    return _without_identity(facts)


def _with_identity(facts: Facts) -> Step:
    if not facts.settled:
        return Step.SETTLE
    if not facts.handed_off:
        return Step.HAND_OFF
    if facts.spent_here and not facts.erased:
        return Step.ERASE
    return Step.DONE


def _without_identity(facts: Facts) -> Step:
    if facts.token is TokenClass.REFUSED:
        if facts.intent is IntentState.OURS:
            return Step.ENROLL
        return Step.STOP_REFUSED if facts.presented else Step.PREPARE
    if facts.token is TokenClass.SPENT:
        return Step.STOP_LOST
    if facts.intent is not IntentState.NONE:
        return Step.STOP_PROBABLY_SPENT
    return Step.STOP_NO_TOKEN
