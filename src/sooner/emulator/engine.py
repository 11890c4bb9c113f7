"""An emulated engine: the simulator's cost model in real time, a token at a time, without a model.

It batches as vLLM does: requests join a running batch, prompts are prefilled in pieces within the
token budget, and when no KV block is free the last admitted is preempted and computed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sooner.core import ConfigError, DataError
from sooner.workloads.jsonl import read_jsonl


class CostModel(Protocol):
    """What is read of an engine's cost model; `sooner.sim.cost.Engine` is one."""

    @property
    def name(self) -> str: ...
    @property
    def coefficients(self) -> tuple[float, float, float, float]: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...


class Lengths:
    """How long the reply to a prompt is [tokens]: the same for the same prompt.

    `source` is a whole number, `lognormal:MEDIAN,SIGMA`, or a JSONL file whose lines have an
    `output_len`; a line that also has the `prompt` decides for that prompt, and others are drawn.
    """

    def __init__(self, source: str = "lognormal:180,0.9", seed: int = 0) -> None:
        self._seed = seed
        self._known: dict[str, int] = {}
        self._drawn = np.zeros(0, dtype=np.int64)
        kind, _, numbers = source.partition(":")
        if source.isdigit() and int(source) > 0:
            self._drawn = np.array([int(source)])
        elif kind == "lognormal":
            self._drawn = _lognormal(source, numbers, seed)
        elif Path(source).exists():
            self._read(source)
        else:
            raise ConfigError(
                f"lengths {source!r}, allowed: a whole number, lognormal:MEDIAN,SIGMA or a JSONL file"
            )

    def _read(self, source: str) -> None:
        lengths = []
        for number, line in read_jsonl(source):
            length = line.get("output_len", line.get("output_tokens"))
            if type(length) is not int or length < 1:
                raise DataError(f"{source}:{number}: output_len {length!r}, allowed: an integer >= 1")
            lengths.append(length)
            if isinstance(line.get("prompt"), str):
                self._known[line["prompt"]] = length
        if not lengths:
            raise DataError(f"{source}: no lines, allowed: at least 1")
        self._drawn = np.array(lengths)

    def of(self, prompt: str) -> int:
        """Return the length of the reply to `prompt`."""
        known = self._known.get(prompt)
        if known is not None:
            return known
        digest = hashlib.blake2b(f"{self._seed}:{prompt}".encode("utf-8", "replace"), digest_size=8).digest()
        return int(self._drawn[int.from_bytes(digest, "big") % len(self._drawn)])


def _lognormal(source: str, numbers: str, seed: int) -> NDArray[np.int64]:
    try:
        median, sigma = (float(number) for number in numbers.split(","))
    except ValueError:
        median, sigma = math.nan, math.nan
    if not (median >= 1 and sigma >= 0):
        raise ConfigError(f"lengths {source!r}, allowed: lognormal:MEDIAN,SIGMA with MEDIAN >= 1, SIGMA >= 0")
    drawn = np.random.default_rng(seed).lognormal(math.log(median), sigma, 4096)
    return np.asarray(np.maximum(1, np.rint(drawn)), dtype=np.int64)


@dataclass(slots=True, eq=False)
class Job:
    """One request inside the engine. `on_tokens(n)` is told of each token as its iteration ends."""

    prompt_len: int
    output_len: int
    on_token: Callable[[int], None]
    priority: float = 0.0
    number: int = 0
    prefilled: int = 0
    produced: int = 0
    blocks: int = 0
    preemptions: int = 0
    gone: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def to_prefill(self) -> int:
        """Tokens to compute before the next one can come; after a preemption the produced ones too."""
        return self.prompt_len + self.produced - self.prefilled


