"""Numbers and times as logs write them: JSON numbers, text with separators, dates, any unit of an epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:([, '\u00a0\u2009\u202f\u2019_])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_INDIAN = re.compile(r"[-+]?\d{1,2}(?:,\d\d)+,\d{3}(?:\.\d+)?")
_NAMED = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
_UNITS_OF_TIME = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""An epoch from here on is counted in nano-, micro- or milliseconds: so many to a second."""


def number(value: Any) -> float | None:
    """Return a number however it is written (`7`, `"7"`, `"1,200"`, `"7e2"`), None for what is none.

    What is too large for a float is infinite. A truth value is no number.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, str):
        text = value.strip()
        if _PLAIN.fullmatch(text):
            return float(text)
        if found := _GROUPED.fullmatch(text):
            return float(text.replace(found[1], ""))
        if _INDIAN.fullmatch(text):
            return float(text.replace(",", ""))
        return _NAMED.get(text.lower())
    if isinstance(value, Mapping):
        return _measured(value)
    if hasattr(value, "__float__"):  # Decimal, and NumPy's scalars
        return float(value)
    return None


def tokens(value: Any) -> float | None:
    """Return a count of tokens: a number, a quantity in tokens, or how many ids a list holds."""
    if isinstance(value, list):
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        return float(len(value)) if value and whole else None
    return number(value)


def usable(value: float | None) -> bool:
    """Return whether a length is a finite number >= 0 that a reply can have [tokens]."""
    return value is not None and math.isfinite(value) and 0 <= value < 1e9


def _measured(value: Mapping[str, Any]) -> float | None:
    """The number of a quantity with its unit, where that is tokens."""
    unit = value.get("unit", "tokens")
    if not isinstance(unit, str) or unit.lower() not in ("tokens", "token", "count", ""):
        return None
    inner = value.get("value", value.get("count"))
    return None if isinstance(inner, Mapping) else number(inner)


def seconds(value: Any) -> float | None:
    """Return a moment [s]: a date (UTC where it names no zone), or a number of any unit of the epoch.

    Numbers that are no epoch are seconds from some start. None for what is no time.
    """
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return moment.timestamp()
    found = number(value)
    if found is not None:
        if not math.isfinite(found):
            return None
        return found / next((unit for least, unit in _UNITS_OF_TIME if abs(found) >= least), 1.0)
    return date(value) if isinstance(value, str) else None


def date(text: str) -> float | None:
    """Return an ISO date [s], UTC where it names no zone; None for what is no date."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d+))?\s*(Z|UTC|[-+]\d\d:?\d\d|[-+]\d\d)?",
        text.strip(),
    )
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    zone = {"Z": "+00:00", "UTC": "+00:00", None: "+00:00"}.get(zone, zone)
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{zone}")
    except ValueError:
        return None
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
