"""The text a ranker sees: the same for the trainer, who has messages, and for the scheduler, who has
the rendered prompt of a chat template with its markers, roles and default system prompt.

The text of a request is what came after the last reply: the user's message (and tool results), each
stripped, joined by an empty line. Earlier turns and the system prompt become `Context`.
`clean(render(messages)) == from_messages(messages)` holds for ChatML (Qwen, SmolLM2, Phi-4), Llama 2,
3 and 4, Mistral, Gemma, Phi-3, Zephyr, Granite, DeepSeek, Command R, gpt-oss and Vicuna templates, but for
two: a template that writes the system prompt into the user's turn without a mark (Gemma, Mistral before v7)
keeps it in the text, and a message that itself holds the template's markers is split there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sooner.core import DataError
from sooner.rankers.context import Context, estimate_tokens


class Turn(NamedTuple):
    """One message: its role as we call it (`system`, `user`, `assistant`, `tool`) and its text."""

    role: str
    text: str


class Conversation(NamedTuple):
    """The request as a ranker sees it: the text to rank, and what came before it."""

    prompt: str
    context: Context


class _Template(NamedTuple):
    signs: tuple[str, ...]  # one of these is in every prompt that this template rendered
    mark: re.Pattern[str]  # every marker; a group named after a role opens a turn, others close it
    begins: tuple[str, ...] = ("",)
    ends: str = ""  # for templates of plain words: the opened reply must be the end of the prompt

    def rendered(self, text: str) -> bool:
        """Whether `text` is of this template."""
        edge = text[-200:].rstrip().endswith(self.ends) and text[:200].lstrip().startswith(self.begins)
        return edge and any(sign in text for sign in self.signs)


def _template(
    signs: tuple[str, ...], mark: str, begins: tuple[str, ...] = ("",), ends: str = ""
) -> _Template:
    return _Template(signs, re.compile(mark), begins, ends)


_ROLE = (
    r"(?:(?P<system>system|developer)|(?P<user>user|human)|(?P<assistant>assistant|model|bot|gpt)"
    r"|(?P<tool>[a-z_.]{1,40}))"
)
_TEMPLATES = (
    # ChatML and Phi-4
    _template(
        ("<|im_start|>",), rf"<\|im_start\|>{_ROLE}(?:\n|<\|im_sep\|>|\Z)|<\|im_end\|>|<\|endoftext\|>"
    ),
    # Llama 3, Llama 4
    _template(
        ("<|start_header_id|>", "<|header_start|>"),
        rf"<\|(?:start_header_id|header_start)\|>{_ROLE}<\|(?:end_header_id|header_end)\|>"
        r"|<\|(?:eot_id|eom_id|eot|eom|end_of_text|begin_of_text)\|>",
    ),
    # Gemma
    _template(("<start_of_turn>",), rf"<start_of_turn>{_ROLE}(?:\n|\Z)|<end_of_turn>|<bos>|<eos>"),
    # Granite
    _template(
        ("<|start_of_role|>",),
        rf"<\|start_of_role\|>{_ROLE}(?:\s*\{{[^}}]*\}})?<\|end_of_role\|>|<\|end_of_text\|>",
    ),
    # gpt-oss (harmony); the channel belongs to the marker
    _template(
        ("<|start|>",),
        rf"<\|start\|>{_ROLE}[^<]{{0,80}}(?:<\|(?:channel|constrain)\|>[^<]{{0,80}})*(?:<\|message\|>|\Z)"
        r"|<\|(?:end|return|call)\|>",
    ),
    # Command R
    _template(
        ("<|START_OF_TURN_TOKEN|>",),
        r"<\|START_OF_TURN_TOKEN\|>(?:(?P<system><\|SYSTEM_TOKEN\|>)|(?P<user><\|USER_TOKEN\|>)"
        r"|(?P<assistant><\|CHATBOT_TOKEN\|>))(?:<\|START_RESPONSE\|>)?"
        r"|<\|END_RESPONSE\|>|<\|END_OF_TURN_TOKEN\|>|<BOS_TOKEN>",
    ),
    # DeepSeek; what stands before the first user is the system prompt
    _template(
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),  # full-width bars
        r"(?P<system><\uff5cbegin▁of▁sentence\uff5c>)|(?P<user><\uff5cUser\uff5c>)"
        r"|(?P<assistant><\uff5cAssistant\uff5c>)(?:</?think>)?|<\uff5cend▁of▁sentence\uff5c>",
    ),
    # Phi-3, Zephyr, TinyLlama
    _template(
        ("<|user|>",),
        r"(?P<system><\|system\|>)|(?P<user><\|user\|>)|(?P<assistant><\|assistant\|>)|(?P<tool><\|tool\|>)"
        r"|<\|end\|>|<\|endoftext\|>|</s>|<s>",
    ),
    # Llama 2 and Mistral
    _template(
        ("[INST]",),
        r"(?P<system><<SYS>>|\[SYSTEM_PROMPT\])|(?P<user><</SYS>>|\[INST\])|(?P<tool>\[TOOL_RESULTS\])"
        r"|(?P<assistant>\[/INST\]|\[/TOOL_RESULTS\])|\[/SYSTEM_PROMPT\]|</s>|<s>",
    ),
    # Vicuna, with its system prompt before the first user
    _template(
        ("USER: ",),
        r"(?P<system>\A(?=\S))|(?P<user>(?:(?<=\s)|(?<=</s>)|\A)USER:\s)|(?P<assistant>(?<=\s)ASSISTANT:)|</s>|<s>",
        ends=" ASSISTANT:",
    ),
    # ChatML decoded without its special tokens
    _template(
        ("user\n",),
        r"(?:(?<=\n)|\A)(?:(?P<system>system)|(?P<user>user)|(?P<assistant>assistant))(?:\n|\Z)",
        begins=("system\n", "user\n"),
        ends="\nassistant",
    ),
)

_DATES = re.compile(
    r"(?:Environment: ipython\n)?(?:Tools: [^\n]*\n)?"
    r"Cutting Knowledge Date: [^\n]*\n(?:Today Date: [^\n]*\n?)?"
    r"|Knowledge Cutoff Date: [^\n]*\n(?:Today's Date: [^\n]*\n?)?|\A# Instructions\n+"
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
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_TOOL_TAGS = re.compile(r"</?tool_response>")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
}
_REPLY_TAIL = 8
_ASKED_HEAD, _ASKED_TAIL = 1200, 600  # characters kept of an earlier request


def clean(text: str) -> str:
    """Return the text to rank of a prompt as an engine sees it, rendered by a chat template or plain."""
    return read(text).prompt


def from_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text to rank of chat messages (`role`, `content`). Raises DataError for another shape."""
    return read_messages(messages).prompt


