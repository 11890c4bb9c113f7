"""Losses against their formulas written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sooner.core import UnknownName
from sooner.rankers.neural.recipe import LOSSES

torch = pytest.importorskip("torch", reason="the losses are written in torch")

from sooner.rankers.neural import losses  # noqa: E402  # torch comes first

rng = np.random.default_rng(0)
LENGTHS = rng.permutation(np.arange(1, 13) * 37).astype(float)
SCORES = rng.normal(size=12)


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(SCORES), torch.log1p(torch.tensor(LENGTHS))


def test_list_mle_is_the_likelihood_of_the_true_order() -> None:
    ordered = [score for _, score in sorted(zip(LENGTHS, SCORES, strict=True), reverse=True)]
    total = sum(math.log(sum(math.exp(s) for s in ordered[i:])) - ordered[i] for i in range(len(ordered)))
    assert float(losses.list_mle(*tensors())) == pytest.approx(total / len(ordered))


def test_list_mle_survives_scores_far_apart() -> None:
    scores = torch.tensor([500.0, -500.0, 0.0])
    assert math.isfinite(float(losses.list_mle(scores, torch.tensor([3.0, 1.0, 2.0]))))


@pytest.mark.parametrize("name", ["mse_log", "mse_rank"])
def test_regression_is_on_lengths_of_one_scale(name: str) -> None:
    loss = losses.get(name)
    targets = loss.targets(np.exp(rng.normal(5, 1, 5000)))
    assert targets.mean() == pytest.approx(0, abs=0.01)
    assert targets.std() == pytest.approx(1, abs=0.02)
    assert np.abs(targets).max() <= 4.0
    outputs = torch.from_numpy(SCORES)[:, None]
    wanted = np.mean((SCORES - targets[:12]) ** 2)
    assert float(loss.value(outputs, torch.from_numpy(targets[:12]))) == pytest.approx(float(wanted))


def test_margin_counts_clear_pairs_only() -> None:
    hinges = [
        max(0.0, 1.0 - (SCORES[i] - SCORES[j]))
        for i in range(12)
        for j in range(12)
        if 1 + LENGTHS[j] <= 0.8 * (1 + LENGTHS[i])
    ]
    assert float(losses.pairwise_margin(*tensors())) == pytest.approx(float(np.mean(hinges)))


def test_margin_without_a_clear_pair_is_nothing() -> None:
    assert float(losses.pairwise_margin(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.01]))) == 0.0


def test_cross_entropy_and_the_expected_class() -> None:
    logits = rng.normal(size=(12, losses.CLASSES))
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    width = math.log1p(losses.LONGEST) / losses.CLASSES
    classes = np.minimum(np.log1p(LENGTHS) // width, losses.CLASSES - 1).astype(int)
    wanted = -np.mean(np.log(share[np.arange(12), classes]))
    assert float(losses.cross_entropy(torch.tensor(logits), tensors()[1])) == pytest.approx(float(wanted))
    expected = share @ np.arange(losses.CLASSES)
    assert losses.expected_class(torch.tensor(logits)).numpy() == pytest.approx(expected)


@pytest.mark.parametrize("length", [0.0, 1.0, 1e6])
def test_every_length_has_a_class(length: float) -> None:
    assert 0 <= int(losses.class_of(torch.log1p(torch.tensor([length])))[0]) < losses.CLASSES


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    loss = losses.get(name)
    outputs = torch.tensor(rng.normal(size=(12, loss.width)), requires_grad=True)
    before = loss.value(outputs, tensors()[1])
    before.backward()
    with torch.no_grad():
        after = loss.value(outputs - 0.01 * outputs.grad, tensors()[1])
    assert after.item() < before.item()
    assert loss.score(outputs.detach()).shape == (12,)


def test_names() -> None:
    assert tuple(losses.LOSSES) == LOSSES
    with pytest.raises(UnknownName, match="did you mean 'mse_log'"):
        losses.get("mse_lgo")
