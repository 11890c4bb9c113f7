"""An engine killed in a burst: what had no byte yet is served elsewhere, the rest ends in an error."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from gateway_rig import chat, client, events, rig, run


@contextmanager
def engine_process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run an emulated engine in a process of its own; give it and its URL."""
    command = [sys.executable, "-m", "sooner", "serve", "--emulate", "llama3-8b-a100", "--bare"]
    process = subprocess.Popen(
        [*command, "--lengths", "150", "--model", "m", "--port", "0"], stderr=subprocess.PIPE
    )
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
        with engine_process() as (doomed, first), engine_process() as (_, second):
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
