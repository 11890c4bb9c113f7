"""A shadow on live traffic: compared, promoted by the command, acting over kill -9 of all processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gateway_rig import chat, client, engine, rig, run
from test_gateway_faults import serving

from sooner.cli.promote import promote
from sooner.emulator.engine import Lengths
from sooner.gateway.app import Gateway
from sooner.learning import Learner
from sooner.learning.memory import LearnedFile

SHADOW = "ranker_by_length:Ranker"
SECRET = "private matter"


class ByPrompt(Lengths):
    """A longer prompt has a longer reply."""

    def __init__(self) -> None:
        super().__init__("1")

    def of(self, prompt: str) -> int:
        return max(1, prompt.count("x") // 4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    return tmp_path


async def burst(http: aiohttp.ClientSession, n: int, seed: int) -> list[tuple[int, int]]:
    """Ask with prompts of many lengths at once; return each prompt's letters and the tokens expected."""

    async def ask(letters: int) -> tuple[int, int]:
        body = chat(SECRET + "x" * letters, user="carol")
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            await response.read()
            return letters, int(response.headers.get("x-sooner-predicted-tokens", 0))

    letters = np.random.default_rng(seed).integers(4, 120, n).tolist()
    return await asyncio.gather(*map(ask, letters))


async def told(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/sooner/v1/state") as response:
        return dict((await response.json())["shadow"])


async def command(gateway: Gateway, *options: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, promote, [gateway.url, *options])


def test_a_better_shadow_is_told_of_and_promoted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        fast = engine(lengths=ByPrompt(), max_num_seqs=4)
        options = {"learn": True, "learned": str(folder / "l.npz"), "backend": {"max_in_flight": 4}}
        async with rig([fast], shadow=SHADOW, **options) as gateway, client(gateway) as http:
            seed = 0
            while not (found := await told(http))["is_better"]:
                await burst(http, 12, seed)
                seed += 1
                await asyncio.sleep(0.1)
            assert (found["acting"], found["shadow"], found["promoted"]) == ("learner", SHADOW, False)
            assert found["shadow_tau"] > found["acting_tau"]
            async with http.get("/metrics") as response:
                metrics = await response.text()
            for name in ("shadow_tau", "shadow_acting_tau", "shadow_better_tau", "shadow_expected_gain"):
                assert f"sooner_{name} " in metrics
                assert f"sooner_{name}_error " in metrics
            async with http.get("/sooner/") as response:
                assert "Watches:" in await response.text()
            assert SECRET not in metrics + caplog.text
            assert "carol" not in metrics + caplog.text

            done = await command(gateway, "--if-better", "--by", "anna", "--json")
            assert done.exit_code == 0, done.output
            found = json.loads(done.output)
            assert (found["acting"], found["shadow"], found["promoted"]) == (SHADOW, "learner", True)
            assert found["better_tau"] < 0
            assert "anna" in caplog.text
            pairs = [pair for pair in await burst(http, 30, 1000) if pair[1]]
            letters, expected = np.array(pairs).T
            assert np.corrcoef(letters, expected)[0, 1] > 0.8

            refused = await command(gateway, "--if-better")
            assert refused.exit_code == 1
            back = await command(gateway)
            assert back.exit_code == 0
            assert "learner orders from now on" in back.output
            assert not (await told(http))["promoted"]

    run(test, 240)


def test_without_a_shadow_nothing_is_promoted(folder: Path) -> None:
    async def test() -> None:
        async with rig([engine()], learn=True) as gateway, client(gateway) as http:
            async with http.get("/sooner/v1/state") as response:
                assert (await response.json())["shadow"] is None
            refused = await command(gateway)
            assert refused.exit_code != 0
            assert "no shadow is named" in str(refused.exception)
            unknown = await asyncio.to_thread(CliRunner().invoke, promote, ["ftp://here"])
            assert "allowed" in str(unknown.exception)

    run(test)


def test_a_shadow_that_cannot_be_loaded_hurts_nobody(folder: Path) -> None:
    async def test() -> None:
        options = {"learn": True, "shadow": "no_such_module:Ranker"}
        async with rig([engine()], **options) as gateway, client(gateway) as http:
            await burst(http, 4, 0)
            gauges = gateway.dispatcher.gauges
            while not gauges().get("ranker_learned_requests"):
                await burst(http, 4, 1)
            assert not (await told(http))["known"]
            refused = await command(gateway)
            assert "could not load it" in str(refused.exception)

    run(test, 120)


def test_kill_9_of_gateway_and_scorer_forgets_neither_what_was_learned_nor_who_acts(folder: Path) -> None:
    kept = folder / "l.npz"
    (folder / "gateway.toml").write_text(f'learned = "{kept}"\nshadow = "{SHADOW}"\n')
    emulated = ("--emulate", "llama3-8b-a100", "--lengths", "3", "--time-scale", "0.1")
    options = (*emulated, "--config", str(folder / "gateway.toml"))

    def serve(url: str, n: int) -> None:
        async def ask() -> None:
            async with aiohttp.ClientSession(url) as http:
                for at in range(n):
                    body = {**chat(f"{at} {SECRET}", user="carol"), "model": "llama3-8b-a100"}
                    async with http.post("/v1/chat/completions", json=body) as response:
                        assert response.status == 200
                        await response.read()

        asyncio.run(ask())

    def learned(path: Path) -> int:
        return LearnedFile(path).read(Learner()).seen if path.exists() else 0

    with serving(*options) as (process, url):
        serve(url, 60)
        shadow_s = folder / "l.npz.shadow"
        eventually(lambda: learned(kept) == 60)
        eventually(lambda: 0 < learned(shadow_s) <= 60)
        eventually(lambda: bool(serve(url, 1) or shadow(url)["known"]))
        done = CliRunner().invoke(promote, [url, "--json"])
        assert json.loads(done.output)["acting"] == SHADOW
        before = learned(kept)
        children = [
            int(pid)
            for task in Path(f"/proc/{process.pid}/task").iterdir()
            for pid in (task / "children").read_text().split()
        ]
        assert children
        serve(url, 3)
        for pid in (process.pid, *children):
            os.kill(pid, signal.SIGKILL)
        process.wait(20)
    assert before <= learned(kept) <= before + 3
    with serving(*options) as (_, url):
        eventually(lambda: bool(serve(url, 1) or shadow(url)["known"]))
        assert shadow(url)["acting"] == SHADOW
        serve(url, 1)
        eventually(lambda: learned(kept) > before)
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in data
    assert b"carol" not in data


def shadow(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/sooner/v1/state", timeout=30) as answer:
        return dict(json.loads(answer.read())["shadow"])


def eventually(true: Callable[[], bool], patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
