"""The last layer of a ranker, fitted anew to what is served: what it is worth, what is kept, and of whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sooner.core import Prediction
from sooner.learning import Identity, Learner
from sooner.learning.last_layer import LastLayer, probe
from sooner.learning.memory import LearnedFile, save, state
from sooner.metrics import kendall_tau

WIDTH = 30
ONE = Identity(model=1, sender=2)


class Stream:
    """Requests whose vectors say something of their lengths that a ranker's score does not."""

    def __init__(self, worth: float) -> None:
        self.rng = np.random.default_rng(0)
        self.line = worth * self.rng.standard_normal(WIDTH)

    def play(self, learner: Learner, n: int, *, vectors: bool = True) -> float:
        """Serve n requests; return Kendall's tau of the last half."""
        scores, lengths = np.empty(n), np.empty(n)
        for row in range(n):
            vector = self.rng.standard_normal(WIDTH) / np.sqrt(WIDTH)
            score = float(self.rng.standard_normal())
            text = Prediction(score, float(np.exp(4.0 + 0.3 * score)))
            found = learner.predict(row, ONE, text, vector=vector if vectors else None)
            log_length = 4.0 + 0.3 * score + vector @ self.line + 0.5 * self.rng.standard_normal()
            scores[row], lengths[row] = found.score, round(float(np.exp(log_length)))
            learner.finished(row, float(lengths[row]))
        return kendall_tau(scores[n // 2 :], lengths[n // 2 :])


def test_what_vectors_say_is_learned_from_the_replies() -> None:
    assert Stream(1.0).play(Learner(), 600) > 0.15 + Stream(1.0).play(Learner(), 600, vectors=False)


def test_where_they_say_nothing_little_is_lost() -> None:
    assert Stream(0.0).play(Learner(), 600) > Stream(0.0).play(Learner(), 600, vectors=False) - 0.02


def test_it_is_kept_without_the_vectors_and_only_for_the_same_ranker(tmp_path: Path) -> None:
    learner, path = Learner(), tmp_path / "learned.npz"
    learner.layer.bind(np.ones(WIDTH))
    Stream(1.0).play(learner, 600)
    save(learner, path)
    assert max(values.size for name, values in state(learner).items() if name.startswith("refit")) == WIDTH

    def said(mine: NDArray[np.float64] | None) -> float:
        again = LearnedFile(path).read(Learner())
        again.layer.bind(mine)
        return again.layer.said("probe", Prediction(0.0, 50.0), np.full(WIDTH, 0.5))

    assert said(np.ones(WIDTH)) == pytest.approx(
        learner.layer.said("probe", Prediction(0.0, 50.0), np.full(WIDTH, 0.5))
    )
    assert said(np.ones(WIDTH)) != 0.0
    for other in (2 * np.ones(WIDTH), np.ones(WIDTH + 1), None):
        assert said(other) == 0.0


def test_a_drift_ends_it_and_what_is_under_way_is_bounded() -> None:
    layer = LastLayer()
    for row in range(3000):
        assert layer.said(row, Prediction(1.0), np.ones(WIDTH)) == 0.0
    assert len(layer._pending) == 2048
    for row in range(2000, 3000):
        layer.ended(row, float(row % 7))
    assert layer.said("next", Prediction(1.0), np.ones(WIDTH)) != 0.0
    layer.forget()
    assert layer.said("next", Prediction(1.0), np.ones(WIDTH)) == 0.0


def test_a_ranker_without_vectors_has_no_probe() -> None:
    assert probe(object()) is None
    assert probe(None) is None
