"""LangSmith's runs: messages under `inputs`, generations under `outputs`; `session_id` is the project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import normal, said, text_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, shape


@shape("langsmith", when=lambda record: "run_type" in record)
def langsmith(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one run of a model; chains, tools and retrievers generate nothing themselves."""
    if record.get("run_type") not in ("llm", "chat_model"):
        yield Dropped("a run that is no call of a model")
        return
    given, made = mapping(record.get("inputs")), mapping(record.get("outputs"))
    asked = _flat(given.get("messages", given.get("prompts", given.get("prompt", given.get("input")))))
    if not asked:
        yield Dropped("neither a prompt nor messages")
        return
    extra = mapping(record.get("extra"))
    about = {**mapping(extra.get("metadata")), **mapping(record.get("metadata"))}
    generations = _flat(made.get("generations", made.get("choices")))
    replies = [_reply(item) for item in generations] or [_reply(made)]
    usage = [mapping(mapping(made.get("llm_output")).get("token_usage")), mapping(made.get("usage_metadata"))]
    found = fields.reply_tokens((record,), usage)
    settings = {**mapping(extra.get("invocation_params")), **given}
    yield Exchange(
        messages=normal(asked, report.unread),
        replies=[text for text in replies if text],
        said=found,
        choices=max(len(generations), 1),
        at_limit=any(_ended_at_limit(item) for item in generations),
        settings=settings,
        conversation=fields.text_in((about,), fields.CONVERSATIONS)
        or fields.text_in((record,), ("trace_id",)),
        id=fields.text_in((record,), ("id",)),
        model=fields.text_in((settings, about, record), (*fields.MODELS, "ls_model_name")) or "",
        sender=fields.text_in((about,), fields.SENDERS),
        arrival_time=fields.moment_in((record,)),
        prompt_len=fields.prompt_tokens((record,), usage),
    )


def _flat(found: Any) -> list[Any]:
    """The messages of a run: a list, a list in a list (a batch of one), or one text."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        return found[0]
    return found if isinstance(found, list) else []


def _reply(generation: Any) -> str:
    if not isinstance(generation, Mapping):
        return text_of(generation)
    message = mapping(generation.get("message"))
    inner = mapping(message.get("kwargs")) or message
    return (
        said(inner)
        if inner
        else text_of(generation.get("text", generation.get("content", generation.get("output"))))
    )


def _ended_at_limit(generation: Any) -> bool:
    info = mapping(mapping(generation).get("generation_info"))
    return info.get("finish_reason") in fields.ENDS_AT_LIMIT
