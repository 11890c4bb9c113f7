"""A file of prompts: where each line stands, and what it asks. A million lines take 30 MB, none is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sooner.chat import ChatRequest, of_body
from sooner.core import DataError
from sooner.workloads.jsonl import parsed

ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

SETTINGS = frozenset(
    ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
     "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "response_format", "tools",
     "tool_choice", "min_tokens", "ignore_eos", "chat_template_kwargs", "reasoning_effort", "logprobs",
     "continue_final_message", "add_generation_prompt")
)  # fmt: skip
"""What a line may set of its own request; it wins over the job's."""


class Ask(NamedTuple):
    """What one line asks: its id, the path and the body of its request, and the group it names.

    `batch` says that the line is one of OpenAI's batches, whose `custom_id` is the id.
    """

    id: str | int
    route: str
    body: dict[str, Any]
    group: str = ""
    batch: bool = False

    @property
    def request(self) -> ChatRequest:
        """The request as a ranker sees it."""
        return of_body(self.body)


def ask(record: Mapping[str, Any], index: int, where: str, api: str = "chat") -> Ask:
    """Return what a line asks. Raises DataError, naming `where` it stands, where it is nothing."""
    if "custom_id" in record:
        return _of_batch(record, where)
    prompt, messages = record.get("prompt"), record.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        if api != "chat":
            raise DataError(f"{where}: messages for the API {api!r}, allowed: a 'prompt' (text)")
        body: dict[str, Any] = {"messages": messages}
    elif isinstance(prompt, str):
        body = {"prompt": prompt} if api == "completions" else {"messages": [_user(prompt)]}
    else:
        raise DataError(
            f"{where}: neither a 'prompt' (text) nor 'messages' (a list of objects with 'role' and 'content')"
            ", nor a line of a batch ('custom_id', 'url', 'body')"
        )
    name = record.get("id", index)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"{where}: id {name!r}, allowed: text or an integer")
    body |= {key: record[key] for key in record.keys() & SETTINGS}
    return Ask(name, ROUTES[api], body, str(record.get("group", "")))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _of_batch(record: Mapping[str, Any], where: str) -> Ask:
    name, body, route = record["custom_id"], record.get("body"), record.get("url", ROUTES["chat"])
    if not isinstance(name, str) or not isinstance(body, dict):
        raise DataError(f"{where}: a batch's line needs 'custom_id' (text) and 'body' (an object)")
    if route not in ROUTES.values():
        raise DataError(f"{where}: url {route!r}, allowed: {', '.join(ROUTES.values())}")
    if body.get("stream"):
        raise DataError(f"{where}: stream=true, allowed: false (the reply is kept whole)")
    return Ask(name, route, dict(body), str(record.get("group", "")), batch=True)


def hashed(id: str | int) -> int:
    """Return 64 bits that stand for an id; the number 1 and the text "1" differ."""
    data = json.dumps(id).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class PromptFile:
    """The lines of a JSONL file that are not blank: where each begins, and the hash of its id.

    `offsets` and `ids` are columns (n,), `digest` stands for the whole content. Use as a context.
    """

    def __init__(self, path: Path, api: str = "chat") -> None:
        self.path = path
        self.name = str(path)  # as errors say it
        self.api = api
        self.offsets: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.ids: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self.digest = ""
        self.batch = False
        self._file: IO[bytes] | None = None

    def __enter__(self) -> PromptFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return int(self.offsets.shape[0])

    def scan(self) -> Iterator[Ask]:
        """Read all lines once, in order, and learn where they are.

        Raises DataError for a file that cannot be read or holds no prompt, a line that asks nothing, an
        id that comes twice, and a batch's lines among others.
        """
        offsets, ids = _Growing(np.int64), _Growing(np.uint64)
        digest, offset = hashlib.sha256(), 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    digest.update(line)
                    if line.strip():
                        found = self._read(line, len(offsets), f"{self.name}:{number}")
                        if len(offsets) and found.batch != self.batch:
                            raise DataError(f"{self.name}:{number}: a batch's lines and others in one file")
                        self.batch = found.batch
                        offsets.add(offset)
                        ids.add(hashed(found.id))
                        yield found
                    offset += len(line)
        except OSError as error:
            raise DataError(f"cannot read {self.name!r}: {error}") from error
        self.offsets, self.ids, self.digest = offsets.column(), ids.column(), digest.hexdigest()
        if not len(self):
            raise DataError(f"{self.name} has no prompt, allowed: at least 1")
        self._refuse_twins()

    def _read(self, line: bytes, index: int, where: str) -> Ask:
        try:
            text = line.decode("utf-8-sig" if index == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8: {error}") from error
        return ask(parsed(text, where), index, where, self.api)

    def _refuse_twins(self) -> None:
        order = np.argsort(self.ids, kind="stable")
        twins = np.flatnonzero(self.ids[order][1:] == self.ids[order][:-1])
        if twins.size:
            second = self.ask(int(order[twins[0] + 1]))
            raise DataError(f"{self.name}: id {second.id!r} comes twice, allowed: ids that differ")

    def ask(self, index: int) -> Ask:
        """Return what the prompt at `index` asks."""
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(int(self.offsets[index]))
        return self._read(self._file.readline(), index, f"{self.name}, prompt {index}")

    def index_of(self) -> Index:
        """Return what finds a prompt by its id."""
        return Index(self.ids)


class Index:
    """Finds where a prompt stands by its id."""

    def __init__(self, ids: NDArray[np.uint64]) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def find(self, id: str | int) -> int | None:
        """Return a prompt's place in the file, None for an id it does not have."""
        wanted = np.uint64(hashed(id))
        at = int(np.searchsorted(self._sorted, wanted))
        if at >= self._sorted.shape[0] or self._sorted[at] != wanted:
            return None
        return int(self._order[at])


class _Growing:
    """A column that grows: twice as large when it is full."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._values = np.zeros(1024, dtype=kind)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, value: int) -> None:
        if self._n == self._values.shape[0]:
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
        self._values[self._n] = value
        self._n += 1

    def column(self) -> NDArray[Any]:
        return self._values[: self._n].copy()
