"""The control worker: heartbeat, newest deployment, key sets and reports.

One at a time, on one session, the earliest due first, the heartbeat before all others. No request
but the heartbeat may take longer than `DEADLINE_S`: whatever else hangs, no beat is later.
"""

from __future__ import annotations

from firstboot.agent import deployments, keysets, reports
from firstboot.agent.deployments import Deployments
from firstboot.agent.health import ARTIFACTS, DEPLOYMENTS, FIRST, Condition
from firstboot.agent.heartbeat import Heartbeat
from firstboot.agent.keysets import KeySets
from firstboot.agent.reports import Reports
from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.submit import Inbox
from firstboot.agent.transfer import Transfer
from firstboot.agent.worker import Context, Crew, Worker

DEADLINE_S = 10.0
KEY_SETS, REPORTS = "keysets", "reports"


class Control(Worker):
    """Run what is short, beginning `splay_s` after the start (contract 2.3)."""

    def __init__(
        self,
        crew: Crew,
        context: Context,
        period: Schedule,
        splay_s: float,
        condition: Condition,
        transfer: Transfer,
        inbox: Inbox,
    ) -> None:
        super().__init__("control", crew, context)
        beat = Heartbeat(context, period, condition.facts, condition.answered)
        self.add(FIRST, beat, period, splay_s, first=True)
        if transfer.download is not None:
            daily = Schedule(keysets.PERIOD_S)
            keys = KeySets(context, daily, inbox)
            self.add(KEY_SETS, keys, daily, keys.first_delay(crew.chance, splay_s=splay_s))
            fetch = Deployments(
                context, inbox, transfer.download, lambda: self.wake(KEY_SETS, Ask.HINT)
            )
            self.add(DEPLOYMENTS, fetch, Schedule(deployments.PERIOD_S), splay_s)
        told = Reports(context, lambda: transfer.wake(ARTIFACTS), lambda: self.wake(REPORTS))
        self.add(REPORTS, told, Schedule(reports.PERIOD_S), splay_s)
