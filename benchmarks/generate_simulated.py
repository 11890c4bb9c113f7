"""What `sooner generate` brings, in steps of an emulated engine with KV pressure.

    python benchmarks/generate_simulated.py [--prompts 2048] [--draws 3]

Reasoning lengths (log-normal, median 1,480, sigma 1, cap 16,384) on 256 slots, predictions at tau 0.5; each
goal in our order beside the same goal in arrival order, same lengths, same engine, no controls there.
"Lengths known" is our order told the true lengths. Ratios are of steps and of seconds by the engine's cost
model, at the goal and until every control has ended. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from sooner.emulator.engine import Emulator, Job
from sooner.generate.course import Course, Stage
from sooner.generate.expecting import Expectation
from sooner.generate.goals import Goal
from sooner.generate.opening import Opening
from sooner.metrics import kendall_tau
from sooner.sim.cost import PRESETS, Engine

SLOTS = 256
LOOK = 20  # steps between two looks at what runs and waits: about a quarter of a second
CAP = 16_384


def workload(n: int, seed: int) -> dict[str, Any]:
    """Return lengths, prompts and what is predicted of n requests."""
    rng = np.random.default_rng(seed)
    log = rng.normal(7.3, 1.0, n)
    true = np.clip(np.round(np.exp(log)), 1, CAP).astype(int)
    said = log + rng.normal(0.0, 1.0, n)
    told = np.exp(7.3 + 0.5 * (said - 7.3))  # what is expected of log lengths, given what was said
    prompt = np.clip(np.round(np.exp(rng.normal(5.0, 1.0, n))), 4, 2048)
    return {"true": true, "told": told, "prompt": prompt, "tau": kendall_tau(said, true.astype(float))}


def play(course: Course, work: dict[str, Any], cost: Engine = PRESETS["llama3-8b-a100"]) -> dict[str, Any]:
    """Run a course to its end; return steps and seconds at the goal and at the end."""
    engine = Emulator(cost)
    jobs: dict[int, Job] = {}
    opening = Opening()
    ended: list[int] = []
    steps, seconds = 0, 0.0
    at_goal: tuple[int, float] | None = None
    had: dict[int, int] = {}  # tokens of samples that made room
    while True:
        for sample in course.doomed():
            engine.abort(jobs[sample])
            course.aborted(sample, jobs.pop(sample).produced)
        while len(jobs) < opening.size and (sample := course.next()) is not None:
            left = int(work["true"][sample]) - had.get(sample, 0)

            def told(n: int, sample: int = sample, left: int = left) -> None:
                if n >= left:
                    ended.append(sample)

            jobs[sample] = Job(int(work["prompt"][sample]) + had.get(sample, 0), left, told)
            engine.submit(jobs[sample])
        if not jobs:
            break
        seconds += engine.step()
        steps += 1
        if steps % LOOK == 0 or steps < LOOK:
            opening.look(len(engine.running), engine.waiting, engine.preempted)
        for sample in ended:
            jobs.pop(sample)
            for other, running in jobs.items():
                course.progress(other, had.get(other, 0) + running.produced)
            course.finished(sample, int(work["true"][sample]))
        if ended and course.takes_turns:
            for sample in [sample for sample in jobs if course.due(sample)]:
                engine.abort(jobs[sample])
                had[sample] = had.get(sample, 0) + jobs.pop(sample).produced
                course.made_room(sample, had[sample])
        ended.clear()
        if course.met and at_goal is None:
            at_goal = (steps, seconds)
    goal_steps, goal_seconds = at_goal or (steps, seconds)
    kept = course.length[course.stage == Stage.KEPT]
    return {
        "goal_steps": goal_steps, "goal_s": goal_seconds, "steps": steps, "s": seconds,
        "kept_mean_len": float(kept.mean()), "preempted": engine.preempted, "made_room": course.paused,
    }  # fmt: skip


def arm(goal: Goal, order: str, work: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run one goal in one order."""
    expecting = Expectation(work["told"], work["prompt"], limits=np.full(work["prompt"].shape, float(CAP)))
    turns = not goal.selects and order == "auto"
    return play(Course(goal, expecting, work["prompt"], order=order, seed=seed, turns=turns), work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    n = asked.prompts
    goals = {
        "all": (Goal(), ("auto", "shortest")),
        "sample a quarter": (Goal(kind="sample", n=n // 4), ("auto",)),
        "first half": (Goal(kind="first", n=n // 2), ("auto",)),
        "first half, no controls": (Goal(kind="first", n=n // 2, control=0.0), ("auto",)),
        "first quarter": (Goal(kind="first", n=n // 4), ("auto",)),
        "first half, balanced": (Goal(kind="first", n=n // 2, balanced=True), ("auto",)),
    }
    known = ("all", "first half, no controls")
    found: dict[str, Any] = {}
    taus = []
    for seed in range(asked.draws):
        work = workload(n, seed)
        taus.append(round(work["tau"], 3))
        bases: dict[Goal, dict[str, Any]] = {}
        for name, (goal, orders) in goals.items():
            plain = Goal(kind=goal.kind, n=goal.n, control=0.0)
            base = bases.get(plain) or arm(plain, "arrival", work, seed)
            bases[plain] = base
            arms = [(name if order == "auto" else f"{name}, {order}", order, work) for order in orders]
            if name in known:
                truth = {**work, "told": work["true"].astype(float)}
                arms.append((f"{name}, lengths known", "auto", truth))
            for title, order, told_of in arms:
                ours = arm(goal, order, told_of, seed)
                row = found.setdefault(title, {})
                for key in ("goal_steps", "goal_s", "steps", "s"):
                    row.setdefault(f"{key}_ratio", []).append(round(ours[key] / base[key], 3))
                share = ours["kept_mean_len"] / float(work["true"].mean())
                row.setdefault("kept_mean_len_of_all", []).append(round(share, 3))
                plainly = base["kept_mean_len"] / float(work["true"].mean())
                row.setdefault("kept_mean_len_of_all_by_arrival", []).append(round(plainly, 3))
                row.setdefault("preempted", []).append([ours["preempted"], base["preempted"]])
                row.setdefault("made_room", []).append(ours["made_room"])
    told = {"prompts": n, "slots": SLOTS, "tau": taus, "against": "the same goal in arrival order"}
    print(json.dumps({**told, "ratios": found}))


if __name__ == "__main__":
    main()
