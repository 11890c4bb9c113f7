"""What became of the records of a log: how many rows, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_MOST_FILES = 5


@dataclass(slots=True)
class Report:
    """Counts over the records of a log."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    first: dict[str, str] = field(default_factory=dict)  # by reason: where the first one stands
    estimated: int = 0  # lengths counted as a token for every four bytes
    disbelieved: int = 0  # lengths said to be 0, or what none can be, beside a reply whose text was counted
    truncated: int = 0  # replies that ended at their limit: their lengths are lower bounds
    shortened: int = 0  # requests that the log itself cut, as vLLM's --max-log-len does
    unread: Counter[str] = field(default_factory=Counter)  # parts of messages that are no text, by kind
    models: Counter[str] = field(default_factory=Counter)  # rows by the served model that a record names
    skipped: dict[str, str] = field(default_factory=dict)  # files of a folder, and why they were not read
    notes: list[str] = field(default_factory=list)  # what was done to the text of a file before it was read

    def drop(self, reason: str, where: str = "") -> None:
        """Count a record that cannot be used."""
        self.dropped[reason] += 1
        if where:
            self.first.setdefault(reason, where)

    def __str__(self) -> str:
        parts = [f"{self.rows} rows read"]
        for reason, count in self.dropped.most_common():
            where = f" ({self.first[reason]})" if reason in self.first else ""
            parts.append(f"{count} dropped: {reason}{where}")
        parts += self._of_lengths()
        if self.unread:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.unread.most_common())
            parts.append(f"parts of messages that are no text were left out: {kinds}")
        if len(self.models) > 1:
            named = ", ".join(f"{name} ({count})" for name, count in self.models.most_common(5))
            parts.append(f"{len(self.models)} models are mixed, and each has lengths of its own: {named}")
        if self.skipped:
            shown = [f"{name} ({why})" for name, why in list(self.skipped.items())[:_MOST_FILES]]
            more = len(self.skipped) - len(shown)
            rest = f", and {more} more" if more else ""
            parts.append(f"{len(self.skipped)} files were not read: {', '.join(shown)}{rest}")
        return "; ".join([*parts, *self.notes]).encode("utf-8", "replace").decode("utf-8")

    def _of_lengths(self) -> list[str]:
        parts = []
        if self.truncated:
            parts.append(
                f"{self.truncated} replies were cut off at their limit and are longer than they seem"
            )
        if self.shortened:
            parts.append(f"{self.shortened} requests were cut by the log itself (vLLM's --max-log-len)")
        if self.disbelieved:
            parts.append(
                f"{self.disbelieved} lengths of 0, or that cannot be, were not believed beside a reply"
            )
        if self.estimated:
            parts.append(f"{self.estimated} lengths estimated from text; name a tokenizer to count them")
        return parts
