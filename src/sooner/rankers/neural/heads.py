"""A head trained under a paper's objective as the papers do it: random batches and a constant rate.

On vectors that stay as they are, or with the encoder's layers trained too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra
from sooner.rankers.neural import loop
from sooner.rankers.neural.encoding import quietly_opened
from sooner.rankers.neural.layers import Layers
from sooner.rankers.neural.objectives import Objective, Schedule
from sooner.rankers.neural.recipe import Recipe
from sooner.rankers.neural.wordpiece import Wordpieces

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("torch", "train") from error

Progress = Callable[[float, str], None]


class TunedHead(NamedTuple):
    """An int8 ONNX graph from ids and mask to pooled vectors, its tokenizer, and the head on the vectors."""

    graph: bytes
    pieces: Wordpieces
    layers: Layers


def train(
    vectors: NDArray[np.float64],
    lengths: NDArray[np.float64],
    width: int,
    loss: Objective,
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress,
) -> Layers:
    """Return layers trained on vectors (n, d). Raises DataError when the loss stops being finite."""
    x, y = torch.from_numpy(vectors).float(), torch.from_numpy(lengths).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(*_dense([x.shape[1], *schedule.hidden, width]))
        optimiser = torch.optim.Adam(
            network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        _follow(schedule, optimiser, lambda index: network(x[index]), y, loss, progress)
        return _layers_of(network)


def tune(
    encoder: str,
    prompts: Sequence[str],
    lengths: NDArray[np.float64],
    width: int,
    loss: Objective,
    schedule: Schedule,
    *,
    max_pieces: int,
    seed: int,
    progress: Progress,
) -> TunedHead:
    """Train the layers of `encoder` and a head on them; its embeddings stay as they are.

    Raises ConfigError for an encoder that cannot be opened, DataError when training diverges.
    """
    from sooner.rankers.neural import finetune

    recipe = Recipe(encoder=encoder, max_pieces=max_pieces, seed=seed)
    pieces = finetune.wordpieces(recipe)
    ids = [pieces.encode(prompt) for prompt in prompts]
    y = torch.from_numpy(lengths).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = quietly_opened(recipe)
        network.encoder.requires_grad_(False)
        network.layers().requires_grad_(True)
        parts = _dense([2 * int(network.encoder.config.hidden_size), *schedule.hidden, width])
        head = nn.Sequential(*parts)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network, head, y = network.to(device), head.to(device), y.to(device)
        groups = [
            {"params": list(network.layers().parameters()), "lr": schedule.encoder_learning_rate},
            {"params": list(head.parameters()), "lr": schedule.learning_rate},
        ]
        optimiser = torch.optim.Adam(groups, weight_decay=schedule.weight_decay)
        network.train()

        def outputs(index: Tensor) -> Tensor:
            batch = pieces.batch([ids[i] for i in index.tolist()])
            seen = (torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(device))
            return head(network.pool(*seen))

        _follow(schedule, optimiser, outputs, y, loss, progress)
        return TunedHead(finetune.export(network.cpu().eval(), pieces), pieces, _layers_of(head.cpu()))


def _follow(
    schedule: Schedule,
    optimiser: torch.optim.Optimizer,
    outputs: Callable[[Tensor], Tensor],
    lengths: Tensor,
    loss: Objective,
    progress: Progress,
) -> None:
    """Go through the schedule's epochs; `outputs` gives those (n, width) of the rows at an index (n,)."""
    for epoch in range(schedule.epochs):
        batches = torch.randperm(len(lengths)).split(schedule.batch)
        steps = loop.descend(
            optimiser,
            batches,
            lambda index: loss(outputs(index), lengths[index.to(lengths.device)]),
            epoch=epoch,
        )
        for done in steps:
            progress((epoch + done) / schedule.epochs, f"epoch {epoch + 1} of {schedule.epochs}")


def _dense(sizes: Sequence[int]) -> list[nn.Module]:
    """Return linear layers between these sizes, with a rectifier after each but the last."""
    made = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return [part for layer in made for part in (layer, nn.ReLU())][:-1]


def _layers_of(network: nn.Sequential) -> Layers:
    """Return what `_dense` made and training changed, in NumPy."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return Layers(
        [layer.weight.detach().numpy().T.copy() for layer in linear],
        [layer.bias.detach().numpy().copy() for layer in linear],
    )
