"""Magnus by small cases: what its learners learn, its order, and that nobody is lost when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sooner.core import ConfigError, DataError, NotFittedError, UnknownName
from sooner.sim.static import Bilinear
from sooner.sim.systems import magnus, magnus_apps
from sooner.sim.systems.magnus import LADDER, MagnusServer, MagnusSettings, Requests
from sooner.sim.systems.magnus_batching import MagnusBatch
from sooner.sim.systems.magnus_learning import (
    VARIANTS,
    Compress,
    HashedText,
    LengthPredictor,
    Prompts,
    TimeEstimator,
)

TRUTH = Bilinear(prefill=(2e-4, 0.0, 0.0, 0.045), decode=(1e-6, 5e-4, 0.0, 0.045))


class Told:
    """A predictor that says given lengths, so that a case can be wrong on purpose."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        self.learnt: list[int] = []

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.lengths[rows]

    def learn(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        self.learnt += rows.tolist()


def serve(
    requests: Requests, arm: str, told: np.ndarray | None = None, **given_settings: object
) -> tuple[magnus.MagnusOutcome, Told]:
    chosen, rng = MagnusSettings(**given_settings), np.random.default_rng(0)  # type: ignore[arg-type]  # per case
    predictor = Told(requests.output_len if told is None else told)
    server = MagnusServer(
        requests,
        LADDER[arm],
        chosen,
        TRUTH,
        rng,
        predictor=predictor,  # type: ignore[arg-type]  # stands in for the forest
        estimator=magnus.profile(TRUTH, chosen, rng),
    )
    return server.run(), predictor


@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.integers(1, 900), st.integers(1, 1024), st.integers(1, 1024)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from(list(LADDER)),
    st.integers(1, 3),
)
@settings(max_examples=60)
def test_every_request_is_served_once_even_where_predictions_are_wrong(
    rows: list[tuple[float, int, int, int]], arm: str, instances: int
) -> None:
    rows.sort()
    arrival, prompt, output, told = (np.array(column) for column in zip(*rows, strict=True))
    requests = Requests(arrival.astype(float), prompt, output)
    done, _ = serve(requests, arm, told, instances=instances)
    assert np.isfinite(done.finish).all()
    assert (done.finish > arrival).all()
    assert done.invalid >= 0
    found = magnus.measures(done)
    assert found["tokens_per_s"] >= found["valid_tokens_per_s"] > 0


def test_a_batch_that_outgrows_memory_is_split_and_paid_for() -> None:
    n = 12
    requests = Requests(np.zeros(n), np.full(n, 100), np.full(n, 1000))
    wrong, _ = serve(requests, "ABP", np.full(n, 100), instances=1, memory_bytes=3.0e9)
    right, _ = serve(requests, "ABP", None, instances=1, memory_bytes=3.0e9)
    assert wrong.out_of_memory > 0
    assert right.out_of_memory == 0
    assert np.isfinite(wrong.finish).all()
    assert wrong.finish.max() > right.finish.max()


def test_hrrn_takes_the_highest_wait_over_estimate() -> None:
    requests = Requests(np.array([0.0, 5.0]), np.array([100, 100]), np.array([900, 10]))
    server = MagnusServer(
        requests, LADDER["Magnus"], MagnusSettings(), TRUTH, np.random.default_rng(0),
        predictor=Told(requests.output_len),  # type: ignore[arg-type]  # stands in for the forest
        estimator=magnus.profile(TRUTH, MagnusSettings(), np.random.default_rng(0)),
    )  # fmt: skip
    for request, estimate in ((0, 50.0), (1, 1.0)):
        batch = MagnusBatch()
        batch.add(request, 100, int(requests.output_len[request]))
        batch.estimate_s = estimate
        server.queue.append(batch)
    assert server._first(6.0) == 1  # 1 / 1 against 6 / 50
    server.queue[1].estimate_s = 10.0
    assert server._first(6.0) == 0  # 1 / 10 against 6 / 50


def test_the_learners_take_only_what_they_got_wrong() -> None:
    n = 40
    requests = Requests(np.arange(n) * 20.0, np.full(n, 50), np.full(n, 200))
    told = np.where(np.arange(n) % 2, 200, 260)
    done, predictor = serve(requests, "Magnus", told)
    assert predictor.learnt
    assert {row % 2 for row in predictor.learnt} == {0}
    assert done.lengths.time == sorted(done.lengths.time)
    assert done.lengths.rmse[0] == pytest.approx(60 / np.sqrt(2), rel=0.2)


def test_more_features_predict_better_and_none_sees_the_truth_ahead() -> None:
    rng = np.random.default_rng(0)
    service = magnus_apps.draw(900, 1.0, rng)
    prompts = Prompts(service.app, service.user_len, service.instructions, service.user_texts)
    truth, error = service.output_len[500:], {}
    for variant in VARIANTS:
        predictor = LengthPredictor(prompts, variant, limit=1024, history=500)
        with pytest.raises(NotFittedError):
            predictor.predict(np.arange(5))
        predictor.learn(np.arange(-500, 0), service.output_len[:500].astype(float))
        said = predictor.predict(np.arange(400))
        assert said.min() >= 1
        assert said.max() <= 1024
        error[variant] = np.sqrt(np.mean((said - truth) ** 2))
    assert error["USIN"] < error["UILO"]
    assert error["INST"] < error["UILO"]
    assert error["RAFT"] < error["UILO"]


def test_unrelated_replies_cannot_be_predicted() -> None:
    service = magnus_apps.draw(3000, 1.0, np.random.default_rng(0), unrelated=True)
    assert abs(np.corrcoef(service.user_len, service.output_len)[0, 1]) < 0.06
    related = magnus_apps.draw(3000, 1.0, np.random.default_rng(0))
    assert np.corrcoef(related.user_len, related.output_len)[0, 1] > 0.5


def test_compression_and_hashing() -> None:
    vectors = HashedText()(["a b c", "a b c", "d e f", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.5
    means = Compress("group-mean", 4).fit(vectors)(vectors)
    np.testing.assert_allclose(means[0, 0], vectors[0, :192].mean())
    assert Compress("pca", 2).fit(vectors)(vectors).shape == (4, 2)
    with pytest.raises(UnknownName, match="did you mean 'pca'"):
        Compress("pcaa", 4)
    with pytest.raises(NotFittedError):
        Compress("pca", 4)(vectors)


def test_the_estimator_is_the_mean_of_the_nearest() -> None:
    batches = np.array([[1, 10, 10], [1, 10, 12], [50, 500, 500]], dtype=float)
    estimator = TimeEstimator(batches, np.array([1.0, 3.0, 90.0]), neighbours=2)
    assert estimator.predict(np.array([[1.0, 10, 11]]))[0] == pytest.approx(2.0)
    estimator.learn(np.array([[1.0, 10, 11]]), np.array([5.0]))
    assert estimator.predict(np.array([[1.0, 10, 11]]))[0] in (pytest.approx(3.0), pytest.approx(4.0))
    with pytest.raises(DataError, match="neighbours"):
        TimeEstimator(batches, np.array([1.0, 3.0, 90.0]), neighbours=4)


def test_what_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        MagnusSettings(batch_wait="mena")
    with pytest.raises(ConfigError, match="must be >= 1"):
        MagnusSettings(memory_bytes=1e6)
    requests = Requests(np.zeros(1), np.ones(1, dtype=int), np.ones(1, dtype=int))
    with pytest.raises(ConfigError, match="need a predictor"):
        MagnusServer(requests, LADDER["Magnus"], MagnusSettings(), TRUTH, np.random.default_rng(0))
    assert MagnusSettings().fixed_rows == 7
