"""`sooner demo`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click

from sooner.cli.options import NameOption, progress_bar, ranker_names


@click.command()
@click.option("--quick", is_flag=True, help="A smaller burst: about 6 minutes on 2 cores.")
@click.option(
    "--ranker",
    cls=NameOption,
    names=ranker_names,
    default="blend",
    show_default=True,
    help="Which kind of ranker to train.",
)
@click.option(
    "--beside",
    default="lexical",
    show_default=True,
    help="A second kind, served too for comparison (not with --quick); empty for none.",
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
def demo(quick: bool, ranker: str, beside: str, out: Path, json_file: Path | None) -> None:
    """See learned order against arrival order on the real vLLM, on this machine's CPU.

    Trains a ranker on SmolLM2-135M's own reply lengths, serves bursts of held-out ShareGPT prompts in
    arrival order (fcfs), learned order (ltr) and the order of the true lengths (sjf), and compares.

    Example: sooner demo --quick --json result.json
    """
    from sooner.demo import page, run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers end with us
    scale = run.QUICK if quick else run.FULL
    second = None if quick or beside in ("", ranker) else beside
    result = run.run(out, scale, ranker, beside=second, say=_say, bars=progress_bar)
    page.show(result)
    report = page.write(out, result)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _say(f"Report: {report}")


def _say(words: Any) -> None:
    click.echo(words, err=True)
