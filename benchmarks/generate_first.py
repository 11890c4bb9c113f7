"""How soon the first half of a job can come, where lengths are foretold at tau 0.5: what was tried, a bound.

    python benchmarks/generate_first.py [--draws 8] [--table docs/results/generate-first.md]

2,048 prompts of `generate_simulated.py`, on slots that make a token a step, without KV pressure or prefill.
Beside our order (least work first) stand: the true lengths known; replies that are given up when they have
run for so many times what was foretold; the likeliest half, longest first, then the rest; both halves of it
in other orders. The bound is what no order and no rule of giving up can beat in the mean (below). Steps as
ratios to ours, the mean over draws; then the bound in the steps of the emulated engine. Last, a quarter of
400 of the demo model's replies on 48 slots: how well a ranker must order for which gain. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generate_simulated import SLOTS, arm, workload
from sooner.generate.goals import Goal
from sooner.metrics import kendall_tau

Array = NDArray[Any]
PROMPTS, HALF = 2048, 1024
SPREAD = math.sqrt(0.5)  # of log lengths about what was foretold
FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0)
MARGINS = (1.0, 1.05, 1.1, 1.2)
SERVED = Path(__file__).parent / "demo_held_out_lengths.jsonl.gz"  # the demo model's replies, cut at 512
KNOWN = (0.0, 0.47, 0.6, 0.7, 0.8, 1.0)  # correlation of what is foretold and what comes, as normal scores


def steps(
    true: Array, order: Iterable[int], cut: Array | None = None, *, slots: int = SLOTS, need: int = HALF
) -> float:
    """Return the steps until `need` replies are whole; those cut off at `cut` [tokens] do not count."""
    ends: list[tuple[int, bool]] = []
    kept = 0
    for prompt in [*order, *[-1] * slots]:
        now, whole = heapq.heappop(ends) if len(ends) >= slots or (prompt < 0 and ends) else (0, False)
        kept += whole
        if kept == need:
            return float(now)
        if prompt >= 0:
            most = int(true[prompt]) if cut is None else int(min(true[prompt], cut[prompt]))
            heapq.heappush(ends, (now + most, most == true[prompt]))
    return math.inf


def least_steps(told: Array) -> float:
    """Return the steps that half of the replies take at least, in the mean, whatever is done.

    A reply of a law that is known is worth its chance to end within c tokens and costs the tokens it takes,
    cut at c. A rule that stops it can only know how far it is, so it is a mixture of such c, none beyond the
    job's own end. At a price of a token each reply takes its best c; the price at which half of all end
    gives the least tokens (Lagrange), and slots make one a step each. That there is an order which keeps
    all slots busy with nothing in vain at the end is not asked: so it is a bound, not a plan.
    """
    z = np.linspace(-4.0, 5.0, 301)
    middle = told[:, None]
    end = 2.0 * told.sum() / SLOTS
    for _ in range(8):  # the end that bounds c is what is sought
        stop = np.minimum(middle * np.exp(SPREAD * z), end)
        at = np.log(stop / middle) / SPREAD
        chance = _normal(at)
        tokens = middle * math.exp(SPREAD**2 / 2) * _normal(at - SPREAD) + stop * (1.0 - chance)
        low, high = 1e-7, 1e-1
        for _ in range(40):
            price = math.sqrt(low * high)
            worth = chance - price * tokens
            best, taken = worth.argmax(1), worth.max(1) > 0
            rows = np.flatnonzero(taken), best[taken]
            low, high = (price, high) if chance[rows].sum() > HALF else (low, price)
        end = float(tokens[rows].sum()) / SLOTS
    return end


_GRID = np.linspace(-10.0, 10.0, 20_001)
_LAW = np.array([0.5 * (1.0 + math.erf(x / math.sqrt(2.0))) for x in _GRID])


def _normal(x: Array) -> Array:
    return np.interp(x, _GRID, _LAW)


def tried(true: Array, told: Array) -> dict[str, float]:
    """Return the steps of each thing that was tried, as ratios to our order's."""
    order = np.argsort(told, kind="stable")
    ours = steps(true, order)
    found = {"arrival order": steps(true, range(PROMPTS)), "lengths known": steps(true, np.argsort(true))}
    for factor in FACTORS:
        found[f"given up at {factor:g} times what was foretold"] = steps(true, order, told * factor)
    for margin in MARGINS:
        n = round(HALF * margin)
        chosen, rest = order[:n], order[n:]
        found[f"the likeliest {margin:g} halves, longest first"] = steps(true, [*chosen[::-1], *rest])
        middle = round(0.6 * n)
        turned = [*chosen[:middle], *chosen[middle:][::-1], *rest]
        found[f"the likeliest {margin:g} halves, short ones, then the longest"] = steps(true, turned)
    found["no order and no rule can need less"] = least_steps(told)
    return {name: value / ours for name, value in found.items()}


