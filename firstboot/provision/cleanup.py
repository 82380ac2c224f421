"""Erase spent tokens once cloud-init has finished, and say what remains.

The one moment of contract 7: while cloud-init is at work in this boot nothing that it may read is
overwritten. ``byteor-erase.service`` runs ``byteor-firstboot erase`` after cloud-final; a `run`
that enrolls later does the same itself. Both search with the token in hand, as the sources hold it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Callable

from firstboot.base import files, log, systemd
from firstboot.base.clock import Clock
from firstboot.base.errors import NotErased
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.provision import preflight
from firstboot.provision.erase import copies, search, seeds, systemjournal
from firstboot.provision.erase.receipt import ERASED, GIVEN, Copy, Receipt, earlier
from firstboot.provision.erase.shield import Shield
from firstboot.provision.facts import View, look
from firstboot.provision.progress import at_work
from firstboot.provision.sources import Inputs, Rank, Source, gather
from firstboot.provision.tokens import TokenClass

UNIT = "byteor-erase.service"  # ordered after cloud-final, however that ended
FIRST_BOOT = "byteor-firstboot.service"
AGAIN = "byteor-firstboot erase, which says why it fails"


def erase(
    layout: Layout,
    view: View,
    inputs: Inputs,
    tokens: Collection[Secret],
    *classes: TokenClass,
    now: float,
    late: bool,
) -> Receipt:
    """Erase `tokens`, and what an earlier look left of `classes`; write the receipt."""
    tokens = set(tokens)
    held = [
        source
        for source, token in view.found.tokens
        if view.marks.classify(token) is TokenClass.SPENT
    ]
    receipt = copies.erase(
        layout,
        [token.reveal().encode() for token in tokens],
        now=now,
        late=late,
        known=lambda candidate: view.marks.recognises(candidate, *classes),
        lengths=view.marks.lengths(*classes),
        served=[
            *seeds.still_served(layout),
            # Overwriting does not reach these.
            *(
                f"{source.where} is served again by systemd at every boot"
                for source in held
                if source.rank is Rank.CREDENTIAL
            ),
        ],
        shield=Shield(layout).state(),
        unspent=not {token for _, token in view.found.tokens} <= tokens,
        again=lambda: _still_given(layout, view, inputs, tokens),
        named=view.found.image.get("erase", {}).get("paths", ()),
        kept=[
            Copy(
                layout.shown(source.path.resolve()),
                {"raw": 1},
                "kept",
                GIVEN,
            )
            for source in held
            if source.rank is Rank.TOKEN_FILE and source.path
        ],
    )
    for copy in receipt.copies:
        if copy.result == "kept":
            log.warning(
                f"the token stays in {copy.path}: it was given with --token-file",
                hint="remove it: it is spent",
            )
    say = log.notice if receipt.copies else log.debug
    say("looked for copies of the token", **receipt.summary())
    if _beyond(receipt) and systemd.inside(FIRST_BOOT):
        # What the unit may write was set when it was started, before this run named more.
        systemd.start(UNIT)
    return receipt


def left(receipt: Receipt) -> list[str]:
    """Return the files that still hold a token, but for those that byteor-erase erases for `run`.

    Its sandbox names them, and that of a late `run` does not (`erase.grants`).
    """
    handed_on = _beyond(receipt) if systemd.inside(FIRST_BOOT) else []
    for path in handed_on:
        log.notice(f"{path} lies outside what this unit may write: {UNIT} erases the token in it")
    return [path for path in receipt.remaining if path not in handed_on]


def _beyond(receipt: Receipt) -> list[str]:
    rows = (copy for copy in receipt.copies if copy.result == "remains")
    return [copy.path for copy in rows if (copy.reason or "").endswith(search.SANDBOX)]


def _still_given(
    layout: Layout, view: View, inputs: Inputs, tokens: Collection[Secret]
) -> Iterator[Path]:
    """Read the sources once more, and yield the files that still give one of `tokens`."""
    found = gather(layout, inputs, classify=view.marks.classify, strict=False)
    for source, token in found.tokens:
        if source.path and token in tokens and not _is_given(source):
            yield source.path


def _is_given(source: Source) -> bool:
    """Return True for what somebody else keeps: the receipt says so."""
    return source.rank in (Rank.CREDENTIAL, Rank.TOKEN_FILE)


def unerased(layout: Layout, view: View) -> NotErased | None:
    """Return what is wrong where a source still shows a spent token that no row accounts for.

    The last look failed, or none followed. Not while one is due: while a `run` is at work, or
    cloud-init in this boot.
    """
    if view.pending or at_work(layout):
        return None
    said = {row.path for row in earlier(layout).copies if row.result not in ERASED}
    shown = [
        layout.shown(Path(os.path.realpath(source.path)))
        for source, token in view.found.tokens
        if view.marks.classify(token) is TokenClass.SPENT and source.path and not _is_given(source)
    ]
    left = [path for path in shown if path not in said]
    if not left:
        return None
    return NotErased(f"a spent token is still in {', '.join(left)}: it was not erased", hint=AGAIN)


class _Busy(Exception):
    """Another process holds the lock: there is another erase in every boot."""


def erase_again(
    layout: Layout,
    inputs: Inputs,
    *,
    refused: bool,
    as_json: bool,
    journal: Callable[[], bool] | None = None,
) -> int:
    """Erase every spent (`refused`: and refused) token that a source holds.

    NotErased (exit 9) when a copy stays in a file that we could have written. While cloud-init is
    at work, or another process holds the lock for 30 s, nothing is erased: that is said, and exit
    0. `journal` is asked before a journal that holds a token is emptied.
    """
    preflight.make_state(layout)
    try:
        with files.locked(layout.lock, busy=_Busy):
            view = look(layout, inputs, tolerant=True)
            if not view.finished and not systemd.inside(UNIT):
                log.notice(f"cloud-init is still at work in this boot: {UNIT} erases after it")
                return 0
            classes = (TokenClass.SPENT, TokenClass.REFUSED) if refused else (TokenClass.SPENT,)
            tokens, now = view.tokens(*classes), Clock().wall()
            receipt = erase(layout, view, inputs, tokens, *classes, now=now, late=True)
            held = any(copy.path == systemjournal.NAME for copy in receipt.copies)
            if journal and held and journal():
                systemjournal.empty()
                receipt = erase(layout, view, inputs, tokens, *classes, now=now, late=True)
    except _Busy:
        log.notice("another byteor-firstboot is at work: nothing was erased; the next boot does it")
        return 0
    if as_json:
        print(json.dumps(receipt.to_json(), indent=1, sort_keys=True))
    if receipt.remaining:
        raise NotErased(
            "a copy of the token could not be erased: " + ", ".join(receipt.remaining),
            hint="fix the cause (an immutable file? a full disk?) and rerun byteor-firstboot erase",
        )
    return 0
