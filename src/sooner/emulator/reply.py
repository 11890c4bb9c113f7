"""What an emulated reply looks like: the bytes of OpenAI's three APIs around words that mean nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_WORDS = (" the", " of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was", " with")
_PLACES = {word[1:]: n for n, word in enumerate(_WORDS)}


class Wanted(NamedTuple):
    """What the engine needs of a request."""

    api: str
    prompt: str
    prompt_len: int
    output_len: int
    truncated: bool
    priority: float
    stream: bool
    usage: bool
    done: int = 0  # tokens that came before, where a reply is continued
    over: bool = False  # those were all there are


def said(prompt: str) -> int:
    """Return how many tokens of a reply of ours a text ends with."""
    last = _PLACES.get(prompt.rsplit(" ", 1)[-1])
    if last is None:
        return 0
    words, run = prompt.split(" "), 0
    for n, word in enumerate(reversed(words[1:])):  # before the first word there is no space
        if word != _WORDS[(last - n) % len(_WORDS)][1:]:
            break
        run += 1
    return max(run - (run - last) % len(_WORDS), 0)


class ReplyFrames:
    """The bytes of one reply, in the form of its API."""

    def __init__(self, api: str, id: str, model: str, asked: Wanted) -> None:
        self._api = api
        self._asked = asked
        self._id = {"chat": "chatcmpl-", "completions": "cmpl-", "responses": "resp_"}[api] + id
        kind = {"chat": "chat.completion.chunk", "completions": "text_completion"}.get(api, "response")
        self._common: dict[str, Any] = {
            "id": self._id,
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._reason = "length" if asked.truncated else "stop"
        mark = "\x00"
        self._before, self._after = json.dumps(self._chunk(mark), separators=(",", ":")).split('"\\u0000"')
        self._sequence = 0

    def _chunk(self, text: str, reason: str | None = None) -> dict[str, Any]:
        if self._api == "responses":
            return {"type": "response.output_text.delta", "item_id": "msg_" + self._id, "output_index": 0,
                    "content_index": 0, "sequence_number": 4, "logprobs": [], "delta": text}  # fmt: skip
        said = {"delta": {"content": text}} if self._api == "chat" else {"text": text}
        return {**self._common, "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]}

    def piece(self, n: int) -> bytes:
        """Return the event of the n-th token, as one HTTP chunk."""
        text = json.dumps("" if self._asked.over else _WORDS[(self._asked.done + n) % len(_WORDS)])
        name = "event: response.output_text.delta\n" if self._api == "responses" else ""
        event = f"{name}data: {self._before}{text}{self._after}\n\n".encode()
        if n == 1 and self._api == "chat":  # with the first token and no sooner, as vLLM does
            chunk = self._chunk("")
            chunk["choices"][0]["delta"] = {"role": "assistant", "content": ""}
            event = _event(chunk) + event
        return b"%x\r\n%b\r\n" % (len(event), event)

    def opening(self) -> bytes:
        """Return what comes long before the first token: nothing, except where the API has events there."""
        if self._api != "responses":
            return b""
        item = {"id": "msg_" + self._id, "type": "message", "role": "assistant", "status": "in_progress",
                "content": []}  # fmt: skip
        part = {"type": "output_text", "text": "", "annotations": []}
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        events: tuple[dict[str, Any], ...] = (
            {"type": "response.created", "response": self._response("in_progress", "")},
            {"type": "response.in_progress", "response": self._response("in_progress", "")},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **place, "part": part},
        )
        return b"".join(_event({"sequence_number": n, **event}, named=True) for n, event in enumerate(events))

    def closing(self) -> bytes:
        """Return what comes after the last token."""
        if self._api == "responses":
            whole = self._response("completed", self._text())
            [item] = whole["output"]
            [part] = item["content"]
            place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
            events: tuple[dict[str, Any], ...] = (
                {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []},
                {"type": "response.content_part.done", **place, "part": part},
                {"type": "response.output_item.done", "output_index": 0, "item": item},
                {"type": "response.completed", "response": whole},
            )
            return b"".join(
                _event({"sequence_number": n, **event}, named=True) for n, event in enumerate(events, 5)
            )
        last = self._chunk("", self._reason)
        if self._api == "chat":
            last["choices"][0]["delta"] = {}
        out = _event(last)
        if self._asked.usage:
            out += _event({**self._common, "choices": [], "usage": self._usage()})
        return out + b"data: [DONE]\n\n"

    def whole(self) -> dict[str, Any]:
        """Return the reply that is not streamed."""
        if self._api == "responses":
            return self._response("completed", self._text())
        said: dict[str, Any] = {"text": self._text()}
        if self._api == "chat":
            said = {"message": {"role": "assistant", "content": self._text()}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self._reason}
        kind = str(self._common["object"]).removesuffix(".chunk")
        return {**self._common, "object": kind, "choices": [choice], "usage": self._usage()}

    def _text(self) -> str:
        done = self._asked.done
        end = done if self._asked.over else done + self._asked.output_len
        return "".join(_WORDS[n % len(_WORDS)] for n in range(done + 1, end + 1))

    def _usage(self) -> dict[str, Any]:
        prompt, output = self._asked.prompt_len, self._asked.output_len
        if self._api == "responses":
            return {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def _response(self, status: str, text: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"id": "msg_" + self._id, "type": "message", "role": "assistant", "status": status,
                "content": content}  # fmt: skip
        done = status == "completed"
        return {
            "id": self._id, "object": "response", "created_at": self._common["created"], "status": status,
            "model": self._common["model"], "output": [item] if done else [], "error": None,
            "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
            "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "usage": self._usage() if done else None,
        }  # fmt: skip


def _event(data: Mapping[str, Any], named: bool = False) -> bytes:
    name = f"event: {data['type']}\n" if named else ""
    return f"{name}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
