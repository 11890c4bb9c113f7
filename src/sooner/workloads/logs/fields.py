"""What shapes share: the names under which logs keep the same thing, and how each is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sooner import chat
from sooner.workloads.numbers import number, seconds, tokens, usable

OUTPUT = (
    *("output_len", "output_tokens", "completion_tokens", "completionTokens", "outputTokens"),
    *("output_length", "output_token_count", "completion_token_count", "outputTokenCount"),
    *("generated_tokens", "num_output_tokens", "num_generated_tokens", "eval_count", "tokens_predicted"),
    *("predicted_n",),
    *("candidatesTokenCount", "candidates_token_count", "output_token_ids", "output_toks", "output"),
)
PROMPT = (
    *("prompt_len", "prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "input_length"),
    *("prompt_token_count", "inputTokenCount", "promptTokenCount", "prompt_eval_count", "input"),
)
CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
REASONING = (
    *("output_reasoning_tokens", "output_reasoning", "reasoning_tokens", "reasoningTokens"),
    *("thoughtsTokenCount", "thoughts_token_count"),
)
TOTAL = ("total_tokens", "totalTokens", "total", "totalTokenCount", "total_token_count")
DETAILS = ("completion_tokens_details", "output_tokens_details", "completionTokensDetails")
APART = ("output_reasoning_tokens", "output_reasoning", "thoughtsTokenCount", "thoughts_token_count")
"""Thoughts under these names are counted beside the output, not within it."""
LIMITS = (
    *chat.LIMITS,
    *("max_new_tokens", "maxOutputTokens", "max_tokens_to_sample", "maxTokens", "num_predict", "n_predict"),
)
MODELS = (
    "model",
    "model_group",
    "provided_model_name",
    "providedModelName",
    "model_name",
    "modelId",
    "model_id",
)
CONVERSATIONS = (
    *("conversation_id", "conversation_hash", "session_id", "sessionId", "thread_id", "chat_id"),
    *("trace_id", "traceId"),
)
SENDERS = ("sender", "tenant", "user_id", "userId", "user", "end_user", "endUser", "user_api_key_user_id")
MOMENTS = (
    *("arrival_time", "arrived_at", "startTime", "start_time", "request_start_time", "created_at"),
    *("createdAt", "request_created_at", "startTimeUnixNano", "timestamp"),
)
ENDS_AT_LIMIT = ("length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "max_tokens_reached")


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    if isinstance(value, dict):  # nearly always, and a Mapping is asked after far more slowly
        return value
    return value if value is not None and isinstance(value, Mapping) else {}


def first_mapping(record: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Return the first of the fields that is a mapping, or an empty one."""
    for name in names:
        value = record.get(name)
        if value is not None and isinstance(value, dict | Mapping):
            return value
    return {}


def text_in(sources: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """Return the first text, or whole number as text, under one of the names."""
    for source in sources:
        for name in names:
            value = source.get(name)
            if value is None:
                continue
            if isinstance(value, str) and value:
                return value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
    return None


def moment_in(sources: Iterable[Mapping[str, Any]]) -> float | None:
    """Return when the request came [s], None where no field says it."""
    for source in sources:
        for name in MOMENTS:
            value = source.get(name)
            if value is not None and (found := seconds(value)) is not None:
                return found
    return None


def reply_tokens(top: Sequence[Mapping[str, Any]], usages: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the tokens of the reply as a record counts them, thoughts included; None where it does not.

    `top` are the record and its response, in which only a JSON number under `output` is a count;
    `usages` are objects of counts. A count of 0, and one that cannot be, gives way to any other.
    """
    found: list[float] = []
    for source in top:
        for name in OUTPUT:
            value = source.get(name)
            if value is None:
                continue
            if name == "output" and not isinstance(value, int | float):
                continue
            if (counted := tokens(value)) is not None:
                found.append(counted)
    found += [total for usage in usages if (total := _of_usage(usage)) is not None]
    return next((value for value in found if usable(value) and value > 0), found[0] if found else None)


def prompt_tokens(sources: Sequence[Mapping[str, Any]], usages: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the tokens of the prompt as a record counts them, None where it does not."""
    for source in sources:
        for name in PROMPT[:-1]:
            value = number(source.get(name))
            if value is not None and usable(value) and value > 0:
                return value
    for usage in usages:
        value = _counted(usage, PROMPT)
        cached = [number(usage.get(name)) or 0.0 for name in CACHED]  # Anthropic counts them beside
        if value is not None and usable(value) and value + sum(cached) > 0:
            return value + sum(cached)
    return None


def _of_usage(usage: Mapping[str, Any]) -> float | None:
    """The reply's tokens of an object of counts, with thoughts where they are counted apart."""
    unit = usage.get("unit")
    if isinstance(unit, str) and unit.upper() not in ("TOKENS", "TOKEN"):
        return None
    output = _counted(usage, OUTPUT)
    details = first_mapping(usage, DETAILS)
    apart = next((name for name in REASONING if number(usage.get(name)) is not None), None)
    thought = number(usage.get(apart)) if apart else number(details.get("reasoning_tokens"))
    if output is None:
        return thought if apart in APART else None
    if not thought or not usable(thought) or not usable(output):
        return output
    prompt, total = _counted(usage, PROMPT), _counted(usage, TOTAL)
    if prompt is not None and total is not None and total in (prompt + output, prompt + output + thought):
        return total - prompt
    return output + thought if apart in APART or thought > output else output


def _counted(usage: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        value = usage.get(name)
        if value is not None and (counted := tokens(value)) is not None:
            return counted
    return None
