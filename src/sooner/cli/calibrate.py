"""`sooner calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sooner.cli.options import NameOption, policy_names


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="TOML to write.")
@click.option(
    "--meta",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON with the engine's arguments (engine_kwargs); else NAME_meta.json beside NAME_requests.jsonl.",
)
@click.option("--max-num-seqs", type=int, help="The engine's limit, where META does not say.")
@click.option("--max-num-batched-tokens", type=int, help="The engine's limit, where META does not say.")
@click.option(
    "--num-blocks", type=int, help="KV blocks, as vLLM logs them; else found from the run if they bound it."
)
@click.option("--block-size", type=int, help="Tokens in a KV block, where META does not say.")
@click.option("--data-parallel", type=click.IntRange(min=1), help="Replicas, where META does not say.")
@click.option(
    "--policy",
    cls=NameOption,
    names=policy_names,
    default="fcfs",
    show_default=True,
    help="The order in which the runs were served.",
)
@click.option(
    "--overhead/--no-overhead",
    default=None,
    help="Fit too what a request spends between client and scheduler; else where clients took the times.",
)
@click.option("--part", help="Fit to a share of the requests only, such as 0:0.5; all of them are served.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    runs: tuple[Path, ...],
    out: Path,
    meta: Path | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    num_blocks: int | None,
    block_size: int | None,
    data_parallel: int | None,
    policy: str,
    overhead: bool | None,
    part: str | None,
    as_json: bool,
) -> None:
    """Fit a simulated engine to RUNS of the real one and write it as TOML for `simulate --engine`.

    A run has a line for each request with its lengths, its arrival and the times of its first and
    last token: LLMServingSim's benchmark of vLLM, or what `sooner replay` writes, plain or .gz.
    Several runs at different loads are fitted together and determine more. For each coefficient it
    is said how far it can move, the others following, before the fit gets 5 % worse.

    Example: sooner calibrate run_requests.jsonl.gz --meta run_meta.json --out engine.toml
    """
    import dataclasses

    from sooner import policies
    from sooner.cli.options import table
    from sooner.sim.calibrate import calibrate as fit
    from sooner.sim.runs import meta_beside, part_of, read_limits
    from sooner.workloads.traces.engine_run import read

    given = {
        "data_parallel_size": data_parallel,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "num_blocks": num_blocks,
        "block_size": block_size,
    }
    limits, known, instances, ranks = read_limits(meta or meta_beside(runs[0]), given)
    if instances > 1:
        click.echo(f"{instances} data-parallel replicas, balanced as vLLM does", err=True)
    if ranks > 1:
        click.echo(f"{ranks} expert-parallel ranks that step together: taken as one engine of all", err=True)
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if name not in known:
            click.echo(f"{name} is not known; {getattr(limits, name)} is taken, vLLM's default", err=True)
    loaded = [read(run) for run in runs]
    found = fit(
        loaded,
        limits,
        policy=policies.get(policy),
        rows=[part_of(part, len(run.workload)) for run in loaded],
        find_memory="num_blocks" not in known,
        instances=instances,
        find_overhead=any(run.by_client for run in loaded) if overhead is None else overhead,
    )
    stem = out.name.removesuffix(".toml")
    engine = dataclasses.replace(
        found.engine, name=stem, source="fitted to " + ", ".join(run.name for run in runs)
    )
    notes = "".join(f"# {name}: +-{error:.2g}, {held(error)}\n" for name, error in found.uncertainty.items())
    if instances > 1:
        notes += f"# one of {instances} data-parallel replicas: sooner simulate --instances {instances}"
        notes += " --router vllm-dp\n"
    out.write_text(notes + engine.to_toml(), encoding="utf-8")
    if engine.approximate:
        click.echo(
            f"WARNING: the fit does not hold: a single time is off by {found.rms_s:.3g} s, a tenth of the"
            f" mean latency or more. Are these the engine's own limits (num_blocks {engine.num_blocks},"
            f" max_num_seqs {engine.max_num_seqs}), was it {instances} replica(s), and was it served in order"
            f" {policy}? {out} is marked approximate.",
            err=True,
        )
    if as_json:
        coefficients = {name: getattr(engine, name) for name in found.uncertainty}
        report = {"engine": str(out), **coefficients, "num_blocks": engine.num_blocks}
        report |= {"instances": instances, "holds": not engine.approximate}
        click.echo(json.dumps(report | {"uncertainty": found.uncertainty, "rms_s": found.rms_s}))
        raise click.exceptions.Exit(int(engine.approximate))
    rows = [
        (name, f"{getattr(engine, name):.4g}", f"{error:.2g}", held(error))
        for name, error in found.uncertainty.items()
    ]
    table(("coefficient", "value [s]", "can move by +-", "these runs"), rows)
    click.echo(f"error of one time: {found.rms_s:.3f} s; KV blocks: {engine.num_blocks}; wrote {out}")
    raise click.exceptions.Exit(int(engine.approximate))


def held(error: float) -> str:
    """Say how well a coefficient is determined that can move by `error` of itself."""
    return "hold it" if error < 0.1 else "hold it loosely" if error < 1 else "do not determine it"
