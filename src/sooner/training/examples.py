"""Training examples kept beside a ranker, so that `sooner explain` can show the nearest ones.

Kept are the conversation's name, the reply's length and a sketch of the prompt: 256 numbers from which
no text can be read, though whoever guesses a prompt can check the guess. The text itself is kept only
where the user asked for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sooner.core import RankerFileError
from sooner.rankers import files
from sooner.rankers.features import topics

FILE = "examples.npz"

_WIDTH = 256
_MOST_BYTES = 256 << 20
_MOST = 20_000
_SEED = 20_240_828


class Nearest(NamedTuple):
    """One training example: its conversation, length [tokens], cosine of the sketches, and text if kept."""

    conversation: str
    output_len: float
    similarity: float
    prompt: str | None


class Examples(NamedTuple):
    """n examples: names, lengths (n,), weights of words (2 ** topics.BITS,), sketches (n, 256) and texts."""

    conversations: Sequence[str]
    lengths: NDArray[np.float32]
    weight: NDArray[np.float32]
    sketch: NDArray[np.int8]
    prompts: Sequence[str] | None

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        lengths: ArrayLike,
        conversations: Sequence[str],
        *,
        texts: bool = False,
        most: int = _MOST,
        seed: int = 0,
    ) -> Self:
        """Return at most `most` of the rows, drawn at random, their texts only with `texts`."""
        column = np.asarray(lengths, dtype=np.float32)
        pick = np.arange(len(prompts))
        if len(prompts) > most:
            pick = np.sort(np.random.default_rng(seed).choice(len(prompts), most, replace=False))
        chosen = [prompts[i] for i in pick.tolist()]
        held = np.bincount(
            np.concatenate([topics.places(prompt) for prompt in chosen]), minlength=1 << topics.BITS
        )
        weight = np.log((1 + len(chosen)) / (1 + held)).astype(np.float16).astype(np.float32)
        return cls(
            [conversations[i] for i in pick.tolist()],
            column[pick],
            weight,
            _sketches(chosen, weight),
            chosen if texts else None,
        )

    def nearest(self, prompt: str, count: int = 5) -> list[Nearest]:
        """Return the `count` examples whose prompts share most with this one, the nearest first."""
        asked = _sketches([prompt], self.weight)[0].astype(np.float32)
        kept = self.sketch.astype(np.float32)
        sizes = np.linalg.norm(kept, axis=1) * np.linalg.norm(asked)
        cosine = kept @ asked / np.where(sizes > 0, sizes, 1.0)
        best = np.argsort(-cosine, kind="stable")[:count]
        return [
            Nearest(
                self.conversations[i],
                float(self.lengths[i]),
                round(float(cosine[i]), 4),
                None if self.prompts is None else self.prompts[i],
            )
            for i in best.tolist()
        ]

    def save(self, directory: str | Path) -> None:
        """Write the examples beside the ranker in `directory`."""
        names = json.dumps({"conversations": list(self.conversations), "prompts": self.prompts})
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            allow_pickle=False,
            names=np.frombuffer(names.encode("utf-8", "surrogatepass"), dtype=np.uint8),
            lengths=self.lengths,
            weight=self.weight.astype(np.float16),
            sketch=self.sketch,
        )
        path = Path(directory) / FILE
        beside = path.with_name(path.name + ".part")
        data = buffer.getvalue()
        beside.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(beside, path)

    @classmethod
    def load(cls, directory: str | Path) -> Self | None:
        """Return what `save` wrote, or None. Raises RankerFileError where the file is damaged."""
        path = Path(directory) / FILE
        if not os.path.lexists(path):
            return None
        whole = files.read_file(Path(directory), FILE, _MOST_BYTES)
        try:
            if hashlib.sha256(whole[32:]).digest() != whole[:32]:
                raise ValueError("its checksum differs")
            with np.load(io.BytesIO(whole[32:]), allow_pickle=False) as saved:
                names = json.loads(saved["names"].tobytes().decode("utf-8", "surrogatepass"))
                return cls(
                    names["conversations"],
                    saved["lengths"],
                    saved["weight"].astype(np.float32),
                    saved["sketch"],
                    names["prompts"],
                )
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise RankerFileError(f"the examples in {str(path)!r} cannot be used: {error}") from error


def _sketches(prompts: Sequence[str], weight: NDArray[np.float32]) -> NDArray[np.int8]:
    """Random projections (n, 256) of weighted words and pairs, their angle kept to about 0.06."""
    turn = np.random.default_rng(_SEED).standard_normal((1 << topics.BITS, _WIDTH), dtype=np.float32)
    sketch = np.zeros((len(prompts), _WIDTH), dtype=np.int8)
    for row, prompt in zip(sketch, prompts, strict=True):
        place = topics.places(prompt)
        value = weight[place] @ turn[place]
        size = float(np.linalg.norm(value))
        if size > 0:
            row[:] = np.clip(np.rint(value * (16.0 * 40 / size)), -127, 127).astype(np.int8)
    return sketch
