"""One request as every part of `sooner` carries it: read once, rendered by nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from sooner.chat import messages as chat_messages
from sooner.chat.context import estimate_tokens
from sooner.chat.conversation import Conversation, Turn, conversation
from sooner.chat.signals import UNSAID, Signals
from sooner.chat.templates import read
from sooner.core import ConfigError, DataError

Detokenize: TypeAlias = Callable[[Sequence[int]], str]
"""Turns token ids into text, a chat template's marks kept."""

_OF_A_TURN = 5  # tokens, about, that a chat template adds to a turn


class ChatRequest(NamedTuple):
    """What was asked, as token ids, as one text or as turns, and what was said besides.

    One text, or a lone user's turn, may be a prompt that a chat template rendered; it is then read back
    into turns. An empty text stands for a prompt that no ranker reads.
    """

    prompt: Sequence[int] | str | tuple[Turn, ...] = ""
    signals: Signals = UNSAID

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ChatRequest:
        """Return the request in the JSON body of a completion, a chat or a response.

        Raises DataError for messages of another shape; `of_body` takes them for an empty text.
        """
        return cls(_prompt(body), Signals.of(body))

    @property
    def tokenized(self) -> bool:
        """Whether the prompt is token ids, which only a tokenizer turns into text."""
        prompt = self.prompt
        return not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], tuple)

    @property
    def readable(self) -> bool:
        """Whether there is a text that a ranker without a tokenizer can read."""
        return bool(self.prompt) and not self.tokenized

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt, estimated where it is text; at least 1."""
        if self.tokenized:
            return len(self.prompt)
        text = self._lone_text
        if text is not None:
            return max(1, round(estimate_tokens(text)))
        tokens = 0.0
        for turn in self.turns:
            tokens += estimate_tokens(turn.text) + _OF_A_TURN
        return max(1, round(tokens))

    def opening(self, letters: int) -> str:
        """Return the first `letters` of the text: equal where prompts begin alike. Empty for token ids."""
        if isinstance(self.prompt, str):
            return self.prompt[:letters]
        if self.tokenized:
            return ""
        parts, left = [], letters
        for turn in self.turns:
            if left <= 0:
                break
            parts.append(f"{turn.role}\n{turn.text[:left]}\n")
            left -= len(turn.text)
        return "".join(parts)

    def cut(self, letters: int) -> ChatRequest:
        """Return the request with at most `letters` of text: of what is longer, the two ends.

        The last turns come first, but for a quarter that the first turn, mostly the system prompt, may take.
        """
        if isinstance(self.prompt, str):
            return self._replace(prompt=_ends(self.prompt, letters))
        if self.tokenized or sum([len(turn.text) for turn in self.turns]) <= letters:
            return self
        first, *rest = self.turns
        first = first._replace(text=_ends(first.text, letters // 4 if rest else letters))
        left = letters - len(first.text)
        kept: list[Turn] = []
        for turn in reversed(rest):
            kept.append(turn._replace(text=_ends(turn.text, left)))
            left -= len(kept[-1].text)
        return self._replace(prompt=(first, *reversed(kept)))

    def conversation(self, detokenize: Detokenize | None = None) -> Conversation:
        """Return the text to rank and its context, signals included.

        Raises ConfigError for token ids where there is no `detokenize`.
        """
        if self.tokenized:
            if detokenize is None:
                raise ConfigError("token ids came, and there is no tokenizer to read them")
            seen = read(detokenize(self.prompt))  # type: ignore[arg-type]  # `tokenized` says so
        else:
            text = self._lone_text
            seen = conversation(self.turns) if text is None else read(text)
        said = self.signals
        context = replace(
            seen.context,
            max_tokens=said.max_tokens,
            temperature=said.temperature,
            tools=said.tools or seen.context.tools,
            structured=said.structured,
        )
        return Conversation(seen.prompt, context)

    @property
    def _lone_text(self) -> str | None:
        """The one text that the request is, or None for a conversation."""
        if isinstance(self.prompt, str):
            return self.prompt
        first, *rest = self.turns
        return None if rest or first.role != "user" else first.text

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns; only for a request that is neither one text nor token ids."""
        return self.prompt  # type: ignore[return-value]  # its callers have asked for the other kinds


def of_body(body: Mapping[str, Any]) -> ChatRequest:
    """Return the request in a JSON body; an odd message is the engine's to judge and has no text here."""
    try:
        return ChatRequest.of(body)
    except (DataError, RecursionError):
        return ChatRequest("", Signals.of(body))


def of_messages(messages: Sequence[Mapping[str, Any]], signals: Signals = UNSAID) -> ChatRequest:
    """Return the request in messages. Raises DataError for messages of another shape."""
    return ChatRequest(chat_messages.turns(messages), signals)


def _prompt(body: Mapping[str, Any]) -> Sequence[int] | str | tuple[Turn, ...]:
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # of several prompts the first speaks for all
    instructions = body.get("instructions")  # of OpenAI's Responses: the system prompt
    if not isinstance(instructions, str) or not instructions:
        instructions = None
    if isinstance(prompt, str):
        if instructions is None:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    messages = body.get("messages", prompt)
    if not isinstance(messages, list):
        return ""
    system = (Turn("system", instructions),) if instructions is not None else ()
    read = (*system, *chat_messages.turns(messages))
    return read or ""


def _ends(text: str, letters: int) -> str:
    if len(text) <= letters:
        return text
    half = max(letters, 0) // 2
    return text[:half] + text[len(text) - half :]
