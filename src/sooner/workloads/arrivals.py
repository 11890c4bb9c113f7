"""Arrival processes: when the n requests of a workload arrive, as sorted seconds from the start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError, UnknownName

ARRIVALS = ("burst", "poisson", "gamma", "trace")

Times = NDArray[np.float64]


def burst(n: int) -> Times:
    """Everything at once, at 0; shape (n,)."""
    return np.zeros(n)


def poisson(n: int, rate: float, rng: np.random.Generator) -> Times:
    """Return a Poisson process of `rate` [req/s]: independent exponential gaps; shape (n,)."""
    return gamma(n, rate, 1.0, rng)


def gamma(n: int, rate: float, cv: float, rng: np.random.Generator) -> Times:
    """Return a renewal process of `rate` [req/s] whose gaps are gamma distributed; shape (n,).

    `cv` is the gaps' standard deviation over their mean: 1 is Poisson, above 1 is bursty, 0 is a
    constant gap. (vLLM's `burstiness` is 1 / cv^2.)
    """
    _positive("rate", rate)
    if not (np.isfinite(cv) and cv >= 0):
        raise ConfigError(f"cv={cv}, allowed: a finite number >= 0")
    if cv == 0:
        return np.arange(1, n + 1) / rate
    return np.cumsum(rng.gamma(1 / cv**2, cv**2 / rate, size=n))


def trace(times: Sequence[float] | Times, scale: float = 1.0) -> Times:
    """Return recorded times, moved so that the first is 0 and stretched by `scale`; shape (n,).

    Raises DataError for times that decrease or are not finite.
    """
    _positive("time scale", scale)
    given = np.asarray(times, dtype=np.float64)
    if not np.isfinite(given).all() or (np.diff(given) < 0).any():
        raise DataError("arrival times decrease or are not finite; allowed: sorted seconds")
    return (given - given[0]) * scale if given.size else given


def arrival_times(
    kind: str,
    n: int,
    rng: np.random.Generator,
    *,
    rate: float | None = None,
    cv: float = 1.0,
    recorded: Sequence[float | None] = (),
    time_scale: float = 1.0,
) -> Times:
    """Return the arrival times of process `kind`, a name in ARRIVALS; shape (n,).

    `rate` is for poisson and gamma, `cv` for gamma, `recorded` (n values) and `time_scale` for
    trace. Raises UnknownName for a kind, ConfigError for a missing rate, DataError for a missing time.
    """
    if kind not in ARRIVALS:
        raise UnknownName("arrivals", kind, ARRIVALS)
    if kind == "burst":
        return burst(n)
    if kind == "trace":
        known = [time for time in recorded if time is not None]
        if len(known) != n:
            raise DataError(
                f"{n - len(known)} of {n} requests have no 'arrival_time', which trace arrivals need"
            )
        return trace(known, time_scale)
    if rate is None:
        raise ConfigError(f"{kind} arrivals need a rate [req/s]")
    return gamma(n, rate, cv if kind == "gamma" else 1.0, rng)


def _positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value}, allowed: a finite number > 0")
