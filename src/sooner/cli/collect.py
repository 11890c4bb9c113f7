"""`sooner collect`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from sooner.cli.options import endpoint_of, endpoint_options, progress_bar, sampling_options


@click.command()
@click.argument("prompts")
@endpoint_options
@sampling_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL to write or go on with.",
)
@click.option("--concurrency", default=64, show_default=True, help="Requests under way at any time.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only the first N prompts.")
@click.option("--keep-text", is_flag=True, help="Also keep the text of the replies.")
def collect(
    prompts: str,
    url: str,
    model: str,
    api: str,
    api_key_file: Path | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed_base: int,
    out: Path,
    concurrency: int,
    limit: int | None,
    keep_text: bool,
) -> None:
    """Run PROMPTS (JSONL, .gz, or - for stdin) against a server and record the lengths of its replies.

    One line per reply: id, prompt_len, output_len, finish_reason, seed. The same command again goes
    on where the last one ended. Settings, versions and counts go to a side file, OUT.meta.json.

    Example: sooner collect prompts.jsonl --url http://127.0.0.1:8000 --model m --out lengths.jsonl
    """
    from sooner.replay.client import Sampling
    from sooner.replay.collect import collect as run
    from sooner.workloads.prompts import read_prompts

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed_base=seed_base)
    with progress_bar("collecting") as progress:
        result = asyncio.run(
            run(
                read_prompts(prompts, limit),
                out,
                endpoint_of(url, model, api, api_key_file),
                sampling,
                concurrency=concurrency,
                keep_text=keep_text,
                progress=progress,
            )
        )
    for id, words in list(result.failed.items())[:5]:
        click.echo(f"refused {id}: {words}", err=True)
    click.echo(
        json.dumps(
            {
                "n": result.n,
                "capped_share": round(result.capped_share, 4),
                "output_tokens": result.output_tokens,
                "failed": len(result.failed),
            }
        )
    )
