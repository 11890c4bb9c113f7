"""Which path is meant, said once: decoded here, routed by and sent in that one form; all others are closed.

An engine decodes what it is sent, so a path that is compared as it was spelled is open under another
spelling. Here a target is decoded once; what could be decoded again, or be read as another path, is
refused. What goes to an engine is one of `ENDPOINTS`, and is written anew from that table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from sooner.core import ConfigError

_TARGET = re.compile(r"/[\x21\x22\x24-\x5b\x5d-\x7e]*\Z")  # printable ASCII without # and backslash
_PLAIN = re.compile(r"[A-Za-z0-9/_.:@~+,;=!$&'()*-]*\Z")  # needs no decoding
_AZURE = "/openai/deployments/"  # a model's name, then an endpoint's path without /v1
_AZURE_V1 = "/openai/v1/"
_OURS = ("/v1/models/", "/sooner/v1/")  # answered here: names behind it may hold anything
_PAGE = "/sooner/"  # the one path that ends with a /
_PARAMETER = re.compile(r"(?:api-version|beta)=[A-Za-z0-9._-]{1,40}\Z")
_LONGEST = 80  # letters of a client's own words that an answer repeats


class UnknownPath(ConfigError):
    """A path that nothing is served at: HTTP 404."""


class Route(NamedTuple):
    """One path that engines serve, always by POST.

    `generates`: its reply is made a token at a time. `form`: its body is `multipart/form-data`, not JSON.
    `priority`: its body may say the order inside the engine.
    """

    path: str
    generates: bool = True
    form: bool = False
    priority: bool = False


_ALL = (
    Route("/v1/chat/completions", priority=True),
    Route("/v1/chat/completions/batch"),
    Route("/v1/completions", priority=True),
    Route("/v1/responses", priority=True),
    Route("/v1/messages"),
    Route("/v1/messages/count_tokens", generates=False),
    Route("/v1/embeddings", generates=False),
    Route("/v1/rerank", generates=False),
    Route("/v1/score", generates=False),
    Route("/v1/classify", generates=False),
    Route("/v1/moderations", generates=False),
    Route("/v1/audio/transcriptions", form=True),
    Route("/v1/audio/translations", form=True),
    Route("/v1/audio/speech", generates=False),
    Route("/v2/rerank", generates=False),
    Route("/rerank", generates=False),
    Route("/score", generates=False),
    Route("/classify", generates=False),
    Route("/pooling", generates=False),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _ALL}

EVERY = frozenset(ENDPOINTS)
TEXT = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"))
MESSAGES = frozenset(("/v1/messages", "/v1/messages/count_tokens"))
_BARE = frozenset(("/v2/rerank", "/rerank", "/score", "/classify", "/pooling"))
_SPOKEN = frozenset(("/v1/audio/transcriptions", "/v1/audio/translations"))
VLLM = TEXT | MESSAGES | _BARE | _SPOKEN | {"/v1/chat/completions/batch", "/v1/rerank", "/v1/score"}
SGLANG = TEXT | MESSAGES | {"/v1/rerank", "/v1/score", "/v1/classify", "/v1/audio/transcriptions"}
LLAMACPP = TEXT | MESSAGES | {"/v1/rerank", "/v1/audio/transcriptions"}
OLLAMA = TEXT | {"/v1/messages"}
OPENAI = frozenset(path for path in EVERY if path.startswith("/v1/") and not path.endswith("/batch"))

_CHANGES_AN_ENGINE = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_STATE = frozenset(
    ("files", "uploads", "batches", "responses", "organization", "fine_tuning", "fine-tunes", "assistants",
     "threads", "vector_stores", "conversations", "containers", "evals", "realtime", "videos", "chat",
     "chatkit", "projects", "prompts", "skills", "webhooks", "admin", "messages")
)  # fmt: skip


def canonical(target: str) -> str:
    """Return the path that a request's target means, decoded. Raises UnknownPath where it could be two."""
    path = target.partition("?")[0]
    if path in ENDPOINTS:  # most are spelled as they are meant
        return path
    if path.startswith(_OURS):
        return unquote_to_bytes(path).decode("utf-8", "replace")
    if not _TARGET.match(path):
        raise _unknown(path, "allowed: a path of printable ASCII letters that begins with one /")
    if not _PLAIN.match(path):
        path = _decoded(path)
    parts = path.split("/")[1:]
    if path not in ("/", _PAGE) and any(part in ("", ".", "..") for part in parts):
        raise _unknown(path, "allowed: no empty part, no . or .., no / at the end", path)
    return path


def _decoded(path: str) -> str:
    raw = unquote_to_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unknown(path, "allowed: UTF-8") from error
    if "%" in text or "\\" in text or not text.isprintable() or text.count("/") != path.count("/"):
        raise _unknown(path, "allowed: what decodes to a path that needs no decoding")
    return text


class Called(NamedTuple):
    """An endpoint as a request names it; `model` is the one in its path, which only Azure's have."""

    endpoint: Route
    model: str = ""


def called(path: str) -> Called | None:
    """Return what a canonical path calls, by OpenAI's name for it or by one of Azure's; None for nothing."""
    if path.startswith(_AZURE):
        parts = path[len(_AZURE) :].split("/")
        for at in range(1, len(parts)):  # a model's name may hold a /, so the longest endpoint counts
            found = ENDPOINTS.get("/v1/" + "/".join(parts[at:]))
            if found is not None:
                return Called(found, "/".join(parts[:at]))
        return None
    if path.startswith(_AZURE_V1):
        path = path.removeprefix("/openai")
    found = ENDPOINTS.get(path)
    return None if found is None else Called(found)


def endpoint(path: str) -> Route:
    """Return what is served at a canonical path. Raises UnknownPath, which says why it is closed."""
    found = called(path)
    if found is None:
        raise UnknownPath(closed(path))
    return found.endpoint


def closed(path: str) -> str:
    """Return why nothing is served at a canonical path."""
    parts = path.split("/")
    if len(parts) > 2 and parts[1] == "v1" and parts[2] in _STATE:
        return str(
            _unknown(path, "what keeps state at an engine is closed, for it would be everyone's", path)
        )
    return str(_unknown(path, "", path))


def changes_an_engine(path: str) -> bool:
    """Return whether a canonical path would change an engine for everyone."""
    return path.startswith(_CHANGES_AN_ENGINE)


def query(target: str) -> str:
    """Return what of a target's query goes to an engine: the version of the API, and nothing else."""
    given = target.partition("?")[2]
    if not given:
        return ""
    kept = {
        parameter.partition("=")[0]: parameter
        for parameter in given.split("&")
        if _PARAMETER.match(parameter)
    }
    return "?" + "&".join(kept.values()) if kept else ""


def _unknown(path: str, why: str, meant: str = "") -> UnknownPath:
    near = _near(meant, ENDPOINTS) if meant else ""
    told = [f"{path[:_LONGEST]!r} is not served here", f"did you mean {near}?" if near else why]
    return UnknownPath("; ".join(part for part in told if part))


def _near(path: str, known: Collection[str]) -> str:
    """Return the endpoint that ends as `path` does, empty parts left out; "" for none."""
    tail = "/".join(part for part in path.split("/") if part not in ("", "v1"))
    return next((path for path in known if tail and path.removeprefix("/v1/") == tail), "")
