"""What a request says besides its text, read by one set of rules from any settings that name it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
"""What a limit on the reply of a chat or completion may be called, the newest name first."""

LIMITS = (*CHAT_LIMITS, "max_output_tokens")
"""What any request's limit on its reply may be called."""

USUAL_TEMPERATURE = 1.0
"""What the API means where a client says nothing; saying it tells no more than silence."""

SENDERS = ("sender", "safety_identifier", "user", "prompt_cache_key")
"""What a request may call its sender; OpenAI's `user` is being replaced by the two beside it."""

_LONGEST_NAME = 256
_HOTTEST = 1e3
_LARGEST = 2**31 - 1  # tokens; what a column of the journal and the wire hold
_FORMS = (
    *("response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
_SAYS_FORM = frozenset((*_FORMS, "structured", "text"))


class Signals(NamedTuple):
    """The limit on the reply [tokens], and what else was set; each default means "not said".

    A temperature of 1 is the API's own default and reads as not said, so that a reader who sees only
    values already filled in says the same as one who sees the client's own words.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    tools: int = 0
    structured: bool = False  # JSON, a grammar or a schema was asked for
    model: str = ""  # its alias or adapter, as the client names it
    sender: str = ""  # a tenant, a key or a user, whatever tells senders apart

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Signals:
        """Return what a request's settings say. Never raises: what is of the wrong kind was not said."""
        return cls(
            reply_limit(settings),
            temperature(settings.get("temperature")),
            _tools(settings.get("tools")),
            _structured(settings),
            _name(settings.get("model")),
            sender(settings),
        )


UNSAID = Signals()


def reply_limit(settings: Mapping[str, Any]) -> int | None:
    """Return the limit on the reply [tokens] that settings name, None where they name none."""
    for name in LIMITS:
        if name in settings and (limit := limit_tokens(settings[name])) is not None:
            return limit
    return None


def limit_tokens(value: object) -> int | None:
    """Return a limit as a whole number of tokens >= 1, None where it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _LARGEST:
        return None
    return int(value)


def temperature(value: object) -> float | None:
    """Return a sampling temperature, None where it is the usual one or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _HOTTEST:
        return None
    return None if value == USUAL_TEMPERATURE else float(value)


def sender(settings: Mapping[str, Any]) -> str:
    """Return what tells the sender of a request apart, "" where nothing does."""
    for name in SENDERS:
        if name in settings and (found := _name(settings[name])):
            return found
    return ""


def _name(value: object) -> str:
    return value[:_LONGEST_NAME] if isinstance(value, str) else ""


def _tools(value: object) -> int:
    """Return how many tools there are: a list of them, or their number as `sooner export` writes it."""
    if isinstance(value, list):
        return len(value)
    return max(value, 0) if type(value) is int else 0


def _structured(settings: Mapping[str, Any]) -> bool:
    if _SAYS_FORM.isdisjoint(settings):
        return False
    if settings.get("structured") is True:  # as `sooner export` writes it
        return True
    forms = [settings[name] for name in _FORMS if name in settings]
    text = settings.get("text")  # OpenAI's Responses
    if isinstance(text, Mapping):
        forms.append(text.get("format"))
    return any(form and not (isinstance(form, Mapping) and form.get("type") == "text") for form in forms)
