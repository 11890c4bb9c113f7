"""Is the simulator right in seconds about the real vLLM, for loads and an order it was not fitted to?

    python benchmarks/own_runs.py [--requests 100] [--rounds 3] [--folder DIR] [--judge]

One real vLLM on the CPU (random weights, words for prompts, replies of forced length) serves FCFS and
shortest-score-first at three loads, in slices that take turns, so that a machine that changes its pace
changes it for every arm alike. Both orders are the plugin's `ltr`: under FCFS the scores sent are the
places in the order of arrival. The engine has one core to itself, the API server and the client the
other, all at the highest priority that the system allows. Coefficients are fitted to FCFS at one load
and judged on everything else. A slice that was served is kept in `--folder`, so an interrupted run goes
on. Each slice's steps are counted too, so that the machine's pace in it is known without the simulator:
under `at_each_slices_pace` fit and judgement are given it, under `one_engine` they are not. All runs are
kept as numbers beside the result, and `--judge` judges those again. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from own_runs_served import (
    SLOTS,
    WORK,
    Slice,
    ballast,
    capacity,
    pinned,
    priority,
    serve,
    served,
    settle,
    work_done,
    write_model,
)  # fmt: skip
from sooner import metrics, policies
from sooner.config import cache_folder
from sooner.core import Completed
from sooner.demo import engine
from sooner.demo.run import versions
from sooner.replay.record import read_run
from sooner.sim.calibrate import calibrate, rerun
from sooner.sim.cost import Engine
from sooner.sim.validate import compare, validate
from sooner.workloads.traces.engine_run import EngineRun, read

RESULTS = Path("benchmarks/results")
LOADS = (0.5, 0.8, 1.2)
FITTED = ("fcfs", 0.8)
LIMITS = Engine(max_num_seqs=SLOTS, max_num_batched_tokens=2048, num_blocks=50_000)
MEASURES = ("mean_ttft_s", "mean_tpot_s", "mean_e2e_s", "p99_e2e_s")
KEPT = (
    "arrival_time", "prompt_len", "output_len", "first_token_time", "finish_time", "arrival_step",
    "first_token_step", "finish_step", "attached",
)  # fmt: skip


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--niceness", type=int, default=-19)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "own_runs")
    parser.add_argument("--runs", type=Path, default=RESULTS / "own_runs.jsonl.gz")
    parser.add_argument("--out", type=Path, default=RESULTS / "own_runs.json")
    parser.add_argument("--judge", action="store_true", help="judge the kept runs, serve nothing")
    options = parser.parse_args()
    slices = [
        Slice(policy, load, number)
        for number in range(options.rounds)
        for policy, load in _turns([(p, at) for at in LOADS for p in ("fcfs", "ltr")], number)
    ]
    if options.judge:
        kept = json.loads(options.out.read_text(encoding="utf-8"))["measured"]
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        kept = measure(options.folder, slices, options.requests, options.niceness)
        keep(options.runs, options.folder, slices)
    result = {"measured": kept, **judge(options.runs, options.folder, kept["work"])}
    text = json.dumps(result, indent=2)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def _turns(arms: list[tuple[str, float]], number: int) -> list[tuple[str, float]]:
    """Every other round goes backwards, so that no arm is always the first."""
    return arms[::-1] if number % 2 else arms


def measure(folder: Path, slices: Sequence[Slice], requests: int, niceness: int) -> dict[str, Any]:
    """Serve what is not served yet; return what is known of the machine meanwhile."""
    trace = folder / f"trace-{len(list(folder.glob('trace-*.steps')))}.jsonl"
    notes = folder / "notes.json"
    known: dict[str, Any] = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    todo = [each for each in slices if not served(folder / f"{each.name}.jsonl")]
    if todo:
        model = write_model(folder / "model")
        with ballast(), priority(niceness) as nice, pinned(os.environ):
            settings = {"policy": "ltr", "ranker": "", "trace": str(trace)}
            options = ("--load-format", "dummy", "--max-model-len", "1024")
            with engine.serve(
                model, name="own", log=folder / "server.log", settings=settings, max_num_seqs=SLOTS,
                options=options,
            ) as url:  # fmt: skip
                settle()
                if "capacity_rps" not in known:
                    known["capacity_rps"] = capacity(folder, url, trace, max(requests, 100))
                known |= {"niceness": nice, "requests_a_slice": requests, "versions": versions()}
                notes.write_text(json.dumps(known), encoding="utf-8")
                for each in todo:
                    serve(folder, url, trace, each, requests, known["capacity_rps"] * each.load)
                    print(each.name, file=sys.stderr)
    return known | {"work": work_done(folder, slices)}


def keep(path: Path, folder: Path, slices: Sequence[Slice]) -> None:
    """Write every slice's numbers to one file."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for each in slices:
            for record in read_run(folder / f"{each.name}.jsonl").records:
                line = {name: getattr(record, name) for name in KEPT}
                file.write(json.dumps(dataclasses.asdict(each) | line) + "\n")


