"""The predictor of Magnus (ICWS 2024): a forest on the user input's length and two compressed vectors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context, estimate_tokens
from sooner.core import ConfigError, UnknownName
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.neural import encoding
from sooner.rankers.papers.forests import Forests

VARIANTS = ("uilo", "raft", "inst", "usin")
COMPRESSIONS = ("mean", "pca")

_APP, _USER = 4, 16  # numbers that are left of the instruction's and of the user input's vector
_OWN_FOREST = 50  # rows that an instruction needs for a forest of its own
_FOLDS = 5
_FIRST = re.compile(r"(.{1,300}?)(?:\n|(?<=[.?!:])\s|\Z)", re.DOTALL)


@ranker("magnus")
class Magnus(Ranker):
    """Forests: `uilo` on length alone, `raft` one for each instruction, `inst` and `usin` with vectors.

    The instruction is the system prompt, or the first sentence where there is none; the user input is the
    rest. Vectors come from `encoder` in place of LaBSE and are compressed by the `mean` of neighbours, or
    by `pca`. Squared error on tokens, as the paper's; a reply is at least 1 token.
    """

    cites = "Magnus (arXiv 2406.04785), generation length predictor"

    def __init__(
        self,
        *,
        seed: int = 0,
        encoder: str | encoding.Encoding = encoding.DEFAULT_ENCODER,
        variant: str = "usin",
        compression: str = "mean",
        trees: int = 200,
    ) -> None:
        super().__init__(seed=seed)
        if variant not in VARIANTS:
            raise UnknownName("variant", variant, VARIANTS)
        if compression not in COMPRESSIONS:
            raise UnknownName("compression", compression, COMPRESSIONS)
        if trees < 1:
            raise ConfigError(f"trees is {trees}; allowed: at least 1")
        self.encoder = encoder
        self.variant = variant
        self.compression = compression
        self.trees = trees

    def _fit(self, rows: Rows, progress: Progress) -> Floats | None:
        progress(0.0, "encoding prompts")
        instructions, inputs = _split(rows.prompts, rows.context)
        self._learn(instructions, inputs)
        x = self._columns(instructions, inputs)
        keys = self._keys(instructions, rows.lengths.shape[0])
        unseen = np.empty(len(rows.prompts))
        fold = rows.folds(_FOLDS, self.seed)
        for number in np.unique(fold):
            outside = fold == number
            if outside.all():  # one conversation: nothing is out of fold
                break
            forests = self._forests(x[~outside], rows.lengths[~outside], keys[~outside])
            unseen[outside] = forests.ask(x[outside], keys[outside])
            progress(0.5 + 0.08 * int(number), f"fold {number + 1} of {_FOLDS}")
        self._grown = self._forests(x, rows.lengths, keys)
        self.training_ = {
            "encoder": self._encoding.name if self._encoding else "none",
            "kind": self.variant,
            "compression": self.compression,
            "forests": len(self._grown.names),
        }
        progress(1.0, "done")
        return unseen if len(np.unique(fold)) > 1 else None

    def _learn(self, instructions: Sequence[str], inputs: Sequence[str]) -> None:
        """Open the encoding, and find the directions of a compression by PCA."""
        self._encoding: encoding.Encoding | None = None
        self._directions: dict[str, NDArray[np.float64]] = {}
        if self.variant not in ("inst", "usin"):
            return
        self._encoding = encoding.start(self.encoder, [*instructions, *inputs], seed=self.seed)
        if self.compression == "pca":
            for name, texts, size in (("app", instructions, _APP), ("user", inputs, _USER)):
                vectors = self._encoding(texts)
                centred = vectors - vectors.mean(axis=0)
                _, _, turned = np.linalg.svd(centred, full_matrices=False)
                self._directions[name] = turned[:size].T.astype(np.float32).astype(np.float64)

    def _columns(self, instructions: Sequence[str], inputs: Sequence[str]) -> Floats:
        columns = [np.array([[estimate_tokens(text)] for text in inputs], dtype=np.float64).reshape(-1, 1)]
        if self._encoding is not None:
            columns.append(self._compressed("app", self._encoding(instructions), _APP))
            if self.variant == "usin":
                columns.append(self._compressed("user", self._encoding(inputs), _USER))
        return np.column_stack(columns)

    def _compressed(self, name: str, vectors: Floats, size: int) -> Floats:
        if name in self._directions:
            return np.asarray(vectors @ self._directions[name], dtype=np.float64)
        groups = np.array_split(np.arange(vectors.shape[1]), min(size, max(vectors.shape[1], 1)))
        return np.column_stack(
            [vectors[:, at].mean(axis=1) if at.size else vectors.sum(axis=1) for at in groups]
        )

    def _keys(self, instructions: Sequence[str], n: int) -> NDArray[np.object_]:
        """A digest of the instruction (n,), which names its forest; "" names the forest of all."""
        if self.variant != "raft":
            return np.full(n, "", dtype=object)
        digests = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] for text in instructions]
        return np.array(digests, dtype=object)

    def _forests(self, x: Floats, lengths: Floats, keys: NDArray[np.object_]) -> Forests:
        return Forests.grow(x, lengths, keys, least=_OWN_FOREST, trees=self.trees, seed=self.seed)

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        if not prompts:
            return np.empty(0)
        instructions, inputs = _split(prompts, context)
        keys = self._keys(instructions, len(prompts))
        return self._grown.ask(self._columns(instructions, inputs), keys)

    def _state(self) -> State:
        inner = State() if self._encoding is None else self._encoding.state()
        files = {f"forest.{i}.txt": text for i, text in enumerate(self._grown.texts())}
        directions: dict[str, NDArray[Any]] = {f"direction.{k}": v for k, v in self._directions.items()}
        return State(
            {**inner.arrays, **directions},
            {
                **inner.settings,
                "variant": self.variant,
                "compression": self.compression,
                "forests": self._grown.names,
            },
            {**inner.files, **files},
        )

    def _restore(self, state: State) -> None:
        self.variant, self.compression = state.settings["variant"], state.settings["compression"]
        self._encoding = encoding.restore(state) if self.variant in ("inst", "usin") else None
        self._directions = {
            name.removeprefix("direction."): array.astype(np.float64)
            for name, array in state.arrays.items()
            if name.startswith("direction.")
        }
        names = state.settings["forests"]
        self._grown = Forests.read(names, (state.files[f"forest.{i}.txt"] for i in range(len(names))))


def _split(prompts: Sequence[str], context: Sequence[Context]) -> tuple[list[str], list[str]]:
    """Instruction and user input of each request."""
    instructions, inputs = [], []
    for prompt, known in zip(prompts, context, strict=True):
        if known.system:
            instructions.append(known.system)
            inputs.append(prompt)
        else:
            found = _FIRST.match(prompt)
            first = found[1] if found else ""
            instructions.append(first)
            inputs.append(prompt[len(first) :].lstrip() or prompt)
    return instructions, inputs