class Emulator:
    """Continuous batching in real time; start with `start`, feed with `submit`.

    `by_priority` serves lower `priority` first, as vLLM does with `--scheduling-policy priority`.
    `time_scale` stretches every iteration.
    """

    def __init__(self, cost: CostModel, *, by_priority: bool = False, time_scale: float = 1.0) -> None:
        if not time_scale > 0:
            raise ConfigError(f"time scale {time_scale!r}, allowed: > 0")
        self.cost = cost
        self.by_priority = by_priority
        self.time_scale = time_scale
        self._waiting: list[tuple[float, int, Job]] = []
        self._waiting_live = 0
        self.running: list[Job] = []
        self._free = cost.num_blocks
        self._count = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tokens = 0
        self.finished = 0
        self.aborted = 0
        self.preempted = 0

    def start(self) -> None:
        """Begin to iterate, in a task of the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="emulator")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting_live

    @property
    def kv_usage(self) -> float:
        """Share of KV blocks in use."""
        return 1.0 - self._free / self.cost.num_blocks

    def submit(self, sequence: Job) -> None:
        """Take in a request. Raises ConfigError for one that can never fit into the KV cache."""
        if self._blocks(sequence.prompt_len + sequence.output_len) > self.cost.num_blocks:
            raise ConfigError(
                f"{sequence.prompt_len} + {sequence.output_len} tokens, "
                f"allowed: {self.cost.num_blocks * self.cost.block_size}"
            )
        self._count += 1
        sequence.number = self._count
        self._queue(sequence)
        self._wake.set()

    def abort(self, sequence: Job) -> None:
        """Drop a request whose client has left; its place is free at once."""
        if sequence.gone or sequence.done.is_set():
            return
        sequence.gone = True
        self.aborted += 1
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting_live -= 1

    def step(self) -> float:
        """Run one iteration at once, where no task does in real time; return the seconds it stands for."""
        seconds, step = self._schedule()
        self._complete(step)
        return seconds

    def _queue(self, sequence: Job) -> None:
        first = sequence.priority if self.by_priority else 0.0
        heapq.heappush(self._waiting, (first, sequence.number, sequence))
        self._waiting_live += 1

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.cost.block_size)

    def _release(self, sequence: Job) -> None:
        self._free += sequence.blocks
        sequence.blocks = 0

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self.running and not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                due = loop.time()
            seconds, step = self._schedule()
            due = max(
                due + seconds * self.time_scale, loop.time() - 0.05
            )  # a late engine catches up a little
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._complete(step)

    def _schedule(self) -> tuple[float, list[Job]]:
        """Choose what the next iteration computes; return how long it takes and who gets a token."""
        a, b, c, d = self.cost.coefficients
        budget = self.cost.max_num_batched_tokens
        step: list[Job] = []
        context = decoding = prefill = 0
        for sequence in list(self.running):
            if not sequence.blocks or sequence.to_prefill > 1:
                continue
            if self._grow(sequence, sequence.prompt_len + sequence.produced + 1):
                step.append(sequence)
                decoding += 1
                budget -= 1
                context += sequence.prompt_len + sequence.produced
        for sequence in self._to_prefill():
            piece = min(budget, sequence.to_prefill)
            if piece <= 0:
                break
            budget -= piece
            prefill += piece
            sequence.prefilled += piece
            if sequence.to_prefill == 0:
                step.append(sequence)
        return a + b * prefill + c * decoding + d * context, step

    def _to_prefill(self) -> Sequence[Job]:
        found = [sequence for sequence in self.running if sequence.to_prefill > 1]
        room = self.cost.max_num_batched_tokens - sum(sequence.to_prefill for sequence in found)
        while self._waiting and room > 0 and len(self.running) < self.cost.max_num_seqs:
            sequence = self._waiting[0][2]
            if not sequence.gone:
                need = self._blocks(sequence.to_prefill + 1)
                if need > self._free:
                    break
                self._free -= need
                sequence.blocks = need
                self.running.append(sequence)
                self._waiting_live -= 1
                found.append(sequence)
                room -= sequence.to_prefill
            heapq.heappop(self._waiting)
        return found

    def _grow(self, sequence: Job, tokens: int) -> bool:
        """Give a running request room for `tokens`, preempting the last admitted; False: it was the last."""
        while self._blocks(tokens) > sequence.blocks:
            if self._free:
                self._free -= 1
                sequence.blocks += 1
                continue
            victim = self.running.pop()
            self._release(victim)
            victim.prefilled = 0
            victim.preemptions += 1
            self.preempted += 1
            self._queue(victim)
            if victim is sequence:
                return False
        return True

    def _complete(self, step: Sequence[Job]) -> None:
        for sequence in step:
            if sequence.gone or not sequence.blocks:
                continue
            sequence.produced += 1
            sequence.prefilled = sequence.prompt_len + sequence.produced - 1
            self.tokens += 1
            if sequence.produced >= sequence.output_len:
                self.running.remove(sequence)
                self._release(sequence)
                self.finished += 1
                sequence.done.set()
            sequence.on_token(sequence.produced)


def counts(emulator: Emulator) -> Mapping[str, float]:
    """Return what the engine counts, for its `/metrics`."""
    return {
        "vllm:num_requests_running": len(emulator.running),
        "vllm:num_requests_waiting": emulator.waiting,
        "vllm:kv_cache_usage_perc": emulator.kv_usage,
        "vllm:generation_tokens_total": emulator.tokens,
        "vllm:num_preemptions_total": emulator.preempted,
        "sooner_emulated_finished_total": emulator.finished,
        "sooner_emulated_aborted_total": emulator.aborted,
    }
