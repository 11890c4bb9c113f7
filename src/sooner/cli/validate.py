"""`sooner validate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sooner.cli.options import NameOption, policy_names


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--engine", required=True, help="A preset, or the TOML file that `sooner calibrate` wrote.")
@click.option(
    "--policy",
    cls=NameOption,
    names=policy_names,
    default="fcfs",
    show_default=True,
    help="The order in which the run was served.",
)
@click.option(
    "--meta",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON that says how many replicas served; else NAME_meta.json beside NAME_requests.jsonl.",
)
@click.option("--data-parallel", type=click.IntRange(min=1), help="Replicas, where META does not say.")
@click.option("--part", help="Judge a share of the requests only, such as 0.5:1; all of them are served.")
@click.option(
    "--steps", is_flag=True, help="Compare engine steps instead of seconds, where a replay has them."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def validate(
    run: Path,
    engine: str,
    policy: str,
    meta: Path | None,
    data_parallel: int | None,
    part: str | None,
    steps: bool,
    as_json: bool,
) -> None:
    """Serve the workload of a real RUN on a simulated engine and print the error of each measure.

    each_e2e_s is the mean error of single requests; the others compare the two runs' statistics. With
    --steps the values are engine steps, which judges scheduling alone: the machine's load cannot change it.

    Example: sooner validate run_requests.jsonl.gz --engine engine.toml --json
    """
    import dataclasses

    from sooner import policies
    from sooner.cli.options import table
    from sooner.sim.cost import load
    from sooner.sim.runs import meta_beside, part_of, read_limits
    from sooner.sim.validate import validate as judge
    from sooner.workloads.traces.engine_run import read

    real = read(run, steps=steps)
    simulated = load(engine)
    if steps:
        simulated = dataclasses.replace(simulated.with_coefficients(1.0, 0.0, 0.0, 0.0), overhead_s=0.0)
    instances = read_limits(meta or meta_beside(run), {"data_parallel_size": data_parallel}).instances
    rows = part_of(part, len(real.workload))
    compared = judge(real, simulated, policies.get(policy), rows, instances=instances)
    if as_json:
        click.echo(json.dumps({name: row._asdict() for name, row in compared.items()}))
        return
    table(
        ("measure", "real", "simulated", "error"),
        [
            (name, f"{row.real:.4g}", f"{row.simulated:.4g}", f"{row.error_pct:+.2f} %")
            for name, row in compared.items()
        ],
    )
