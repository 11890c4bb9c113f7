"""Orders on real traces: mean and P99 latency as ratios to arrival order, at five loads each.

    python benchmarks/traces.py --json benchmarks/results/traces.json --table docs/results/traces.md
    python benchmarks/traces.py --from benchmarks/results/traces.json --table docs/results/traces.md

Azure's code and conversation traces and Mooncake's ship with the package; chat and reasoning are drawn. Each
runs on the engine `llama3-8b-a100` (chat on 16 slots of it). Arrivals keep their own bursts and are stretched
to a share of what the engine can do. Predictions are of a ranker with Kendall tau 0.5, calibrated on the
first half; what `boost` learns, it learns on the way. Only requests of the second half are judged, in three
draws of the predictions' errors: means, and the largest deviation of a draw. `boost oracle` is told the true
lengths, `boost tuned` has the gamma that `sooner tune` chooses on the first half for a tail of 1.05.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import sys
from collections.abc import Callable, Iterator
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

import sooner
from sooner import metrics, policies
from sooner.core import Completed
from sooner.policies import REACH
from sooner.report import svg
from sooner.sim.cost import PRESETS, Engine
from sooner.sim.engine import simulate
from sooner.sim.tune import STEPS, Point, choose
from sooner.workloads import named
from sooner.workloads.columns import Workload, by_arrival

ENGINE = PRESETS["llama3-8b-a100"]
LOADS = (0.3, 0.5, 0.7, 0.9, 1.1)
DRAWS = (5, 6, 7)
TAIL = 1.05
MEASURES = ("mean_e2e", "p99_e2e", "mean_ttft", "p99_ttft")
PLAIN = ("ltr", "aged", "hrrn", "hrrn_prompt", "wspt", "spw", "boost")
"""Told predictions; `ltr`, `aged` and `hrrn` read the reply's length, the next two the prompt."""

Lengths = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


class Case(NamedTuple):
    """One workload: arrivals [s] at their own rate, lengths [tokens], and its engine."""

    arrival_time: NDArray[np.float64]
    prompt_len: NDArray[np.int64]
    output_len: NDArray[np.int64]
    engine: Engine


def recorded(name: str, n: int | None = None) -> Lengths:
    """Return a trace that ships, in order of arrival."""
    trace = named.load(name)
    assert trace.arrival_time is not None
    times = np.asarray(trace.arrival_time[:n], dtype=np.float64)
    if name == "mooncake":  # its clock ticks every 3 s
        times = times + np.random.default_rng(1).uniform(0, 3, times.size)
    order = np.argsort(times, kind="stable")
    lengths = (np.maximum(np.asarray(one[:n])[order], 1) for one in (trace.prompt_len, trace.output_len))
    return (times[order] - times.min(), *lengths)  # type: ignore[return-value]  # two columns


def drawn(mu: float, cap: int, n: int) -> Lengths:
    """Return n requests with bursts (CV 3) and lognormal lengths."""
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.gamma(1 / 9, 9, n))
    prompt = np.clip(np.round(np.exp(rng.normal(5, 1, n))), 4, 2048).astype(np.int64)
    return times, prompt, np.clip(np.round(np.exp(rng.normal(mu, 1, n))), 1, cap).astype(np.int64)


CASES: dict[str, Callable[[], Case]] = {
    "azure-code": lambda: Case(*recorded("azure-code"), ENGINE),
    "azure-conv": lambda: Case(*recorded("azure-conv"), ENGINE),
    "mooncake": lambda: Case(*recorded("mooncake", 6_000), ENGINE),
    "chat, 16 slots": lambda: Case(*drawn(5.3, 2048, 6_000), dataclasses.replace(ENGINE, max_num_seqs=16)),
    "reasoning": lambda: Case(*drawn(7.3, 16_384, 3_000), ENGINE),
}


