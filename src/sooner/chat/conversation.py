"""The conversation in a request, as a ranker sees it: the text to rank, and what came before it.

The text of a request is what came after the last reply: the user's message (and tool results), each
stripped, joined by an empty line. Earlier turns and the system prompt become `Context`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sooner.chat.context import Context, estimate_tokens


class Turn(NamedTuple):
    """One message: its role as we call it (`system`, `user`, `assistant`, `tool`) and its text."""

    role: str
    text: str


class Conversation(NamedTuple):
    """The request as a ranker sees it: the text to rank, and what came before it."""

    prompt: str
    context: Context


_DATES = re.compile(
    r"(?:Environment: ipython\n)?(?:Tools: [^\n]{0,400}\n)?"
    r"Cutting Knowledge Date: [^\n]{0,80}\n(?:Today Date: [^\n]{0,80}\n?)?"
    r"|Knowledge Cutoff Date: [^\n]{0,80}\n(?:Today's Date: [^\n]{0,80}\n?)?|\A# Instructions\n+"
)
_BOILERPLATE = re.compile(
    r"""(?xis) \A (?:
      You\ are\ a\ helpful(?:,\ respectful\ and\ honest)?\ (?:AI\ )?assistant[^\n]{0,80}
    | You\ are\ a\ helpful,\ respectful\ and\ honest\ assistant\.\ Always\ answer.*
    | You\ are\ Qwen,\ created\ by\ Alibaba\ Cloud\.\ You\ are\ a\ helpful\ assistant\.
    | You\ are\ SmolLM[^\n]*
    | You\ are\ a\ friendly\ chatbot[^\n]*
    | You\ are\ Granite,\ developed\ by\ IBM\.[^\n]*
    | You\ are\ Phi,\ a\ language\ model\ trained\ by\ Microsoft[^\n]*
    | You\ are\ ChatGPT,\ a\ large\ language\ model\ trained\ by\ OpenAI\..*
    | A\ chat\ between\ a\ curious\ (?:user|human)\ and\ an\ artificial\ intelligence\ assistant\..*
    ) \Z"""
)
_TOOLS = re.compile(r"(?:\A|\n\n)# Tools\n\n[^<]{0,800}<tools></tools>[^<]{0,800}<tools>\n")
"""How Hermes' and Qwen's templates begin the tools, one a line, behind the system prompt."""

_TOOLS_END = "\n</tools>"

_UNSAID = re.compile(r"<(think|tool_call)>")
"""What begins a part that a message's content leaves out of a reply that a template writes whole."""

_TOOL_TAGS = re.compile(r"</?tool_response>")
_REPLY_TAIL = 8
_ASKED_HEAD, _ASKED_TAIL = 1200, 600  # characters kept of an earlier request


def conversation(turns: Sequence[Turn]) -> Conversation:
    tools = sum(_tools(turn.text) for turn in turns if turn.role == "system")
    kept = [Turn(role, _stripped(role, text)) for role, text in turns]
    while kept and kept[-1].role == "assistant":  # the opened, perhaps prefilled, reply
        kept.pop()
    replies = [i for i, turn in enumerate(kept) if turn.role == "assistant"]
    last = replies[-1] if replies else -1
    system = "\n\n".join(turn.text for turn in kept if turn.role == "system" and turn.text)
    starts = [0, *(at + 1 for at in replies)]
    latest = list(zip(starts, replies, strict=False))[-_REPLY_TAIL:]
    context = Context(
        turn=len(replies),
        reply_lens=tuple(estimate_tokens(kept[at].text) for _, at in latest),
        asked=tuple(_cut(_asked(kept[start:at])) for start, at in latest),
        system=system,
        tools=tools,
    )
    return Conversation(_asked(kept[last + 1 :]), context)


def _asked(turns: Sequence[Turn]) -> str:
    return "\n\n".join(turn.text for turn in turns if turn.role != "system" and turn.text)


def _cut(text: str) -> str:
    if len(text) <= _ASKED_HEAD + _ASKED_TAIL:
        return text
    return f"{text[:_ASKED_HEAD]}\n{text[-_ASKED_TAIL:]}"


def _tools(system: str) -> int:
    """Return how many tools a template wrote behind a system prompt."""
    return _parted(system.strip())[1]


def _parted(system: str) -> tuple[str, int]:
    """Return a stripped system prompt without the tools that a template wrote behind it, and their number."""
    found = _TOOLS.search(system)
    end = system.find(_TOOLS_END, found.end() - 1) if found else -1
    if found is None or end < 0:
        return system, 0
    return system[: found.start()], system.count("\n", found.end(), end) + 1


def _said(reply: str) -> str:
    """Return a reply without its thoughts and tool calls; a part that is never closed stays."""
    parts: list[str] = []
    at, closes = 0, {"think", "tool_call"}
    for found in _UNSAID.finditer(reply):
        name = found[1]
        if found.start() < at or name not in closes:
            continue
        end = reply.find(f"</{name}>", found.end())
        if end < 0:
            closes.discard(name)  # not again: each search goes to the end of the text
            continue
        parts.append(reply[at : found.start()])
        at = end + len(name) + 3
    return "".join([*parts, reply[at:]])


def _stripped(role: str, text: str) -> str:
    text = text.strip()
    if role == "system":
        text = _parted(_DATES.sub("", text))[0].strip()
        return "" if _BOILERPLATE.match(text) else text
    if role == "assistant":
        return _said(text).strip()
    return _TOOL_TAGS.sub("", text).strip() if "tool_response>" in text else text


def plain(text: str) -> str:
    """Unix newlines, and no lone surrogates: a tokenizer would not see them either."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
