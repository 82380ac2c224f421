"""``byteor-agent retry`` of an artifact that the plane refused: out of the quarantine, to be sent once more."""

from __future__ import annotations

import signal

from firstboot import log
from firstboot.agent import spool, stock, waking
from firstboot.agent.upload import enter, writer
from firstboot.layout import Layout


def retry_artifact(layout: Layout, artifact: str) -> bool:
    """Put it back into the spool and tell the agent; False when no artifact of that id is in quarantine."""
    account = writer(layout)
    if artifact not in stock.ids(layout.quarantine):
        return False
    enter(layout, account)
    if not spool.release(layout, artifact):
        return False
    waking.wake(layout, signal.SIGUSR2)
    log.notice(f"{artifact} is in the spool again")
    return True
