"""The table of contract section 7: every combination of its facts has the step that the table
says.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from firstboot.identity.store import State
from firstboot.provision.decision import Facts, IntentState, Step, next_step
from firstboot.provision.tokens import TokenClass

ANY = "any"
HERE, NONE, FOREIGN, UNREADABLE = State.HERE, State.NONE, State.FOREIGN, State.UNREADABLE
FRESH, REFUSED, SPENT, NO = TokenClass.FRESH, TokenClass.REFUSED, TokenClass.SPENT, None
OURS, OTHER, ABSENT = IntentState.OURS, IntentState.OTHER, IntentState.NONE

# identity, token, intent, presented in this boot -> step (for a run that has handed off and erased
# all it can)
ROWS = [
    (HERE, ANY, ANY, ANY, Step.DONE),
    (NONE, FRESH, OURS, ANY, Step.ENROLL),
    (NONE, FRESH, ABSENT, ANY, Step.PREPARE),
    (NONE, FRESH, OTHER, ANY, Step.PREPARE),
    (FOREIGN, FRESH, ANY, ANY, Step.PREPARE),
    (UNREADABLE, FRESH, ANY, ANY, Step.PREPARE),
    (NONE, REFUSED, OURS, ANY, Step.ENROLL),
    (NONE, REFUSED, ABSENT, False, Step.PREPARE),
    (NONE, REFUSED, OTHER, False, Step.PREPARE),
    (NONE, REFUSED, ABSENT, True, Step.STOP_REFUSED),
    (NONE, REFUSED, OTHER, True, Step.STOP_REFUSED),
    (NONE, SPENT, ANY, ANY, Step.STOP_LOST),
    (NONE, NO, OURS, ANY, Step.STOP_PROBABLY_SPENT),
    (NONE, NO, OTHER, ANY, Step.STOP_PROBABLY_SPENT),
    (NONE, NO, ABSENT, ANY, Step.STOP_NO_TOKEN),
    *[(FOREIGN, token, ANY, ANY, Step.STOP_FOREIGN) for token in (NO, SPENT, REFUSED)],
    *[(UNREADABLE, token, ANY, ANY, Step.STOP_UNREADABLE) for token in (NO, SPENT, REFUSED)],
]


def matches(cell: object, value: object) -> bool:
    return cell is value or cell == ANY


@pytest.mark.parametrize(
    ("state", "token", "intent", "presented"),
    list(itertools.product(State, [None, *TokenClass], IntentState, [False, True])),
)
def test_every_combination_is_decided_by_one_row(
    state: State, token: TokenClass | None, intent: IntentState, presented: bool
) -> None:
    """Exactly one row holds for any facts, and the decision is that row's."""
    rows = [
        row[4]
        for row in ROWS
        if matches(row[0], state)
        and matches(row[1], token)
        and matches(row[2], intent)
        and matches(row[3], presented)
    ]
    assert len(rows) == 1
    facts = Facts(state, token, intent, handed_off=True, erased=True, presented=presented)
    assert next_step(facts) is rows[0]


@pytest.mark.parametrize(
    ("state", "token", "intent", "presented"),
    list(itertools.product(State, [None, *TokenClass], IntentState, [False, True])),
)
def test_nothing_is_prepared_before_the_control_plane_was_reached(
    state: State, token: TokenClass | None, intent: IntentState, presented: bool
) -> None:
    """REACH stands before PREPARE, and before nothing else."""
    facts = Facts(state, token, intent, handed_off=True, erased=True, presented=presented)
    step, without = next_step(facts), next_step(replace(facts, reached=False))
    assert without is (Step.REACH if step is Step.PREPARE else step)


@pytest.mark.parametrize("token", [None, *TokenClass])
def test_an_identity_hands_off_first_then_erases_then_ends(token: TokenClass | None) -> None:
    """Hand-off comes before anything that may fail; then a crash between sealing and marking is
    settled, then what is spent is erased.
    """
    spent = token is SPENT
    facts = {"identity": HERE, "token": token, "intent": ABSENT, "spent_here": spent}
    new = {**facts, "intent": OURS, "settled": False}
    assert next_step(Facts(**new)) is Step.HAND_OFF
    assert next_step(Facts(**new, handed_off=True)) is Step.SETTLE
    assert next_step(Facts(**facts)) is Step.HAND_OFF
    assert next_step(Facts(**facts, handed_off=True)) is (Step.ERASE if spent else Step.DONE)
    assert next_step(Facts(**facts, handed_off=True, erased=True)) is Step.DONE
