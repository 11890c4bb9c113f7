"""`sooner serve`: the gateway in a process of its own, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib.util
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sooner import rankers
from sooner.core import ConfigError
from sooner.emulator.api import EmulatedEngine
from sooner.gateway.app import Gateway
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.ordering.process import LEARNER

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


def check_ranker(name: str) -> None:
    """Raise ConfigError or RankerFileError where the scorer would find no such ranker."""
    if ":" not in name or Path(name).exists():
        if name:
            rankers.check(name)
        return
    try:
        found = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError) as error:
        raise ConfigError(f"ranker {name!r}: {error}; allowed: a folder or 'module:name'") from error
    if found is None:
        raise ConfigError(f"ranker {name!r}: no such module; allowed: a folder or 'module:name'")


class Stop:
    """SIGTERM or SIGINT asks for an end, for which what runs is finished; the second SIGINT ends at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._hurried = False

    def __enter__(self) -> Stop:
        self._loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        self._loop.add_signal_handler(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self) -> None:
        if self.asked.is_set() and self._task is not None:
            self._hurried = True
            self._task.cancel()
        self.asked.set()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._hurried and kind is asyncio.CancelledError:
            raise KeyboardInterrupt


async def serve(
    settings: GatewaySettings,
    engine: EmulatedEngine | None,
    ready: Callable[[Gateway], None],
    reload: Callable[[], GatewaySettings] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; with an emulated `engine` behind the other backends.

    SIGHUP reads the settings again with `reload`; settings that are wrong are logged and not taken.
    """
    check_ranker(settings.ranker)
    if settings.shadow != LEARNER:
        check_ranker(settings.shadow)
    more_descriptors()
    stop, loop = Stop(), asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop)
        if engine is not None:
            await stack.enter_async_context(engine.serving())
            emulated = BackendSettings(url=engine.url, kind="vllm", name="emulated")
            settings = dataclasses.replace(settings, backends=(*settings.backends, emulated))
        gateway = await stack.enter_async_context(Gateway(settings).serving())
        if reload is not None:
            loop.add_signal_handler(signal.SIGHUP, gateway.reload, reload)
        settle()
        ready(gateway)
        await stop.asked.wait()
        logger.info("stopping: %d requests are under way", len(gateway.dispatcher.waiting))


async def serve_engine(engine: EmulatedEngine, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the bare emulated engine until SIGTERM or SIGINT."""
    with Stop() as stop:
        async with engine.serving(host, port):
            ready(engine.url)
            await stop.asked.wait()
