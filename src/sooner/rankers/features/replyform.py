"""The form of a reply in numbers: auxiliary targets, of which the length is the sum."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_ITEM = re.compile(r"^[^\S\n]*(?:\d+[.)]|[-*•])\s", re.MULTILINE)
_REFUSAL = re.compile(r"as an ai|i'?m sorry|i am sorry|i apologi[sz]e|i cannot|unable to|i don't have", re.I)


class Form(NamedTuple):
    """One reply. Counts are natural logs of 1 + n."""

    code: float
    items: float
    paragraphs: float
    lines: float
    refusal: float
    table: float
    not_ascii: float  # share of characters
    digits: float  # share of characters
    first_line: float  # [log characters]
    preamble: float
    finished: float


FORMS = Form._fields


def forms(reply: str) -> Form:
    """Return the form of one reply."""
    start = reply[:2000]
    size = max(len(start), 1)
    return Form(
        code=float("```" in reply or "\n    " in reply or "Copy code" in reply),
        items=math.log1p(len(_ITEM.findall(reply))),
        paragraphs=math.log1p(reply.count("\n\n")),
        lines=math.log1p(reply.count("\n")),
        refusal=float(_REFUSAL.search(start[:300]) is not None),
        table=float("|" in reply and "---" in reply),
        not_ascii=sum(ord(letter) > 127 for letter in start) / size,
        digits=sum(letter.isdigit() for letter in start) / size,
        first_line=math.log1p(len(reply.split("\n", 1)[0])),
        preamble=float(reply.lstrip()[:4].lower() in ("sure", "cert", "of c", "here", "yes,", "yes ")),
        finished=float(reply.rstrip()[-1:] in tuple(".!?:`)]}\"'")),
    )
