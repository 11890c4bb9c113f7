"""Numbers and names as people read them; names of strangers, cut and made harmless."""

from __future__ import annotations

import html
import math
import unicodedata

LONGEST = 48
"""Letters of a name that are shown."""
UNKNOWN = "\N{EN DASH}"
_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode categories that are no letters: controls, marks that turn the direction of text, line breaks."""


def plain(text: str, most: int = LONGEST) -> str:
    """Return a name on one line, of at most `most` letters, without what would change the text around it."""
    cut = text[: most + 1]
    seen = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in _HIDDEN else character
        for character in cut
    )
    seen = _few_marks(seen)
    return seen if len(text) <= most else seen[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _few_marks(text: str) -> str:
    """Return text with at most two accents in a row: more would climb out of their line."""
    found: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= 2:
            found.append(character)
    return "".join(found)


def name(text: str, most: int = LONGEST) -> str:
    """Return a stranger's name as HTML that is text and nothing else, whatever its direction."""
    return f"<bdi>{html.escape(plain(text, most))}</bdi>"


def seconds(value: float | None) -> str:
    """Return a duration in words, a dash where it is not known."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def count(value: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return (
        UNKNOWN
        if value is None or not math.isfinite(value)
        else f"{value:,.0f}".replace(",", "\N{THIN SPACE}")
    )


def share(value: float | None) -> str:
    """Return a share in percent."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"
