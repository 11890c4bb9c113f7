"""A gateway's question, in a process that goes behind all others: `python -P -m sooner.whatif < question`.

The question is a line of JSON with a journal's `source`, `since` and `most`; it is not an argument, for a
database's URL holds its password. The answer is a line of JSON: what `sooner whatif --json` prints and how
many seconds it took, or `none` with the reason. It ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

CPU, MEMORY = 600, 4 << 30
"""Seconds of CPU and bytes of address space that it gets at most, most of it for compiling."""
LOSERS = 40
"""Tenants that are told of, those who lost most."""


def main() -> None:
    """Read the question, answer it, and end."""
    os.nice(19)
    for what, most in ((resource.RLIMIT_CPU, CPU), (resource.RLIMIT_AS, MEMORY)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    question = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write(json.dumps(answer(**question)) + "\n")
    sys.stdout.flush()


def answer(source: str, since: float, most: int) -> dict[str, Any]:
    """Return what arrival order would have done since the order last changed, or why that is not known."""
    from sooner import policies
    from sooner.core import SoonerError
    from sooner.whatif.answer import shown
    from sooner.whatif.journal import read_journal
    from sooner.whatif.replays import ask

    began = time.monotonic()
    try:
        record = read_journal(source, since=since, most=most, last_order=True)
        found = ask(record, [policies.get("fcfs")])
    except SoonerError as error:
        return {"none": str(error)}
    told = shown(found, record, source)
    del told["source"]  # it holds a password
    lost = told.pop("lost")
    return {
        **told,
        "since": record.began,
        "claims": found.claims,
        "lost": lost[:LOSERS],
        "lost_more": max(0, len(lost) - LOSERS),
        "took_s": time.monotonic() - began,
    }


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
