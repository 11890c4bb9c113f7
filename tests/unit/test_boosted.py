"""The boosted ranker: the contract, what it learns, and terms that add up to its score."""

from __future__ import annotations

import numpy as np
import pytest

from sooner.metrics import kendall_tau
from sooner.rankers import Context, conformance, get

pytest.importorskip("lightgbm", reason="the boosted ranker is trees of LightGBM")
pytest.importorskip("sklearn", reason="its topics are found with scikit-learn")


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_contract(check: conformance.Check) -> None:
    check(get("boosted"))


def test_trees_find_what_a_sum_of_words_cannot() -> None:
    """With code in it, a longer prompt has a shorter reply; without, a longer one."""
    rng = np.random.default_rng(0)
    code, size = rng.integers(0, 2, 1500), rng.integers(1, 60, 1500)
    prompts = [
        f"{'```' if a else 'tell'} {' '.join(rng.choice(['ab', 'cd', 'ef'], n))}"
        for a, n in zip(code, size, strict=True)
    ]
    lengths = np.where(code, 700.0 - 9 * size, 9.0 * size) * rng.uniform(0.9, 1.1, 1500)
    tau = {}
    for name in ("lexical", "boosted"):
        ranker = get(name)().fit(prompts[:1000], lengths[:1000])
        tau[name] = kendall_tau(ranker.predict(prompts[1000:]), lengths[1000:])
    assert tau["boosted"] > tau["lexical"] + 0.05


def test_terms_and_lexical_score_sum_to_the_score() -> None:
    prompts, lengths = conformance.rows(300)
    ranker = get("boosted")(trees=40).fit(prompts, lengths)
    known = [Context(turn=i % 3, reply_lens=(10.0,) * (i % 3), max_tokens=9999) for i in range(300)]
    names, terms = ranker.terms(prompts, known)
    assert terms.shape == (300, len(names))
    parts = ranker.part_scores(prompts, known)
    scores = ranker._score(prompts, known)
    np.testing.assert_allclose(parts["lexical"] + terms.sum(axis=1), scores, atol=1e-9)
    np.testing.assert_allclose(parts["lexical"] + parts["trees"], scores, atol=1e-12)
    assert np.abs(parts["trees"]).max() > 0


def test_few_rows_leave_the_lexical_score() -> None:
    prompts, lengths = conformance.rows(20)
    ranker = get("boosted")().fit(prompts, lengths)
    parts = ranker.part_scores(prompts, [Context()] * 20)
    assert np.ptp(parts["trees"]) < 1e-12
    assert np.ptp(parts["lexical"]) > 0
