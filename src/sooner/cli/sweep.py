"""`sooner sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import NameOption, policy_names, progress_bar, say_notes, table
from sooner.cli.study import study_of, study_options


@click.command()
@click.argument("workload")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write or resume."
)
@click.option(
    "--policies", cls=NameOption, names=policy_names, required=True, help="Comma-separated policies."
)
@click.option(
    "--rates", default="", help="Comma-separated mean arrivals [req/s]; none: recorded times, or --burst."
)
@click.option("--loads", default="", help="Comma-separated rates as shares of what the engines can do.")
@click.option("--taus", default="", help="Comma-separated qualities of prediction; none: the truth.")
@click.option(
    "--seeds", default=1, type=click.IntRange(min=1), show_default=True, help="Runs of each combination."
)
@click.option("--processes", default=1, show_default=True, help="How many run at once.")
@click.option("--measure", default="mean_e2e_s", show_default=True, help="What the table shows.")
@study_options
@click.option("--json", "as_json", is_flag=True, help="Print every row as JSON.")
def sweep(
    workload: str,
    out: Path,
    policies: str,
    rates: str,
    loads: str,
    taus: str,
    seeds: int,
    processes: int,
    measure: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Simulate every combination of policies, rates or loads, taus and seeds on WORKLOAD.

    Each row goes to OUT when it is done; the same command, run again after an interruption, goes on
    where it stopped.

    Example: sooner sweep sharegpt --policies fcfs,aged,sjf --loads 0.7,0.9 --requests 20000 --out s.jsonl
    """
    from sooner.core import UnknownName
    from sooner.sim.study import REPORTED, notes_of
    from sooner.sim.sweep import averages, cases
    from sooner.sim.sweep import sweep as run

    known = (*REPORTED, "deadlines_met")
    if measure not in known:
        raise UnknownName("measure", measure, known)
    names = [name.strip() for name in policies.split(",") if name.strip()]
    base = study_of(workload, policy=names[0] if names else "fcfs", **given)
    studies = cases(
        base,
        names,
        seeds,
        rates=_numbers("--rates", rates),
        loads=_numbers("--loads", loads),
        taus=_numbers("--taus", taus),
    )
    say_notes(workload, notes_of(base))
    with progress_bar("sweeping") as progress:
        rows = run(studies, out, processes=processes, progress=progress)
    if as_json:
        click.echo(json.dumps(rows))
        return
    table(
        ("policy", "arrivals", "tau", measure, "runs"),
        [
            (policy, arrivals, _shown(tau), f"{value:,.4g}", str(count))
            for policy, arrivals, tau, value, count in averages(rows, measure)
        ],
    )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(
            f"{text!r}, allowed: numbers separated by commas", param_hint=option
        ) from None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
