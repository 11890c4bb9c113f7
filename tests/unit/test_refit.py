"""The closed form of the refit against plain ridge regressions, one for each row left out."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.core import DataError
from sooner.metrics import kendall_tau
from sooner.rankers.refit import _FREE, Refit, _Dual, _Primal
from sooner.rankers.scaling import normal_scores


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("kind", [_Dual, _Primal])
@pytest.mark.parametrize("variance", [0.0, 0.3])
def test_the_left_out_errors_are_those_of_leaving_out(
    n: int, kind: type[_Dual] | type[_Primal], variance: float
) -> None:
    rng = np.random.default_rng(n)
    free, vectors, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 10)), rng.normal(size=n)
    scale = np.sqrt([_FREE] * 2 + [variance] * 10)
    x = np.column_stack([free, vectors]) * scale
    weights, errors = kind(free, vectors)(y, variance)
    assert weights == pytest.approx(scale * np.linalg.solve(x.T @ x + np.eye(12), x.T @ y))
    for i in range(n):
        kept = np.arange(n) != i
        others = np.linalg.solve(x[kept].T @ x[kept] + np.eye(12), x[kept].T @ y[kept])
        assert errors[i] == pytest.approx(y[i] - x[i] @ others)


@pytest.mark.parametrize("n", [30, 600])
def test_it_finds_what_the_shipped_score_misses(n: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n + 500, 50)) / np.sqrt(50)
    scores, told = rng.normal(size=n + 500), 3 * vectors[:, 0] * np.sqrt(50)
    lengths = np.exp(5 + scores + told + 0.3 * rng.normal(size=n + 500))
    layer, honest = Refit.fit(scores[:n], vectors[:n], lengths[:n])
    fresh = kendall_tau(layer(scores[n:], vectors[n:]), lengths[n:])
    assert fresh > kendall_tau(scores[n:], lengths[n:]) + (0.05 if n == 30 else 0.4)
    assert kendall_tau(honest, lengths[:n]) == pytest.approx(fresh, abs=0.15)


def test_where_vectors_say_nothing_the_order_stays() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=300)
    layer, _ = Refit.fit(scores, rng.normal(size=(300, 40)), np.exp(scores))
    assert kendall_tau(layer(scores, np.zeros((300, 40))), scores) == pytest.approx(1.0)
    assert np.abs(layer.weights).max() < 0.05
    with pytest.raises(DataError, match="1 finished requests"):
        Refit.fit(scores[:1], np.zeros((1, 2)), np.ones(1))


def test_normal_scores_keep_order_and_ties() -> None:
    lengths = np.array([5.0, 1.0, 900.0, 5.0, 7.0])
    scores = normal_scores(lengths)
    assert scores[0] == scores[3]
    assert kendall_tau(scores, lengths) == pytest.approx(1.0)
    many = normal_scores(np.random.default_rng(0).lognormal(5, 2, 2000))
    assert many.mean() == pytest.approx(0, abs=1e-9)
    assert many.std() == pytest.approx(1, abs=0.01)
    assert normal_scores(np.full(3, 4.0)).tolist() == [0, 0, 0]
