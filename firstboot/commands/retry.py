"""``byteor-agent retry`` of an artifact that the plane refused: out of the quarantine, to be sent once more."""

from __future__ import annotations

import signal

from firstboot.agent.artifacts import spool, stock
from firstboot.base import log
from firstboot.base.layout import Layout
from firstboot.commands.upload import enter, writer
from firstboot.exchange import wake


def retry_artifact(layout: Layout, artifact: str) -> bool:
    """Put it back into the spool and tell the agent; False when no artifact of that id is in quarantine."""
    account = writer(layout)
    if artifact not in stock.ids(layout.quarantine):
        return False
    enter(layout, account)
    if not spool.release(layout, artifact):
        return False
    wake.wake(layout, signal.SIGUSR2)
    log.notice(f"{artifact} is in the spool again")
    return True
