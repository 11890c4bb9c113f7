"""A prompt as an engine sees it, rendered by a chat template, read back into the turns it was made of.

`read(render(messages)) == read_messages(messages)` holds for ChatML (Qwen, SmolLM2, Phi-4), Llama 2, 3 and
4, Mistral, Gemma, Phi-3, Zephyr, Granite, DeepSeek, Command R, gpt-oss and Vicuna templates, but for two: a
template that writes the system prompt into the user's turn without a mark (Gemma, Mistral before v7) keeps
it in the text, and a message that itself holds the template's markers is split there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sooner.chat.conversation import Conversation, Turn, conversation, plain


class _Template(NamedTuple):
    signs: tuple[str, ...]  # one of these is in every prompt that this template rendered
    mark: re.Pattern[str]  # every marker; a group named after a role opens a turn, others close it
    begins: tuple[str, ...] = ("",)
    ends: str = ""  # for templates of plain words: the opened reply must be the end of the prompt

    def rendered(self, text: str) -> bool:
        """Whether `text` is of this template."""
        for sign in self.signs:
            if sign in text:
                return text[-200:].rstrip().endswith(self.ends) and text[:200].lstrip().startswith(
                    self.begins
                )
        return False


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
        rf"<\|start_of_role\|>{_ROLE}(?:\s{{0,9}}\{{[^}}]{{0,400}}\}})?<\|end_of_role\|>|<\|end_of_text\|>",
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

_STREAM_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
_STREAM_ENDS = ("</s>", "<|endoftext|>")


def clean(text: str) -> str:
    """Return the text to rank of a prompt as an engine sees it, rendered by a chat template or plain."""
    return read(text).prompt


def read(text: str) -> Conversation:
    """Return the conversation in a prompt as an engine sees it; plain text is one user turn."""
    text = plain(text)
    for template in _TEMPLATES:
        if template.rendered(text):
            return conversation(_turns(text, template.mark))
    return conversation([Turn("user", _strip_stream_ends(text))])


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


def _strip_stream_ends(text: str) -> str:
    start, end = 0, len(text)
    while mark := next((mark for mark in _STREAM_BEGINS if text.startswith(mark, start)), ""):
        start += len(mark)
    while mark := next((mark for mark in _STREAM_ENDS if text.endswith(mark, start, end)), ""):
        end -= len(mark)
    return text[start:end]