def read(text: str) -> Conversation:
    """Return the conversation in a prompt as an engine sees it; plain text is one user turn."""
    text = _plain(text)
    for template in _TEMPLATES:
        if template.rendered(text):
            return _conversation(_turns(text, template.mark))
    return _conversation([Turn("user", _strip_stream_ends(text))])


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Return the conversation in chat messages, OpenAI's or ShareGPT's (`from`, `value`).

    Raises DataError for anything that is not a list of such messages.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise DataError(f"messages is {type(messages).__name__}; allowed: a list of {{role, content}}")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise DataError(f"a message is {type(message).__name__}; allowed: {{role, content}}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise DataError(f"a message has role {role!r}; allowed: a name such as 'user'")
        content = message.get("content", message.get("value"))
        turns.append(Turn(_ROLES.get(role.lower(), "tool"), _plain(_content(content))))
    return _conversation(turns)


def _content(content: object) -> str:
    """Text of a message's content: a string, None, or OpenAI's list of parts (text ones count)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Iterable):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    raise DataError(f"a message's content is {type(content).__name__}; allowed: text or a list of parts")


def _turns(text: str, mark: re.Pattern[str]) -> list[Turn]:
    turns: list[Turn] = []
    role: str | None = None
    start = 0
    for found in mark.finditer(text):
        if role is not None:
            turns.append(Turn(role, text[start : found.start()]))
        role = next((name for name, value in found.groupdict().items() if value is not None), None)
        start = found.end()
    if role is not None:
        turns.append(Turn(role, text[start:]))
    return turns


def _conversation(turns: Sequence[Turn]) -> Conversation:
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
    )
    return Conversation(_asked(kept[last + 1 :]), context)


def _asked(turns: Sequence[Turn]) -> str:
    return "\n\n".join(turn.text for turn in turns if turn.role != "system" and turn.text)


def _cut(text: str) -> str:
    if len(text) <= _ASKED_HEAD + _ASKED_TAIL:
        return text
    return f"{text[:_ASKED_HEAD]}\n{text[-_ASKED_TAIL:]}"


def _stripped(role: str, text: str) -> str:
    text = text.strip()
    if role == "system":
        text = _DATES.sub("", text).strip()
        return "" if _BOILERPLATE.match(text) else text
    if role == "assistant":
        return _THINK.sub("", text).strip()
    return _TOOL_TAGS.sub("", text).strip() if "tool_response>" in text else text


def _plain(text: str) -> str:
    """Unix newlines, and no lone surrogates: a tokenizer would not see them either."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _strip_stream_ends(text: str) -> str:
    return re.sub(
        r"\A(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)+|(?:</s>|<\|endoftext\|>)+\Z", "", text
    )
