"""The control worker: heartbeat, newest deployment, key sets and reports, on one session.

One at a time, the earliest due first, the heartbeat before all others. No request but the heartbeat
may take longer than `DEADLINE_S`: whatever else hangs, no beat is later than that.
"""

from __future__ import annotations

from firstboot.agent import deployments, keysets, reports
from firstboot.agent.deployments import Deployments
from firstboot.agent.health import ARTIFACTS, DEPLOYMENTS, FIRST, Condition
from firstboot.agent.heartbeat import Heartbeat
from firstboot.agent.keysets import KeySets
from firstboot.agent.reports import Reports
from firstboot.agent.schedule import Ask, Schedule
from firstboot.agent.submit import Activator, Inbox
from firstboot.agent.transfer import Transfer
from firstboot.agent.worker import Shared, Worker
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport

DEADLINE_S = 10.0
KEY_SETS, REPORTS = "keysets", "reports"


class Control(Worker):
    """Run what is short; all tasks begin `splay_s` after the start (contract 2.3)."""

    def __init__(
        self,
        shared: Shared,
        transport: Transport,
        transfer: Transfer,
        condition: Condition,
        activator: Activator,
        *,
        period: Schedule,
        splay_s: float,
    ) -> None:
        layout, handed, clock = shared.layout, shared.handed, shared.clock
        api = PlaneApi(handed.api_base_url, transport, clock=clock, deadline_s=DEADLINE_S)
        super().__init__("control", shared, api)
        beat = Heartbeat(
            layout,
            handed,
            api,
            schedule=period,
            facts=condition.facts,
            answered=condition.answered,
            clock=clock,
        )
        self.add(FIRST, beat, period, splay_s, first=True)
        if transfer.download is not None:
            inbox = Inbox(
                layout, activator, clock=clock, over_tls=handed.api_base_url.startswith("https:")
            )
            daily = Schedule(keysets.PERIOD_S)
            keys = KeySets(layout, handed, api, schedule=daily, inbox=inbox, clock=clock)
            self.add(KEY_SETS, keys, daily, keys.first_delay(shared.chance, splay_s=splay_s))
            fetch = Deployments(
                layout,
                handed,
                api,
                inbox=inbox,
                download=transfer.download,
                keys_wanted=lambda: self.wake(KEY_SETS, Ask.HINT),
                clock=clock,
            )
            self.add(DEPLOYMENTS, fetch, Schedule(deployments.PERIOD_S), splay_s)
        told = Reports(
            layout,
            handed,
            api,
            spooled=lambda: transfer.wake(ARTIFACTS),
            more=lambda: self.wake(REPORTS),
            clock=clock,
        )
        self.add(REPORTS, told, Schedule(reports.PERIOD_S), splay_s)
