"""What a reproduction says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Value = float | str | int | bool | Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of ours beside the paper's, both in `unit`; None where the paper gives none."""

    setting: str
    measure: str
    ours: float
    paper: float | None = None
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's."""
        return self.ours / self.paper if self.paper else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One shape the paper claims: whether ours shows it, and why we say so, with the numbers.

    `source` is how sure we are that the paper says so: "stated", "measured" (its released code was
    run), "second-hand", "recalled" or "inferred". `reworded` says, where the criterion was changed
    after a first run had been seen, what was changed and what the stricter one gives.
    """

    text: str
    holds: bool
    reason: str
    source: str
    reworded: str = ""

    @property
    def verdict(self) -> str:
        """Return "yes" or "no", and whether the criterion is the first one."""
        return ("yes" if self.holds else "no") + (", reworded" if self.reworded else "")

    @property
    def explanation(self) -> str:
        """The numbers, and how the criterion came to be."""
        return self.reason + (f". Reworded after a first run: {self.reworded}" if self.reworded else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot as SVG text, with its legend: name to CSS class."""

    title: str
    svg: str
    legend: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """One published result, run again.

    `settings` are all parameters; `unconfirmed` says of which no source confirms the value, and why
    it was chosen. `notes` are what a reader must know to judge the comparison.
    """

    name: str
    title: str
    paper: str
    rows: Sequence[Row]
    claims: Sequence[Claim]
    figures: Sequence[Figure]
    settings: Mapping[str, Value]
    unconfirmed: Mapping[str, str]
    notes: Sequence[str]
    cpu_s: float = 0.0

    @property
    def reproduced(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def timed(self, cpu_s: float) -> Reproduction:
        """Return the same with the CPU time it took [s]."""
        return dataclasses.replace(self, cpu_s=cpu_s)

    def as_json(self) -> dict[str, Any]:
        """Return all but the figures as plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "reproduced": self.reproduced,
            "claims": [dataclasses.asdict(claim) for claim in self.claims],
            "rows": [{**dataclasses.asdict(row), "ours_over_paper": row.ratio} for row in self.rows],
            "settings": dict(self.settings),
            "unconfirmed": dict(self.unconfirmed),
            "notes": list(self.notes),
            "cpu_s": round(self.cpu_s, 2),
        }
