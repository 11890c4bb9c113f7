"""Engines behind TLS: served where the certificate is good, and nowhere else."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from gateway_rig import chat, client, engine, events, rig, run, until

from sooner.core import ConfigError
from sooner.emulator.api import EmulatedEngine
from sooner.emulator.engine import Lengths
from sooner.gateway.settings import BackendSettings


@asynccontextmanager
async def secure(one: EmulatedEngine, authority: trustme.CA, name: str) -> AsyncIterator[str]:
    """Serve an emulated engine with a certificate for `name`; give its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    runner = web.AppRunner(one.app(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_an_engine_with_a_good_certificate_is_served(tmp_path: Path) -> None:
    async def test() -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        trusted = {"ca_file": str(tmp_path / "ca.pem")}
        slow = engine(lengths=Lengths("2000"))
        async with (
            secure(slow, authority, "127.0.0.1") as url,
            rig([url], backend=trusted) as gateway,
            client(gateway) as http,
        ):
            for stream in (False, True):
                body = chat(stream=stream, max_tokens=5)
                async with http.post("/v1/chat/completions", json=body) as response:
                    assert response.status == 200
                    told = await response.read()
                assert b'"usage"' in told if not stream else events(told)[-1] == "[DONE]"
            response = await http.post("/v1/chat/completions", json=chat(stream=True))
            await response.content.readany()
            response.close()  # leaving frees an engine behind TLS too
            await until(lambda: not slow.emulator.running)

    run(test)


@pytest.mark.parametrize("wrong", ["another authority", "another name"])
def test_an_engine_with_a_wrong_certificate_gets_nothing(wrong: str, tmp_path: Path) -> None:
    async def test() -> None:
        authority, other = trustme.CA(), trustme.CA()
        (other if wrong == "another authority" else authority).cert_pem.write_to_path(tmp_path / "ca.pem")
        name = "elsewhere.example" if wrong == "another name" else "127.0.0.1"
        one = engine()
        async with (
            secure(one, authority, name) as url,
            rig([url], backend={"ca_file": str(tmp_path / "ca.pem")}) as gateway,
            client(gateway) as http,
        ):
            async with http.post("/v1/chat/completions", json=chat()) as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "no_engine"
            assert not one.seen

    run(test)


def test_a_ca_file_that_is_none_is_said(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(["https://127.0.0.1:1"], backend={"ca_file": str(tmp_path / "no.pem")}):
            raise AssertionError("it started")

    with pytest.raises(ConfigError, match="ca_file"):
        run(test)
    assert BackendSettings(url="https://127.0.0.1:1").ca_file == ""


def test_clients_are_served_by_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def test() -> None:
        async with rig([engine()], tls_cert=str(cert), tls_key=str(key)) as gateway:
            assert gateway.url.startswith("https://")
            connector = aiohttp.TCPConnector(ssl=trusting)
            async with aiohttp.ClientSession(gateway.url, connector=connector) as http:
                for stream in (False, True):
                    async with http.post("/v1/chat/completions", json=chat(stream=stream)) as response:
                        assert response.status == 200
                        told = await response.read()
                    assert b'"usage"' in told if not stream else events(told)[-1] == "[DONE]"
        with pytest.raises(ConfigError, match="tls_cert"):
            async with rig([engine()], tls_cert=str(tmp_path / "none.pem")):
                pytest.fail("it serves")

    run(test)
