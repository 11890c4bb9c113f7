"""The scorer process: a ranker behind a unix socket, in small batches, away from the engine's loop.

    python -m sooner.ordering.scorer --socket PATH [--ranker DIR] [--tokenizer MODEL]

It serves until its standard input closes, which happens when whoever started it dies. Text comes
from token ids by the model's own tokenizer; torch is never imported.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import logging
import os
import queue
import selectors
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sooner import rankers
from sooner.chat import Context, Detokenize
from sooner.core import ConfigError, Prediction
from sooner.ordering import wire

logger = logging.getLogger("sooner.scorer")

BATCH = 32
BATCH_WAIT = 0.003  # seconds a batch waits for more


class Scores(Protocol):
    """What is asked of a ranker here; every `sooner.rankers.Ranker` does it."""

    def predictions(self, prompts: Sequence[str], *, context: Sequence[Context]) -> list[Prediction]: ...


class Job(NamedTuple):
    """A question and the connection that wants the answer."""

    question: wire.Question
    connection: socket.socket


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


class Scorer:
    """Turns questions into predictions, a batch at a time; one bad prompt spoils only its own answer."""

    def __init__(self, ranker: Scores, detokenize: Detokenize | None) -> None:
        self._ranker = ranker
        self._detokenize = detokenize

    def score(self, questions: Sequence[wire.Question]) -> list[Prediction | None]:
        """Return a prediction for each question, None where none could be made."""
        try:
            return [*self._score(questions)]
        except Exception as error:
            if len(questions) == 1:
                logger.warning("no score for a prompt: %r", error)
                return [None]
        return [self.score([question])[0] for question in questions]

    def _score(self, questions: Sequence[wire.Question]) -> list[Prediction]:
        seen = [question.request.conversation(self._detokenize) for question in questions]
        return self._ranker.predictions([one.prompt for one in seen], context=[one.context for one in seen])


class Server:
    """Accepts engines on a unix socket; one thread reads, one scores."""

    def __init__(self, scorer: Scorer, path: Path) -> None:
        self._scorer = scorer
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        os.chmod(path, 0o600)
        self._listener.listen(64)

    def serve(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=self._work, daemon=True).start()
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        streams: dict[socket.socket, wire.Questions] = {}
        while True:
            for key, _ in selector.select():
                connection: socket.socket = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                if connection is self._listener:
                    accepted, _ = self._listener.accept()
                    accepted.settimeout(5.0)  # an engine that stops reading is dropped, not waited for
                    streams[accepted] = wire.Questions()
                    selector.register(accepted, selectors.EVENT_READ)
                elif not self._read(connection, streams[connection]):
                    selector.unregister(connection)
                    del streams[connection]
                    connection.close()

    def _read(self, connection: socket.socket, stream: wire.Questions) -> bool:
        try:
            data = connection.recv(1 << 18)
            for question in stream.feed(data):
                self._jobs.put(Job(question, connection))
        except (OSError, ValueError) as error:
            logger.warning("a connection is closed: %r", error)
            return False
        return bool(data)

    def _work(self) -> None:
        while True:
            jobs = self._batch()
            answers: dict[socket.socket, bytes] = {}
            for job, prediction in zip(jobs, self._scorer.score([job.question for job in jobs]), strict=True):
                frame = wire.answer(job.question.number, prediction)
                answers[job.connection] = answers.get(job.connection, b"") + frame
            for connection, frames in answers.items():
                try:
                    connection.sendall(frames)
                except OSError as error:
                    logger.warning("an answer was not wanted any more: %r", error)

    def _batch(self) -> list[Job]:
        jobs = [self._jobs.get()]
        try:
            while len(jobs) < BATCH:
                jobs.append(self._jobs.get(timeout=BATCH_WAIT))
        except queue.Empty:
            pass
        return jobs


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def main() -> None:
    """Run the scorer; exits at once where another already serves the socket."""
    parser = argparse.ArgumentParser(prog="python -m sooner.ordering.scorer", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ranker", default=rankers.DEFAULT)
    parser.add_argument("--tokenizer", default="")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = os.open(f"{options.socket}.lock", os.O_CREAT | os.O_RDWR, 0o600)  # held until the end
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("another scorer serves %s", options.socket)
        return
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    Server(Scorer(load_ranker(options.ranker), tokenizer), options.socket).serve()


if __name__ == "__main__":
    main()
