"""`sooner tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sooner.cli.options import progress_bar, say_notes, table
from sooner.cli.study import rate_option, seed_option, study_of, study_options

if TYPE_CHECKING:
    from sooner.sim.tune import Point, Tuning

USUAL_TAU = 0.5


@click.command()
@click.argument("workload")
@click.option(
    "--tail", default=1.05, show_default=True, help="How far P99 may rise above arrival order's, as a ratio."
)
@rate_option
@study_options
@click.option(
    "--tau",
    type=float,
    help="Predictions of this Kendall tau to the true lengths.  [default: 0.5, where nobody predicts]",
)
@click.option("--ranker", help='A saved ranker, or "default", that scores the workload\'s prompts.')
@seed_option
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the frontier here."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tune(
    tail: float, ranker: str | None, html: Path | None, as_json: bool, tau: float | None, **given: Any
) -> None:
    """Find the order that pays on WORKLOAD, a trace or a gateway's journal of yours, and its settings.

    Simulates arrival order and others on the same engine, and picks the lowest mean latency whose P99
    stays within --tail of arrival order's: on the first half of the time, judged on the second.
    "Leave it off" is an answer too; then the exit code is 1.

    Example: sooner tune azure-code --engine llama3-8b-a100 --load 0.9 --tail 1.1 --html tune.html
    """
    from sooner.sim.study import prepare
    from sooner.sim.tune import tune as tuned

    loaded = None
    if ranker is not None:
        from sooner import rankers

        loaded = rankers.load(ranker)
    study = study_of(policy="boost", tau=tau, **given)
    if study.engine.approximate:
        click.echo(f"engine {study.engine.name}: approximate; see sooner calibrate for your own", err=True)
    prepared = prepare(study, loaded)
    say_notes(study.workload, prepared.notes)
    if loaded is None and tau is None and prepared.told.kind == "oracle":
        click.echo(f"no predictions: as of a ranker with tau {USUAL_TAU}; see --tau and --ranker", err=True)
        study = study_of(policy="boost", tau=USUAL_TAU, **given)
        prepared = prepare(study)
    with progress_bar("tuning") as progress:
        found = tuned(study, prepared, tail=tail, progress=progress)
    if html is not None:
        from sooner.report.frontier import write_html

        write_html(html, f"Tuning for {study.workload}", shown(found), meta={"engine": study.engine.name})
    if as_json:
        click.echo(json.dumps(shown(found)))
    else:
        _print(found)
    if found.chosen.policy == "fcfs":
        raise click.exceptions.Exit(1)


def shown(found: Tuning) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "chosen": found.chosen._asdict(),
        "advice": found.advice,
        "tail": found.tail,
        "frontier": [point._asdict() for point in found.frontier],
        "folds": [{"start_s": fold.start, **fold.chosen._asdict()} for fold in found.folds],
        "usual_wait_s": found.usual_wait,
        "requests": found.requests,
        "settings": found.settings,
    }


def _print(found: Tuning) -> None:
    table(
        ("policy", "gamma [1/s]", "mean E2E", "P99 E2E", "mean TTFT", "P99 TTFT"),
        [_row(point, "*" if point == found.chosen else "") for point in found.frontier],
    )
    click.echo("\nRatios to arrival order on the second half of the time; * chosen on the first.")
    told = ", ".join(
        f"{fold.chosen.mean_ratio:.2f} at P99 {fold.chosen.p99_ratio:.2f}" for fold in found.folds
    )
    click.echo(f"Chosen anew before each quarter but the first: {told}.")
    click.echo(f"\n{found.advice}")
    if found.chosen.policy != "fcfs":
        click.echo(f"vLLM:    --additional-config '{json.dumps(found.settings['vllm'])}'")
        click.echo("gateway: " + ", ".join(f"{k} = {_toml(v)}" for k, v in found.settings["gateway"].items()))


def _row(point: Point, mark: str) -> tuple[str, ...]:
    gamma = "" if point.gamma is None else f"{point.gamma:.3g}" if point.gamma else "estimated"
    return (f"{point.policy}{mark}", gamma, *(f"{value:.3f}" for value in point[2:]))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
