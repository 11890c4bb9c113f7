"""`sooner serve`: the gateway in a process of its own, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from sooner.emulator.api import EmulatedEngine
from sooner.gateway.app import Gateway
from sooner.gateway.settings import BackendSettings, GatewaySettings

logger = logging.getLogger("sooner.gateway")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop where it is installed, else in asyncio's own loop."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def settle() -> None:
    """Keep what was loaded at the start out of garbage collection, which would pause every reply for it."""
    gc.collect()
    gc.freeze()


def more_descriptors() -> None:
    """Let this process open as many files and connections as the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(
    settings: GatewaySettings,
    engine: EmulatedEngine | None,
    ready: Callable[[Gateway], None],
    reload: Callable[[], GatewaySettings] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; with an emulated `engine` behind the other backends.

    SIGHUP reads the settings again with `reload`; settings that are wrong are logged and not taken.
    """
    more_descriptors()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if engine is not None:
            await stack.enter_async_context(engine.serving())
            emulated = BackendSettings(url=engine.url, kind="vllm", name="emulated")
            settings = dataclasses.replace(settings, backends=(*settings.backends, emulated))
        gateway = await stack.enter_async_context(Gateway(settings).serving())
        if reload is not None:
            loop.add_signal_handler(signal.SIGHUP, gateway.reload, reload)
        settle()
        ready(gateway)
        await stop.wait()
        logger.info("stopping: %d requests are under way", len(gateway.dispatcher.waiting))


async def serve_engine(engine: EmulatedEngine, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the bare emulated engine until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with engine.serving(host, port):
        ready(engine.url)
        await stop.wait()
