"""`sooner simulate`."""

from __future__ import annotations

import json
from typing import Any

import click

from sooner.cli.options import progress_bar, say_notes, table
from sooner.cli.study import (
    param_option,
    policy_option,
    rate_option,
    seed_option,
    study_of,
    study_options,
    tau_option,
)


@click.command()
@click.argument("workload")
@policy_option
@param_option
@rate_option
@study_options
@tau_option
@click.option(
    "--learn",
    is_flag=True,
    help="Tell the policy what a learner knows of senders and templates from what had finished by then.",
)
@click.option("--ranker", help='A saved ranker, or "default", that scores the workload\'s prompts.')
@seed_option
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