def in_the_engine(draw: int) -> dict[str, float]:
    """Return the bound and our order in steps of the emulated engine, as ratios to arrival order."""
    work, goal = workload(PROMPTS, draw), Goal(kind="first", n=HALF, control=0.0)
    known = {**work, "told": work["true"].astype(float)}
    base = arm(goal, "arrival", work, draw)
    return {
        "ours": arm(goal, "auto", work, draw)["goal_steps"] / base["goal_steps"],
        "lengths known": arm(goal, "auto", known, draw)["goal_steps"] / base["goal_steps"],
        "no order and no rule can need less": least_steps(work["told"]) / base["goal_steps"],
        "ours, in seconds": arm(goal, "auto", work, draw)["goal_s"] / base["goal_s"],
    }


def by_ranker(draws: int) -> list[dict[str, float]]:
    """Return, for rankers that know more and more, their tau and a quarter's steps over arrival order's."""
    rows = map(json.loads, gzip.decompress(SERVED.read_bytes()).splitlines())
    lengths = np.array([row["output_len"] for row in rows])
    found = []
    for known in KNOWN:
        taus, ratios = [], []
        for draw in range(draws):
            rng = np.random.default_rng(draw)
            true = rng.permutation(lengths)[:400]
            place = np.lexsort((rng.random(400), true)).argsort()  # replies of one length in any order
            z = np.interp((place + 0.5) / 400, _LAW, _GRID)
            told = known * z + math.sqrt(1 - known**2) * rng.standard_normal(400)
            taus.append(kendall_tau(told, true))
            least, arrival = (
                steps(true, order, slots=48, need=100) for order in (np.argsort(told), range(400))
            )
            ratios.append(least / arrival)
        found.append({"tau": float(np.mean(taus)), "mean": float(np.mean(ratios)),
                      "least": min(ratios), "most": max(ratios)})  # fmt: skip
    return found


HEAD = """# The first half of a job

Made by `python benchmarks/generate_first.py --table docs/results/generate-first.md`; what is simulated is
said at the top of that script. Lengths are foretold at a tau of about 0.5.

## What was tried, on slots

Steps until half of 2,048 replies are whole, as ratios to our order (least work first), over the draws.

| what | mean | least | most |
|---|---|---|---|
"""
FOOT = """
Giving up replies that run long costs more than it frees: what they have run for is lost, and what would start
in their place is foretold to be longer. Within the half that is chosen the order does not matter. What is
left between our order and the bound is what runs in vain when the goal is met.

## A quarter of a small model's replies: what the ranker is worth

400 replies of SmolLM2-135M, a third of them cut at 512 tokens, on 48 slots: steps until 100 are whole, as
ratios to arrival order. No order of prompts alone can have a tau above 0.58 here, for two samples of one
prompt order the prompts alike at 0.43 ([demo](../demo.md)).

| tau of the ranker | mean | least | most |
|---|---|---|---|
"""


def table(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    tried = [
        f"| {name} | {np.mean(row):.3f} | {min(row):.3f} | {max(row):.3f} |"
        for name, row in result["tried"].items()
    ]
    engine = [
        "| draw | " + " | ".join(result["engine"][0]) + " |",
        "|---|" + "---|" * len(result["engine"][0]),
        *(
            f"| {draw} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |"
            for draw, row in enumerate(result["engine"])
        ),
    ]
    title = "\n\n## In steps of the emulated engine, as ratios to arrival order\n\n"
    ranker = [
        f"| {row['tau']:.2f} | {row['mean']:.2f} | {row['least']:.2f} | {row['most']:.2f} |"
        for row in result["ranker"]
    ]
    return HEAD + "\n".join(tried) + title + "\n".join(engine) + "\n" + FOOT + "\n".join(ranker) + "\n"


def main() -> None:
    """Run all of it and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {}
    for draw in range(asked.draws):
        work = workload(PROMPTS, draw)
        for name, value in tried(work["true"], work["told"]).items():
            found.setdefault(name, []).append(round(value, 4))
    result = {
        "draws": asked.draws,
        "tried": found,
        "engine": [in_the_engine(draw) for draw in range(3)],
        "ranker": by_ranker(asked.draws),
    }
    if asked.table:
        asked.table.write_text(table(result), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
