"""The text of an OpenAI-style request, as the scorer reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""What a request's limit on its reply may be called, the newest name first."""


def rendered(parsed: Mapping[str, Any]) -> str:
    """Return the request's text: a prompt as it is, chat messages in ChatML, which the scorer reads."""
    prompt = parsed.get("prompt", parsed.get("input"))
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        return prompt[0]
    messages = parsed.get("messages", prompt)
    if not isinstance(messages, list):
        return ""
    turns = [
        f"<|im_start|>{message.get('role', 'user')}\n{_content(message.get('content'))}<|im_end|>\n"
        for message in messages
        if isinstance(message, dict)
    ]
    return "".join(turns) + "<|im_start|>assistant\n" if turns else ""


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)
