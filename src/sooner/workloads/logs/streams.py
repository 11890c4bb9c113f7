"""Replies that were logged as they were streamed: chunks put together again, of any maker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import loads, text_of, thoughts_apart

_EVENTS = re.compile(r"\s*(?:(?:event|id|retry)?:[^\r\n]*[\r\n]\s*)*data:")
"""Server-sent events as text: comments and other fields may stand before the first data."""


def whole(response: Any) -> Any:
    """Return a response: a streamed one, as lines of events or as a list of chunks, is put together."""
    chunks = _chunks(response)
    if not isinstance(chunks, list) or not all(isinstance(chunk, Mapping) for chunk in chunks):
        return response
    return _together(chunks) if any(_is_chunk(chunk) for chunk in chunks) else response


def _chunks(response: Any) -> Any:
    """The chunks of a response: events or JSON, as one text of many lines or as a list of lines."""
    if isinstance(response, list) and response and all(isinstance(line, str) for line in response):
        response = "\n".join(response)
    if not isinstance(response, str):
        return response
    if _EVENTS.match(response := response.removeprefix("\ufeff")):
        lines = [line[5:] for line in re.split(r"[\r\n]+\s*", response.lstrip()) if line.startswith("data:")]
        return [chunk for line in lines if isinstance(chunk := loads(line.strip()), Mapping)]
    if response.startswith("{") and "\n{" in response:
        return [loads(line) for line in response.split("\n") if line.strip()]
    return response


def _is_chunk(chunk: Mapping[str, Any]) -> bool:
    if (
        str(chunk.get("object", "")).endswith("chunk")
        or "candidates" in chunk
        or chunk.get("done") is not None
    ):
        return True
    if isinstance(chunk.get("type"), str) and chunk["type"].split("_")[0].split(".")[0] in (
        "message",
        "response",
    ):
        return "role" not in chunk
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(isinstance(c, Mapping) and "delta" in c for c in choices)


def _together(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One response of all chunks; counts are the last ones said."""
    made: dict[str, Any] = {}
    texts: dict[int, list[str]] = {}
    ends: dict[int, Any] = {}
    for chunk in chunks:
        if isinstance(chunk.get("response"), Mapping):  # the events of OpenAI's Responses
            made.update(chunk["response"])
        if isinstance(chunk.get("usage"), Mapping):  # the end of a stream may leave out what its start said
            chunk = {**chunk, "usage": {**mapping(made.get("usage")), **chunk["usage"]}}
        for name in (
            "usage",
            "usageMetadata",
            "timings",
            "model",
            "eval_count",
            "prompt_eval_count",
            "done_reason",
        ):
            if chunk.get(name) is not None:
                made[name] = chunk[name]
        _anthropic(chunk, made, texts)
        for at, choice in enumerate(_choices(chunk)):
            index = choice.get("index", at)
            index = index if isinstance(index, int) else at
            texts.setdefault(index, []).append(_new(choice))
            ends[index] = choice.get("finish_reason") or choice.get("finishReason") or ends.get(index)
    if texts and "output" not in made:
        made["choices"] = [
            {"index": at, "message": {"content": "".join(parts)}, "finish_reason": ends.get(at)}
            for at, parts in sorted(texts.items())
        ]
    return made


def _choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for name in ("choices", "candidates"):
        found = chunk.get(name)
        if isinstance(found, list):
            return [choice for choice in found if isinstance(choice, Mapping)]
    if chunk.get("done") is not None:  # Ollama's
        return [{"message": chunk.get("message") or {"content": chunk.get("response", "")}}]
    return []


def _new(choice: Mapping[str, Any]) -> str:
    """What one chunk adds to a choice."""
    told = choice.get("delta", choice.get("message", choice.get("content")))
    if not isinstance(told, Mapping):
        return str(choice.get("text") or "") if told is None else text_of(told)
    parts = [
        text_of(told.get(name))
        for name in ("reasoning_content", "reasoning", "thinking", "content", "parts")
        if told.get(name)
    ]
    parts += thoughts_apart(told)
    for call in told.get("tool_calls") or []:
        named = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(named, Mapping):
            parts += [str(named.get("name") or ""), str(named.get("arguments") or "")]
    return "".join(parts)


def _anthropic(chunk: Mapping[str, Any], made: dict[str, Any], texts: dict[int, list[str]]) -> None:
    """The events of Anthropic's Messages: text and thoughts by block, counts at the start and the end."""
    delta = chunk.get("delta")
    if chunk.get("type") == "content_block_delta" and isinstance(delta, Mapping):
        added = next(
            (delta[n] for n in ("text", "thinking", "partial_json") if isinstance(delta.get(n), str)), ""
        )
        texts.setdefault(0, []).append(added)
    elif chunk.get("type") == "message_delta" and isinstance(delta, Mapping):
        made["stop_reason"] = delta.get("stop_reason")
    elif chunk.get("type") == "message_start" and isinstance(chunk.get("message"), Mapping):
        usage = mapping(chunk["message"].get("usage"))  # the reply has only begun
        made["model"] = chunk["message"].get("model")
        made["usage"] = {name: value for name, value in usage.items() if name != "output_tokens"}