def judge(path: Path, folder: Path, work: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Fit to FCFS at one load and compare everything else with it, without and with the machine's pace."""
    runs, stepped = load(path, folder)
    cost = usual(work)
    pace = {each: pace_of(cost, work[each.name]) for each in runs}
    spread = {
        f"{policy} at {at:g}": [round(pace[each], 3) for each in runs if each.arm == (policy, at)]
        for policy, at in sorted({each.arm for each in runs})
    }
    return {
        "fitted_to": {"policy": FITTED[0], "load": FITTED[1]},
        "pace": spread,
        "one_engine": fitted_and_judged(runs, dict.fromkeys(runs, 1.0)),
        "at_each_slices_pace": fitted_and_judged(runs, pace),
        "steps": in_steps(stepped),
    }


def fitted_and_judged(runs: Mapping[Slice, EngineRun], pace: Mapping[Slice, float]) -> dict[str, Any]:
    """Fit to the chosen arm, its times divided by the pace, and judge every slice at its pace."""
    fit_to = [at_usual_pace(run, pace[each]) for each, run in runs.items() if each.arm == FITTED]
    found = calibrate(fit_to, LIMITS, find_overhead=True)
    return {
        "engine": {name: getattr(found.engine, name) for name in found.uncertainty},
        "uncertainty": found.uncertainty,
        **against(runs, {each: slowed(found.engine, pace[each]) for each in runs}),
    }


def at_usual_pace(run: EngineRun, pace: float) -> EngineRun:
    """Return what the run would have been, had all of it, clients too, gone `pace` times as fast."""
    done = run.completed
    times = ("arrival_time", "first_token_time", "finish_time", "start_time")
    return run._replace(
        workload=run.workload.at(run.workload.arrival_time / pace),
        completed=done._replace(**{name: getattr(done, name) / pace for name in times}),
    )


def usual(work: Mapping[str, Mapping[str, float]]) -> Sequence[float]:
    """Return what a step, a prefill token, a decoding request and a token of context usually took [s]."""
    rows = np.array([[one[name] for name in WORK] for one in work.values()])
    weights = 1.0 / rows[:, :1]  # each slice counts the same, whatever its length
    cost, *_ = np.linalg.lstsq(rows[:, 1:] * weights, np.ones(len(rows)), rcond=None)
    pace = rows[:, 0] / (rows[:, 1:] @ cost)
    return [float(value) for value in cost * np.median(pace)]


def pace_of(cost: Sequence[float], work: Mapping[str, float]) -> float:
    """Return what a slice's steps took over what those very steps cost."""
    return work["seconds"] / sum(each * work[name] for each, name in zip(cost, WORK[1:], strict=True))


def slowed(fitted: Engine, pace: float) -> Engine:
    """Return an engine whose steps all take `pace` times as long."""
    return fitted.with_coefficients(*(pace * value for value in fitted.coefficients))


def load(path: Path, folder: Path) -> tuple[dict[Slice, EngineRun], dict[Slice, EngineRun]]:
    """Return the kept runs, in seconds and in engine steps."""
    lines: dict[Slice, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            lines.setdefault(Slice(line["policy"], line["load"], line["round"]), []).append(text)
    runs, stepped = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    for each, texts in lines.items():
        one = folder / f"{each.name}.kept.jsonl"
        one.write_text("".join(texts), encoding="utf-8")
        runs[each], stepped[each] = read(one), read(one, steps=True)
    return runs, stepped


def against(runs: Mapping[Slice, EngineRun], engines: Mapping[Slice, Engine]) -> dict[str, Any]:
    """Return each arm's real and simulated measures, and how the ratio of the two orders came out."""
    arms: dict[tuple[str, float], tuple[list[Completed], list[Completed]]] = {}
    for each, run in runs.items():
        real, simulated = arms.setdefault(each.arm, ([], []))
        real.append(run.completed)
        simulated.append(rerun(run, engines[each], policies.get(each.policy)))
    pooled = {arm: (_together(real), _together(simulated)) for arm, (real, simulated) in arms.items()}
    table = {}
    for (policy, at), pair in sorted(pooled.items()):
        compared = compare(*pair)
        table[f"{policy} at {at:g}"] = {name: compared[name]._asdict() for name in (*MEASURES, "each_e2e_s")}
    ratios: dict[str, dict[str, float]] = {}
    for at in sorted({at for _, at in pooled}):
        for name, formula in (("e2e", metrics.e2e), ("ttft", metrics.ttft)):
            theirs, ours = (
                float(np.mean(formula(pooled["ltr", at][i])) / np.mean(formula(pooled["fcfs", at][i])))
                for i in (0, 1)
            )
            error = 100 * (ours / theirs - 1)
            ratios[f"{name} at {at:g}"] = {"real": theirs, "simulated": ours, "error_pct": error}
    worst = max(
        abs(row[name]["error_pct"])
        for arm, row in table.items()
        if arm != f"{FITTED[0]} at {FITTED[1]:g}"
        for name in MEASURES
    )
    largest = max(abs(row["error_pct"]) for row in ratios.values())
    return {"arms": table, "ltr_over_fcfs": ratios, "worst_pct": worst, "worst_ratio_pct": largest}


def _together(runs: Sequence[Completed]) -> Completed:
    return Completed(
        *(np.concatenate([np.atleast_1d(c) for c in columns]) for columns in zip(*runs, strict=True))
    )


def in_steps(runs: dict[Slice, EngineRun]) -> dict[str, float]:
    """Return the mean error of single requests' latencies in engine steps, by arm [%]: scheduling alone."""
    counting = LIMITS.with_coefficients(1.0, 0.0, 0.0, 0.0)
    errors: dict[str, list[float]] = {}
    for each, run in runs.items():
        found = validate(run, counting, policies.get(each.policy))["each_e2e_s"].error_pct
        errors.setdefault(f"{each.policy} at {each.load:g}", []).append(found)
    return {arm: float(np.mean(values)) for arm, values in sorted(errors.items())}


if __name__ == "__main__":
    main()
