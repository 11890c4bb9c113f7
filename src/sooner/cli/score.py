"""`sooner score`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sooner.cli.options import say

if TYPE_CHECKING:
    from sooner.core import Prediction
    from sooner.rankers import Ranker


@click.command()
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print score and expected tokens as JSON, one a line.")
def score(directory: str, as_json: bool) -> None:
    """Score prompts from stdin with the ranker in DIRECTORY ("default": the shipped one).

    A line is a prompt, or JSON with `prompt` or `messages`; its score goes to stdout, in order. A larger
    score means a longer reply expected. A line that cannot be scored gives nan, or null in JSON, and is
    named on stderr; the exit code is then 1.

    Example: echo "Write a story" | sooner score default --json
    """
    from sooner import training

    ranker = training.load(directory)
    number = bad = 0
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            made = _scored(ranker, raw.decode("utf-8", "replace").rstrip("\r\n"))
        except Exception as error:  # whatever is wrong with a line, the next ones are scored
            bad += 1
            say(f"line {number} is not scored: {error}")
            click.echo(json.dumps({"score": None, "predicted_len": None}) if as_json else "nan")
        else:
            click.echo(json.dumps(made._asdict()) if as_json else repr(made.score))
    if bad:
        say(f"{bad} of {number} lines were not scored")
        sys.exit(1)


def _scored(ranker: Ranker, line: str) -> Prediction:
    from sooner import chat

    record = _record(line)
    if record is None:
        seen = chat.read(line)
    elif "messages" in record:
        seen = chat.read_messages(record["messages"])
    else:
        seen = chat.read(str(record["prompt"]))
    return ranker.predictions([seen.prompt], context=[seen.context])[0]


def _record(line: str) -> dict[str, Any] | None:
    """The line as a JSON request, or None where it is plain text."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and ("prompt" in found or "messages" in found) else None
