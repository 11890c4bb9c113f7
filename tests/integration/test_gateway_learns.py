"""The gateway with nothing trained: it learns who sends how long replies, and keeps what it learned."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from gateway_rig import chat, client, engine, rig, run, until

from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.gateway.database import Database
from sooner.gateway.journal import export
from sooner.gateway.settings import JournalSettings
from sooner.learning import Learner
from sooner.learning.memory import LearnedFile

SHORT, LONG = ("alice-of-sales", "Answer in a word."), ("bob-of-research", "Tell it at length.")


class ByApplication(Lengths):
    """Replies of a few tokens for one user's application, of ten times as many for the other's."""

    def __init__(self) -> None:
        super().__init__("1")
        self.rng = np.random.default_rng(0)

    def of(self, prompt: str) -> int:
        mean = 60.0 if "at length" in prompt else 6.0
        return max(1, round(mean * float(np.exp(0.2 * self.rng.standard_normal()))))


async def ask(http: aiohttp.ClientSession, app: tuple[str, str], **more: Any) -> int:
    """Ask as one of two applications; return the tokens that were expected, 0 for nothing said."""
    messages = [{"role": "system", "content": app[1]}, {"role": "user", "content": f"secret: {app[1]}"}]
    body = {**chat(user=app[0], **more), "messages": messages}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.read()
        return int(response.headers.get("x-sooner-predicted-tokens", 0))


async def burst(http: aiohttp.ClientSession, n: int, **more: Any) -> tuple[float, float]:
    """Serve n requests of both at once; return the median lengths that were expected of each."""
    asked = [app for _ in range(n) for app in (SHORT, LONG)]
    told = await asyncio.gather(*(ask(http, app, **more) for app in asked))
    pairs = list(zip(asked, told, strict=True))
    return tuple(
        float(np.median([told for one, told in pairs if one is app and told] or [0])) for app in (SHORT, LONG)
    )  # type: ignore[return-value]


async def metrics(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as response:
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def scorer_of(gateway: Gateway) -> Any:
    return gateway.dispatcher.scores._scorer


def seen(gateway: Gateway) -> int:
    return int(gateway.dispatcher.gauges().get("ranker_learned_requests", 0))


def test_it_learns_from_what_it_serves_and_kill_9_of_the_scorer_forgets_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "learned.npz"
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        fast = engine(lengths=ByApplication(), max_num_seqs=4)
        options = {"learn": True, "learned": str(kept), "backend": {"max_in_flight": 4}}
        journal = JournalSettings(url=f"sqlite:///{tmp_path}/journal.db")
        async with rig([fast], journal=journal, **options) as gateway, client(gateway) as http:
            while seen(gateway) < 200:
                await burst(http, 12)
            short, long = await burst(http, 12)
            assert 3 < short < 12
            assert 25 < long < 150
            while (found := await metrics(http))["sooner_ranker_tau"] < 0.3:  # as the first leave it
                await burst(http, 12)
            assert found["sooner_ranker_expected_gain"] > 0.1
            assert found["sooner_drift_alarms_total"] == 0
            groups = [name for name in found if name.startswith('sooner_ranker_group_tau{of="model"')]
            assert len(groups) == 1

            learned = seen(gateway)
            await until(lambda: kept.exists() and LearnedFile(kept).read(Learner()).seen >= learned, 60)
            os.kill(scorer_of(gateway).pid, signal.SIGKILL)
            await until(lambda: gateway.dispatcher.counters.counts["scorer_restarts"] == 1, 60)
            while not all(told := await burst(http, 12)):
                pass
            assert told[0] < 12 < 25 < told[1]
            names = (*SHORT, *LONG, "secret")
            text = "\n".join([*found, caplog.text])
            assert not [name for name in names if name in text]
        assert not [name for name in names if name.encode() in kept.read_bytes()]
        out = io.StringIO()
        export(Database(journal.url), out, text=False)
        rows = [json.loads(line) for line in out.getvalue().splitlines()]
        assert len({row["sender"] for row in rows if row["sender"]}) == 2
        assert len({row["template"] for row in rows if row["template"]}) == 2
        assert not [name for name in names if name in out.getvalue()]

    run(test, 180)


def test_a_reply_that_was_cut_or_left_says_at_least_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at 20 tokens or left by its client, a long application's reply is not taken for a short one."""
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))

    async def leave(http: aiohttp.ClientSession) -> None:
        messages = [{"role": "system", "content": LONG[1]}, {"role": "user", "content": LONG[1]}]
        body = {**chat(user=LONG[0], stream=True), "messages": messages}
        async with http.post("/v1/chat/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data:"):
                    return

    async def test() -> None:
        fast = engine(lengths=ByApplication(), max_num_seqs=8)
        async with rig([fast], learn=True, backend={"max_in_flight": 8}) as gateway, client(gateway) as http:
            while seen(gateway) < 100:
                await burst(http, 10)
            scorer, told = scorer_of(gateway), []
            tell = scorer.ended
            monkeypatch.setattr(scorer, "ended", lambda *ended: (told.append(ended), tell(*ended)))
            await asyncio.gather(*(ask(http, LONG, max_tokens=20) for _ in range(10)))
            assert {(length, ending.name) for _, length, ending in told} == {(20, "LIMIT")}
            told.clear()
            await asyncio.gather(*(leave(http) for _ in range(10)))
            await until(lambda: len(told) == 10, 30)
            assert {ending.name for _, _, ending in told} == {"ABORTED"}
            assert all(length < 60 for _, length, _ in told)
            await until(lambda: not gateway.dispatcher.waiting)
            _, long = await burst(http, 10)
            assert long > 25

    run(test, 180)


def test_without_learning_no_scorer_is_started() -> None:
    async def test() -> None:
        async with rig([engine()], learn=False) as gateway:
            assert scorer_of(gateway) is None

    run(test)
