"""What a finished or failed sample looks like in a file: a line of ours, or one of OpenAI's batches."""

from __future__ import annotations

from typing import Any

from sooner.generate.engines import Answer
from sooner.generate.prompts import Ask


def of_answer(ask: Ask, k: int, samples: int, answer: Answer) -> dict[str, Any]:
    """Return the line of sample `k` of `samples`."""
    if ask.batch:
        body = answer.raw or {}
        name = str(body.get("id", ask.id))
        line = {
            "id": f"batch_req_{name}", "custom_id": ask.id,
            "response": {"status_code": 200, "request_id": name, "body": body}, "error": None,
        }  # fmt: skip
        return line | ({"sample": k} if samples > 1 else {})
    line = {"id": ask.id, "sample": k} if samples > 1 else {"id": ask.id}
    line |= {
        "text": answer.text, "output_len": answer.output_len, "prompt_len": answer.prompt_len,
        "finish_reason": answer.finish_reason,
    }  # fmt: skip
    if "seed" in ask.body:
        line["seed"] = ask.body["seed"]
    return line | answer.message


def of_part(ask: Ask, k: int, samples: int, tokens: int, text: str) -> dict[str, Any]:
    """Return the line of a sample that was ended early, with what it had."""
    own = {"sample": k} if samples > 1 else {}
    return {"id": ask.id, **own, "text": text, "output_len": tokens}


def read(line: dict[str, Any], batch: bool) -> tuple[str | int, int, int]:
    """Return id, number and length of a finished sample. Raises KeyError, TypeError or ValueError."""
    k = int(line.get("sample", 0))
    if batch:
        return line["custom_id"], k, int(line["response"]["body"]["usage"]["completion_tokens"])
    return line["id"], k, int(line["output_len"])


def of_failure(ask: Ask, k: int, samples: int, why: str) -> dict[str, Any]:
    """Return the line of a sample that was given up."""
    own = {"sample": k} if samples > 1 else {}
    if ask.batch:
        error = {"code": "failed", "message": why}
        return {"id": f"batch_req_{ask.id}", "custom_id": ask.id, "response": None, "error": error} | own
    return {"id": ask.id, **own, "error": why}
