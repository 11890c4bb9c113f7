"""What the plugin counts, how it warns, and how both reach vLLM's `/metrics`.

The scheduler lives in EngineCore and `/metrics` in the API server, another process. So the engine
leaves its numbers in a file once a second (`Publisher`), and the API server's Prometheus registry
reads them when it is scraped (`Collector`, registered by the general plugin). A lock file beside them
says that the engine lives: a folder may outlast many engines, and the dead are not counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sooner.ordering import counters
from sooner.ordering.held import LockFile, is_held

logger = logging.getLogger("vllm.plugins.sooner")

_MOST_ENGINES, _MOST_BYTES = 256, 64 * 1024
_LOCK = ".lock"

COUNTERS = {
    "requests": "Requests that entered the queue",
    "scored": "Requests whose score came from the ranker",
    "client_scored": "Requests whose score or length came from the client",
    "malformed_client_values": "Client values that were ignored",
    "scorer_timeouts": "Requests that kept their neutral place because no score came in time",
    "scorer_failures": "Scores that the ranker could not give",
    "scorer_restarts": "Times the scorer process was started again",
    "shadow_failures": "Requests of which a shadow could not say anything, and shadows that are not there",
    "drift_alarms": "Times that replies had changed and were learned anew",
    "policy_errors": "Keys that the policy could not give; such a request takes its arrival's place",
    "hook_errors": "Exceptions in the plugin that were caught",
    "promotions": "Requests promoted by the starvation guard",
    "second_looks": "Requests sent back because their score came after they were admitted",
    "rank_preemptions": "Running requests displaced by a better-ranked one",
    "bypassed": "Times the plugin stepped aside for good; vLLM then serves in order of arrival",
    "paused_steps": "Steps that took too long to say anything of the engine's pace",
    "kv_preemptions": "Running requests preempted because the KV cache was full",
    "kv_released": "Waiting requests that gave their KV memory back, for nothing could run beside it",
}
GAUGES = {
    "waiting": "Requests in the queue",
    "running": "Requests running",
    "pressure_seconds_per_token": "Recent mean wait over recent mean predicted length",
    "mean_predicted_len_tokens": "Recent mean predicted length",
    "backlog_seconds": "Expected engine seconds of the requests that wait",
    "usual_wait_seconds": "Root mean square of that backlog at arrivals, over thousands of them",
    "usual_work_seconds": "Expected engine seconds of a request, weighted by themselves",
    "ranker_tau": "Kendall's tau of the last predictions against what came, 0 until it is known",
    "ranker_tau_error": "Its standard error",
    "ranker_expected_gain": "Share of the work ahead of a request in a backlog that the order removes",
    "ranker_expected_gain_error": "Its standard error",
    "ranker_on": "Whether the learned order is on; where it is worth nothing it is not",
    "ranker_learned_requests": "Replies that were learned from",
}


def _rivals(shadow: str, of: str) -> dict[str, str]:
    """Return the gauges of two orders that are held against each other on the same replies, or pairs."""
    sides = {"_acting": "the order that acts", "": "its shadow", "_better": "the shadow, less the other's"}
    measures = {"tau": "Kendall's tau of", "expected_gain": "Share of arrival order's wait that is saved by"}
    errors = {"": "", "_error": ": its standard error"}
    return {
        f"{shadow}{side}_{measure}{error}": f"{text} {whose}, on the same {of}{end}"
        for side, whose in sides.items()
        for measure, text in measures.items()
        for error, end in errors.items()
    }


SHADOWS = {
    "shadow_promoted": "Whether the shadow that the settings name acts",
    "shadow_compared_requests": "Replies on which both rankers were compared",
    "shadow_policy_promoted": "Whether the policy that the settings name as a shadow acts",
    "shadow_policy_compared_pairs": "Pairs of requests on which both policies were compared",
    **_rivals("shadow", "replies"),
    **_rivals("shadow_policy", "pairs"),
}
"""Gauges of a shadow: there once they are known, where one is named."""


class PluginCounters(counters.Counters):
    """The plugin's counts; its warnings go to a logger that vLLM shows."""

    def __init__(self) -> None:
        super().__init__(COUNTERS, logger)


