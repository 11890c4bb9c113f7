"""A second policy on live traffic: compared on who really waited together, promoted, and kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gateway_rig import chat, client, engine, rig, run
from test_shadow_acts import ByPrompt

from sooner.cli.promote import promote
from sooner.core import ConfigError
from sooner.gateway.app import Gateway
from sooner.gateway.settings import GatewaySettings, SliceSettings

OPTIONS: dict[str, Any] = {
    "policy": "fcfs", "shadow_policy": "spjf", "client_scores": True, "learn": True,
    "backend": {"max_in_flight": 2},
}  # fmt: skip


async def burst(http: aiohttp.ClientSession, n: int, seed: int) -> None:
    """Ask for replies of many lengths at once, each told."""

    async def ask(length: int) -> None:
        body = chat("x" * 4 * length, vllm_xargs={"sooner_predicted_len": length, "sooner_score": length})
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            await response.read()

    await asyncio.gather(*map(ask, np.random.default_rng(seed).integers(1, 30, n).tolist()))


async def told(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/sooner/v1/state") as response:
        return dict((await response.json())["shadow_policy"])


async def command(gateway: Gateway, *options: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, promote, [gateway.url, "--policy", *options])


def test_a_better_policy_is_told_of_promoted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    options = {**OPTIONS, "learned": str(tmp_path / "l.npz")}

    async def test() -> None:
        fast = engine(lengths=ByPrompt(), max_num_seqs=2)
        async with rig([fast], **options) as gateway, client(gateway) as http:
            seed = 0
            while not (found := await told(http))["is_better"]:
                await burst(http, 24, seed)
                seed += 1
            assert (found["acting"], found["shadow"], found["promoted"]) == ("fcfs", "spjf", False)
            assert found["acting_gain"] == 0.0
            assert found["shadow_gain"] > 0.2
            assert found["shadow_tau"] > 0.8
            async with http.get("/metrics") as response:
                metrics = await response.text()
            for name in (
                "shadow_policy_tau",
                "shadow_policy_acting_tau",
                "shadow_policy_better_expected_gain",
            ):
                assert f"sooner_{name} " in metrics
                assert f"sooner_{name}_error " in metrics
            async with http.get("/sooner/") as response:
                assert "Shadow policy, over" in await response.text()

            done = await command(gateway, "--if-better", "--by", "anna", "--json")
            assert done.exit_code == 0, done.output
            assert json.loads(done.output)["acting"] == "spjf"
            assert gateway.dispatcher.policy.name == "spjf"
            assert "anna" in caplog.text
            for on in (False, True):
                async with http.post("/sooner/v1/switch", json={"on": on, "by": "anna"}) as response:
                    assert (await response.json())["policy"] == "spjf"
                assert gateway.dispatcher.policy.name == ("spjf" if on else "fcfs")
            refused = await command(gateway, "--if-better")
            assert refused.exit_code == 1
        async with rig([fast], **options) as gateway, client(gateway) as http:
            assert (await told(http))["promoted"]
            assert gateway.dispatcher.policy.name == "spjf"
            back = await command(gateway)
            assert "fcfs orders from now on" in back.output
        async with rig([fast], **options) as gateway:
            assert gateway.dispatcher.policy.name == "fcfs"

    run(test, 240)


def test_where_no_policy_watches_none_is_promoted() -> None:
    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            refused = await command(gateway)
            assert "no policy watches" in str(refused.exception)
            async with http.post("/sooner/v1/promote", json={"what": "engine"}) as response:
                assert response.status == 400
                assert "allowed: ranker or policy" in await response.text()

    run(test)


def test_a_policy_that_cannot_be_compared_is_refused() -> None:
    for wrong in ({"shadow_policy": "boost"}, {"shadow_policy": "fcfs", "slices": SliceSettings(tokens=64)}):
        with pytest.raises(ConfigError, match=r"shadow_policy=.*allowed"):
            GatewaySettings(**wrong)
    GatewaySettings(shadow_policy="boost", shadow_parameters={"gamma": 0.1})
