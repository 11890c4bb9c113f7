"""One job, from its file of prompts to its report: what is on disk says all that is needed to go on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sooner import __version__
from sooner.core import ConfigError, DataError
from sooner.generate import ranking
from sooner.generate.course import Course, Fate, Stage
from sooner.generate.drive import Drive
from sooner.generate.engines import Answer, Maker
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal
from sooner.generate.lines import of_answer, of_failure
from sooner.generate.prompts import Ask, PromptFile
from sooner.generate.store import Lines, check_settings, write_whole
from sooner.rankers import DEFAULT
from sooner.replay.client import seed_of

_SIDE_EVERY = 5.0  # seconds between two writings of the side file


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What a job is, whatever engines run it. `seed` draws samples and controls.

    `max_tokens`, `temperature`, `top_p` go with each request whose line does not say its own. With a
    `seed_base` each sample is seeded by its id and number, so that it comes out the same again.
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

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples={self.samples}, allowed: at least 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens}, allowed: at least 1")
        self.goal.policy(self.order)

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


class OfflineJob:
    """A job and its files: OUT; beside it `.meta.json`, `.failed.jsonl`, `.control.jsonl`, `.work/`.

    Use as a context, which closes them.
    """

    def __init__(self, prompts: Path, out: Path, settings: JobSettings) -> None:
        self.settings = settings
        self.out = out
        stem = out.name.removesuffix(".jsonl")
        self.side = out.with_name(f"{stem}.meta.json")
        self.work = out.with_name(f"{stem}.work")
        self._beside = {
            name: out.with_name(f"{stem}.{name}.jsonl") for name in ("control", "partial", "failed")
        }
        self.file = PromptFile(prompts, settings.api)
        self._out = Lines(out)
        self._control = Lines(self._beside["control"])
        self._elapsed_before = 0.0
        self._steps_before: int | None = 0
        self._goal_s: float | None = None
        self._goal_steps: int | None = None
        self._started = 0.0
        self._makers: Sequence[Maker] = ()

    def __enter__(self) -> OfflineJob:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)
        self._out.close()
        self._control.close()

    @property
    def failures(self) -> Path:
        """The file that names what failed."""
        return self._beside["failed"]

    def forget(self) -> None:
        """Remove what an earlier run left."""
        for path in (self.out, self.side, *self._beside.values()):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def prepare(self, model: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Read and rank the prompts, and take in what an earlier run finished.

        Raises DataError or ConfigError where that cannot be gone on with.
        """
        settings = self.settings
        if self.out.exists() and not self.side.exists() and self.out.stat().st_size:
            raise DataError(f"{str(self.out)!r} is no job's file; allowed: another --out, or --restart")
        known = ranking.rank(
            self.file, settings.ranker, settings.max_tokens, self.work / "ranked.npz", progress
        )
        self.facts = settings.facts(self.file.digest, model)
        side = check_settings(self.side, self.facts)
        self.known = known
        self.expecting = Expectation(
            known.told.astype("f8"), known.prompt_len.astype("f8"), known.groups, known.limits.astype("f8")
        )
        self.course = Course(
            settings.goal, self.expecting, known.prompt_len.astype("f8"), samples=settings.samples,
            order=settings.order, seed=settings.seed,
        )  # fmt: skip
        self._resume(side)

    def _resume(self, side: dict[str, Any]) -> None:
        self._elapsed_before = float(side.get("elapsed_s", 0.0))
        self._steps_before = side.get("steps", 0)
        self._goal_s, self._goal_steps = side.get("goal_s"), side.get("goal_steps")
        self._out.open()
        self._control.open()
        index = self.file.index_of()
        for lines, control in ((self._out, False), (self._control, True)):
            for number, line in lines.read():
                sample, length = self._place(line, index, f"{lines.path}:{number}")
                if self.course.stage[sample] in (Stage.KEPT, Stage.CONTROL):
                    raise DataError(f"{lines.path}:{number}: a sample that came before")
                self.course.restore(sample, length, control=control)
        if self.course.kept:
            self.course.resume()
        if self._goal_s is not None and self.settings.goal.selects:
            self.course.expire()

    def _place(self, line: dict[str, Any], index: Any, where: str) -> tuple[int, int]:
        """Return which sample a line is, and its length. Raises DataError for what is no such line."""
        try:
            prompt = index.find(line["custom_id"] if self.file.batch else line["id"])
            k = int(line.get("sample", 0))
            if self.file.batch:
                length = int(line["response"]["body"]["usage"]["completion_tokens"])
            else:
                length = int(line["output_len"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not a line of this job: {error!r}") from error
        if prompt is None or not 0 <= k < self.settings.samples:
            raise DataError(f"{where}: not a sample of this job")
        return prompt * self.settings.samples + k, length

    def ask(self, sample: int) -> Ask:
        """Return what a sample asks of an engine."""
        prompt, k = divmod(sample, self.settings.samples)
        return self.settings.request(self.file.ask(prompt), k)

    async def run(
        self, makers: Sequence[Maker], *, on_sample: Callable[[int, dict[str, Any]], None] | None = None,
        look: Callable[[OfflineJob], None] | None = None, **driving: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the job on started engines to its end and return its report.

        `on_sample` is told of each sample kept, once it is on disk; `look` is called once a second. When
        cancelled, all that finished is on disk and the same job goes on from there.
        """
        self._makers, self._started = makers, time.monotonic()
        failed = Lines(self._beside["failed"])
        with contextlib.suppress(FileNotFoundError):
            self._beside["failed"].unlink()  # what failed is tried anew

        def take(sample: int, answer: Answer, fate: Fate) -> None:
            if fate is Fate.DISCARD:
                return
            prompt, k = divmod(sample, self.settings.samples)
            line = of_answer(self.ask(sample), k, self.settings.samples, answer)
            if fate is Fate.CONTROL:
                self._control.append(line)
                return
            if self.course.control[prompt] and not self.file.batch:
                line["control"] = True
            self._out.append(line)
            if self.course.met and self._goal_s is None:
                self._reached()
            if on_sample is not None:
                on_sample(sample, line)

        drive = Drive(self.course, makers, self.ask, take, **driving)
        left = None
        if self.settings.goal.seconds is not None:
            left = self.settings.goal.seconds - self._elapsed_before
        loop = asyncio.get_running_loop()
        beside = [
            loop.create_task(part)
            for part in (self._out.syncing(), self._control.syncing(), self._noting(look))
        ]
        self._write_side(complete=False)
        complete = False
        try:
            await drive.run(left)
            complete = True
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            if complete and self._goal_s is None:
                self._reached()
            self._out.close()
            self._control.close()
            if drive.failed:
                failed.open()
                for sample, why in drive.failed.items():
                    prompt, k = divmod(sample, self.settings.samples)
                    failed.append(of_failure(self.file.ask(prompt), k, self.settings.samples, why))
                failed.close()
            if not self._control.path.stat().st_size:
                self._control.path.unlink()
            self._write_side(complete=complete)
        return self.report()

    def _reached(self) -> None:
        self._goal_s, self._goal_steps = self.elapsed, self.steps
        self._write_side(complete=False)

    async def _noting(self, look: Callable[[OfflineJob], None] | None) -> None:
        since = 0.0
        while True:
            await asyncio.sleep(1.0)
            since += 1.0
            if look is not None:
                look(self)
            if since >= _SIDE_EVERY:
                since = 0.0
                self._write_side(complete=False)

    @property
    def elapsed(self) -> float:
        """Seconds that this job has run, earlier runs included."""
        return self._elapsed_before + (time.monotonic() - self._started if self._started else 0.0)

    @property
    def steps(self) -> int | None:
        """Engine steps of this job, None where an engine does not count them."""
        counts = [maker.steps for maker in self._makers]
        known = [count for count in counts if count is not None]
        if self._steps_before is None or len(known) < len(counts):
            return None
        return self._steps_before + sum(known)

    def _write_side(self, *, complete: bool) -> None:
        write_whole(
            self.side,
            {
                "sooner": __version__, "settings": self.facts, "complete": complete,
                "elapsed_s": round(self.elapsed, 3), "steps": self.steps, "goal_s": self._goal_s,
                "goal_steps": self._goal_steps, "engines": [maker.name for maker in self._makers],
            },
        )  # fmt: skip

    def report(self) -> dict[str, Any]:
        """Return what became of the job, as `--json` prints it."""
        course = self.course
        count = {stage: int((course.stage == stage).sum()) for stage in Stage}
        finished = count[Stage.KEPT] + count[Stage.CONTROL] + count[Stage.EXTRA]
        kept = course.length[course.stage == Stage.KEPT]
        thrown = course.length[(course.stage == Stage.ABORTED) | (course.stage == Stage.EXTRA)]
        return {
            "goal": str(self.settings.goal),
            "kept": count[Stage.KEPT],
            "finished": finished,
            "aborted": count[Stage.ABORTED],
            "failed": count[Stage.FAILED],
            "makespan_s": round(self.elapsed, 3),
            "goal_s": None if self._goal_s is None else round(self._goal_s, 3),
            "steps": self.steps,
            "goal_steps": self._goal_steps,
            "tokens_discarded": int(thrown.sum()),
            "kept_mean_len": round(float(kept.mean()), 2) if kept.size else None,
            "estimated_mean_len": None,
            "control_mean_len": None,
            "weights_variance": None,
        }
