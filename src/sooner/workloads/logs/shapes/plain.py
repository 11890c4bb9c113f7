"""Request and reply as OpenAI, vLLM, LiteLLM, Langfuse and Helicone log them, or as a hand writes them.

`messages`, `prompt` or `input` stand beside, or under `request` or `body`; the usage stands beside, or
under `response` or `response.body`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sooner.workloads.logs import fields, streams
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import first_mapping, mapping
from sooner.workloads.logs.messages import Message, loads, normal, role_of, said, text_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape
from sooner.workloads.logs.shapes.conversations import replies
from sooner.workloads.numbers import number

REQUESTS = ("request", "body", "request_body", "requestBody", "proxy_server_request", "kwargs", "params",
            "inputs")  # fmt: skip
RESPONSES = ("response", "response_body", "responseBody", "output", "completion_response", "result",
             "outputs")  # fmt: skip
_PROMPTS = ("messages", "prompt", "input", "text_input")
_REPLIES = (
    "content",
    "generated",
    "completion",
    "generated_text",
    "output",
    "output_text",
    "response",
    "reply",
    "text_output",
)


@shape("plain", when=lambda record: True)
def plain(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one request and its reply; messages that end with a reply of no said length are a conversation."""
    request, response = request_of(record), response_of(record)
    settings = settings_of(record, request)
    messages = _messages(settings, report)
    if messages is None:
        yield Dropped(_without_prompt(settings))
        return
    said_tokens = fields.reply_tokens((record, response), usages(record, response, request))
    texts = reply_texts(record, response, report)
    if said_tokens is None and not texts and messages and messages[-1]["role"] == "assistant":
        yield from replies(messages, _of(record, request, response, settings))
        return
    if not texts and "messages" not in request and messages[1:] and messages[-1]["role"] == "assistant":
        texts = [said(messages[-1])]  # what was counted is the reply that stands behind what was asked
        messages = messages[:-1]
    yield exchange(record, request, response, settings, messages, said_tokens, texts)


def exchange(
    record: Record,
    request: Record,
    response: Record,
    settings: Record,
    messages: Sequence[Mapping[str, Any]],
    said_tokens: float | None,
    texts: Sequence[str],
) -> Exchange:
    """Return the exchange of a request and a response."""
    choices = response.get("choices", record.get("choices"))
    asked = number(settings.get("n")) or number(settings.get("best_of")) or 1.0
    several = max(len(choices), 1) if isinstance(choices, list) else int(min(max(asked, 1.0), 1024.0))
    return Exchange(
        messages=messages,
        replies=texts,
        said=said_tokens,
        choices=several,
        at_limit=_at_limit(record, response),
        prompt_len=fields.prompt_tokens((record,), usages(record, response, request)),
        **_of(record, request, response, settings),
    )


def _of(record: Record, request: Record, response: Record, settings: Record) -> dict[str, Any]:
    """What a record says besides the messages and the reply."""
    about = mapping(record.get("metadata"))
    return {
        "settings": settings,
        "conversation": fields.text_in((record, about, request), fields.CONVERSATIONS),
        "id": fields.text_in((record,), ("id", "request_id")),
        "model": fields.text_in((record, request, response), fields.MODELS) or "",
        "sender": fields.text_in((record, about, request), fields.SENDERS),
        "arrival_time": fields.moment_in((record,)),
    }


def request_of(record: Record) -> Record:
    """Return the request's body, an empty one where it stands beside the rest."""
    request = first_mapping(record, REQUESTS)
    return {**request, **first_mapping(request, ("body",))}


def response_of(record: Record) -> Record:
    """Return the response's body: OpenAI's batches wrap it once more, streams come in chunks."""
    for name in RESPONSES:
        response = streams.whole(record.get(name))
        if isinstance(response, Mapping):
            body = streams.whole(response.get("body"))
            return body if isinstance(body, Mapping) else response
    return {}


def settings_of(record: Record, request: Record) -> Record:
    """Return what the client set, wherever it stands."""
    parameters = {**mapping(record.get("modelParameters")), **mapping(record.get("model_parameters"))}
    beside = {name: value for name, value in record.items() if value is not None}
    return {**parameters, **beside, **{name: value for name, value in request.items() if _says(value)}}


