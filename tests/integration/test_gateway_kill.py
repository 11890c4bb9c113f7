"""An engine killed in a burst: what had no byte yet is served elsewhere, the rest ends in an error."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from gateway_rig import chat, client, events, rig, run

EMULATED = ("--emulate", "llama3-8b-a100", "--bare", "--lengths", "150", "--model", "m")


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `sooner serve` in a process of its own, in uvloop where it is installed; give it and its URL."""
    command = [sys.executable, "-m", "sooner", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith(b"serving "))
        yield process, line.split()[-1].decode().removesuffix("/v1")
    finally:
        process.kill()
        process.communicate()


def test_an_engine_killed_in_a_burst_loses_only_what_it_had_begun() -> None:
    async def ask(http: aiohttp.ClientSession, n: int) -> str:
        body = b""
        async with http.post("/v1/chat/completions", json=chat(f"{n}", stream=True)) as response:
            assert response.status == 200
            try:
                async for piece in response.content.iter_any():
                    body += piece
            except aiohttp.ClientPayloadError:
                assert events(body)[-1]["error"]["code"] == "engine_failed"
                return "cut"
        assert events(body)[-1] == "[DONE]"
        return "whole"

    async def test() -> None:
        with serving(*EMULATED) as (doomed, first), serving(*EMULATED) as (_, second):
            async with rig([first, second], backend={"max_in_flight": 6}) as gateway, client(gateway) as http:
                tasks = [asyncio.create_task(ask(http, n)) for n in range(40)]
                await asyncio.sleep(1.0)
                begun = gateway.dispatcher.backends[0].in_flight
                doomed.kill()
                ends = await asyncio.gather(*tasks)
                assert ends.count("cut") <= begun + 1
                assert ends.count("cut") + ends.count("whole") == 40
                assert gateway.dispatcher.backends[0].in_flight == 0

    run(test, 120)


def test_sixty_clients_that_leave_at_once_disturb_nobody() -> None:
    async def test(url: str) -> None:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
            bodies = [chat(f"{n}", stream=True, max_tokens=140) for n in range(60)]
            replies = await asyncio.gather(*(http.post("/v1/chat/completions", json=one) for one in bodies))
            await asyncio.gather(*(reply.content.readany() for reply in replies))
            for reply in replies:
                reply.close()
            async with http.post("/v1/chat/completions", json=chat("after", max_tokens=3)) as response:
                assert (await response.json())["usage"]["completion_tokens"] == 3
            async with http.get("/metrics") as response:
                text = await response.text()
            assert "sooner_running 0" in text
            assert "sooner_client_gone_total 60" in text

    with (
        serving(*EMULATED) as (_, engine),
        serving("--backend", f"vllm={engine}", "--ranker", "") as (_, url),
    ):
        run(lambda: test(url), 60)
