"""`/metrics` as Prometheus' text or OpenMetrics, without a client library: a few counters and histograms."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Mapping, Sequence

from sooner.gateway.engines.backend import Backend
from sooner.ordering.wire import LiveReport, Scope

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


def form(accepted: Iterable[str]) -> str:
    """Return the form that `Accept` headers ask for: OpenMetrics where that is wanted no less than text."""
    wanted = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for wish in ",".join(accepted).split(","):
        kind, *parameters = (part.strip().lower() for part in wish.split(";"))
        if kind in wanted:
            weights = [text[2:] for text in parameters if text.startswith("q=")]
            wanted[kind] = max(wanted[kind], _weight(weights[0]) if weights else 1.0)
    open_metrics, text = wanted.values()
    return OPEN_METRICS if open_metrics > 0.0 and open_metrics >= text else TEXT


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class Histogram:
    """Counts of seconds by bucket, each with the trace of the last that fell there, if it has one."""

    def __init__(self, name: str, text: str, bounds: Sequence[float] = _BUCKETS) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._examples = [""] * len(self._counts)

    def add(self, value: float, trace: str = "") -> None:
        """Take in one value, and the id of its trace."""
        at = bisect.bisect_left(self._bounds, value)
        self._counts[at] += 1
        self._sum += value
        if trace:
            self._examples[at] = f' # {{trace_id="{trace}"}} {value} {time.time():.3f}'

    def lines(self, form: str = TEXT) -> Iterable[str]:
        """Yield its lines; only OpenMetrics has room for traces."""
        open_metrics = form == OPEN_METRICS
        yield f"# HELP {self._name} {self._text}"
        yield f"# TYPE {self._name} histogram"
        total = 0
        bounds = (*map(str, self._bounds), "+Inf")
        for bound, count, example in zip(bounds, self._counts, self._examples, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}{example if open_metrics else ""}'
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
    form: str = TEXT,
) -> str:
    """Return the whole page; the groups of `standings` are named by their hashes only."""
    groups = [told for told in standings if told.scope is not Scope.ALL]  # of all, `gauges` tell
    lines: list[str] = []
    for name, text in texts.items():
        family = f"sooner_{name}" if form == OPEN_METRICS else f"sooner_{name}_total"
        lines += [f"# HELP {family} {text}", f"# TYPE {family} counter"]
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
        "tau": [told.standing.tau for told in groups],
        "expected_gain": [told.standing.gain for told in groups],
        "on": [float(told.on) for told in groups],
    }.items():
        lines.append(f"# TYPE sooner_ranker_group_{name} gauge")
        lines += [
            f'sooner_ranker_group_{name}{{of="{told.scope.name.lower()}",group="{told.hash:016x}"}} {value}'
            for told, value in zip(groups, values, strict=True)
        ]
    for histogram in (telemetry.wait, telemetry.first_byte, telemetry.total):
        lines += histogram.lines(form)
    if form == OPEN_METRICS:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
