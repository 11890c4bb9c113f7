"""Fine-tuning an encoder under a paper's objective, as the papers do: random batches, a constant rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.core import DataError, MissingExtra
from sooner.rankers.neural.encoding import quietly_opened
from sooner.rankers.neural.layers import Layers
from sooner.rankers.neural.objectives import Loss, Schedule, dense, layers_of
from sooner.rankers.neural.recipe import Recipe
from sooner.rankers.neural.wordpiece import Wordpieces

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtra("torch", "train") from error

from sooner.rankers.neural import finetune


class Tuned(NamedTuple):
    """An int8 ONNX graph from ids and mask to pooled vectors, its tokenizer, and the head on the vectors."""

    graph: bytes
    pieces: Wordpieces
    layers: Layers


def tune(
    encoder: str,
    prompts: Sequence[str],
    lengths: NDArray[np.float64],
    width: int,
    loss: Loss,
    schedule: Schedule,
    *,
    max_pieces: int,
    seed: int,
    progress: Callable[[float, str], None],
) -> Tuned:
    """Train the layers of `encoder` and a head on them; its embeddings stay as they are.

    Raises ConfigError for an encoder that cannot be opened, DataError when training diverges.
    """
    recipe = Recipe(encoder=encoder, max_pieces=max_pieces, seed=seed)
    pieces = finetune.wordpieces(recipe)
    ids = [pieces.encode(prompt) for prompt in prompts]
    y = torch.from_numpy(lengths).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = quietly_opened(recipe)
        network.encoder.requires_grad_(False)
        network.layers().requires_grad_(True)
        parts = dense([2 * int(network.encoder.config.hidden_size), *schedule.hidden, width])
        head = nn.Sequential(*parts)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network, head, y = network.to(device), head.to(device), y.to(device)
        groups = [
            {"params": list(network.layers().parameters()), "lr": schedule.encoder_learning_rate},
            {"params": list(head.parameters()), "lr": schedule.learning_rate},
        ]
        optimiser = torch.optim.Adam(groups, weight_decay=schedule.weight_decay)
        network.train()
        for epoch in range(schedule.epochs):
            batches = torch.randperm(len(ids)).split(schedule.batch)
            for number, index in enumerate(batches):
                batch = pieces.batch([ids[i] for i in index.tolist()])
                pooled = network.pool(
                    torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(device)
                )
                value = loss(head(pooled), y[index.to(device)])
                if not torch.isfinite(value):
                    raise DataError(f"training diverged in epoch {epoch + 1}; the loss is {float(value)}")
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                done = (epoch + (number + 1) / len(batches)) / schedule.epochs
                progress(done, f"epoch {epoch + 1} of {schedule.epochs}")
        return Tuned(finetune.export(network.cpu().eval(), pieces), pieces, layers_of(head.cpu()))
