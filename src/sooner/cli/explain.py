"""`sooner explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sooner.cli.options import SEED

if TYPE_CHECKING:
    from sooner.judging.explain import Explanation


@click.command()
@click.argument("directory")
@click.argument("prompt", required=False)
@click.option("--max-tokens", type=click.IntRange(1), help="The limit that the request would carry.")
@click.option("--top", default=12, show_default=True, help="How many terms and examples to show.")
@click.option("--seed", default=0, type=SEED, show_default=True, help="Seed of what is sampled.")
@click.option("--log", "log_path", help="Instead of one prompt: what the ranker makes of this log's prompts.")
@click.option("--rows", default=300, show_default=True, help="With --log: how many of its rows.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="With --log: write a page with a plot."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    directory: str,
    prompt: str | None,
    max_tokens: int | None,
    top: int,
    seed: int,
    log_path: str | None,
    rows: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Say why the ranker in DIRECTORY ("default": the shipped one) scores PROMPT as it does.

    PROMPT is text, JSON with `messages`, or - for standard input. The terms add up to the score; a positive
    one makes a longer reply expected, and a later turn. With --log, what the terms add over many prompts.

    Example: sooner explain default "Write a long story about Rome"
    """
    from dataclasses import replace

    from sooner import chat
    from sooner import training as library
    from sooner.judging.explain import explain as why
    from sooner.training.examples import Examples

    if (prompt is None) == (log_path is None):
        raise click.UsageError("give either PROMPT or --log")
    ranker = library.load(directory)
    if log_path is not None:
        _overall(ranker, log_path, rows, top, seed, html, as_json)
        return
    assert prompt is not None  # the check above
    given = sys.stdin.buffer.read().decode("utf-8", "replace") if prompt == "-" else prompt
    seen = chat.read_messages(found) if (found := _messages(given)) is not None else chat.read(given)
    made = why(ranker, seen.prompt, replace(seen.context, max_tokens=max_tokens), seed=seed)
    kept = None if directory == "default" else Examples.load(directory)
    nearest = [example._asdict() for example in kept.nearest(seen.prompt, min(top, 5))] if kept else []
    if as_json:
        click.echo(json.dumps({**made.as_json, "nearest": nearest}))
    else:
        _print(made, nearest, top)


def _messages(given: str) -> Any:
    """The messages in a JSON request, None where the text is none."""
    if not given.lstrip().startswith(("{", "[")):
        return None
    try:
        found = json.loads(given)
    except json.JSONDecodeError:
        return None
    found = found.get("messages") if isinstance(found, dict) else found
    return found if isinstance(found, list) else None


def _print(made: Explanation, nearest: list[dict[str, Any]], top: int) -> None:
    terms = sorted(made.terms, key=lambda term: -abs(term.amount))
    click.echo(f"score {made.score:+.4f}, expected reply {made.predicted_len:.0f} tokens")
    click.echo(
        "the reply stays within "
        + ", ".join(f"{bound:.0f} tokens with {float(level):.0%}" for level, bound in made.quantiles.items())
    )
    for term in terms[:top]:
        click.echo(f"  {term.amount:+.4f}  {term.kind}: {_short(term.text)}")
    if len(terms) > top:
        rest = sum(term.amount for term in terms[top:])
        click.echo(f"  {rest:+.4f}  {len(terms) - top} smaller terms")
    click.echo(f"  {sum(term.amount for term in terms):+.4f}  sum" + ("" if made.exact else " (sampled)"))
    for example in nearest:
        told = "" if example["prompt"] is None else f": {_short(example['prompt'])}"
        click.echo(
            f"near (cosine {example['similarity']:.2f}): conversation {example['conversation']}, "
            f"{example['output_len']:.0f} tokens{told}"
        )


def _overall(
    ranker: Any, path: str, rows: int, top: int, seed: int, html: Path | None, as_json: bool
) -> None:
    """Print, and plot, what the terms add over the prompts of a log."""
    from sooner import training as library
    from sooner.judging.learned import learned
    from sooner.report import terms as page
    from sooner.workloads import logs

    data = library.merged(library.dataset(logs.read(path).rows))
    found = learned(ranker, data.prompts, data.context, rows=rows, seed=seed)
    if html is not None:
        page.write(html, found.as_json, title=f"What a {ranker.name} ranker has learned")
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(found.as_json))
        return
    click.echo(f"{found.rows} prompts; mean share of each kind of term in what moves the score:")
    for kind, share in found.shares.items():
        click.echo(f"  {share:6.1%}  {kind}")
    for title, chosen in (("longer", found.longer), ("shorter", found.shorter)):
        click.echo(f"what makes a {title} reply expected (mean over the prompts that have it, how many):")
        for term in chosen[:top]:
            click.echo(f"  {term.mean:+.4f}  {term.kind}: {_short(term.text)} ({term.prompts})")


def _short(words: str) -> str:
    plain = " ".join(words.split())
    return plain if len(plain) <= 60 else plain[:57] + "..."
