"""One reply made of slices: each continues the text of those before it, the client sees one reply. No I/O.

Continuing means asking again with the text so far: a completion with it behind the prompt, a chat
with it as a last message of the assistant and `continue_final_message`, which vLLM and SGLang know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sooner.chat import CHAT_LIMITS
from sooner.core import EngineError, SoonerError

_PATHS = {"/v1/chat/completions": True, "/v1/completions": False}
_COMPLETION_LIMITS = ("max_tokens",)  # engines read no other there
_DEFAULT_LIMIT = 16  # of completions; chats end by themselves
_SAFE = frozenset(
    ("model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
     "user", "metadata", "priority", "ignore_eos", "vllm_xargs", *CHAT_LIMITS)
)  # fmt: skip
_NEUTRAL = {"n": 1, "best_of": 1, "echo": False, "logprobs": False, "presence_penalty": 0,
            "frequency_penalty": 0, "repetition_penalty": 1}  # fmt: skip
_REASONING = frozenset(("reasoning_content", "reasoning"))
_STRANGE = (*_REASONING, "tool_calls", "function_call", "refusal", "audio")
_LOST = "\ufffd"  # what a decoder puts where a slice ends within a letter


class Whole(SoonerError):
    """This reply cannot be cut, and nothing of it has been shown: it has to be served in one piece."""


class Reasons(Whole):
    """No reply of this model can be cut: it reasons first, which is no part of the text."""


class Odd(EngineError):
    """A slice that is not what was asked for."""


class Plan(NamedTuple):
    """A request that can be cut. `limit` is the client's [tokens]; `usage`: it wants it in its stream."""

    chat: bool
    body: dict[str, Any]
    limit: int | None
    stream: bool
    usage: bool


def plan(path: str, body: bytes) -> Plan | None:
    """Return how a request is cut; None where a field's meaning would be lost between slices.

    Tools, several choices, log probabilities, grammars, seeds, penalties and stop strings are such
    fields, and every field that is not known here.
    """
    chat = _PATHS.get(path)
    if chat is None:
        return None
    given = {name: value for name, value in json.loads(body).items() if value is not None}
    if any(name not in _SAFE and _NEUTRAL.get(name, _NEUTRAL) != value for name, value in given.items()):
        return None
    options = given.get("stream_options", {})
    said = [name for name in CHAT_LIMITS if name in given]
    if len(said) > 1 or (said and said[0] not in (CHAT_LIMITS if chat else _COMPLETION_LIMITS)):
        return None  # which of them counts is for the engine to say
    limit = given[said[0]] if said else None if chat else _DEFAULT_LIMIT
    prompt = given.get("messages" if chat else "prompt")
    right = isinstance(prompt, list) and bool(prompt) if chat else isinstance(prompt, str)
    simple = isinstance(options, dict) and set(options) <= {"include_usage"}
    if not (right and simple and (limit is None or (type(limit) is int and limit > 0))):
        return None  # it is the engine that says what is wrong with it
    usage = simple and bool(options.get("include_usage"))
    return Plan(chat, given, limit, given.get("stream") is True, usage)


