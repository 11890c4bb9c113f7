"""Our numbers on a `/metrics` page, a gateway's or vLLM's, and what changed between two looks."""

from __future__ import annotations

import math
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from sooner.core import DataError, EngineError

_LINE = re.compile(r"(?:vllm:)?sooner_([a-z0-9_]+)(?:\{[^}]*\})? +([^ ]+)")
_MOST = 8 << 20  # bytes of a page
SHADOWS = tuple(
    f"{shadow}{measure}"
    for shadow in ("shadow", "shadow_policy")
    for measure in ("_acting_expected_gain", "_expected_gain", "_better_expected_gain_error", "_better_tau")
)
"""What is shown of a shadow, where there is one."""

_SUMMED = ("_total", "_sum", "_count", "waiting", "running")
SHOWN = (
    "waiting",
    "running",
    "backlog_seconds",
    "waiting_work_seconds",
    "usual_wait_seconds",
    "ranker_tau",
    "ranker_on",
    *SHADOWS,
)
RATES = ("requests", "finished", "scored", "second_looks", "hook_errors", "bypassed")


def numbers(text: str) -> dict[str, float]:
    """Return our numbers by name; over several engines counts are added, of gauges the largest is taken."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match[1].endswith("_bucket"):
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        name = match[1]
        if math.isfinite(value):
            summed = name.endswith(_SUMMED)
            found[name] = found.get(name, 0.0) + value if summed else max(found.get(name, value), value)
    return found


def fetch(url: str) -> dict[str, float]:
    """Return our numbers at a URL. Raises EngineError where nothing answers, DataError where none is ours."""
    if urlsplit(url).path in ("", "/"):
        url = url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            text = reply.read(_MOST).decode("utf-8", "replace")
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        raise EngineError(f"no metrics at {url!r}: {error}") from error
    found = numbers(text)
    if not found:
        raise DataError(f"{url!r} has no sooner_ metric; allowed: a gateway's, or vLLM's with the plugin")
    return found


def look(now: Mapping[str, float], before: Mapping[str, float] | None, seconds: float) -> dict[str, float]:
    """Return what is shown: gauges, and counts a second since the look before."""
    told = {name: now[name] for name in SHOWN if name in now}
    if before is not None and seconds > 0:
        for name in RATES:
            counter = f"{name}_total"
            if counter in now:
                told[f"{name}_per_s"] = max(0.0, now[counter] - before.get(counter, 0.0)) / seconds
        for name in ("wait_seconds", "request_seconds"):
            count = now.get(f"{name}_count", 0.0) - before.get(f"{name}_count", 0.0)
            if count > 0:
                told[f"mean_{name}"] = (now[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / count
    return told
