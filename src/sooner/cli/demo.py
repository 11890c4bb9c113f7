"""`sooner demo`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import NameOption, progress_bar, ranker_names


@click.command()
@click.option("--quick", is_flag=True, help="Fewer requests, two orders only: under 3 minutes on 2 cores.")
@click.option(
    "--ranker",
    cls=NameOption,
    names=ranker_names,
    help="Which kind of ranker to train.  [default: blend; lexical with --quick]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for the records, the report and the trained ranker.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result here."
)
def demo(quick: bool, ranker: str | None, out: Path, json_file: Path | None) -> None:
    """See order by expected work against arrival order on the real vLLM, on this machine's CPU.

    Trains a ranker on SmolLM2-135M's own reply lengths, sends questions and documents of ShareGPT all at
    once, and serves them in arrival order (fcfs) and in the default order (boost). Without --quick also
    by reply length alone (ltr), and by work with the true lengths (oracle).

    Example: sooner demo --quick --json result.json
    """
    from sooner.demo import page, run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers end with us
    scale = run.QUICK if quick else run.FULL
    chosen = ranker or ("lexical" if quick else "blend")
    result = run.run(out, scale, chosen, say=_say, bars=progress_bar)
    page.show(result)
    report = page.write(out, result)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _say(f"Report: {report}")


def _say(words: Any) -> None:
    click.echo(words, err=True)