class Stitch:
    """The reply so far: `text`, and `tokens`, how many it took.

    `context` is the engine's `max_model_len` where it is known: the last slice has to fit into it.
    """

    def __init__(self, chosen: Plan) -> None:
        self._plan = chosen
        self._base: dict[str, Any] | None = None  # the first chunk, or the first reply
        self.text = ""
        self.tokens = 0
        self.prompt_len: int | None = None
        self.context: int | None = None
        self.reason = ""  # why the whole reply ended; empty while it goes on
        self.shown = False  # whether any text has come
        self._rest: int | None = None  # what the engine's context leaves [tokens]
        self._nulls = False
        self._begin(0)

    def _begin(self, asked: int) -> None:
        self._asked = asked
        self._from = len(self.text)
        self._buffer = b""
        self._held = ""
        self._pieces = 0
        self._last: dict[str, Any] = {}  # the choice that ended the slice
        self._usage: Mapping[str, Any] = {}
        self._ended = False

    @property
    def asked(self) -> int:
        """Tokens at most of the slice under way."""
        return self._asked

    def next_slice(self, most: int) -> bytes:
        """Begin a slice of at most `most` tokens and return the request's body for it."""
        bounds = [most, self._rest, None if self._plan.limit is None else self._plan.limit - self.tokens]
        self._begin(max(1, min(bound for bound in bounds if bound is not None)))
        body = {name: value for name, value in self._plan.body.items() if name not in CHAT_LIMITS}
        named = "max_completion_tokens" if "max_completion_tokens" in self._plan.body else "max_tokens"
        body[named] = self._asked
        if self._plan.stream:
            body["stream_options"] = {"include_usage": True}
        if self.text:
            self._continue(body)
        return json.dumps(body, separators=(",", ":")).encode("ascii")  # a lone surrogate stays an escape

    def _continue(self, body: dict[str, Any]) -> None:
        if not self._plan.chat:
            body["prompt"] += self.text
            return
        body["messages"] = [*body["messages"], {"role": "assistant", "content": self.text}]
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False

    def feed(self, data: bytes) -> bytes:
        """Take in bytes of a streamed slice; return the events for the client. Raises Odd, Whole."""
        self._buffer = (self._buffer + data).replace(b"\r\n", b"\n")
        *events, self._buffer = self._buffer.split(b"\n\n")
        return b"".join(map(self._event, events))

    def _event(self, event: bytes) -> bytes:
        lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
        if not lines:
            return b""
        data = b"\n".join(lines)
        if data == b"[DONE]":
            self._ended = True
            return b""
        chunk = _object(data)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        if not choices:
            return b""
        choice = choices[0]
        text = self._text_of(choice.get("delta") if self._plan.chat else choice)
        if choice.get("finish_reason") is not None:
            self._last = choice
        first = self._base is None
        if self._base is None:
            self._base = {name: chunk[name] for name in chunk if name not in ("choices", "usage")}
            self._nulls = self._plan.usage and "usage" in chunk  # as some engines have it
        return self._chunk(choice, text, role=first) if text or first else b""

    def _text_of(self, said: object) -> str:
        """Return the text in a message or its piece, without half a letter at its end."""
        fields = said if isinstance(said, dict) else {}
        strange = [name for name in _STRANGE if fields.get(name)]
        text = fields.get("content" if self._plan.chat else "text") or ""
        if strange or not isinstance(text, str):
            if self.shown:
                raise Odd(f"a slice brought {strange or 'content that is no text'}")
            kind = Reasons if _REASONING & set(strange) else Whole
            raise kind(f"{strange or 'content that is no text'} cannot be continued")
        if text:
            self._pieces += 1
            self.shown = True
        whole = (self._held + text).rstrip(_LOST)
        self._held = (self._held + text)[len(whole) :]
        self.text += whole
        return whole

    def _chunk(self, choice: Mapping[str, Any], text: str, *, role: bool = False, reason: str = "") -> bytes:
        if self._plan.chat:
            said: dict[str, Any] = {"role": "assistant"} if role else {}
            part: dict[str, Any] = {"delta": said if reason and not text else {**said, "content": text}}
        else:
            part = {"text": text}
        kept = {name: value for name, value in choice.items() if name not in ("delta", "text")}
        made = {
            **(self._base or {}),
            "choices": [{"index": 0, **kept, **part, "finish_reason": reason or None}],
        }
        return _data({**made, "usage": None} if self._nulls else made)

    def take(self, body: bytes) -> None:
        """Take in the body of a slice that was not streamed. Raises Odd, Whole."""
        reply = _object(body)
        choices = reply.get("choices")
        if not choices:
            raise Odd("a slice without choices")
        if self._base is None:
            self._base = reply
        self._usage = reply.get("usage") or {}
        self._last = choices[0]
        self._text_of(self._last.get("message") if self._plan.chat else self._last)
        self._ended = True

    def lose(self) -> None:
        """Keep what came of a slice that broke off; what is told of its length is a count of pieces."""
        self.tokens += self._pieces
        if self._plan.limit is not None and self.tokens >= self._plan.limit:
            self.reason = "length"

    def end(self) -> int:
        """End the slice; return its tokens. `reason` is set where it was the last. Raises Odd."""
        reason = self._last.get("finish_reason")
        if not self._ended or not reason:
            raise Odd("a slice without an end")
        count, prompt = self._usage.get("completion_tokens"), self._usage.get("prompt_tokens")
        told = isinstance(count, int)
        made = count if isinstance(count, int) else self._asked if reason == "length" else self._pieces
        self.tokens += made
        if isinstance(prompt, int):
            if self.prompt_len is None:
                self.prompt_len = prompt
            if self.context is not None:
                self._rest = max(0, self.context - prompt - made)
        spent = self._plan.limit is not None and self.tokens >= self._plan.limit
        full = (told and made < self._asked) or self._rest == 0
        stuck = len(self.text) == self._from  # it would begin where this one did
        if reason != "length" or spent or full or stuck:
            self.reason = reason
        return made

    def usage(self) -> dict[str, Any]:
        """Return the usage of the whole reply; the first slice's prompt is the client's."""
        prompt = self.prompt_len or 0
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens,
                "total_tokens": prompt + self.tokens}  # fmt: skip

    def closing(self) -> bytes:
        """Return the stream's last events."""
        out = self._chunk(self._last, self._held, reason=self.reason)
        if self._plan.usage:
            out += _data({**(self._base or {}), "choices": [], "usage": self.usage()})
        return out + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        """Return the reply that is not streamed."""
        assert self._base is not None  # a slice has ended
        text = self.text + self._held
        said: dict[str, Any] = {"text": text}
        if self._plan.chat:
            said = {"message": {**self._base["choices"][0]["message"], "content": text}}
        choice = {**self._last, **said, "finish_reason": self.reason}
        return json.dumps({**self._base, "choices": [choice], "usage": self.usage()}).encode()


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Odd(f"a slice that is no JSON: {str(error)[:80]}") from error
    if not isinstance(found, dict) or "error" in found:
        raise Odd("a slice that is an error")
    return found


def _data(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
