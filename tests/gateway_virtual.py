"""The gateway's dispatcher in virtual time: hours of load in seconds, and the same run every time."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sooner.chat import ChatRequest
from sooner.gateway.admission.reading import Asked
from sooner.gateway.admission.refusals import TurnedAway
from sooner.gateway.admission.shares import charge
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.prefixes import NONE
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.ordering.given import Given

_TICK = 0.25  # seconds between two sweeps, as in the gateway


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        """Return the virtual time [s]."""
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("nothing is left that could happen, and something waits")
        if not found and timeout:
            self._loop.now += timeout
        return found


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine in virtual time."""

    async def main() -> None:
        await test()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


@dataclass(frozen=True)
class Ask:
    """One request of a load. `predicted` None: the gateway knows nothing of its length."""

    arrival_time: float
    tenant: str
    output_len: int
    prompt_len: int = 20
    predicted: float | None = None


@dataclass
class Seen:
    """What became of it: seconds since the load began, and `start` counted over all starts."""

    ask: Ask
    came_after: int = 0  # how many had started when it came
    start: int | None = None
    start_time: float | None = None
    end_time: float | None = None
    refused: str | None = None
    retry_after: float | None = None
    refused_time: float | None = None

    @property
    def wait(self) -> float:
        """Seconds until its start."""
        assert self.start_time is not None
        return self.start_time - self.ask.arrival_time

    @property
    def places(self) -> int:
        """How many started between its arrival and its own start."""
        assert self.start is not None
        return self.start - self.came_after


async def drive(load: Iterable[Ask], places: int, token_time: float, **settings: Any) -> list[Seen]:
    """Send a load to a dispatcher with one engine of `places`, each a token every `token_time` seconds."""
    loop = asyncio.get_running_loop()
    one = BackendSettings(url="http://engine", kind="vllm", max_in_flight=places)
    chosen = GatewaySettings(ranker="", learn=False, backends=(one,), **settings)
    dispatcher = Dispatcher(chosen, [Backend(one, chosen.limits)], loop.time)
    began, starts = loop.time(), 0

    async def serve(seen: Seen) -> None:
        nonlocal starts
        ask = seen.ask
        seen.came_after = starts
        given = Given(ask.predicted, ask.predicted)
        asked = Asked("m", True, ChatRequest(), ask.prompt_len, NONE, False, given)
        try:
            waiting = dispatcher.arrive(str(id(seen)), ask.tenant, 0, asked, 0.0)
        except TurnedAway as refused:
            seen.refused, seen.retry_after, seen.refused_time = (
                refused.counter, refused.retry_after, loop.time() - began,
            )  # fmt: skip
            return
        try:
            backend = await dispatcher.slot(waiting)
            starts += 1
            seen.start, seen.start_time = starts, loop.time() - began
            await asyncio.sleep(ask.output_len * token_time)
            seen.end_time = loop.time() - began
            dispatcher.finished(waiting, ask.output_len * token_time, ask.output_len)
            dispatcher.over(waiting, backend, charge(ask.prompt_len, ask.output_len))
        except TurnedAway as refused:
            seen.refused, seen.retry_after, seen.refused_time = (
                refused.counter, refused.retry_after, loop.time() - began,
            )  # fmt: skip
        finally:
            dispatcher.leave(waiting)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_TICK)
            dispatcher.sweep()

    sweeping = asyncio.create_task(sweep())
    found, tasks = [], []
    for ask in load:
        await asyncio.sleep(max(0.0, began + ask.arrival_time - loop.time()))
        found.append(Seen(ask))
        tasks.append(asyncio.create_task(serve(found[-1])))
    await asyncio.gather(*tasks)
    sweeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeping
    assert dispatcher.queued == 0
    assert not dispatcher.waiting
    assert dispatcher.backends[0].in_flight == 0
    return found


def poisson(
    rates: Mapping[str, float], seconds: float, seed: int, *, median: float = 60.0, sigma: float = 0.8,
    noise: float | None = None,
) -> Sequence[Ask]:  # fmt: skip
    """Return a load of tenants that come at `rates` [1/s], lengths lognormal.

    `noise` is the standard deviation of the log of predicted over true length; None: nothing is predicted.
    """
    asks = []
    for number, (tenant, rate) in enumerate(rates.items()):
        rng = np.random.default_rng([seed, number])
        times = np.cumsum(rng.exponential(1.0 / rate, size=int(rate * seconds * 1.2) + 50))
        times = times[times < seconds]
        lengths = np.maximum(1, np.rint(median * np.exp(sigma * rng.standard_normal(len(times)))))
        errors = np.exp((noise or 0.0) * rng.standard_normal(len(times)))
        for time, length, error in zip(times, lengths, errors, strict=True):
            predicted = None if noise is None else float(length * error)
            asks.append(Ask(float(time), tenant, int(length), predicted=predicted))
    return sorted(asks, key=lambda ask: ask.arrival_time)
