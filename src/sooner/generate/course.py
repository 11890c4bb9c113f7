"""Which sample is next, which are kept, and when the goal is met: a job's logic without any I/O.

Samples are numbered prompt by prompt: sample k of prompt p of a job of K samples a prompt is p * K + k.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from enum import Enum, IntEnum

import numpy as np
from numpy.typing import NDArray

from sooner import policies
from sooner.core import ConfigError, View
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal
from sooner.generate.turns import APART, SHARE, EndTurns
from sooner.work import Pace, work

TENTHS = 10
_REFIT_SHARE, _REFIT_LEAST = 0.05, 8
_PREFIX_SHARE = 0.2
"""Of a sample's work: where its prompt is more, samples go group by group, so that a prefix cache serves."""


class Stage(IntEnum):
    """What has become of a sample."""

    WAITING = 0
    RUNNING = 1
    KEPT = 2
    CONTROL = 3  # finished after the goal was met, for the truth
    EXTRA = 4  # finished, but its tenth was full
    FAILED = 5
    ABORTED = 6
    LEFT_OUT = 7  # not drawn


class Fate(Enum):
    """What is done with a sample that finished."""

    KEEP = "keep"
    CONTROL = "control"
    DISCARD = "discard"


class Course:
    """Chooses samples; told what becomes of them. `stage` and `length` are columns (n * K,).

    With `turns`, running samples make room for others at the job's end: see `due`.
    """

    def __init__(
        self, goal: Goal, expecting: Expectation, prompt_len: NDArray[np.float64], *, samples: int = 1,
        order: str = "auto", seed: int = 0, pace: Pace | None = None, turns: bool = False,
    ) -> None:  # fmt: skip
        n = len(expecting)
        if goal.n is not None and goal.n > n * samples:
            raise ConfigError(f"{goal.kind}={goal.n}, allowed: at most {n * samples}, the samples there are")
        if goal.kind == "sample" and goal.n is not None and goal.n % samples:
            raise ConfigError(f"sample={goal.n}, allowed: a multiple of samples={samples}: groups are whole")
        self.goal, self.samples, self.expecting = goal, samples, expecting
        self.stage = np.zeros(n * samples, dtype=np.uint8)
        self.length = np.zeros(n * samples, dtype=np.int32)
        self.running: dict[int, float] = {}  # sample: tokens it has so far, as far as is known
        self.kept = 0
        self.met = False
        self._policy = policies.get(goal.policy(order))
        self._pace, self._prompt_len = pace or Pace(), prompt_len
        self._begun = np.zeros(n, dtype=np.int32)  # samples of a prompt that were begun
        self._fresh, self._usual, self._reach = 0, 0.0, 0.0  # never begun: how many, their mean; the longest
        self._turns = EndTurns() if turns else None
        self._again: deque[int] = deque()
        rng = np.random.default_rng(seed)
        if goal.kind == "sample":
            self._leave_out(rng.permutation(n)[(goal.n or 0) // samples :])
        self.control = np.zeros(n, dtype=bool)
        self._controls: Iterator[int] = iter(())
        if goal.selects and goal.control:
            chosen = rng.permutation(n)[: max(1, round(goal.control * n))]
            self.control[chosen] = True
            self._controls = self._left_of(chosen.tolist())
        self._paid_control = self._paid = 0.0
        self.tenth = _tenths(expecting.tokens)
        self._quota = self._quotas()
        self.price = self._price()
        self._next_refit = _REFIT_LEAST
        self._queue: Iterator[int] = iter(())
        self._sort()

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left to run. Ask after `next` gave None."""
        return not self.running and not self._again and not self._turns

    @property
    def takes_turns(self) -> bool:
        """Whether a running sample may be asked to make room."""
        return self._turns is not None

    @property
    def paused(self) -> int:
        """Times that a running sample made room."""
        return 0 if self._turns is None else self._turns.made

    @property
    def wanted(self) -> int | None:
        """How many samples will be kept, None where time decides."""
        if self.goal.kind == "budget":
            return None
        if self.goal.n is not None:
            return self.goal.n
        return int(self.stage.shape[0])

    def restore(self, sample: int, length: int, *, control: bool = False) -> None:
        """Take in a sample that an earlier run finished; all of them before the first `next`."""
        self.stage[sample] = Stage.CONTROL if control else Stage.KEPT
        self.length[sample] = length
        self._begun[sample // self.samples] += 1
        self.expecting.add(sample // self.samples, length)
        if not control:
            self._keep(sample)

    def resume(self) -> None:
        """Order what is left by what earlier runs taught."""
        self._refit()

    def next(self) -> int | None:
        """Return the sample to begin now, None where there is none (or none yet)."""
        while self._again:
            sample = self._again.popleft()
            if self._open(sample):
                return self._begin(sample)
        if self.goal.selects and (self.met or self._paid_control <= self.goal.control * self._paid):
            chosen = self._next_control()
            if chosen is not None:
                return chosen
        if self.met:
            return None
        for sample in self._queue:
            if self.stage[sample] == Stage.WAITING and self._open(sample) and not self._made_room(sample):
                return self._begin(sample)
        return self._go_on()

    def _made_room(self, sample: int) -> bool:
        return self._turns is not None and sample in self._turns

    def _go_on(self) -> int | None:
        """Return a sample that made room and goes on now."""
        back = None if self._turns is None else self._turns.back()
        if self._turns is None or back is None:
            return None
        sample, had = back
        self.stage[sample] = Stage.RUNNING
        self.length[sample] = 0
        self.running[sample] = had
        self._turns.begin(sample, had)
        return sample

    def _next_control(self) -> int | None:
        if self.met and self.goal.kind == "budget":
            return None
        for sample in self._controls:
            if self.stage[sample] == Stage.WAITING:
                self._paid_control += float(self.expecting.tokens[sample // self.samples])
                return self._begin(sample)
        return None

    def _begin(self, sample: int) -> int:
        prompt = sample // self.samples
        self.stage[sample] = Stage.RUNNING
        self.running[sample] = 0.0
        self._begun[prompt] += 1
        self._fresh -= 1
        if self._turns is not None:
            self._turns.begin(sample)
        self._paid += float(self.expecting.tokens[prompt])
        return sample

    def finished(self, sample: int, length: int) -> Fate:
        """Take in a whole reply of `length` tokens; return what to do with it."""
        self._stop(sample, length)
        self.length[sample] = length
        prompt = sample // self.samples
        self.expecting.add(prompt, length)
        if not self.met and self._quota[self.tenth[prompt]] > 0:
            self.stage[sample] = Stage.KEPT
            self._keep(sample)
            if self.expecting.seen >= self._next_refit and not self.met:
                self._refit()
            return Fate.KEEP
        if self.control[prompt]:
            self.stage[sample] = Stage.CONTROL
            return Fate.CONTROL
        self.stage[sample] = Stage.EXTRA
        return Fate.DISCARD

    def failed(self, sample: int) -> None:
        """Say that a sample is given up."""
        self._stop(sample)
        self.stage[sample] = Stage.FAILED

    def returned(self, sample: int) -> None:
        """Say that a sample did not run after all and is to be begun again."""
        self._stop(sample)
        self.stage[sample] = Stage.WAITING
        self._begun[sample // self.samples] -= 1
        self._fresh += 1
        self._again.append(sample)

    def aborted(self, sample: int, tokens: int) -> None:
        """Say that a running sample was ended with `tokens` of its reply there."""
        self._stop(sample)
        self.stage[sample] = Stage.ABORTED
        self.length[sample] = tokens

    def progress(self, sample: int, tokens: float) -> None:
        """Say how many tokens a running sample has."""
        if sample in self.running:
            self.running[sample] = tokens

    def due(self, sample: int) -> bool:
        """Whether a running sample should make room now: the job nears its end and others have had less.

        The end is where all that was never begun fills the slots for less than the longest reply. Where a
        reply may be far longer than is usual nobody makes room: the longest, begun first, has to go on.
        """
        if self._turns is None or sample not in self.running:
            return False
        to_come = self._fresh * self._usual
        if to_come > self._reach * len(self.running):
            return False
        return self._turns.due(sample, self.running, self._fresh, to_come)

    def made_room(self, sample: int, tokens: int) -> None:
        """Say that a running sample was interrupted with `tokens`; `next` returns it again."""
        self._stop(sample)
        self.stage[sample] = Stage.WAITING
        self.length[sample] = tokens
        if self._turns is not None:
            self._turns.leave(sample, tokens)

    def expire(self) -> None:
        """Say that the budget is spent."""
        self.met = True

    def doomed(self) -> list[int]:
        """Return the running samples that are to be aborted now."""
        return [sample for sample in self.running if not self._open(sample)]

    def left(self) -> int:
        """Return how many samples wait."""
        return int((self.stage == Stage.WAITING).sum())

    def _stop(self, sample: int, whole: int = 0) -> None:
        self.running.pop(sample, None)
        if self._turns is not None:
            self._turns.end(sample, whole)

    def _open(self, sample: int) -> bool:
        """Whether a sample may still run: it could be kept, or is one of the controls."""
        prompt = sample // self.samples
        return bool(self.control[prompt]) or (not self.met and self._quota[self.tenth[prompt]] > 0)

    def _keep(self, sample: int) -> None:
        self.kept += 1
        if self.goal.balanced and self.goal.kind == "first":
            self._quota[self.tenth[sample // self.samples]] -= 1
            self.met = bool((self._quota <= 0).all())
        elif self.goal.kind == "first":
            self.met = self.kept >= (self.goal.n or 0)

    def _quotas(self) -> NDArray[np.int64]:
        """Return how many samples of each tenth of the predicted lengths are still wanted."""
        if not (self.goal.balanced and self.goal.n):
            return np.full(TENTHS, np.iinfo(np.int64).max)
        there = np.bincount(self.tenth, minlength=TENTHS) * self.samples
        quota, left = np.zeros(TENTHS, dtype=np.int64), self.goal.n
        while left:
            open = np.flatnonzero(quota < there)
            share = np.full(open.size, left // open.size)
            share[: left % open.size] += 1
            more = np.minimum(share, (there - quota)[open])
            quota[open] += more
            left -= int(more.sum())
        return quota

    def _price(self) -> float | None:
        """Return the tokens that balanced quotas are expected to take, over those of the shortest samples."""
        if not (self.goal.balanced and self.goal.n):
            return None
        tokens = np.repeat(np.sort(self.expecting.tokens.astype(np.float64)), self.samples)
        tenth = np.sort(np.repeat(self.tenth, self.samples))
        balanced = sum(float(tokens[tenth == at][: self._quota[at]].sum()) for at in range(TENTHS))
        return balanced / max(float(tokens[: self.goal.n].sum()), 1e-9)

    def _leave_out(self, prompts: NDArray[np.int64]) -> None:
        self.stage.reshape(-1, self.samples)[prompts] = Stage.LEFT_OUT
        self._begun[prompts] = self.samples

    def _left_of(self, prompts: list[int]) -> Iterator[int]:
        for prompt in prompts:
            yield from range(prompt * self.samples, (prompt + 1) * self.samples)

    def _refit(self) -> None:
        seen = self.expecting.seen
        self._next_refit = seen + max(_REFIT_LEAST, round(_REFIT_SHARE * seen))
        self.expecting.refit((sample // self.samples, tokens) for sample, tokens in self.running.items())
        self._sort()

    def _sort(self) -> None:
        """Order what waits by what is expected now."""
        prompts = np.flatnonzero(self._begun < self.samples)
        tokens = self.expecting.tokens[prompts].astype(np.float64)
        if self._turns is not None:
            self._foresee(self._turns, prompts, tokens)
        prompt_len = self._prompt_len[prompts]
        size = np.asarray(work(self._pace, prompt_len, 0.0, tokens))
        view = View(
            prompts.astype(np.float64), prompt_len=prompt_len, predicted_len=tokens, score=tokens, work=size
        )
        key = np.broadcast_to(np.asarray(self._policy.key(view, 0.0)), prompts.shape)
        if self.goal.balanced:
            key = _in_turn(key, self.tenth[prompts])
        alone = self._pace.prefill_token_s * prompt_len < _PREFIX_SHARE * size
        explore = self.samples > 1 and self._policy.name == "longest"
        known = ((self._begun[prompts] > 0) | ~alone) if explore else np.zeros(prompts.shape, dtype=bool)
        order = np.lexsort((prompts, key, known))
        self._queue = self._samples_of(prompts[order], ~known[order] if explore else None)

    def _foresee(self, turns: EndTurns, prompts: NDArray[np.int64], tokens: NDArray[np.float64]) -> None:
        """Learn what is left: how much was never begun, its usual length, and how long a reply may be."""
        count = self.samples - self._begun[prompts]
        self._fresh = int(count.sum())
        self._usual = float(tokens @ count) / max(self._fresh, 1)
        running = np.array(list(self.running), dtype=np.int64) // self.samples
        self._reach = self.expecting.reach(np.concatenate([prompts, running]))
        usual = float(self.expecting.tokens.mean(dtype=np.float64))
        turns.turn = self._reach / SHARE if self._reach <= APART * usual else math.inf

    def _samples_of(self, prompts: NDArray[np.int64], single: NDArray[np.bool_] | None) -> Iterator[int]:
        """Yield the samples of prompts in order; of a `single` one the first only, the rest at the end."""
        later: list[int] = []
        for at, prompt in enumerate(prompts):
            first = int(prompt) * self.samples
            if single is None or not single[at]:
                yield from range(first, first + self.samples)
            else:
                yield first
                later.append(first)
        for first in later:
            yield from range(first + 1, first + self.samples)


def _tenths(tokens: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return which tenth (n,) of the expected lengths each prompt is in, the shortest 0."""
    place = np.empty(tokens.shape[0], dtype=np.int64)
    place[np.argsort(tokens, kind="stable")] = np.arange(tokens.shape[0])
    return np.asarray(place * TENTHS // tokens.shape[0], dtype=np.uint8)


def _in_turn(key: NDArray[np.float64], tenth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return keys that take one of each tenth in turn, each in its own order."""
    order = np.lexsort((key, tenth))
    sizes = np.bincount(tenth, minlength=TENTHS)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    turn = np.empty(key.shape[0])
    turn[order] = np.arange(key.shape[0]) - starts[tenth[order]]
    return turn * TENTHS + tenth
