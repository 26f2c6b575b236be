"""The health panel: an endpoint that is watched, and its queue that can be purged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from notebook_ext import render, sparkline
from notebook_ext.pane import Pane, count_jobs, in_words, time_of_day
from notebook_ext.types import Health, JobStatus
from notebook_ext.waiting import wait_reason
from notebook_ext.watching import HealthFeed, Record, is_hopeless

if TYPE_CHECKING:
    from notebook_ext.connection import Connection
    from notebook_ext.errors import EndpointError
    from notebook_ext.kernel import FrontEnd
    from notebook_ext.session import Session

__all__ = ["HealthPane"]


class HealthPane(Pane):
    """Watches one endpoint."""

    def __init__(
        self,
        session: Session,
        front_end: FrontEnd,
        connection: Connection,
        feed: HealthFeed,
        every: float,
        lasts: float | None,
    ) -> None:
        from notebook_ext.widgets.health import HealthPanel

        self._name, self._endpoint = connection.name, connection.endpoint
        self._feed, self._every = feed, every
        self._record = Record()
        self._health: Health | None = None
        self._error: EndpointError | None = None
        self._since = time.time()
        heard = front_end.clicks_heard_while_busy
        widget = HealthPanel(self._name, self, clicks_heard_while_busy=heard)
        super().__init__(session, front_end, widget, lasts)

    def begin(self) -> None:
        self._feed.listen(self._told, self._every)

    def rest(self) -> None:
        self._feed.leave(self._told)

    def _told(self, told: Health | EndpointError) -> None:
        if isinstance(told, Health):
            if self._health is None or told.seen_at != self._health.seen_at:
                self._record.add(told)
            self._health, self._error = told, None
            if self.is_asking:
                self._ask_for(told)
        else:
            self._error = told
            if is_hopeless(told):
                self.end(f"ended: {told}")
                return
        self._draw()

    def _draw(self) -> None:
        from notebook_ext.widgets.health import HealthView

        health = self._health
        reason = wait_reason(health) if health is not None and health.jobs["in_queue"] else None
        self.widget.update(
            HealthView(
                health=health,
                series=self._record.series,
                stale=self._stale(),
                reason=f"{health.jobs['in_queue']} in the queue: {reason}" if health and reason else "",
                note=f"{self._seen()} · every {self._every:g} s · {self._until()}",
            )
        )

    def _stale(self) -> str:
        if self._error is None:
            return ""
        last = f"last answer at {self._seen()}" if self._health is not None else "no answer yet"
        again = f"; asked again in {render.duration(self._feed.pause)}" if self._feed.pause else ""
        return f"{last}: {in_words(self._error)}{again}"

    def _seen(self) -> str:
        return time_of_day(self._health.seen_at) if self._health is not None else ""

    def _until(self) -> str:
        return "until stopped" if self._lasts is None else f"until {time_of_day(self._since + self._lasts)}"

    def static(self, reason: str) -> render.Bundle:
        if self._health is None:
            return render.error(self._error) if self._error is not None else {"text/plain": reason}
        note = f"watched from {time_of_day(self._since)} to {self._seen()}; {reason}"
        return sparkline.health(self._health, self._name, self._record.series, note)

    # ------------------------------------------------------------------ clicks

    def ask_purge(self) -> None:
        self.later(lambda: self.do(self._ask_purge()))

    def purge(self) -> None:
        self.later(lambda: self.do(self._purge()))

    async def _ask_purge(self) -> None:
        self.widget.say("counting…")
        health = await self._endpoint.health()
        if self._ask_for(health):
            self.widget.say("")

    def _ask_for(self, health: Health) -> bool:
        """Ask with the numbers that are true now; where nothing waits, say that instead."""
        waiting = health.jobs["in_queue"]
        mine = sum(
            handle.endpoint == self._name and handle.id != "" and handle.status is JobStatus.IN_QUEUE
            for handle in self.session.active()
        )
        if waiting:
            self.ask(f"Really remove {waiting} ({mine} yours)?")
        else:
            self.answered()
            self.widget.rest()
            self.widget.say(f"Nothing waits in the queue of {self._name}.")
        return waiting > 0

    async def _purge(self) -> None:
        self.answered()
        removed = await self._endpoint.purge_queue()
        self.widget.rest()
        self.widget.say(f"{count_jobs(removed)} removed from the queue; what runs goes on.")
        self._feed.hurry()
