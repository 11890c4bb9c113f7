"""Every ranker keeps the contract that third-party rankers are held to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sooner import rankers
from sooner.metrics import kendall_tau
from sooner.rankers import conformance
from sooner.rankers.calibration import Calibration
from sooner.rankers.oracle import degrade

NAMES = ["lexical", "prompt_length", "constant", "oracle"]


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: conformance.Check) -> None:
    if check is conformance.never_exceeds_max_tokens and name == "oracle":
        pytest.skip("the oracle's truth already reflects max_tokens")
    check(rankers.get(name))


@given(n=st.integers(30, 400), tau=st.floats(-1, 1), seed=st.integers(0, 2**32 - 1), tied=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_degraded_oracle_has_the_tau_asked_for(n: int, tau: float, seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, n) if tied else rng.permutation(n)
    if tied and abs(tau) > 0.9:
        return  # ties in the lengths put the extremes out of a strict order's reach
    assert kendall_tau(degrade(lengths, tau, rng), lengths) == pytest.approx(tau, abs=0.01 + 2 / n)


@given(
    pairs=st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 5000)), min_size=1, max_size=300),
    asked=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    generated=st.integers(0, 9000),
)
@settings(deadline=None)
def test_calibration_keeps_the_order_and_the_range(
    pairs: list[tuple[float, int]], asked: list[float], generated: int
) -> None:
    scores, lengths = np.array(pairs).T
    made = Calibration.fit(scores, lengths)
    asked_scores = np.sort(np.array(asked))
    expected = made.expected(asked_scores)
    low, high = lengths.min() - 1e-2, lengths.max() + 1e-2
    assert (np.diff(expected) >= -1e-6).all()
    assert ((expected >= low) & (expected <= high)).all()
    table = made.quantiles(asked_scores, [0.1, 0.5, 0.9])
    assert (np.diff(table, axis=1) >= -1e-6).all()
    assert (np.diff(table, axis=0) >= -1e-6).all()
    rest = made.expected_remaining(asked_scores, np.full(len(asked), generated))
    assert (rest >= 1).all()
    assert (rest <= max(high - generated, 1.0) + 1e-6).all()
