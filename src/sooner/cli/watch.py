"""`sooner watch`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click


@click.command()
@click.argument("source", metavar="TRACE|METRICS_URL")
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="Looks, then end; else until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a look.")
def watch(source: str, every: float, count: int | None, as_json: bool) -> None:
    """Show what the vLLM plugin (or a gateway) does now, from outside: a line a look.

    TRACE is the file that the plugin's setting `trace` names: who waits and runs, waits in steps, and
    Kendall's tau of the scores with the replies that came. METRICS_URL is vLLM's or the gateway's.

    Example: sooner watch http://127.0.0.1:8000/metrics --every 5
    """
    look = _url(source) if source.startswith(("http://", "https://")) else _trace(Path(source))
    done = 0
    while True:
        told = look()
        if as_json:
            click.echo(json.dumps({"at": round(time.time(), 3), **told}))
        else:
            words = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
            click.echo(f"{time.strftime('%H:%M:%S')}  {words}")
        done += 1
        if count is not None and done >= count:
            return
        time.sleep(every)


def _url(url: str) -> Callable[[], dict[str, float]]:
    from sooner.watch import scrape

    before: tuple[float, dict[str, float]] | None = None

    def look() -> dict[str, float]:
        nonlocal before
        found, now = scrape.fetch(url), time.monotonic()
        told = scrape.look(found, before[1] if before else None, now - before[0] if before else 0.0)
        before = now, found
        return told

    return look


def _trace(path: Path) -> Callable[[], dict[str, float]]:
    from sooner.watch import tail

    return lambda: tail.look(path)