def predicted(output_len: NDArray[np.int64], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores of tau 0.5 to the truth, and the lengths [tokens] that the first half gives them."""
    log = np.log(output_len)
    score = log + np.random.default_rng(seed).normal(0, log.std(), log.size)
    half = log.size // 2
    order = np.argsort(score[:half])
    curve = isotonic_regression(output_len[:half][order].astype(np.float64)).x
    return score, np.maximum(np.interp(score, score[:half][order], curve), 1.0)


def measured(done: Completed, low: float, high: float = np.inf) -> NDArray[np.float64]:
    """Return the four measures [s] of the requests that arrived from `low` until `high`."""
    arrived = np.asarray(done.arrival_time)
    inside = (arrived >= low) & (arrived < high)
    latency, first = np.asarray(metrics.e2e(done))[inside], np.asarray(metrics.ttft(done))[inside]
    return np.array([latency.mean(), np.percentile(latency, 99), first.mean(), np.percentile(first, 99)])


def tuned(
    serve: Callable[..., Completed], base: Completed, times: NDArray[np.float64]
) -> tuple[str, dict[str, float]]:
    """Return the policy that `sooner tune` would choose on the first half, and its parameters."""
    cuts = [times[0], times[times.size // 4], times[times.size // 2]]
    first = np.asarray(base.arrival_time) < cuts[2]
    usual = max(float(np.sqrt(np.mean(np.asarray(metrics.wait(base))[first] ** 2))), 1e-3)
    tries: list[tuple[str, float]] = [("fcfs", 0.0), ("boost", 0.0)]
    tries += [("boost", 1 / (REACH * usual * step)) for step in STEPS]
    runs = {(name, gamma): serve(name, **({"gamma": gamma} if gamma else {})) for name, gamma in tries[1:]}
    runs["fcfs", 0.0] = base
    spans = [(cuts[0], cuts[2]), (cuts[0], cuts[1]), (cuts[1], cuts[2])]
    points = [
        [
            Point(name, gamma, *(measured(runs[name, gamma], *span) / measured(base, *span)))
            for name, gamma in tries
        ]
        for span in spans
    ]
    chosen = choose(points, TAIL)
    return chosen.policy, {"gamma": chosen.gamma} if chosen.gamma else {}


def served(
    workload: Workload,
    engine: Engine,
    told: NDArray[np.float64],
    score: NDArray[np.float64],
    policy: str,
    **parameters: float,
) -> Completed:
    """Serve a workload in one order, told lengths [tokens] and scores (n,)."""
    order = policies.get(policy, **parameters)
    return simulate(workload, engine, order, predicted_len=told, score=score).completed


def rows_of(name: str, case: Case, loads: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Yield one row a load and policy."""
    n = case.prompt_len.size
    fcfs = policies.get("fcfs")
    burst = by_arrival(np.zeros(n), case.prompt_len, case.output_len)
    capacity = n / float(np.max(simulate(burst, case.engine, fcfs).completed.finish_time))
    truth = case.output_len.astype(np.float64)
    span = float(case.arrival_time.max())
    for load in loads:
        times = case.arrival_time * (n / span) / (capacity * load)
        workload = Workload(arrival_time=times, prompt_len=case.prompt_len, output_len=case.output_len)
        half = float(times[n // 2])
        base = simulate(workload, case.engine, fcfs).completed
        reference = measured(base, half)
        yield row(name, load, "fcfs", [reference], reference, seconds=reference)
        found: dict[str, list[NDArray[np.float64]]] = {}
        for seed in DRAWS:
            score, length = predicted(case.output_len, seed)

            serve = functools.partial(served, workload, case.engine, length, score)
            for policy in PLAIN:
                if policy in policies.names():
                    found.setdefault(policy, []).append(measured(serve(policy), half))
            chosen, parameters = tuned(serve, base, times)
            done = serve(chosen, **parameters) if chosen != "fcfs" else base
            found.setdefault("boost tuned", []).append(measured(done, half))
        found["boost oracle"] = [measured(served(workload, case.engine, truth, truth, "boost"), half)]
        found["spw oracle"] = [measured(served(workload, case.engine, truth, truth, "spw"), half)]
        for policy, runs in found.items():
            yield row(name, load, policy, runs, reference)


def row(
    workload: str,
    load: float,
    policy: str,
    runs: list[NDArray[np.float64]],
    reference: NDArray[np.float64],
    seconds: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return one row: ratios, their largest deviation among the draws, and for arrival order the seconds."""
    ratios = np.array(runs) / reference
    told = {name: float(value) for name, value in zip(MEASURES, ratios.mean(axis=0), strict=True)}
    spread = float(np.abs(ratios - ratios.mean(axis=0)).max())
    beside = {} if seconds is None else {"seconds": dict(zip(MEASURES, seconds.tolist(), strict=True))}
    return {"workload": workload, "load": load, "policy": policy, **told, "spread": spread, **beside}


SHOWN = ("ltr", "aged", "hrrn_prompt", "wspt", "spw", "boost", "boost tuned", "boost oracle")


PLOTTED = ("ltr", "aged", "hrrn_prompt", "spw", "boost")


def table(found: dict[str, Any]) -> str:
    """Return the page of `docs/results`: one table, mean @ P99 of E2E and of TTFT."""
    cells = {(one["workload"], one["load"], one["policy"]): one for one in found["rows"]}
    shown = [name for name in SHOWN if any(key[2] == name for key in cells)]
    lines = [
        "# Orders on real traces",
        "",
        "Made by",
        "`python benchmarks/traces.py --json benchmarks/results/traces.json --table docs/results/traces.md`;",
        "what is simulated, and how it is judged, is said at the top of that script. Ratios to arrival order",
        "on the second half of each trace, below 1 is better: **mean E2E @ P99 E2E** (mean TTFT @ P99 TTFT).",
        "`ltr` and `aged` read the predicted reply, `hrrn_prompt` and `wspt` the prompt, `spw` and `boost`",
        "both. `boost` is the default as it is: it learns waits on the way and is told nothing else.",
        "",
        "| workload, load | " + " | ".join(f"`{name}`" for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for workload, load in dict.fromkeys((one["workload"], one["load"]) for one in found["rows"]):
        told = []
        for name in shown:
            one = cells[workload, load, name]
            text = f"{one['mean_e2e']:.2f} @ {one['p99_e2e']:.2f}"
            first = f"({one['mean_ttft']:.2f} @ {one['p99_ttft']:.2f})"
            told.append(f"**{text}** {first}" if name == "boost" else f"{text} {first}")
        lines.append(f"| {workload}, {load} | " + " | ".join(told) + " |")
    most = max(one["spread"] for one in found["rows"] if one["policy"] == "boost")
    versions = found["versions"]
    lines += [
        "",
        f"Of `boost`, no draw of the predictions' errors was further than {most:.3f} from these means.",
        f"Made with sooner {versions['sooner']} and NumPy {versions['numpy']}. Time is simulated, so any",
        "machine gives the same.",
        "",
    ]
    return "\n".join(lines)


BEGIN, END = "<!-- traces -->", "<!-- end of traces -->"
IN_SHORT = {"ltr": "reply length (`ltr`)", "hrrn_prompt": "prompt (`hrrn_prompt`)", "boost": "work (`boost`)"}


def short(found: dict[str, Any]) -> str:
    """Return the README's table: three orders at the two higher loads."""
    cells = {(one["workload"], one["load"], one["policy"]): one for one in found["rows"]}
    lines = ["| workload, share of capacity | " + " | ".join(IN_SHORT.values()) + " |", "|---" * 4 + "|"]
    for workload, load in dict.fromkeys((one["workload"], one["load"]) for one in found["rows"]):
        if workload == "reasoning" or load < 0.9:
            continue
        told = []
        for name in IN_SHORT:
            one = cells[workload, load, name]
            text = f"{one['mean_e2e']:.2f} at {one['p99_e2e']:.2f}"
            told.append(f"**{text}**" if name == "boost" else text)
        lines.append(f"| {workload}, {load} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def page(found: dict[str, Any]) -> str:
    """Return P99 against mean as plots, one a workload and load."""
    style = resources.files("sooner.report").joinpath("page.css").read_text(encoding="utf-8")
    names = [name for name in PLOTTED if any(one["policy"] == name for one in found["rows"])]
    styles = {name: f"s{index}" for index, name in enumerate(names)}
    legend = "".join(f'<li><span class="swatch {styles[name]}"></span>{escape(name)}</li>' for name in names)
    figures = []
    for workload, load in dict.fromkeys((one["workload"], one["load"]) for one in found["rows"]):
        mine = {
            one["policy"]: one for one in found["rows"] if (one["workload"], one["load"]) == (workload, load)
        }
        dots = [
            svg.Series(
                name,
                styles[name],
                np.array([mine[name]["mean_e2e"]]),
                np.array([mine[name]["p99_e2e"]]),
                True,
            )
            for name in names
        ]
        top = max(1.0, *(float(one.y[0]) for one in dots))
        right = max(1.0, *(float(one.x[0]) for one in dots))
        drawn = svg.lines(
            [svg.Series("arrival order", "s5", np.array([0.0, right]), np.ones(2)), *dots],
            svg.linear("Mean E2E, of arrival order's", 0.0, right),
            svg.linear("P99 E2E, of arrival order's", 0.0, top),
            f"{workload}, load {load}: P99 against mean",
        )
        figures.append(f"<figure><figcaption>{escape(workload)}, load {load}</figcaption>{drawn}</figure>")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Orders on real traces</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        "<h1>Orders on real traces</h1>\n"
        '<p class="lead">P99 against mean latency, as ratios to arrival order; lower left is better.</p>\n'
        f'<ul class="legend">{legend}</ul>'
        f'<div class="grid">{"".join(figures)}</div>\n</main></body></html>\n'
    )


def report(
    description: str | None, rows: Callable[[], list[dict[str, Any]]], page_of: Callable[[Any], str]
) -> None:
    """Run a study of these workloads from the command line: JSON to a file or printed, a page besides."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here; else they are printed")
    parser.add_argument("--table", type=Path, help="write the page here")
    options = parser.parse_args()
    found = rows()
    text = json.dumps({"rows": found}, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if options.table:
        options.table.write_text(page_of(found), encoding="utf-8")


def main() -> None:
    """Run what is asked for; print the JSON where no file takes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here; else they are printed")
    parser.add_argument("--table", type=Path, help="write the page here")
    parser.add_argument("--readme", type=Path, help="write the short table into this page")
    parser.add_argument("--html", type=Path, help="write the frontiers here, a plot each")
    parser.add_argument("--from", dest="found", type=Path, help="take the rows of an earlier run")
    parser.add_argument("--workloads", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    options = parser.parse_args()
    if options.found:
        found = json.loads(options.found.read_text(encoding="utf-8"))
    else:
        rows: list[dict[str, Any]] = []
        for name in options.workloads:
            for one in rows_of(name, CASES[name](), tuple(options.loads)):
                rows.append(one)
                print(
                    f"{one['workload']} {one['load']} {one['policy']}: "
                    + ", ".join(f"{measure} {one[measure]:.3f}" for measure in MEASURES),
                    file=sys.stderr,
                )
        versions = {
            "sooner": sooner.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        found = {"rows": rows, "engine": ENGINE.name, "draws": len(DRAWS), "versions": versions}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif not options.found:
        print(json.dumps(found))
    if options.readme:
        text = options.readme.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        options.readme.write_text(f"{before}{BEGIN}\n{short(found)}{END}{after}", encoding="utf-8")
    if options.html:
        options.html.write_text(page(found), encoding="utf-8")
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
