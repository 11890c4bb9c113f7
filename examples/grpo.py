"""GRPO on a tiny model: rollouts by `sooner.generate.api.groups`, learned from as each group comes.

    python examples/grpo.py [--steps 40] [--seed 0]

Torch is all that it needs; 40 steps take half a minute on one core. The model, some 15,000 weights over
12 letters, is asked for a number of letters, "3" for three, and is rewarded for how near its reply comes.
What is shown is what a rollout needs of its engine:

- a group of K samples is handed over once it is whole, and its gradient is taken while others still run;
- more prompts are begun than are kept, and the stragglers are cut (`keep`);
- what was cut comes first in the next step, so that no prompt is left out for being long.

`TinyEngine` is an engine of one's own: whatever is a `Maker` can make a job's replies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from sooner.generate.api import Parts, Sample, groups
from sooner.generate.engines import Answer, Begun, Told
from sooner.generate.prompts import Ask

LETTERS = ".abc123456789"  # the end, what replies are made of, and what prompts ask for
LONGEST = 40  # tokens of a reply
PROMPTS, KEEP, SAMPLES = 12, 8, 8  # begun in a step, learned from, samples of each
SLOTS = 32


class Policy(nn.Module):
    """A recurrent model of the next letter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), 24)
        self.cell = nn.GRU(24, 56, batch_first=True)
        self.head = nn.Linear(56, len(LETTERS) - 9)  # a reply has no digits

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (n, time, letters) of what comes after each token of `tokens` (n, time)."""
        logits: Tensor = self.head(self.cell(self.embed(tokens))[0])
        return logits


class Running:
    """A reply that is being made."""

    def __init__(self, prompt: str, told: Told | None, done: asyncio.Future[Answer]) -> None:
        self.tokens = [LETTERS.index(letter) for letter in prompt]
        self.prompt_len = len(prompt)
        self.told, self.done = told, done


class TinyEngine:
    """Continuous batching in a few lines: each step gives every running reply one letter."""

    name = model = "tiny"
    window = SLOTS
    pauses = False

    def __init__(self, policy: Policy, generator: torch.Generator) -> None:
        self.policy, self.generator = policy, generator
        self.steps: int | None = 0
        self._running: list[Running] = []
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Begin to step."""
        self._task = asyncio.get_running_loop().create_task(self._stepping())

    async def reply(self, ask: Ask, told: Told | None, begun: Begun | None = None) -> Answer:
        """Return the whole reply; when cancelled, its slot is free at the next step."""
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._running.append(Running(ask.body["messages"][0]["content"], told, done))
        self._wake.set()
        return await done

    async def recovered(self, patience: float) -> bool:
        """It does not go down."""
        return True

    async def close(self) -> None:
        """End the stepping."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _stepping(self) -> None:
        while True:
            self._running = [one for one in self._running if not one.done.done()]
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
            for one, token in zip(self._running, self._drawn(), strict=True):
                one.tokens.append(token)
                made = one.tokens[one.prompt_len :]
                if token == 0 or len(made) == LONGEST:
                    text = "".join(LETTERS[each] for each in made)
                    reason = "stop" if token == 0 else "length"
                    one.done.set_result(Answer(text, len(made), one.prompt_len, reason, {}))
                elif one.told is not None:
                    one.told(len(made), LETTERS[token])
            self.steps = (self.steps or 0) + 1
            await asyncio.sleep(0)

    def _drawn(self) -> list[int]:
        """Return the next letter of each running reply."""
        longest = max(len(one.tokens) for one in self._running)
        rows = torch.zeros(len(self._running), longest, dtype=torch.long)
        for row, one in zip(rows, self._running, strict=True):
            row[: len(one.tokens)] = torch.tensor(one.tokens)
        last = torch.tensor([len(one.tokens) - 1 for one in self._running])
        with torch.no_grad():
            logits = self.policy(rows)[torch.arange(len(rows)), last]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)
        return [int(token) for token in drawn[:, 0]]


def reward(prompt: str, text: str) -> float:
    """Return 1 for as many letters as were asked for, less for more or fewer."""
    return 1.0 - min(abs(len(text.rstrip(".")) - int(prompt)) / 9.0, 1.0)


def loss_of(policy: Policy, prompt: str, group: list[Sample], rewards: Tensor) -> Tensor:
    """Return GRPO's loss of one group: each reply's log-probability times how far it beats its siblings."""
    advantage = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    losses = []
    for sample, worth in zip(group, advantage, strict=True):
        tokens = torch.tensor([[LETTERS.index(letter) for letter in prompt + sample.text]])
        logs = policy(tokens[:, :-1]).log_softmax(-1)[0, len(prompt) - 1 :]
        own = logs.gather(1, tokens[0, len(prompt) :, None])
        losses.append(-worth * own.mean())
    return torch.stack(losses).mean()


async def train(steps: int, seed: int) -> list[dict[str, Any]]:
    """Train and return what came of each step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    engine = TinyEngine(policy, generator)
    await engine.start()
    told, cut = [], list[dict[str, Any]]()
    try:
        for step in range(steps):
            asked = torch.randint(1, 10, (PROMPTS - len(cut),), generator=generator).tolist()
            lines = cut + [{"id": f"{step}-{i}", "prompt": str(n)} for i, n in enumerate(asked)]
            prompts = {line["id"]: line["prompt"] for line in lines}
            parts: Parts = {}
            optimizer.zero_grad()
            kept, rewards, before = set[Any](), list[Tensor](), engine.steps or 0
            arriving = groups(
                lines,
                engines=[engine],
                samples=SAMPLES,
                keep=KEEP,
                ended=parts,
                ranker="none",
                order="arrival",
            )
            async for group in arriving:
                prompt = prompts[group[0].id]
                rewards.append(torch.tensor([reward(prompt, sample.text) for sample in group]))
                (loss_of(policy, prompt, group, rewards[-1]) / KEEP).backward()
                kept.add(group[0].id)
            optimizer.step()
            cut = [line for line in lines if line["id"] not in kept]
            told.append(
                {
                    "step": step, "reward": round(float(torch.cat(rewards).mean()), 3), "groups": len(kept),
                    "cut_samples": len(parts), "engine_steps": (engine.steps or 0) - before,
                }
            )  # fmt: skip
    finally:
        await engine.close()
    return told


def main() -> None:
    """Train and print a line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for row in asyncio.run(train(asked.steps, asked.seed)):
        print(row)


if __name__ == "__main__":
    main()
