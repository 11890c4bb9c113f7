"""Amazon Bedrock's log of invocations: Converse, and what each maker's models take."""

from __future__ import annotations

from collections.abc import Iterator

from sooner.workloads.logs import fields
from sooner.workloads.logs.exchange import Exchange
from sooner.workloads.logs.fields import mapping
from sooner.workloads.logs.messages import text_of
from sooner.workloads.logs.report import Report
from sooner.workloads.logs.shapes import Dropped, Record, plain, shape


def _is_one(record: Record) -> bool:
    return record.get("schemaType") == "ModelInvocationLog" or "inputBodyJson" in mapping(record.get("input"))


@shape("bedrock", when=_is_one)
def bedrock(record: Record, report: Report) -> Iterator[Exchange | Dropped]:
    """Read one invocation; its counts stand outside of the bodies."""
    asked, given = mapping(record.get("input")), mapping(record.get("output"))
    body, reply = mapping(asked.get("inputBodyJson")), mapping(given.get("outputBodyJson"))
    if not body:
        yield Dropped("an invocation of Bedrock whose body lies elsewhere (S3)")
        return
    if record.get("errorCode"):
        yield Dropped("a request that failed")
        return
    inference = {**mapping(body.get("inferenceConfig")), **mapping(body.get("textGenerationConfig"))}
    made = mapping(mapping(reply.get("output")).get("message"))
    text = text_of(
        made.get("content") or reply.get("content") or reply.get("generation") or reply.get("outputText")
    )
    limit = {"max_tokens": inference.get("maxTokens", inference.get("maxTokenCount"))}
    yield from plain.plain(
        {
            "id": record.get("requestId"),
            "model": record.get("modelId"),
            "timestamp": record.get("timestamp"),
            "user": fields.text_in((mapping(record.get("identity")),), ("arn",)),
            "prompt": body.get("prompt", body.get("inputText")),
            **body,
            **{name: value for name, value in limit.items() if value is not None},
            "temperature": body.get("temperature", inference.get("temperature")),
            "output_tokens": given.get("outputTokenCount"),
            "input_tokens": asked.get("inputTokenCount"),
            "response": {
                "content": text,
                "stop_reason": reply.get("stopReason", reply.get("stop_reason")),
                "usage": reply.get("usage"),
            },
        },
        report,
    )
