"""The transfer worker: bundles and artifacts, which may take minutes."""

from __future__ import annotations

from typing import Callable

from firstboot.agent import download
from firstboot.agent.artifacts import sender
from firstboot.agent.artifacts.sender import Sender
from firstboot.agent.download import Download
from firstboot.agent.health import ARTIFACTS, DOWNLOAD
from firstboot.agent.schedule import FOREVER, Ask, Schedule
from firstboot.agent.worker import Context, Crew, Worker


class Transfer(Worker):
    """Run what is long; `brought` is called when a bundle is there.

    `download` is None where no deployment can be verified.
    """

    def __init__(
        self,
        crew: Crew,
        context: Context,
        period: Schedule,
        splay_s: float,
        brought: Callable[[], None],
    ) -> None:
        super().__init__("transfer", crew, context)
        self.download: Download | None = None
        handed = context.handed
        if handed.org_id and handed.project_id and handed.environment_id:
            schedule = Schedule(download.PERIOD_S)
            self.download = Download(
                context, schedule, self.alive, crew.changed, self._want, brought
            )
            self.add(DOWNLOAD, self.download, schedule, FOREVER, on_demand=True)
        each = Schedule(min(2 * period.period_s, sender.LONGEST_PERIOD_S))
        self.add(
            ARTIFACTS, Sender(context, self.alive, gives_way=self._bundle_waits), each, splay_s
        )

    def _bundle_waits(self) -> bool:
        """Return True when a bundle is wanted; the spool goes on after it."""
        task = self._agenda.tasks.get(DOWNLOAD)
        waits = task is not None and task.moment() <= self._clock.monotonic()
        if waits:
            self.wake(ARTIFACTS)
        return waits

    def _want(self, by: Ask) -> None:
        self.wake(DOWNLOAD, by)
