"""`sooner replay`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from sooner.cli.options import SEED, endpoint_of, endpoint_options, progress_bar, sampling_options


@click.command()
@click.argument("workload")
@endpoint_options
@sampling_options
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write.")
@click.option(
    "--arrivals",
    type=click.Choice(["burst", "poisson", "gamma", "trace"]),
    default="burst",
    show_default=True,
)
@click.option("--rate", type=float, help="Mean arrivals [req/s], for poisson and gamma.")
@click.option("--cv", default=2.0, show_default=True, help="Burstiness of gamma arrivals; 1 is Poisson.")
@click.option("--time-scale", default=1.0, show_default=True, help="Stretches the times of trace arrivals.")
@click.option("--seed", default=0, type=SEED, show_default=True, help="Of the arrival process.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N prompts.")
@click.option(
    "--score-field",
    help="Field of WORKLOAD to send: as sooner_score if called score, else as sooner_predicted_len.",
)
@click.option("--priority-field", help="Integer field of WORKLOAD sent as vLLM's priority.")
@click.option("--force-len", is_flag=True, help="Make each reply exactly the workload's output_len long.")
@click.option(
    "--server-trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The trace that the server's plugin writes; adds steps and preemptions.",
)
@click.option("--label", help="The arm's name in reports, such as its policy; else OUT's name.")
def replay(
    workload: str,
    url: str,
    model: str,
    api: str,
    api_key_file: Path | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed_base: int,
    out: Path,
    arrivals: str,
    rate: float | None,
    cv: float,
    time_scale: float,
    seed: int,
    limit: int | None,
    score_field: str | None,
    priority_field: str | None,
    force_len: bool,
    server_trace: Path | None,
    label: str | None,
) -> None:
    """Drive a server with WORKLOAD (JSONL, .gz, or - for stdin) and measure it from the client's side.

    Requests leave when they are due, whatever the server does. One line per request goes to OUT, the
    settings to OUT.meta.json, a summary to stdout. `sooner report` makes tables and plots of it.

    Example: sooner replay work.jsonl --url http://127.0.0.1:8000 --model m --out fcfs.jsonl
    """
    import numpy as np

    from sooner.replay.client import Sampling
    from sooner.replay.drive import attach_fields
    from sooner.replay.record import summary
    from sooner.replay.saved import replay_to_file
    from sooner.workloads.arrivals import arrival_times
    from sooner.workloads.prompts import read_prompts

    prompts = read_prompts(workload, limit)
    times = arrival_times(
        arrivals,
        len(prompts),
        np.random.default_rng(seed),
        rate=rate,
        cv=cv,
        recorded=[prompt.arrival_time for prompt in prompts],
        time_scale=time_scale,
    )
    process = {"kind": arrivals, "rate": rate, "cv": cv, "time_scale": time_scale, "seed": seed}
    with progress_bar("replaying") as progress:
        run = asyncio.run(
            replay_to_file(
                out,
                prompts,
                times,
                endpoint_of(url, model, api, api_key_file),
                Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed_base=seed_base),
                label=label,
                attach=attach_fields(score_field, priority_field),
                force_len=force_len,
                server_trace=server_trace,
                notes={"workload": Path(workload).name, "arrivals": process},
                progress=progress,
            )
        )
    for record in [record for record in run.records if record.error][:5]:
        click.echo(f"failed {record.id}: {record.error}", err=True)
    click.echo(json.dumps(summary(run.records)))
