"""Erasing as first boot and ``byteor-firstboot erase`` do it: which tokens, and what is said about the outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable

from firstboot.base import files, log
from firstboot.base.clock import Clock
from firstboot.base.errors import NotErased
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.provision import preflight
from firstboot.provision.erase.copies import cloud_init_finished, erase, still_served
from firstboot.provision.erase.receipt import Copy, Receipt
from firstboot.provision.facts import View, look
from firstboot.provision.schema import Rank
from firstboot.provision.sources import Inputs
from firstboot.provision.tokens import TokenClass

LOCK_WAIT_S = 30.0


def erase_tokens(
    layout: Layout, view: View, tokens: Iterable[Secret], *, now: float, refused: bool = False
) -> Receipt:
    """Erase `tokens` everywhere; the marks tell them in copies that an earlier look left."""
    classes = (TokenClass.SPENT, TokenClass.REFUSED) if refused else (TokenClass.SPENT,)
    receipt = erase(
        layout,
        [token.reveal().encode() for token in tokens],
        now=now,
        late=cloud_init_finished(layout),
        served=[*still_served(layout), *_served_again(view)],
        kept=_kept(layout, view),
        known=lambda candidate: view.marks.recognises(candidate, *classes),
    )
    for copy in receipt.copies:
        if copy.result == "kept":
            log.warning(
                f"the token stays in {copy.path}: it was given with --token-file",
                hint="remove it: it is spent",
            )
    say = log.notice if receipt.copies else log.debug
    say("looked for copies of the token", **receipt.summary())
    return receipt


def _served_again(view: View) -> list[str]:
    """Sources of a spent token that overwriting cannot reach, as sentences for the receipt."""
    return [
        f"{source.where} is served again by systemd at every boot"
        for source, token in view.found.tokens
        if source.rank is Rank.CREDENTIAL and view.marks.classify(token) is TokenClass.SPENT
    ]


def _kept(layout: Layout, view: View) -> list[Copy]:
    """The file given with --token-file, which is its owner's and left as it is."""
    return [
        Copy(
            layout.shown(source.path.resolve()),
            {"raw": 1},
            "kept",
            "given with --token-file: its owner's, left as it is",
        )
        for source, token in view.found.tokens
        if source.rank is Rank.TOKEN_FILE
        and source.path
        and view.marks.classify(token) is TokenClass.SPENT
    ]


class _Busy(Exception):
    """Another process holds the lock: there is another erase in every boot."""


def erase_again(layout: Layout, inputs: Inputs, *, refused: bool, as_json: bool) -> int:
    """``byteor-firstboot erase``: look again everywhere; NotErased (exit 9) when a copy stays that could have gone."""
    preflight.make_state(layout)
    try:
        with files.locked(layout.lock, wait_s=LOCK_WAIT_S, busy=_Busy):
            view = look(layout, inputs, tolerant=True)
            classes = (TokenClass.SPENT, TokenClass.REFUSED) if refused else (TokenClass.SPENT,)
            receipt = erase_tokens(
                layout, view, view.tokens(*classes), now=Clock().wall(), refused=refused
            )
    except _Busy:
        log.notice(
            "another byteor-firstboot is at work: nothing was erased now, the next boot looks again"
        )
        return 0
    if as_json:
        print(json.dumps(receipt.to_json(), indent=1, sort_keys=True))
    if receipt.remaining:
        raise NotErased(
            "a copy of the token could not be erased: " + ", ".join(receipt.remaining),
            hint="mend its cause (an immutable file? a full disk?) and run byteor-firstboot erase",
        )
    return 0
