"""Engines that are called by names: of several addresses the first may be dead, or each is an engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gateway_rig import chat, client, engine, rig, run, until

from sooner.core import ConfigError
from sooner.gateway.engines import discovery
from sooner.gateway.settings import BackendSettings

NAME = "engines.example"
Known = list[str]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Known:
    """Return the addresses that a name is resolved to from now on, in that order."""
    known: Known = []
    resolve = socket.getaddrinfo

    def resolved(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != NAME:
            return resolve(host, port, *args, **kwargs)
        if not known:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return known


@contextmanager
def silent(port: int) -> Iterator[str]:
    """Give an address at which connections are neither taken nor refused: its queue is full."""
    address = "127.0.0.9"
    with socket.socket() as listening:
        listening.bind((address, port))
        listening.listen(0)
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex((address, port))
            waiting.append(one)
        yield address
        for one in waiting:
            one.close()


def test_a_name_whose_first_address_is_dead_is_served_by_the_next(names: Known) -> None:
    async def test() -> None:
        async with engine().serving() as one:
            port = int(one.url.rpartition(":")[2])
            with silent(port) as dead:
                names.extend([dead, "127.0.0.8", "127.0.0.1"])
                async with rig([f"http://{NAME}:{port}"]) as gateway, client(gateway) as http:
                    (backend,) = gateway.dispatcher.backends
                    await until(lambda: backend.healthy)
                    backend.connections.close()
                    shunned = backend.connections._dialer._shunned
                    assert {address[0] for address in shunned} == {dead, "127.0.0.8"}
                    async with http.post("/v1/chat/completions", json=chat()) as response:
                        assert response.status == 200

    run(test)


def test_each_address_of_a_name_is_an_engine_and_they_come_and_go(
    names: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sooner.gateway.app.LOOK_EVERY", 0.05)

    async def test() -> None:
        first, second = engine(), engine()
        async with first.serving():
            port = int(first.url.rpartition(":")[2])
            async with second.serving("127.0.0.2", port):
                names.append("127.0.0.1")
                options = {"each_address": True, "name": "all"}
                async with (
                    rig([f"http://{NAME}:{port}"], backend=options) as gateway,
                    client(gateway) as http,
                ):

                    def known() -> list[str]:
                        return [backend.name for backend in gateway.dispatcher.backends]

                    await until(lambda: known() == ["all@127.0.0.1"])
                    (kept,) = gateway.dispatcher.backends
                    names.append("127.0.0.2")
                    await until(lambda: known() == ["all@127.0.0.1", "all@127.0.0.2"])
                    assert gateway.dispatcher.backends[0] is kept
                    bodies = [http.post("/v1/chat/completions", json=chat()) for _ in range(8)]
                    told = await asyncio.gather(*bodies)
                    assert [response.status for response in told] == [200] * 8
                    assert len(first.seen) >= 2
                    assert len(second.seen) >= 2
                    names.clear()  # it cannot be resolved: what was known stays
                    await asyncio.sleep(0.2)
                    assert len(known()) == 2
                    names.append("127.0.0.2")
                    await until(lambda: known() == ["all@127.0.0.2"])

    run(test)


def test_a_name_of_nothing_is_one_engine_that_is_down(names: Known) -> None:
    assert not names

    async def test() -> None:
        async with (
            rig([f"http://{NAME}:9"], backend={"each_address": True}) as gateway,
            client(gateway) as http,
            http.post("/v1/chat/completions", json=chat()) as response,
        ):
            assert response.status == 503

    run(test)


def test_an_address_is_an_address() -> None:
    with pytest.raises(ConfigError, match=r"address='there', allowed: an IP address"):
        BackendSettings(url="http://engine", address="there")
    assert discovery.Discovery().engines([BackendSettings(url="http://e", each_address=True)])
