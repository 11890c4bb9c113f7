"""The serving half of `own_runs.py`: a real vLLM on a core of its own, and slices of requests sent to it."""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sooner.replay.client import Endpoint, Sampling
from sooner.replay.drive import attach_fields
from sooner.replay.record import Record, read_run
from sooner.replay.saved import replay_to_file
from sooner.workloads.arrivals import poisson
from sooner.workloads.prompts import Prompt

SLOTS = 8
SIZE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
VOCABULARY = 512
WORK = ("seconds", "steps", "prefill", "decoding", "context")


@dataclass(frozen=True, slots=True)
class Slice:
    """Some requests of one arm, served in one go."""

    policy: str
    load: float
    round: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.policy}-{self.load:g}-{self.round}"

    @property
    def arm(self) -> tuple[str, float]:
        """The order and the load."""
        return self.policy, self.load


def served(path: Path) -> bool:
    """Return whether a slice was served to its end."""
    return path.exists() and bool(read_run(path).meta.get("complete"))


def requests_of(number: int, n: int, policy: str) -> list[Prompt]:
    """Return the requests of a round: the same for every arm, but for the scores."""
    rng = np.random.default_rng([7, number])
    prompt_len = np.clip(rng.lognormal(3.6, 0.7, n), 4, 150).astype(int)
    output_len = np.clip(rng.lognormal(3.4, 0.8, n), 2, 200).astype(int)
    guess = np.log(output_len) + rng.normal(0.0, 0.5, n)
    score = guess if policy == "ltr" else np.arange(n)
    return [
        Prompt(
            id=i,
            messages=(
                {"role": "user", "content": " ".join(f"word{w}" for w in rng.integers(0, 480, length))},
            ),
            output_len=int(output_len[i]),
            fields={"score": float(score[i])},
        )
        for i, length in enumerate(prompt_len)
    ]


def serve(folder: Path, url: str, trace: Path, each: Slice, n: int, rate: float) -> list[Record]:
    """Serve one slice at `rate` [req/s]; 0 is all at once."""
    arrivals = poisson(n, rate, np.random.default_rng([8, each.round])) if rate else np.zeros(n)
    return asyncio.run(
        replay_to_file(
            folder / f"{each.name}.jsonl",
            requests_of(each.round, n, each.policy),
            arrivals,
            Endpoint(url=url, model="own"),
            Sampling(temperature=0.0),
            attach=attach_fields(score_field="score"),
            force_len=True,
            server_trace=trace,
        )
    ).records


def capacity(folder: Path, url: str, trace: Path, n: int) -> float:
    """Return the throughput while requests never run out [req/s], after a burst to warm up."""
    for number in (100, 101):
        ended = sorted(
            r.finish_time or 0.0 for r in serve(folder, url, trace, Slice("fcfs", 0, number), n, 0)
        )
    most = n * 3 // 4
    return most / ended[most - 1]


@contextmanager
def priority(niceness: int) -> Iterator[int]:
    """Run at a niceness, where that is allowed; yields what it is."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    try:
        yield os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


@contextmanager
def pinned(environment: Any) -> Iterator[None]:
    """Give the engine's one thread the first core, and this process and the API server the others."""
    cores = sorted(os.sched_getaffinity(0))
    environment["VLLM_CPU_OMP_THREADS_BIND"] = str(cores[0])
    try:
        yield
    finally:
        del environment["VLLM_CPU_OMP_THREADS_BIND"]
        os.sched_setaffinity(0, cores)


@contextmanager
def ballast() -> Iterator[None]:
    """Keep every core but the engine's busy at the lowest priority.

    Cores share caches, memory and sometimes their arithmetic, so what the others do changes the pace of
    the engine's; busy all the time, they change it by the same all the time.
    """
    loops = []
    try:
        for core in sorted(os.sched_getaffinity(0))[1:]:
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            loops.append(loop)
            os.sched_setaffinity(loop.pid, [core])
            os.setpriority(os.PRIO_PROCESS, loop.pid, 19)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def settle() -> None:
    """Move what is not the worker off its core, and let the engine go before API server and client."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    for pid in [os.getpid(), *_descendants(os.getpid())]:
        if os.getpriority(os.PRIO_PROCESS, pid) == 19:
            continue
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
        worker, niceness = "Worker" in name, os.getpriority(os.PRIO_PROCESS, pid)
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores[:1] if worker else cores[1:])
            if not (worker or "Engine" in name) and niceness < 0:
                os.setpriority(os.PRIO_PROCESS, int(thread), niceness // 4)


def _descendants(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, ahead = [], [parent]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def work_done(folder: Path, slices: Sequence[Slice]) -> dict[str, dict[str, float]]:
    """Return, by slice, the time that its engine steps took [s] and what ran in them, summed.

    Steps that the engine was idle after are left out, as nobody knows when they ended.
    """
    starts = sorted(
        (float(read_run(folder / f"{each.name}.jsonl").meta["started_at"]), each.name) for each in slices
    )
    found: dict[str, dict[str, float]] = {each.name: dict.fromkeys(WORK, 0.0) for each in slices}
    for trace in sorted(folder.glob("trace*.jsonl")):
        for when, row in _steps(trace):
            before = bisect.bisect_right(starts, (when, "~")) - 1
            if before >= 0:
                for name, value in zip(WORK, row, strict=True):
                    found[starts[before][1]][name] += value
    return found


def _steps(trace: Path) -> Iterator[tuple[float, tuple[float, ...]]]:
    """Yield when each busy step began, and its time, 1, prefill tokens, decoding requests and context."""
    lines = Path(f"{trace}.steps").read_text(encoding="utf-8").splitlines()
    begun = {line["step"]: line["time"] for line in map(json.loads, lines)}
    prefill, decoding, context = np.zeros((3, max(begun) + 2))
    for line in map(json.loads, trace.read_text(encoding="utf-8").splitlines()):
        start, end = line["first_scheduled_step"], line["finish_step"]
        if 0 <= start <= end:
            steps = np.arange(start + 1, end + 1)
            prefill[start] += line["prompt_tokens"]
            decoding[steps] += 1
            context[steps] += line["prompt_tokens"] + steps - start
    for step, when in begun.items():
        if step + 1 in begun and decoding[step + 1] > 0:
            yield when, (begun[step + 1] - when, 1.0, prefill[step], decoding[step], context[step])


def write_model(folder: Path) -> Path:
    """Write configuration, tokenizer and chat template of a Llama of 11 million weights, which are random."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    words = [f"word{index}" for index in range(VOCABULARY - len(special))]
    tokenizer.train_from_iterator([" ".join(words)], trainers.WordLevelTrainer(special_tokens=special))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": "{% for message in messages %}<|user|> {{ message['content'] }} {% endfor %}"
            "<|assistant|> ",
            "model_max_length": 1024,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **SIZE,
            "num_key_value_heads": SIZE["num_attention_heads"],
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }
    for name, values in content.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder
