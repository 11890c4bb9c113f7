"""What a neural ranker is trained to minimise: five losses, each with the way from outputs to a score.

A loss takes outputs (n, width) of the network and targets (n,), both of one mini-batch, and returns a
scalar. Targets are natural logs of 1 + reply length unless the loss says otherwise. `score` turns
outputs into scores (n,), larger = longer reply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra, UnknownName
from sooner.rankers.scaling import normal_scores

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "train") from error

Value: TypeAlias = Callable[[Tensor, Tensor], Tensor]

CLASSES = 10
"""Classes of the cross-entropy loss, equally wide in log length from 1 to `LONGEST` tokens."""

LONGEST = 2048
"""Replies of this many tokens [tokens] and more share the last class."""


class Loss(NamedTuple):
    """One training objective: how many outputs the network has, their loss, their score, and the targets.

    `targets` maps the lengths of all training rows (n,) [tokens] to what `value` is given.
    """

    width: int
    value: Value
    score: Callable[[Tensor], Tensor]
    targets: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.log1p


def list_mle(scores: Tensor, log_lengths: Tensor) -> Tensor:
    """Return the mean over positions of the negative log-likelihood of the true order, longest first.

    The list is the whole mini-batch, as in vllm-ltr: sum over i of log(sum over j >= i of exp s_j) - s_i
    (Xia et al., "Listwise approach to learning to rank", 2008, section 4). Rows of equal length are in
    the order given, which is random in training.
    """
    ordered = scores[torch.argsort(log_lengths, descending=True, stable=True)]
    rest = torch.logcumsumexp(ordered.flip(0), dim=0).flip(0)
    return (rest - ordered).mean()


def scaled_logs(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log lengths (n,) with mean 0 and deviation 1, outliers cut at four deviations."""
    logs = np.log1p(lengths)
    scaled = np.clip((logs - logs.mean()) / max(float(logs.std()), 1e-6), -4.0, 4.0)
    return np.asarray(scaled, dtype=np.float64)


def pairwise_margin(
    scores: Tensor, log_lengths: Tensor, *, margin: float = 1.0, min_difference: float = 0.2
) -> Tensor:
    """Return the mean of max(0, margin - (s_i - s_j)) over pairs where reply i is clearly longer than j.

    Pairs whose lengths differ by less than the share `min_difference` of the longer are left out: two
    replies to one prompt differ by as much (PARS, 2025, section 3). Without a pair the loss is 0.
    """
    clear = log_lengths[:, None] - log_lengths[None, :] >= -math.log1p(-min_difference)
    short_of = functional.relu(margin - (scores[:, None] - scores[None, :]))
    return (short_of * clear).sum() / clear.sum().clamp(min=1)


def class_of(log_lengths: Tensor) -> Tensor:
    """Return the class (n,) of each length, in [0, CLASSES)."""
    width = math.log1p(LONGEST) / CLASSES
    return torch.clamp((log_lengths / width).long(), 0, CLASSES - 1)


def cross_entropy(logits: Tensor, log_lengths: Tensor) -> Tensor:
    """Return the cross-entropy of the length's class."""
    return functional.cross_entropy(logits, class_of(log_lengths))


def expected_class(logits: Tensor) -> Tensor:
    """Return the mean class (n,): unlike the likeliest one, it has no ties and uses all classes."""
    classes = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return torch.softmax(logits, dim=1) @ classes


def _single(
    value: Callable[[Tensor, Tensor], Tensor],
    targets: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.log1p,
) -> Loss:
    return Loss(1, lambda outputs, y: value(outputs[:, 0], y), lambda outputs: outputs[:, 0], targets)


LOSSES: dict[str, Loss] = {
    "list_mle": _single(list_mle),
    "mse_log": _single(functional.mse_loss, scaled_logs),
    "mse_rank": _single(functional.mse_loss, normal_scores),
    "pairwise_margin": _single(pairwise_margin),
    "cross_entropy": Loss(CLASSES, cross_entropy, expected_class),
}


def get(name: str) -> Loss:
    """Return the loss called `name`. Raises UnknownName."""
    if name not in LOSSES:
        raise UnknownName("loss", name, LOSSES)
    return LOSSES[name]