def _says(value: object) -> bool:
    """Whether a setting was made: 0 is one, an empty text or list is none."""
    return bool(value) or isinstance(value, int | float)


def usages(record: Record, response: Record, request: Record) -> list[Record]:
    """Return every object of counts."""
    names = ("usage", "usageDetails", "usage_details", "usageMetadata", "metrics", "timings", "meta")
    found = [mapping(source.get(name)) for source in (record, response, request) for name in names]
    within = [mapping(usage.get(name)) for usage in found for name in ("tokens", "billed_units")]  # Cohere's
    return [usage for usage in (*found, *within) if usage]


def _messages(settings: Record, report: Report) -> list[Message] | None:
    for name in _PROMPTS:
        found = settings.get(name)
        if isinstance(found, Mapping):
            found = found.get("messages", found.get("prompt"))
        if isinstance(found, str) and name == "messages":
            found = loads(found)  # LiteLLM's spend logs keep JSON in a column of text
        if isinstance(found, str):
            return _instructed(settings, [{"role": "user", "content": found}])
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
            return _instructed(settings, [{"role": "user", "content": found[0]}])
        if isinstance(found, list) and found and all(isinstance(item, Mapping) for item in found):
            messages = normal(found, report.unread)
            if messages:
                return _instructed(settings, messages)
    return None


def _instructed(settings: Record, messages: list[Message]) -> list[Message]:
    """The messages after the system prompt that stands beside them (OpenAI's Responses, Anthropic)."""
    system = text_of(settings.get("instructions", settings.get("system")))
    return [{"role": "system", "content": system}, *messages] if system else messages


def _without_prompt(settings: Record) -> str:
    prompt = settings.get("prompt", settings.get("input"))
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        return "a prompt of token ids, without its text"
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        return "several prompts in one request"
    if settings.get("messages") in ({}, [], "") and fields.reply_tokens((settings,), ()) is not None:
        return "a request whose prompt was not kept (LiteLLM: store_prompts_in_spend_logs)"
    if settings.get("prompt_token_ids") is not None:
        return "a prompt of token ids, without its text"
    return "neither a prompt nor messages"


def reply_texts(record: Record, response: Record, report: Report) -> list[str]:
    """Return the text of each choice, none where there is none."""
    for source in (response, record):
        choices = source.get("choices")
        if isinstance(choices, list) and choices:
            texts = [_of_choice(choice) for choice in choices if isinstance(choice, Mapping)]
            if any(texts):
                return texts
        for name in ("output", "content"):
            if isinstance(source.get(name), list) and (text := _of_items(source[name])):
                return [text]
        if isinstance(source.get("message"), Mapping) and (text := said(source["message"])):
            return [text]
        if source.get("tool_calls") and (text := said(source)):
            return [text]
        for name in _REPLIES:
            value = source.get(name)
            if isinstance(value, str) and value:
                beside = {key: source[key] for key in ("reasoning_content", "reasoning") if source.get(key)}
                return [said({**beside, "content": value})]
            if isinstance(value, Mapping) and name in ("output", "completion") and (text := said(value)):
                return [text]
            if (
                isinstance(value, list)
                and value
                and all(isinstance(i, Mapping) and role_of(i) for i in value)
            ):
                return ["\n".join(said(item) for item in value)]
    return []


def _of_choice(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    if isinstance(message, Mapping):
        return said(message)
    return text_of(choice.get("text"))


def _of_items(items: Sequence[Any]) -> str:
    """The text of what OpenAI's Responses or Anthropic's Messages put out."""
    texts = [
        said(item) if "role" in item or "content" in item else text_of([item])
        for item in items
        if isinstance(item, Mapping)
    ]
    return "\n".join(text for text in texts if text)


def _at_limit(record: Record, response: Record) -> bool:
    for source in (record, response):
        choices = source.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else {}
        ends = (source.get("finish_reason"), mapping(first).get("finish_reason"), source.get("stop_reason"))
        if any(
            isinstance(end, str) and end in fields.ENDS_AT_LIMIT for end in (*ends, source.get("done_reason"))
        ):
            return True
        if source.get("status") == "incomplete":
            return True
    return False
