"""`/metrics` in Prometheus' text format, without a client library: a few counters and histograms."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence

from sooner.gateway.engines.backend import Backend
from sooner.ordering.wire import LiveReport

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of seconds by bucket."""

    def __init__(self, name: str, text: str, bounds: Sequence[float] = _BUCKETS) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterable[str]:
        """Yield its lines."""
        yield f"# HELP {self._name} {self._text}"
        yield f"# TYPE {self._name} histogram"
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self._sum}"
        yield f"{self._name}_count {total}"


class Telemetry:
    """The histograms of the gateway."""

    def __init__(self) -> None:
        self.wait = Histogram("sooner_wait_seconds", "Time in the gateway's queue")
        self.first_byte = Histogram(
            "sooner_first_byte_seconds", "Time from the engine's request to its first byte"
        )
        self.total = Histogram("sooner_request_seconds", "Time from arrival to the last byte")


def page(
    telemetry: Telemetry,
    counters: Mapping[str, int],
    texts: Mapping[str, str],
    gauges: Mapping[str, float],
    backends: Sequence[Backend],
    now: float,
    standings: Sequence[LiveReport] = (),
) -> str:
    """Return the whole page; the groups of `standings` are named by their hashes only."""
    lines: list[str] = []
    for name, text in texts.items():
        lines += [f"# HELP sooner_{name}_total {text}", f"# TYPE sooner_{name}_total counter"]
        lines.append(f"sooner_{name}_total {counters[name]}")
    for name, value in gauges.items():
        lines += [f"# TYPE sooner_{name} gauge", f"sooner_{name} {value}"]
    for name, values in {
        "up": [float(backend.accepts(now)) for backend in backends],
        "in_flight": [float(backend.in_flight) for backend in backends],
        "in_flight_limit": [float(backend.limit) for backend in backends],
        "outstanding_seconds": [backend.outstanding for backend in backends],
        "prompt_token_seconds": [backend.pace.pace.prefill_token_s for backend in backends],
        "reply_token_seconds": [backend.pace.reply_token_s for backend in backends],
        "waiting_inside": [backend.waiting_inside or 0.0 for backend in backends],
        "kv_usage": [backend.kv for backend in backends],
    }.items():
        lines.append(f"# TYPE sooner_backend_{name} gauge")
        lines += [
            f'sooner_backend_{name}{{backend="{_escaped(backend.name)}"}} {value}'
            for backend, value in zip(backends, values, strict=True)
        ]
    for name, values in {
        "tau": [told.standing.tau for told in standings],
        "expected_gain": [told.standing.gain for told in standings],
        "on": [float(told.on) for told in standings],
    }.items():
        lines.append(f"# TYPE sooner_ranker_group_{name} gauge")
        lines += [
            f'sooner_ranker_group_{name}{{of="{told.scope.name.lower()}",group="{told.hash:016x}"}} {value}'
            for told, value in zip(standings, values, strict=True)
        ]
    for histogram in (telemetry.wait, telemetry.first_byte, telemetry.total):
        lines += histogram.lines()
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
