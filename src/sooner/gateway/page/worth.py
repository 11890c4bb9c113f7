"""Was it worth it? Now and then another process asks the journal what arrival order would have done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from sooner.gateway.page.remembered import RememberedPage
from sooner.gateway.page.settings import WhatifSettings

logger = logging.getLogger("sooner.gateway")

PATIENCE = 1800.0
"""Seconds that an answer may take on a machine that is busy with better things."""

_DAY = 86_400.0
_WEEK = 7 * _DAY
_FIRST, _AGAIN = 60.0, 300.0  # seconds after a start; after a look that found no answer
_NAME = "worth"


class Worth:
    """What the order that serves was worth, by the journal at `url`; empty: nobody asks.

    `answer` is the last one, over a restart too: the JSON of `sooner whatif`, or `none` with the reason;
    and `at`, when it was found [Unix s].
    """

    def __init__(self, url: str, settings: WhatifSettings, remembered: RememberedPage) -> None:
        self._url = url
        self._settings = settings
        self._remembered = remembered
        kept = remembered.get(_NAME)
        found = kept.get("answer")
        self.answer: Mapping[str, Any] | None = found if isinstance(found, dict) and _told(found) else None
        told = kept.get("logged")
        self._logged = told if isinstance(told, float) else 0.0
        self.pid: int | None = None

    @property
    def off(self) -> str:
        """Why nobody asks; empty where somebody does."""
        if not self._url:
            return "there is no journal (--journal sqlite:///journal.db)"
        return "" if self._settings.every else "every = 0 in [whatif] of the settings"

    async def run(self) -> None:
        """Ask, again and again."""
        while not self.off:
            await asyncio.sleep(self._until_next())
            try:
                self._take(await self.ask())
            except Exception as error:  # it is no reason to end anything
                self._take({"none": f"the replay failed: {error!r}"})

    def _until_next(self) -> float:
        every = self._settings.every
        if self.answer is None:
            return min(every, _FIRST)
        pause = min(every, _AGAIN) if "none" in self.answer else every
        due: float = self.answer["at"] + pause - time.time()
        return min(max(due, min(every, _FIRST)), pause)

    async def ask(self) -> dict[str, Any]:
        """Return the answer, found by a process that is killed where nobody waits for it any more."""
        since = time.time() - self._settings.days * _DAY
        question = {"source": self._url, "since": since, "most": self._settings.most}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "sooner.whatif", stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = process.pid
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
            async with asyncio.timeout(PATIENCE):
                told = await process.stdout.read()
                code = await process.wait()
        except TimeoutError:
            return {"none": f"the replay took more than {PATIENCE:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
            self.pid = None
        if code:
            return {"none": f"the replay's process ended with {code}"}
        found: dict[str, Any] = json.loads(told)
        return found

    def _take(self, found: dict[str, Any]) -> None:
        now = time.time()
        self.answer = {**found, "at": now}
        if "none" not in found and now - self._logged >= _WEEK:
            self._logged = now
            logger.info("was it worth it? %s (%d requests)", found["sentence"], found["requests"])
        self._remembered.put(_NAME, {"answer": self.answer, "logged": self._logged})


def _told(answer: Mapping[str, Any]) -> bool:
    """Return whether a kept answer is one."""
    return isinstance(answer.get("at"), float) and ("none" in answer or "sentence" in answer)
