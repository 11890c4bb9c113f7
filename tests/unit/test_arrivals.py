"""Arrival processes: their moments, their seeds, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.core import ConfigError, DataError, SoonerError, UnknownName
from sooner.workloads.arrivals import ARRIVALS, arrival_times, burst, gamma, poisson, trace

N = 40_000


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_has_its_rate_and_its_variation(cv: float) -> None:
    gaps = np.diff(gamma(N, 5.0, cv, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.2, abs=4 * 0.2 * cv / np.sqrt(N))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_poisson_counts_have_equal_mean_and_variance() -> None:
    times = poisson(N, 5.0, np.random.default_rng(2))
    counts = np.histogram(times, bins=np.arange(0, times[-1] - 1))[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.08)


def test_no_variation_is_a_metronome() -> None:
    assert gamma(4, 2.0, 0.0, np.random.default_rng(0)).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_a_seed_gives_the_same_times_again() -> None:
    times = [gamma(10, 1.0, 2.0, np.random.default_rng(seed)).tolist() for seed in (3, 3, 4)]
    assert times[0] == times[1] != times[2]


def test_trace_starts_at_zero_and_stretches() -> None:
    assert trace([10.0, 10.5, 12.0], 2.0).tolist() == [0.0, 1.0, 4.0]
    assert trace([]).tolist() == []
    for times in ([2.0, 1.0], [0.0, float("nan")]):
        with pytest.raises(DataError, match="allowed: sorted"):
            trace(times)


def test_every_kind_by_name() -> None:
    recorded = [1.0, 3.0, 3.0]
    for kind in ARRIVALS:
        times = arrival_times(kind, 3, np.random.default_rng(0), rate=2.0, cv=2.0, recorded=recorded)
        assert times.shape == (3,)
        assert (np.diff(times) >= 0).all()
    assert burst(3).tolist() == [0.0, 0.0, 0.0]


def test_refusals_say_what_is_missing() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[type[SoonerError], str, dict[str, object]]] = [
        (UnknownName, "did you mean 'poisson'", {"kind": "poison"}),
        (ConfigError, "need a rate", {"kind": "poisson"}),
        (ConfigError, "rate=-1", {"kind": "gamma", "rate": -1.0}),
        (ConfigError, "cv=-1", {"kind": "gamma", "rate": 1.0, "cv": -1.0}),
        (DataError, "1 of 2 requests have no 'arrival_time'", {"kind": "trace", "recorded": [1.0, None]}),
    ]
    for error, words, options in cases:
        kind = str(options.pop("kind"))
        with pytest.raises(error, match=words):
            arrival_times(kind, 2, rng, **options)  # type: ignore[arg-type]
