"""What a job is, whatever engines run it: goal, samples, order, and how replies are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sooner.core import ConfigError
from sooner.generate.goals import Goal
from sooner.generate.prompts import Ask
from sooner.rankers import DEFAULT
from sooner.replay.client import seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What a job is, whatever engines run it. `seed` draws samples and controls.

    `max_tokens`, `temperature`, `top_p` go with each request whose line does not say its own. With a
    `seed_base` each sample is seeded by its id and number, so that it comes out the same again. `turns`:
    replies may make room for others at the end, where nothing is selected and an engine can go on with them.
    """

    goal: Goal = field(default_factory=Goal)
    samples: int = 1
    order: str = "auto"
    ranker: str = DEFAULT
    api: str = "chat"
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed_base: int | None = None
    seed: int = 0
    turns: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples}, allowed: at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens}, allowed: at least 1")
        self.goal.policy(self.order)

    @property
    def takes_turns(self) -> bool:
        """Whether replies may be interrupted: a seeded one would come out differently."""
        return (
            self.turns and not self.goal.selects and self.order in ("auto", "longest")
            and self.seed_base is None
        )  # fmt: skip

    def facts(self, digest: str, model: str) -> dict[str, Any]:
        """Return what must be the same for a job to be gone on with."""
        goal = self.goal
        return {
            "prompts_sha256": digest, "model": model, "goal": str(goal), "balanced": goal.balanced,
            "control": goal.control if goal.selects else None, "samples": self.samples, "order": self.order,
            "ranker": self.ranker, "api": self.api, "max_tokens": self.max_tokens,
            "temperature": self.temperature, "top_p": self.top_p, "seed_base": self.seed_base,
            "seed": self.seed,
        }  # fmt: skip

    def request(self, ask: Ask, sample: int) -> Ask:
        """Return sample number `sample` of what a line asks, with the job's settings where it has none."""
        body = dict(ask.body)
        limited = "max_completion_tokens" in body
        chosen = {
            "max_tokens": None if limited else self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": None if self.seed_base is None else seed_of(f"{ask.id}/{sample}", self.seed_base),
        }
        for name, value in chosen.items():
            if value is not None:
                body.setdefault(name, value)
        return ask._replace(body=body)
