"""SCLS's max-min offloading (arXiv 2406.13511): the next slice goes to the engine with the least to do.

To do is the sum of the estimated serving times of what was given to an engine and has not ended; an
estimate is taken off as it was put on. The paper hands out a tick's batches, longest first; here
each slice goes alone, when it is its turn and a place is free.
"""

from __future__ import annotations

from collections.abc import Sequence

from sooner.gateway.engines.backend import Backend
from sooner.gateway.engines.serving_time import ServingTime
from sooner.gateway.visit import Visit


class Offload:
    """The estimated load of each engine [s]. An engine not yet seen is taken to be as the others are."""

    def __init__(self) -> None:
        self._times: dict[str, ServingTime] = {}
        self._all = ServingTime()
        self._load: dict[str, float] = {}
        self._given: dict[str, float] = {}  # by request: what was put on

    def load(self, backend: Backend) -> float:
        """Return what an engine has to do [s]."""
        return self._load.get(backend.name, 0.0)

    def estimate(self, backend: Backend, request: Visit) -> float:
        """Return how long an engine would need for a request's next slice, beside what runs there [s]."""
        times = self._times.get(backend.name)
        times = times if times is not None and times.known else self._all
        if not times.known:
            return request.work_at(backend)
        tokens = request.slice or max(1.0, request.ticket.predicted_len)
        return times.seconds(backend.in_flight + 1, request.ticket.prompt_len, tokens)

    def choose(self, free: Sequence[Backend], request: Visit) -> Backend:
        """Return the engine that would be done first; of several, the one of the last slice."""

        def end(backend: Backend) -> tuple[float, bool]:
            return self.load(backend) + self.estimate(backend, request), backend.name != request.last

        return min(free, key=end)

    def began(self, request: Visit, backend: Backend) -> None:
        """Say that a slice goes to an engine."""
        self._given[request.id] = estimate = self.estimate(backend, request)
        self._load[backend.name] = self.load(backend) + estimate
        request.last = backend.name

    def ended(self, request: Visit, backend: Backend) -> None:
        """Say that it is over; the last of an engine takes all rounding with it."""
        estimate = self._given.pop(request.id, 0.0)
        left = self.load(backend) - estimate
        self._load[backend.name] = max(0.0, left) if backend.in_flight else 0.0

    def learn(self, backend: Backend, running: float, prompt_len: float, tokens: int, seconds: float) -> None:
        """Take in how long a slice took."""
        self._times.setdefault(backend.name, ServingTime()).add(running, prompt_len, tokens, seconds)
        self._all.add(running, prompt_len, tokens, seconds)
