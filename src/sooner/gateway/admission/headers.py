"""The headers an engine may see: those that are named here, each once, and no other.

A list of what must not pass is never whole: engines, routers and gateways keep adding headers by
which a request chooses its place, its replica or its session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_EVERYWHERE = frozenset(("accept", "user-agent", "traceparent", "tracestate"))
_BY_PATH = {"/v1/messages": frozenset(("anthropic-version", "anthropic-beta"))}
_BY_KIND: Mapping[str, frozenset[str]] = {
    "litellm": frozenset(("openai-beta",)),
    "openai": frozenset(("openai-beta",)),
}
_VALUE = re.compile(r"[\x20-\x7e]{0,1024}\Z")

_RETURNED = frozenset(
    ("content-type", "content-encoding", "content-length", "content-language", "content-disposition",
     "cache-control", "vary", "retry-after", "retry-after-ms", "x-should-retry", "x-request-id",
     "request-id", "openai-processing-ms", "openai-version", "openai-model")
)  # fmt: skip


def forwarded(
    given: Iterable[tuple[str, str]], kind: str, path: str, id: str, content_type: str,
    ours: Mapping[str, str] = {},
) -> bytes:  # fmt: skip
    """Return the header lines of a request that an engine of this kind may see at a path.

    `id` is the request's name here, passed on where the client gave it; `content_type` is what the
    body was read as, whatever the client called it. `ours` go in place of the client's of that name.
    """
    allowed = _EVERYWHERE | _BY_KIND.get(kind, frozenset())
    for start, names in _BY_PATH.items():
        if path.startswith(start):
            allowed |= names
    lines = [f"Content-Type: {content_type}\r\n", *(f"{name}: {value}\r\n" for name, value in ours.items())]
    seen = set(ours)
    for name, value in given:
        low = name.lower()
        if low in seen:
            continue
        if low == "x-request-id" and value == id:
            seen.add(low)
            lines.append(f"X-Request-Id: {id}\r\n")
        elif low in allowed and _VALUE.match(value):
            seen.add(low)
            lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("ascii")


def returned(name: str) -> bool:
    """Return whether a header of a reply goes to the client."""
    return name.lower() in _RETURNED
