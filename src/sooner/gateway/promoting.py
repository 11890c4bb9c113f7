"""The wish to promote, asked of a running gateway from outside."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from sooner.core import ConfigError, EngineError

_PATIENCE = 30.0
_MOST = 1 << 20


def ask(
    url: str, admin_key: str = "", *, by: str = "", if_better: bool = False, what: str = "ranker"
) -> dict[str, Any] | None:
    """Ask the gateway at `url` that its shadow acts; return how both stand, None where it is not better.

    `what` is "ranker" or "policy".

    Raises ConfigError where it has no shadow or the key is wrong, EngineError where it does not answer.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"url {url!r}, allowed: a gateway's, such as http://127.0.0.1:8080")
    headers = {"Content-Type": "application/json"}
    if admin_key:
        headers["Authorization"] = f"Bearer {admin_key}"
    body = json.dumps({"by": by, "if_better": if_better, "what": what}).encode()
    where = url.rstrip("/") + "/sooner/v1/promote"
    try:
        with urllib.request.urlopen(urllib.request.Request(where, body, headers), timeout=_PATIENCE) as reply:
            found: dict[str, Any] = json.loads(reply.read(_MOST))
            return found
    except urllib.error.HTTPError as error:
        with error:
            said, code = _words(error.read(_MOST))
        if code == "not_better":
            return None
        kind = EngineError if error.code >= 500 else ConfigError
        raise kind(f"{url}: {said or f'status {error.code}'}") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"no gateway answers at {url!r}: {error}") from error


def _words(body: bytes) -> tuple[str, str]:
    """Return the message and the code of an answer that says no."""
    try:
        said = json.loads(body)["error"]
        return str(said["message"])[:300], str(said["code"])
    except (ValueError, KeyError, TypeError):
        return "", ""
