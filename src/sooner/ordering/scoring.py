"""A ranker as the scorer's process asks it: loaded by name, with text from token ids, a batch at a time."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sooner import rankers
from sooner.chat import Context, Conversation, Detokenize
from sooner.core import ConfigError, Prediction
from sooner.learning.last_layer import Vector, probe
from sooner.ordering import wire
from sooner.rankers.offers import Explains, HasVectors, Term

logger = logging.getLogger("sooner.scorer")


class Scores(Protocol):
    """What is asked of a ranker here; every `sooner.rankers.Ranker` does it."""

    def predictions(self, prompts: Sequence[str], *, context: Sequence[Context]) -> list[Prediction]: ...


def load_ranker(name: str) -> Scores:
    """Return the ranker saved in folder `name`, the shipped "default", or your own "module:name".

    Your own may be an object or something that returns one. Raises RankerFileError or ConfigError.
    """
    if ":" not in name or Path(name).exists():
        return rankers.load(name)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"ranker {name!r}: {error}; allowed: a folder or 'module:name'") from error
    chosen: Scores = found() if callable(found) else found
    return chosen


def load_tokenizer(model: str) -> Detokenize:
    """Return what turns token ids of `model` (a folder or a hub name) into text, markers kept."""
    path = Path(model) / "tokenizer.json"
    try:
        from tokenizers import Tokenizer

        if not path.exists():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(model, "tokenizer.json"))
        fast: Any = Tokenizer.from_file(str(path))
    except Exception:
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(model)
        return lambda ids: str(slow.decode(list(ids), skip_special_tokens=False))
    return lambda ids: str(fast.decode(list(ids), skip_special_tokens=False))


class ReadQuestion(NamedTuple):
    """A question as it was read, the ranker's word on it and its vector (d,); None where there is none."""

    conversation: Conversation | None = None
    text: Prediction | None = None
    vector: Vector | None = None


class Scorer:
    """Turns questions into predictions, a batch at a time; one bad prompt spoils only its own answer.

    Without a ranker it reads them and says nothing.
    """

    def __init__(self, ranker: Scores | None, detokenize: Detokenize | None) -> None:
        self._ranker = ranker
        self._detokenize = detokenize
        self.failures = 0  # prompts that the ranker had no word for

    @property
    def probe(self) -> Vector | None:
        """What the ranker is known by, see `last_layer.probe`."""
        return probe(self._ranker)

    def score(self, questions: Sequence[wire.Question]) -> list[ReadQuestion]:
        """Return what each question is, and a prediction for it where one could be made."""
        try:
            return self._score(questions)
        except Exception as error:
            if len(questions) == 1:
                self.failures += 1
                logger.warning("no score for a prompt: %r", error)
                return [ReadQuestion(self._read(questions[0]))]
        return [self.score([question])[0] for question in questions]

    def explained(self, question: wire.Question) -> tuple[ReadQuestion, list[Term]]:
        """Return what a question is, and the terms of its score where the ranker knows them."""
        (read,) = self.score([question])
        if read.text is None or read.conversation is None or not isinstance(self._ranker, Explains):
            return read, []
        try:
            parts = self._ranker.explain(read.conversation.prompt, read.conversation.context)
        except Exception as error:
            logger.warning("no reasons for a score: %r", error)
            return read, []
        return read, [Term(part.kind, part.text, part.amount) for part in parts]

    def _score(self, questions: Sequence[wire.Question]) -> list[ReadQuestion]:
        if self._ranker is None:
            return [ReadQuestion(self._read(question)) for question in questions]
        seen = [question.request.conversation(self._detokenize) for question in questions]
        prompts, context = [asked.prompt for asked in seen], [asked.context for asked in seen]
        if isinstance(self._ranker, HasVectors):
            return [
                ReadQuestion(*one) for one in zip(seen, *self._ranker.viewed(prompts, context), strict=True)
            ]
        made = self._ranker.predictions(prompts, context=context)
        return [ReadQuestion(*pair) for pair in zip(seen, made, strict=True)]

    def _read(self, question: wire.Question) -> Conversation | None:
        try:
            return question.request.conversation(self._detokenize)
        except Exception:  # its groups are its leading tokens then
            return None