class Publisher:
    """Writes the counters to a file in `directory` once a second, from its own thread.

    The file is `<pid>-<random>.json`, as engines in containers may share both folder and process ids. What
    engines that died left in the folder is removed.
    """

    def __init__(
        self, counters: PluginCounters, gauges: Callable[[], dict[str, float]], directory: Path, engine: int
    ) -> None:
        self._counters = counters
        self._gauges = gauges  # read in this thread, so that a step pays nothing for them
        self._path = directory / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self._lock: LockFile | None = None
        self._engine = engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sooner-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and leave no file behind: the engine is no more."""
        self._stop.set()
        self._thread.join(timeout=2)
        if self._lock is not None:
            self._lock.release()
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            _sweep(self._path.parent)
        stopped = False
        while not stopped:
            try:
                self.publish()
            except OSError:
                pass  # a full or removed directory must not hurt the engine
            except Exception as error:  # nor may what reads the gauges: the last numbers stand
                self._counters.warn("hook_errors", "the plugin's numbers cannot be read: %r", error)
            stopped = self._stop.wait(1.0)

    def publish(self) -> None:
        """Write the numbers now. Raises OSError where the directory cannot be written."""
        if self._lock is None:
            self._lock = LockFile(self._path.with_suffix(_LOCK))
        body = {"engine": self._engine, "counts": self._counters.counts, "gauges": self._gauges()}
        draft = self._path.with_suffix(".tmp")
        draft.unlink(missing_ok=True)  # a link that another put there is removed, not written through
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
        with open(os.open(draft, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(json.dumps(body))
        draft.replace(self._path)


class Collector:
    """A Prometheus collector over the files that engines left in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> list[Any]:
        """Return nothing: what is there is known only when it is collected."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield one family per counter and gauge, a sample for each engine."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engines = self._read()
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"sooner_{name}", text, labels=["engine"])
            for body in engines:
                counter.add_metric([str(body.engine)], body.counts.get(name, 0))
            yield counter
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"sooner_{name}", text, labels=["engine"])
            for body in engines:
                gauge.add_metric([str(body.engine)], body.gauges.get(name, 0.0))
            yield gauge
        for name, text in SHADOWS.items():
            known = [body for body in engines if name in body.gauges]
            if known:
                gauge = GaugeMetricFamily(f"sooner_{name}", text, labels=["engine"])
                for body in known:
                    gauge.add_metric([str(body.engine)], body.gauges[name])
                yield gauge

    def _read(self) -> list[Snapshot]:
        """What living engines of this user wrote; others, links and what is no snapshot are left out."""
        found = []
        for path in sorted(self._directory.glob("[0-9]*.json")):
            if not is_held(path.with_suffix(_LOCK)):
                continue
            with contextlib.suppress(OSError, ValueError, RecursionError):
                found.append(_snapshot(json.loads(_own(path))))
            if len(found) == _MOST_ENGINES:
                break
        return found


class Snapshot(NamedTuple):
    """The numbers of one engine."""

    engine: int
    counts: Mapping[str, float]
    gauges: Mapping[str, float]


def _sweep(directory: Path) -> None:
    """Remove what dead engines of this user left in a folder. Raises OSError."""
    for lock in sorted(directory.glob(f"[0-9]*{_LOCK}"))[:_MOST_ENGINES]:
        if lock.lstat().st_uid == os.geteuid() and not is_held(lock):
            for suffix in (".json", ".tmp", _LOCK):
                lock.with_suffix(suffix).unlink(missing_ok=True)


def _own(path: Path) -> bytes:
    """The bytes of a small regular file of this user or root. Raises OSError, ValueError for another."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # no link is followed, no pipe waited for
    with open(os.open(path, flags), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()):
            raise ValueError(f"{str(path)!r} is no file of this user")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{str(path)!r} has more than {_MOST_BYTES} bytes")
    return data


def _snapshot(body: Any) -> Snapshot:
    """The snapshot in a file's JSON. Raises ValueError for what is none."""
    if not isinstance(body, dict) or not isinstance(body.get("engine"), int):
        raise ValueError("no engine's numbers")
    return Snapshot(body["engine"], _numbers(body.get("counts")), _numbers(body.get("gauges")))


def _numbers(column: Any) -> dict[str, float]:
    if not isinstance(column, dict):
        raise ValueError("no counts or no gauges")
    return {name: value for name, value in column.items() if type(value) in (int, float)}
