"""The transfer worker: bundles and artifacts, which may take minutes, on a session of its own."""

from __future__ import annotations

from typing import Callable

from firstboot.agent import download
from firstboot.agent.artifacts import sender
from firstboot.agent.artifacts.sender import ArtifactsLoop
from firstboot.agent.download import Download
from firstboot.agent.health import ARTIFACTS, DOWNLOAD
from firstboot.agent.schedule import FOREVER, Schedule
from firstboot.agent.worker import Shared, Worker
from firstboot.api.client import PlaneApi
from firstboot.api.transport import Transport


class Transfer(Worker):
    """Run what is long; `brought` is called when a bundle is there.

    `download` is None where no deployment can be verified.
    """

    def __init__(
        self,
        shared: Shared,
        transport: Transport,
        *,
        brought: Callable[[], None],
        period_s: float,
        splay_s: float,
    ) -> None:
        layout, handed, clock = shared.layout, shared.handed, shared.clock
        api = PlaneApi(handed.api_base_url, transport, clock=clock)
        super().__init__("transfer", shared, api)
        self.download: Download | None = None
        if handed.org_id and handed.project_id and handed.environment_id:
            schedule = Schedule(download.PERIOD_S)
            self.download = Download(
                layout,
                handed,
                api,
                schedule=schedule,
                alive=self.alive,
                changed=shared.changed,
                wake=lambda by: self.wake(DOWNLOAD, by),
                brought=brought,
                clock=clock,
            )
            self.add(DOWNLOAD, self.download, schedule, FOREVER, on_demand=True)
        sent = ArtifactsLoop(layout, handed, api, clock=clock, alive=self.alive)
        each_period = Schedule(min(2 * period_s, sender.LONGEST_PERIOD_S))
        self.add(ARTIFACTS, sent, each_period, splay_s)
