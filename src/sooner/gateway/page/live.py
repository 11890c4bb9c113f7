"""One look for all viewers together, at most one a second: what changed is sent to each as it can take it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from sooner.gateway.page import html

logger = logging.getLogger("sooner.gateway")

EVERY, SELDOM = 1.0, 5.0  # least and most seconds between two looks, however many look
SHARE = 0.002  # of a core that looking is to take: with much to see there are fewer looks
MOST = 32  # viewers at once


def pause(cost: float) -> float:
    """Return the seconds from one look to the next, for a look that took `cost` CPU seconds."""
    return min(max(EVERY, cost / SHARE), SELDOM)


class LiveView:
    """Looks at the state while anybody watches; `look` gives it. Lives in one event loop."""

    def __init__(self, look: Callable[[], dict[str, Any]]) -> None:
        self._look = look
        self._seen: dict[str, Any] | None = None
        self._at = 0.0
        self._pause = EVERY
        self._event = b""
        self._version = 0
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.viewers = 0
        self.looks = 0
        self.closed = False

    def state(self) -> dict[str, Any]:
        """Return the state, at most one pause old: a second, or longer where a look costs much."""
        now = time.monotonic()
        if self._seen is None or now - self._at >= self._pause:
            began = time.thread_time()
            self._seen, self._at = self._look(), now
            self._pause = pause(time.thread_time() - began)
            self.looks += 1
        return self._seen

    def forget(self) -> None:
        """Look anew when next asked: what was seen is no longer so."""
        self._seen = None

    async def send(self, response: web.StreamResponse) -> None:
        """Send events until the viewer leaves; one that reads slowly misses some, and holds nobody up."""
        self.viewers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="gateway-page")
        try:
            version = -1
            while not self.closed:
                version, event = await self._after(version)
                if event and not self.closed:
                    await response.write(event)
        finally:
            self.viewers -= 1

    async def _after(self, version: int) -> tuple[int, bytes]:
        """Return the next version after one, and its event."""
        async with self._news:
            await self._news.wait_for(lambda: self._version != version or self.closed)
            return self._version, self._event

    async def _run(self) -> None:
        while self.viewers and not self.closed:
            try:
                seen = self.state()
                told = {"at": seen["at"], "sections": html.sections(seen)}
                self._event = b"data: " + json.dumps(told).encode() + b"\n\n"
            except Exception:  # the page is no reason to end anything
                logger.exception("the page could not be made")
            async with self._news:
                self._version += 1
                self._news.notify_all()
            await asyncio.sleep(self._pause)

    async def close(self) -> None:
        """Let every viewer go."""
        self.closed = True
        async with self._news:
            self._news.notify_all()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
