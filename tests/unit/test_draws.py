"""The rows of each epoch: all of them where the budget suffices, a fair half of each kind where not."""

from __future__ import annotations

import numpy as np

from sooner.rankers.neural.draws import draws

SIZES = np.full(100, 10)
LATER = np.arange(100) >= 20  # 20 first turns, 80 later ones


def test_with_enough_budget_every_epoch_is_every_row() -> None:
    drawn = draws(SIZES, LATER, epochs=3, budget=3000, seed=0)
    assert [sorted(part) for part in drawn] == [list(range(100))] * 3


def test_a_short_budget_is_halved_and_what_is_over_goes_to_the_other_kind() -> None:
    drawn = np.concatenate(draws(SIZES, LATER, epochs=3, budget=1800, seed=0))
    count = np.bincount(drawn, minlength=100)
    assert count[:20].tolist() == [3] * 20  # 600 of 900 pieces are all they want
    assert count[20:].sum() == 120
    assert set(count[20:].tolist()) == {1, 2}
    halved = np.concatenate(draws(SIZES, np.arange(100) >= 50, epochs=3, budget=1000, seed=0))
    assert np.bincount(halved, minlength=100).tolist() == [1] * 100


def test_one_kind_takes_all_and_the_seed_decides() -> None:
    none = np.zeros(100, dtype=bool)
    one, same, other = (draws(SIZES, none, epochs=2, budget=1000, seed=seed) for seed in (1, 1, 2))
    assert sorted(np.concatenate(one)) == list(range(100))
    assert [part.tolist() for part in one] == [part.tolist() for part in same]
    assert [part.tolist() for part in one] != [part.tolist() for part in other]


def test_a_budget_of_nothing_still_trains_on_something() -> None:
    assert len(np.concatenate(draws(SIZES, LATER, epochs=2, budget=1, seed=0))) == 2
