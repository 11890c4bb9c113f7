"""`sooner score`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


@click.command()
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print score and expected tokens as JSON, one a line.")
def score(directory: str, as_json: bool) -> None:
    """Score prompts from stdin with the ranker in DIRECTORY ("default": the shipped one).

    A line is a prompt, or JSON with `prompt` or `messages`; its score goes to stdout, in order. A larger
    score means a longer reply expected.

    Example: echo "Write a story" | sooner score default --json
    """
    from sooner import chat
    from sooner import training as library

    ranker = library.load(directory)
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        record = _record(line)
        if record is None:
            seen = chat.read(line)
        elif "messages" in record:
            seen = chat.read_messages(record["messages"])
        else:
            seen = chat.read(str(record["prompt"]))
        made = ranker.predictions([seen.prompt], context=[seen.context])[0]
        click.echo(json.dumps(made._asdict()) if as_json else repr(made.score))


def _record(line: str) -> dict[str, Any] | None:
    """The line as a JSON request, or None where it is plain text."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and ("prompt" in found or "messages" in found) else None
