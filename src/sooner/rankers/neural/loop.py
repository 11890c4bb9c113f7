"""The one training loop: a step of the optimiser for each batch of rows, and an end where it diverges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sooner.core import DataError, MissingExtra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("torch", "train") from error

Index = TypeVar("Index")


def descend(
    optimiser: torch.optim.Optimizer,
    batches: Sequence[Index],
    loss: Callable[[Index], Tensor],
    *,
    epoch: int,
    before: Callable[[float], None] = lambda done: None,
    clipped: Iterable[nn.Parameter] = (),
) -> Iterator[float]:
    """Take a step for each batch, whose `loss` is a scalar; yield the share of the batches that is done.

    `before` each step it is told the share done so far. The gradient of `clipped` parameters is kept to a
    norm of 1. Raises DataError when the loss stops being finite.
    """
    clipped = list(clipped)
    for number, index in enumerate(batches):
        before(number / len(batches))
        value = loss(index)
        if not torch.isfinite(value):
            raise DataError(
                f"training diverged in epoch {epoch + 1}: the loss is {float(value)}; "
                "try a smaller learning_rate"
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        if clipped:
            nn.utils.clip_grad_norm_(clipped, 1.0)
        optimiser.step()
        yield (number + 1) / len(batches)
