"""Two policies on pairs that waited together: the measures, their errors, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.learning.pairs import Met, PairWatch, rivalry


def test_arrival_order_saves_nothing_and_the_true_order_all_that_can_be_saved() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(1, 10, (2, 1000))
    most = np.quantile(np.concatenate([first, second]), 0.95)
    low = np.minimum(np.minimum(first, second), most)
    found = rivalry(np.stack([np.ones(1000), first, second, np.zeros(1000), second < first], axis=1))
    assert found.acting.gain == 0.0
    assert found.shadow.tau > 0.99
    assert found.shadow.gain == pytest.approx(1.0 - low.sum() / np.minimum(first, most).sum())
    assert found.better.gain == pytest.approx(found.shadow.gain)
    assert found.better.tau == pytest.approx(found.shadow.tau - found.acting.tau)


def test_an_order_by_chance_is_within_its_errors_of_nothing() -> None:
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(200):
        works = rng.lognormal(0.0, 1.0, (2, 400))
        swaps = rng.random((2, 400)) < 0.5
        found = rivalry(np.stack([rng.integers(1, 9, 400), *works, *swaps], axis=1))
        for one in (found.acting, found.shadow, found.better):
            outside += abs(one.gain) > 2 * one.gain_error
    assert outside <= 0.1 * 600


def test_a_pair_counts_once_both_replies_are_over_and_not_where_one_was_cut() -> None:
    watch = PairWatch()
    for at in range(300):
        watch.met(Met(f"a{at}", f"b{at}", 1.0, acting=False, shadow=True))
        watch.met(Met(f"a{at}", f"c{at}", 1.0, acting=False, shadow=True))
    for at in range(300):
        watch.finished(f"a{at}", 9.0)
    assert watch.seen == 0
    for at in range(300):
        watch.finished(f"b{at}", 1.0)
        watch.dropped(f"c{at}")
        watch.dropped(f"a{at}")  # it leaves, as everybody does
    assert watch.seen == 300
    assert watch.now.shadow.gain == pytest.approx(8 / 9)
    assert watch.now.acting.gain == 0.0
    assert not watch._pending
    assert not watch._work
    watch.change_places()
    assert watch.now.acting.gain == pytest.approx(8 / 9)
    assert watch.now.better.gain == pytest.approx(-8 / 9)


def test_what_is_open_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sooner.learning.pairs._MOST_PENDING", 10)
    watch = PairWatch()
    for at in range(100):
        watch.met(Met(f"a{at}", f"b{at}", 1.0, acting=False, shadow=True))
    assert len(watch._pending) == 20
    for at in range(10):
        watch.dropped(f"a{at}")
    watch.met(Met("x", "y", 1.0, acting=False, shadow=True))
    assert len(watch._pending) == 2
