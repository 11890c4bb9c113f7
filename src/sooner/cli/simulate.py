"""`sooner simulate`."""

from __future__ import annotations

import json
from typing import Any

import click

from sooner.cli.options import (
    SEED,
    NameOption,
    policy_names,
    progress_bar,
    say_notes,
    study_of,
    study_options,
    table,
)


@click.command()
@click.argument("workload")
@click.option(
    "--policy",
    cls=NameOption,
    names=policy_names,
    default="boost",
    show_default=True,
    help="The order, or module:name of your own.",
)
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the policy; repeatable."
)
@click.option("--rate", type=float, help="Poisson arrivals of this mean rate [req/s].")
@study_options
@click.option(
    "--tau", type=float, help="Spoil the true lengths to this Kendall tau; else the policy is told the truth."
)
@click.option(
    "--learn",
    is_flag=True,
    help="Tell the policy what a learner knows of senders and templates from what had finished by then.",
)
@click.option("--ranker", help='A saved ranker, or "default", that scores the workload\'s prompts.')
@click.option(
    "--seed",
    default=0,
    type=SEED,
    show_default=True,
    help="Of the draw, the arrivals and the noise of --tau.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate(ranker: str | None, learn: bool, as_json: bool, **given: Any) -> None:
    """Serve WORKLOAD on a simulated engine under a policy and print every measure.

    WORKLOAD is a name (sharegpt, azure-conv, azure-code, mooncake, lognormal, burstgpt, servegen,
    arxiv-summarization) or a file: a trace with lengths (JSONL or CSV, .gz) or a log with prompts.
    Without --rate, --load or --burst its own arrival times are replayed, or, where it has none, it
    comes at a load of 0.8. Presets are approximate: see `sooner calibrate` for an engine of your own.

    Example: sooner simulate sharegpt --policy boost --requests 100000 --rate 20 --json
    """
    from sooner.sim.study import prepare, run

    loaded = None
    if ranker is not None:
        from sooner import training as train

        loaded = train.load(ranker)
    study = study_of(**given)
    if study.engine.approximate:
        click.echo(
            f"engine {study.engine.name}: approximate ({study.engine.source or 'not measured'})", err=True
        )
    prepared = prepare(study, loaded, learn=learn)
    say_notes(study.workload, prepared.notes)
    with progress_bar(f"simulating {study.policy}") as progress:
        report = run(study, prepared, progress)
    if loaded is None and study.tau is None and report["predictions"] == "oracle" and study.policy != "fcfs":
        click.echo("the policy was told the true lengths; see --tau and --ranker", err=True)
    if as_json:
        click.echo(json.dumps(report))
        return
    table(("measure", "value"), [(name, _shown(value)) for name, value in report.items()])


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
