"""How much a request may make an engine do: every prompt and choice, by the fields that are really read.

Engines differ in the name of the limit on a reply, and take text for a number. What may be read in two
ways counts as the larger; a limit that nobody here can read is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from sooner.chat import estimate_tokens, reply_limit
from sooner.gateway.admission.paths import Route

_LARGEST = 2**31 - 1
_MOST_REPLIES = 2**16
_TEXT_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(?:_[0-9]{1,12})*(?:\.0*)?\Z")
_LONGEST_NAME = 64  # letters; a longer one is a text
_MEDIA = 1000.0  # tokens that a picture or a sound is taken for
_MEDIA_FIELDS = frozenset(
    ("url", "image_url", "audio_url", "video_url", "data", "file_data", "image", "image_embeds")
)
_SAID_ELSEWHERE = frozenset(
    ("role", "type", "id", "name", "tool_call_id", "call_id", "tool_use_id", "detail")
)


Missing: TypeAlias = Callable[[str], float]


class Claimed(NamedTuple):
    """`replies` of at least `least` and at most `limit` tokens each; None: no limit."""

    limit: int | None = None
    least: int = 0
    replies: int = 1

    def total(self, length: float) -> float:
        """Return the tokens of all replies, where one is expected to have `length`."""
        most = length if self.limit is None else min(length, float(self.limit))
        return self.replies * max(most, float(self.least))


ONE = Claimed()


class _Names(NamedTuple):
    """What an engine reads as the limit: the first that is said, or with `any` whichever is largest."""

    names: tuple[str, ...]
    any: bool = False
    default: int | None = None


def _any_of(names: Iterable[str]) -> _Names:
    return _Names(tuple(dict.fromkeys(names)), any=True)


_CHOICES = ("n", "best_of", "num_beams")
_MANY = frozenset(("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"))
_CHAT = _Names(("max_completion_tokens", "max_tokens"))
_SAID = {
    "/v1/chat/completions": _CHAT,
    "/v1/chat/completions/batch": _CHAT,
    "/v1/completions": _Names(("max_tokens",)),
    "/v1/responses": _Names(("max_output_tokens",)),
    "/v1/messages": _Names(("max_tokens",)),
}
_BY_KIND: Mapping[str, Mapping[str, _Names]] = {
    "vllm": {**_SAID, "/v1/completions": _Names(("max_tokens",), default=16)},
    "sglang": {
        **_SAID,
        "/v1/chat/completions": _Names(_CHAT.names, any=True),
        "/v1/completions": _Names(("max_tokens",), default=16),
    },
    "llamacpp": {
        path: _any_of((*said.names, "n_predict", "max_completion_tokens", "max_tokens"))
        for path, said in _SAID.items()
    },
}
_ELSEWHERE = {
    path: _any_of((*said.names, "max_completion_tokens", "max_tokens", "max_new_tokens"))
    for path, said in _SAID.items()
}


def read(parsed: Mapping[str, Any], route: Route, kinds: Collection[str]) -> Claimed:
    """Return what a JSON body claims at a path of engines of these kinds; without kinds, as logs are read."""
    if not route.generates:
        return ONE
    limits = [_limit(parsed, _BY_KIND.get(kind, _ELSEWHERE).get(route.path, _CHAT)) for kind in kinds]
    limit = _largest(limits) if limits else reply_limit(parsed)
    choices = (
        [number(parsed[name]) or 1 for name in _CHOICES if name in parsed] if route.path in _MANY else []
    )
    replies = max([1, *choices]) * _prompts(parsed, route)
    least = 0
    if "min_tokens" in parsed:
        least = max(0, number(parsed["min_tokens"]) or 0)
    if "ignore_eos" in parsed and flag(parsed["ignore_eos"]) and limit is not None:
        least = limit
    if least and limit is not None:
        least = min(least, limit)
    return Claimed(limit, min(least, _LARGEST), min(replies, _MOST_REPLIES))


def _largest(limits: Collection[int | None]) -> int | None:
    return None if None in limits else max(filter(None, limits))


def _limit(parsed: Mapping[str, Any], said: _Names) -> int | None:
    largest = 0
    for name in said.names:
        value = parsed.get(name)
        if value is None:
            continue
        limit = number(value)
        if limit is None or not 1 <= limit <= _LARGEST:
            return None
        if not said.any:
            return limit
        largest = max(largest, limit)
    return largest or said.default


def number(value: object) -> int | None:
    """Return the whole number an engine may read in a value, text too; None where it is none."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and _TEXT_NUMBER.match(value := value.strip()):
        return int(value.partition(".")[0])
    return None


def flag(value: object) -> bool:
    """Return whether an engine may read yes in a value, text and numbers too."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes", "on", "t", "y")
    return value is True or (isinstance(value, int | float) and value == 1)


def _prompts(parsed: Mapping[str, Any], route: Route) -> int:
    """Return how many prompts there are, each of which gets its own replies."""
    found = 1
    for name in ("prompt", "prompt_embeds") if route.path == "/v1/completions" else ("messages",):
        value = parsed.get(name)
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            found = max(found, len(value))
    return found


def prompt_len(parsed: Mapping[str, Any], route: Route, least: int, missing: Missing | None = None) -> int:
    """Return about how many tokens an engine reads: all prompts, tools, documents and pairs of texts.

    At least the `least` that its prompt has alone; `missing` says how many were left out of a text.
    """
    names = _INPUTS.get(route.path, _CHATTED)
    if names is _PAIRED:
        return max(1, round(_pairs(parsed, missing)))
    tokens = 0.0
    for name in names:
        if name in parsed:
            tokens += _tokens(parsed[name], name in _WITH_MEDIA, missing)
    return max(least, round(tokens))


_CHATTED = ("messages", "input", "prompt", "system", "instructions", "tools", "functions", "documents",
            "chat_template")  # fmt: skip
_WITH_MEDIA = frozenset(("messages", "input"))
_PAIRED = ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")
_INPUTS: Mapping[str, tuple[str, ...]] = {
    "/v1/completions": ("prompt", "suffix"),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score"), _PAIRED),
}


def _pairs(parsed: Mapping[str, Any], missing: Missing | None) -> float:
    """Return the tokens of pairs of texts: the side that is one text is read beside each of the other."""
    sides = []
    for names in (_PAIRED[:4], _PAIRED[4:]):
        value = next((parsed[name] for name in names if parsed.get(name) is not None), "")
        many = value if isinstance(value, list) else [value]
        sides.append((len(many), _tokens(many, True, missing)))
    pairs = max(count for count, _ in sides)
    return sum(tokens * (pairs if count == 1 else 1) for count, tokens in sides)


def _tokens(value: object, media: bool, missing: Missing | None) -> float:
    """Return about how many tokens are in a JSON value: its texts, its token ids, its pictures."""
    if isinstance(value, str):
        return estimate_tokens(value) + (missing(value) if missing is not None else 0.0)
    if isinstance(value, list):
        if value and type(value[0]) is int:
            return float(len(value))
        return sum([_tokens(item, media, missing) for item in value])
    if not isinstance(value, dict):
        return 0.0
    tokens = 0.0
    for name, item in value.items():
        if media and name in _MEDIA_FIELDS and isinstance(item, str):
            tokens += _MEDIA
        elif name not in _SAID_ELSEWHERE or not isinstance(item, str) or len(item) > _LONGEST_NAME:
            tokens += _tokens(item, media, missing)
    return tokens
