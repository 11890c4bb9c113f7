"""Several gateways are started anew one after the other, as Kubernetes does it: no request is lost."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import aiohttp
from gateway_rig import chat, engine, events, run, until
from test_gateway_faults import serving

from sooner.emulator.engine import Lengths

WORKERS = 4


async def ask(http: aiohttp.ClientSession, urls: list[str], number: int) -> None:
    """Stream one reply; only an address that takes nothing at all is left for the next one."""
    for attempt in range(4 * len(urls)):
        url = urls[(number + attempt) % len(urls)]
        body = chat(f"question {number}", stream=True)
        try:
            async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                if response.status == 503:
                    continue
                assert response.status == 200, await response.text()
                assert events(await response.read())[-1] == "[DONE]"  # a reply that began comes whole
                return
        except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
            continue
    raise AssertionError(f"request {number} was answered nowhere")


def test_a_rolling_restart_of_gateways_loses_nothing() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            async with engine(lengths=Lengths("20")).serving() as one, aiohttp.ClientSession() as http:

                async def started() -> Any:
                    entered = serving("--backend", f"vllm={one.url}")
                    return await loop.run_in_executor(None, stack.enter_context, entered)

                gateways = list(await asyncio.gather(started(), started()))
                urls = [url for _, url in gateways]
                over, answered = False, [0] * WORKERS

                async def worker(first: int) -> None:
                    while not over:
                        await ask(http, list(urls), first + answered[first])
                        answered[first] += 1
                        await asyncio.sleep(0.05)  # leaves the core to the gateways that start

                workers = [asyncio.create_task(worker(first)) for first in range(WORKERS)]
                for place in range(2):
                    fresh = await started()
                    (old, _), gateways[place] = gateways[place], fresh
                    urls[place] = fresh[1]
                    before = sum(answered)
                    old.terminate()
                    assert await loop.run_in_executor(None, old.wait, 60) == 0
                    await until(lambda before=before: sum(answered) >= before + 20, 60)  # type: ignore[misc]
                over = True
                await asyncio.gather(*workers)
                assert sum(answered) >= 40

    run(test, 600)
