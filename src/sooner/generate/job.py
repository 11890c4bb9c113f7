"""One job, from its file of prompts to its report: what is on disk says all that is needed to go on."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sooner import __version__
from sooner.core import DataError
from sooner.generate import bias, lines, ranking, sources
from sooner.generate.course import Course, Fate, Stage
from sooner.generate.drive import Drive
from sooner.generate.engines import Answer, Maker
from sooner.generate.expecting import Expectation
from sooner.generate.prompts import Ask, PromptFile
from sooner.generate.settings import JobSettings
from sooner.generate.store import Lines, check_settings, put_in_order, write_whole
from sooner.workloads import parquet

_SIDE_EVERY = 5.0  # seconds between two writings of the side file

OnSample = Callable[[int, dict[str, Any]], None]
OnPart = Callable[[int, int, str], None]


class OfflineJob:
    """A job and its files: OUT; beside it `.meta.json`, `.failed.jsonl` and others, and `.work/`.

    Use as a context, which closes them.
    """

    def __init__(self, prompts: Path, out: Path, settings: JobSettings) -> None:
        self.settings = settings
        self.table = out if out.suffix == ".parquet" else None
        if self.table is not None:
            parquet.required()  # said now, not when everything has been generated
            out = out.with_suffix(".jsonl")
        self.out = out
        stem = out.name.removesuffix(".jsonl")
        self.side = out.with_name(f"{stem}.meta.json")
        self.work = out.with_name(f"{stem}.work")
        names = ("control", "partial", "failed", "weights")
        self._beside = {name: out.with_name(f"{stem}.{name}.jsonl") for name in names}
        self.file = PromptFile(prompts, settings.api)
        self._out = Lines(out)
        self._control = Lines(self._beside["control"])
        self._partial = Lines(self._beside["partial"])
        self._elapsed_before = 0.0
        self._steps_before: int | None = 0
        self._goal_s: float | None = None
        self._goal_steps: int | None = None
        self._started: float | None = None
        self._told: dict[str, Any] | None = None
        self._makers: Sequence[Maker] = ()
        self._first_steps: list[int | None] = []

    def __enter__(self) -> OfflineJob:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)
        for kept in (self._out, self._control, self._partial):
            kept.close()

    @property
    def failures(self) -> Path:
        """The file that names what failed."""
        return self._beside["failed"]

    def forget(self) -> None:
        """Remove what an earlier run left."""
        for path in (self.out, self.side, self.table, *self._beside.values()):
            if path is not None:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def prepare(
        self, model: str, progress: Callable[[int, int], None] | None = None, history: Path | None = None
    ) -> None:
        """Read and rank the prompts, and take in what an earlier run finished.

        `history` is what an earlier epoch wrote: its lengths count in place of the ranker's word. Raises
        DataError or ConfigError where that cannot be gone on with.
        """
        settings = self.settings
        for path in (self.out, self.table):
            if path is not None and path.exists() and not self.side.exists() and path.stat().st_size:
                raise DataError(f"{str(path)!r} is no job's file; allowed: another --out, or --restart")
        self.file.path = sources.plain(self.file.path, self.work)
        kept = self.work / "ranked.npz"
        known = ranking.rank(self.file, settings.ranker, settings.max_tokens, kept, progress)
        told = known.told.astype(np.float64)
        self.facts = settings.facts(self.file.digest, model)
        if history is not None:
            self.facts["history_sha256"] = self._learn_from(history, told)
        side = check_settings(self.side, self.facts)
        self.known = known
        prompt_len = known.prompt_len.astype(np.float64)
        self.expecting = Expectation(told, prompt_len, known.groups, known.limits.astype(np.float64))
        self._foretold = self.expecting.mean
        self.course = Course(
            settings.goal, self.expecting, prompt_len, samples=settings.samples, order=settings.order,
            seed=settings.seed, turns=settings.takes_turns,
        )  # fmt: skip
        self._resume(side)

    def _learn_from(self, history: Path, told: bias.Column) -> str:
        """Put an earlier epoch's mean lengths where the ranker's word stands; return its digest."""
        digest = ranking.digest(history)
        index = self.file.index_of()
        total, count = np.zeros(told.shape[0]), np.zeros(told.shape[0])
        for number, line in Lines(history).read():
            try:
                name, _, length = lines.read(line, "custom_id" in line)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{history}:{number}: not a line of a job: {error!r}") from error
            prompt = index.find(name)
            if prompt is not None:
                total[prompt] += np.log1p(length)
                count[prompt] += 1
        known = count > 0
        told[known] = np.expm1(total[known] / count[known])
        return digest

    def in_order(self) -> None:
        """Put the finished samples in the order of the prompts, once the job has ended."""
        index = self.file.index_of()
        put_in_order(self.out, lambda line: self._place(line, index, str(self.out))[0])
        self._write_table()

    def _write_table(self) -> None:
        """Write what is kept once more as parquet, where it was asked for by name."""
        if self.table is not None:
            sources.write_table(self.table, self._out)

    def _resume(self, side: dict[str, Any]) -> None:
        self._elapsed_before = float(side.get("elapsed_s", 0.0))
        self._steps_before = side.get("steps", 0)
        met = self.settings.goal.selects and side.get("goal_s") is not None
        if met:
            self._goal_s, self._goal_steps = side["goal_s"], side["goal_steps"]
        self._out.open()
        index = self.file.index_of()
        for kept, control in ((self._out, False), (self._control, True)):
            for number, line in kept.read():
                sample, length = self._place(line, index, f"{kept.path}:{number}")
                if self.course.stage[sample] != Stage.WAITING:
                    raise DataError(f"{kept.path}:{number}: a sample that came before, or was not drawn")
                self.course.restore(sample, length, control=control)
        if self.course.kept:
            self.course.resume()
        if met:
            self.course.expire()
            for number, line in self._partial.read():
                sample, tokens = self._place(line, index, f"{self._partial.path}:{number}", batch=False)
                self.course.aborted(sample, tokens)
        if side.get("complete") and (met or not self.course.left()):
            self._told = side.get("report")

    def _place(
        self, line: dict[str, Any], index: Any, where: str, *, batch: bool | None = None
    ) -> tuple[int, int]:
        """Return which sample a line is, and its length. Raises DataError for what is no such line."""
        try:
            name, k, length = lines.read(line, self.file.batch if batch is None else batch)
            prompt = index.find(name)
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
        self, makers: Sequence[Maker], *, on_sample: OnSample | None = None, on_part: OnPart | None = None,
        look: Callable[[OfflineJob], None] | None = None, **driving: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the job on started engines to its end and return its report.

        `on_sample` is told of each sample kept, once it is on disk, `on_part` of each dropped one, with its
        tokens and its text; `look` is called once a second. When cancelled, all that finished is on disk and
        the same job goes on from there.
        """
        if self._told is not None:
            self._write_table()
            return self._told
        self._makers, self._started = makers, time.monotonic()
        self._first_steps = [maker.steps for maker in makers]
        self.failures.unlink(missing_ok=True)  # what failed is tried anew

        def take(sample: int, answer: Answer, fate: Fate) -> None:
            self._take(sample, answer, fate, on_sample)

        def dropped(sample: int, tokens: int, text: str, ended: bool) -> None:
            if ended:
                self._ended(sample, tokens, text)
            if on_part is not None:
                on_part(sample, tokens, text)

        drive = Drive(self.course, makers, self.ask, take, partial=dropped, **driving)
        left = self.settings.goal.seconds
        loop = asyncio.get_running_loop()
        beside = [loop.create_task(self._out.syncing()), loop.create_task(self._noting(look))]
        self._write_side()
        try:
            await drive.run(None if left is None else left - self._elapsed_before)
            if self._goal_s is None:
                self._reached()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            for kept in (self._out, self._control, self._partial):
                kept.close()
            self._name(drive.failed)
            self._write_side()
        return self._finish()

    def _take(self, sample: int, answer: Answer, fate: Fate, on_sample: OnSample | None) -> None:
        """Put a finished sample where it belongs."""
        if fate is Fate.DISCARD:
            return
        prompt, k = divmod(sample, self.settings.samples)
        line = lines.of_answer(self.ask(sample), k, self.settings.samples, answer)
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

    def _ended(self, sample: int, tokens: int, text: str) -> None:
        """Keep what there is of a sample that was ended early."""
        prompt, k = divmod(sample, self.settings.samples)
        ask = self.file.ask(prompt)
        self._partial.append(lines.of_part(ask, k, self.settings.samples, tokens, text))
        if self._goal_s is None:
            self._reached()

    def _name(self, failed: dict[int, str]) -> None:
        """Name the samples that were given up, each with the reason."""
        named = Lines(self.failures)
        for sample, why in failed.items():
            prompt, k = divmod(sample, self.settings.samples)
            named.append(lines.of_failure(self.file.ask(prompt), k, self.settings.samples, why))
        named.close()

    def _reached(self) -> None:
        self._goal_s, self._goal_steps = round(self.elapsed, 3), self.steps
        self._write_side()

    async def _noting(self, look: Callable[[OfflineJob], None] | None) -> None:
        since = 0.0
        while True:
            await asyncio.sleep(1.0)
            since += 1.0
            if look is not None:
                look(self)
            if since >= _SIDE_EVERY:
                since = 0.0
                self._write_side()

    @property
    def elapsed(self) -> float:
        """Seconds that this job has run, earlier runs included."""
        return self._elapsed_before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def steps(self) -> int | None:
        """Engine steps of this job, None where an engine does not count them."""
        total = self._steps_before
        for maker, first in zip(self._makers, self._first_steps, strict=True):
            if total is None or maker.steps is None or first is None:
                return None
            total += maker.steps - first
        return total

    def _write_side(self, told: dict[str, Any] | None = None) -> None:
        content = {
            "sooner": __version__, "settings": self.facts, "complete": told is not None,
            "elapsed_s": round(self.elapsed, 3), "steps": self.steps, "goal_s": self._goal_s,
            "goal_steps": self._goal_steps, "engines": [maker.name for maker in self._makers],
        }  # fmt: skip
        write_whole(self.side, content if told is None else {**content, "report": told})

    def _finish(self) -> dict[str, Any]:
        """Write the weights and the report beside OUT; return the report."""
        told = self.report()
        if self.settings.goal.selects:
            self._write_weights()
        self._write_table()
        self._write_side(told)
        return told

    def _write_weights(self) -> None:
        """Write what each finished sample counts, for means that stand for all."""
        path = self._beside["weights"]
        path.unlink(missing_ok=True)
        found = bias.weights(self._samples())
        written = Lines(path)
        for sample in np.flatnonzero(found).tolist():
            prompt, k = divmod(sample, self.settings.samples)
            own = {"sample": k} if self.settings.samples > 1 else {}
            written.append({"id": self.file.ask(prompt).id, **own, "weight": round(float(found[sample]), 6)})
        written.close()

    def _samples(self) -> bias.SampleColumns:
        """Return the columns of the account."""
        course, each = self.course, self.settings.samples
        kept = course.stage == Stage.KEPT
        return bias.SampleColumns(
            length=course.length.astype(np.float64),
            finished=kept | (course.stage == Stage.CONTROL) | (course.stage == Stage.EXTRA),
            ended=course.stage == Stage.ABORTED,
            kept=kept,
            control=np.repeat(course.control, each),
            expected=np.repeat(self._foretold.astype(np.float64), each),
            tenth=np.repeat(course.tenth.astype(np.int64), each),
            group=np.repeat(self.known.groups.astype(np.int64), each),
            limit=np.repeat(self.known.limits.astype(np.float64), each),
        )

    def report(self) -> dict[str, Any]:
        """Return what became of the job, as `--json` prints it."""
        course, selects = self.course, self.settings.goal.selects
        count = {stage: int((course.stage == stage).sum()) for stage in Stage}
        finished = count[Stage.KEPT] + count[Stage.CONTROL] + count[Stage.EXTRA]
        thrown = course.length[(course.stage == Stage.ABORTED) | (course.stage == Stage.EXTRA)]
        account: dict[str, Any] = {}
        if finished:
            account = (bias.report if selects else bias.unbiased)(self._samples(), self.known.names.tolist())
        return {
            "goal": str(self.settings.goal),
            "kept": count[Stage.KEPT],
            "finished": finished,
            "aborted": count[Stage.ABORTED],
            "failed": count[Stage.FAILED],
            "makespan_s": round(self.elapsed, 3),
            "goal_s": self._goal_s,
            "steps": self.steps,
            "goal_steps": self._goal_steps,
            "tokens_discarded": int(thrown.sum()),
            "made_room": course.paused,
            **({} if course.price is None else {"balanced_price": round(course.price, 2)}),
            **(account or dict.fromkeys(bias.HEADLINE)),
        }
