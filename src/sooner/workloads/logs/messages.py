"""Messages of any maker as OpenAI's: `role` and `content`; and all the text of a reply."""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_ROLES = {
    **dict.fromkeys(("system", "developer", "systemmessage"), "system"),
    **dict.fromkeys(
        ("user", "human", "prompter", "customer", "humanmessage", "question", "instruction"), "user"
    ),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "aimessage", "chatbot", "answer", "response"),
        "assistant",
    ),
    **dict.fromkeys(("bing", "bard", "claude", "gemini", "llama", "palm", "agent"), "assistant"),
    **dict.fromkeys(("tool", "function", "toolmessage", "ipython", "observation", "functionmessage"), "tool"),
}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "summary_text", "thinking", "content", "value")
_DEEPEST = 20


def role_of(message: Mapping[str, Any]) -> str:
    """Return the role of a message as we call it, "" where it has none."""
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        role = message.get("type") if "kwargs" in message or "content" in message else None
    return _ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else ""


def normal(given: Sequence[Any], unread: Counter[str]) -> list[Message]:
    """Return messages as OpenAI's; parts that are no text are counted by kind in `unread`.

    A role nobody knows is the assistant's where it answers a user and nobody else does.
    """
    read = [found for item in given if (found := _normal(item, unread)) is not None]
    if any(message["role"] == "assistant" for message in read):
        return read
    for before, message in itertools.pairwise(read):
        if message["role"] not in set(_ROLES.values()) and before["role"] == "user":
            message["role"] = "assistant"
    return read


def _normal(item: Any, unread: Counter[str]) -> Message | None:
    if isinstance(item, str):
        return {"role": "user", "content": item}
    if not isinstance(item, Mapping):
        unread["message that is no object"] += 1
        return None
    if isinstance(item.get("kwargs"), Mapping) and isinstance(item.get("id"), list):  # LangChain's
        inner: Mapping[str, Any] = {"type": str((item["id"] or [""])[-1]), **item["kwargs"]}
        return _normal(inner, unread)
    kind = item.get("type")
    if kind == "reasoning" and "role" not in item:  # an item of OpenAI's Responses
        return {"role": "assistant", "content": ""}
    if kind == "function_call" and "role" not in item:
        return {"role": "assistant", "content": ""}
    if kind in ("function_call_output", "custom_tool_call_output") and "role" not in item:
        return {"role": "tool", "content": text_of(item.get("output"), unread)}
    role = role_of(item)
    if not role:
        unread[f"item {kind!r}" if isinstance(kind, str) else "message without a role"] += 1
        return None
    content = next((item[name] for name in ("content", "value", "parts", "text") if name in item), None)
    kept = {name: item[name] for name in ("tool_calls", "name", "tool_call_id") if name in item}
    text = text_of(content, unread)
    return {"role": role, "content": content if _plainly(content) else text, **kept}


def _plainly(content: Any) -> bool:
    """Whether content is OpenAI's own, which every reader of requests reads alike."""
    if not isinstance(content, list):
        return isinstance(content, str) or content is None
    parts = [part for part in content if isinstance(part, Mapping)]
    return len(parts) == len(content) and all(
        isinstance(part.get("text"), str) or not _part(part, None, 0) for part in parts
    )


def text_of(content: Any, unread: Counter[str] | None = None, depth: int = 0) -> str:
    """Return the text of a message's content: text, parts of any maker, results of tools.

    Parts are joined by newlines. What is no text is counted by its kind in `unread`.
    """
    if content is None or depth > _DEEPEST:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _part(content, unread, depth)
    if isinstance(content, Sequence):
        texts = [text_of(part, unread, depth + 1) for part in content]
        return "\n".join(text for text in texts if text)
    return str(content)


def _part(part: Mapping[str, Any], unread: Counter[str] | None, depth: int) -> str:
    for name in _TEXT_PARTS:
        value = part.get(name)
        if isinstance(value, str):
            return value
        if name == "content" and isinstance(value, list | Mapping):
            return text_of(value, unread, depth + 1)
    for name in ("toolResult", "functionResponse", "tool_result"):  # Bedrock's and Gemini's
        if isinstance(part.get(name), Mapping):
            inner = part[name]
            return text_of(inner.get("content"), unread, depth + 1) or _json(inner.get("response", ""))
    for name in ("toolUse", "functionCall"):
        if isinstance(part.get(name), Mapping):
            return called(part[name])
    for name in ("response", "result"):  # OpenTelemetry's answers of tools
        if name in part:
            return text_of(part[name], unread, depth + 1) if part[name] != "" else ""
    if "name" in part and ("input" in part or "arguments" in part):
        return called(part)
    if unread is not None:
        kinds = [name for name in part if name not in ("type", "cache_control", "mimeType", "index")]
        unread[str(part.get("type") or (kinds[0] if kinds else "empty part"))] += 1
    return ""


def said(message: Mapping[str, Any], unread: Counter[str] | None = None) -> str:
    """Return all that a reply generated: thoughts, text, refusal and calls of tools."""
    texts = [
        text_of(message.get(name), unread)
        for name in ("reasoning_content", "reasoning", "thinking", "content", "refusal", "value", "text")
        if message.get(name)
    ]
    texts = thoughts_apart(message) + texts
    calls = message.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        named = (call.get("function", call) for call in calls if isinstance(call, Mapping))
        texts += [called(call) for call in named if isinstance(call, Mapping)]
    if isinstance(message.get("function_call"), Mapping):
        texts.append(called(message["function_call"]))
    return "\n".join(text for text in texts if text)


def thoughts_apart(message: Mapping[str, Any]) -> list[str]:
    """Return the thoughts that OpenRouter keeps as parts, where they are not said as text beside."""
    if any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking")):
        return []
    text = text_of(message.get("reasoning_details"))
    return [text] if text else []


def called(call: Mapping[str, Any]) -> str:
    """Return the text that a call of a tool is generated as: its name and its arguments."""
    arguments = next((call[name] for name in ("arguments", "input", "args") if name in call), "")
    return f"{call.get('name', '')} {arguments if isinstance(arguments, str) else _json(arguments)}".strip()


def loads(text: str) -> Any:
    """Return what a cell of text holds: JSON, or what Python printed. None where it is neither."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    if len(text) > 1_000_000 or "datetime" in text:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
