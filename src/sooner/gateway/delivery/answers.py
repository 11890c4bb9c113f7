"""What the gateway says in its own name: errors in OpenAI's form, and when to come back."""

from __future__ import annotations

import json
import math
from typing import Any

from aiohttp import web

from sooner.gateway.admission.refusals import TurnedAway

_LONGEST_RETRY = 3600.0


def error(
    status: int, message: str, code: str, *, kind: str = "", headers: dict[str, str] | None = None
) -> web.Response:
    """Return an error in OpenAI's form."""
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return web.Response(
        body=error_body(message, code, kind), status=status, headers=headers, content_type="application/json"
    )


def error_body(message: str, code: str, kind: str) -> bytes:
    """Return the JSON of an error."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def refusal(refused: TurnedAway) -> web.Response:
    """Return the answer to a request that is turned away, with `Retry-After` where the time is known.

    `retry-after-ms`, which OpenAI's clients prefer, has the same in milliseconds.
    """
    headers = {"x-should-retry": "true" if refused.again else "false"}
    if refused.again:
        seconds = min(refused.retry_after if refused.retry_after is not None else 1.0, _LONGEST_RETRY)
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
        headers["retry-after-ms"] = str(max(1, round(seconds * 1000)))
    return error(refused.status, str(refused), refused.code, kind=refused.kind, headers=headers)


def as_json(data: Any, status: int = 200) -> web.Response:
    """Return data as JSON."""
    return web.Response(body=json.dumps(data).encode(), status=status, content_type="application/json")
