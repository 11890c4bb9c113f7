"""What became of the records of a log: how many rows, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """Counts over the records of a log."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    estimated: int = 0  # lengths counted as a token for every four bytes
    truncated: int = 0  # replies that ended at their limit: their lengths are lower bounds
    models: Counter[str] = field(default_factory=Counter)  # rows by the served model that a record names

    def __str__(self) -> str:
        parts = [f"{self.rows} rows read"]
        parts += [f"{count} dropped: {reason}" for reason, count in self.dropped.most_common()]
        if self.truncated:
            parts.append(
                f"{self.truncated} replies were cut off at their limit and are longer than they seem"
            )
        if self.estimated:
            parts.append(f"{self.estimated} lengths estimated from text; name a tokenizer to count them")
        if len(self.models) > 1:
            named = ", ".join(f"{name} ({count})" for name, count in self.models.most_common(5))
            parts.append(f"{len(self.models)} models are mixed, and each has lengths of its own: {named}")
        return "; ".join(parts)
