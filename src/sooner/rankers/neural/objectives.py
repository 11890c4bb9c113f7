"""What the papers' predictors are trained to minimise, written from their labels; torch lives here.

A loss takes outputs (n, width) and reply lengths (n,) [tokens] of one mini-batch and returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingExtra("torch", "train") from error

from sooner.rankers.neural import losses
from sooner.rankers.papers.head import LONGEST

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Schedule(NamedTuple):
    """How a head is trained: Adam, a constant rate, no clipping, the last epoch kept."""

    hidden: Sequence[int] = (128,)
    batch: int = 32
    epochs: int = 5
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4  # where the encoder is trained too; theirs is 1e-5 to 2e-5
    weight_decay: float = 0.01  # added to the gradient, as Adam (not AdamW) does


def list_mle(group: int) -> Objective:
    """Return vllm-ltr's loss: the likelihood of the order by `longest // group - length // group`.

    The list is the mini-batch; rows of one label stand in the batch's random order. A higher output is
    a shorter reply. Summed over positions, not averaged (allRank's form).
    """

    def loss(outputs: Tensor, lengths: Tensor) -> Tensor:
        label = LONGEST // group - torch.clamp(lengths, max=LONGEST) // group
        scores = outputs[torch.argsort(label, descending=True, stable=True), 0]
        shifted = scores - scores.max().detach()
        rest = shifted.exp().flip(0).cumsum(0).flip(0)
        return (torch.log(rest + 1e-10) - shifted).sum()

    return loss


def classes(edges: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> Objective:
    """Return the cross-entropy of the class of a length, the number of `edges` it is at or above.

    `weights` (classes,) count a class more or less.
    """
    weight = None if weights is None else torch.from_numpy(weights).float()

    def loss(outputs: Tensor, lengths: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, _class_of(lengths, edges), weight=weight)

    return loss


def scalar(kind: str, edges: NDArray[np.float64] | None, scale: float = 1.0) -> Objective:
    """Return the `l1` or `mse` distance of the one output to the length, in units of `scale` [tokens].

    With `edges` to the index of the length's class instead.
    """
    distance = {"l1": functional.l1_loss, "mse": functional.mse_loss}[kind]

    def loss(outputs: Tensor, lengths: Tensor) -> Tensor:
        target = lengths / scale if edges is None else _class_of(lengths, edges).float()
        return distance(outputs[:, 0], target)

    return loss


def margin(least: float) -> Objective:
    """Return PARS's loss: a margin of 1 on pairs whose lengths differ by the share `least` or more."""

    def loss(outputs: Tensor, lengths: Tensor) -> Tensor:
        return losses.pairwise_margin(outputs[:, 0], torch.log1p(lengths), min_difference=least)

    return loss


def _class_of(lengths: Tensor, edges: NDArray[np.float64]) -> Tensor:
    return torch.bucketize(lengths, torch.from_numpy(edges).float(), right=True)
