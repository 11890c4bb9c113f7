"""`sooner whatif`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sooner.cli.options import NameOption, policy_names, say, table

if TYPE_CHECKING:
    from sooner.whatif.replays import Counterfactual
    from sooner.whatif.served import ServedTraffic

SHOWN = 20


@click.command()
@click.argument("source", metavar="JOURNAL|TRACE")
@click.option(
    "--policy",
    "orders",
    cls=NameOption,
    names=policy_names,
    multiple=True,
    help="Another order to replay; may be repeated. Arrival order (fcfs) is always among them.",
)
@click.option("--served", help="The order that served, where the record does not say.  [default: boost]")
@click.option("--engine", help="A preset, or the TOML of `sooner calibrate`; else found from the record.")
@click.option("--last", default=20_000, show_default=True, type=click.IntRange(min=20), help="Requests.")
@click.option("--since", default=0.0, help="Only requests that came after this Unix time.")
@click.option("--last-order", is_flag=True, help="Only requests since a journal's order last changed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def whatif(
    source: str,
    orders: tuple[str, ...],
    served: str | None,
    engine: str | None,
    last: int,
    since: float,
    last_order: bool,
    as_json: bool,
) -> None:
    """Say what another order would have done with the traffic of JOURNAL or TRACE: was it worth it?

    The served traffic is replayed on a simulated engine: first in the order that really served, which
    tells the replay's own error, then in arrival order and any --policy. What is smaller than that error
    is not claimed. And who lost: requests that waited longer than arrival order would have made them.

    JOURNAL is a gateway's (sqlite:///journal.db, or what `sooner export` writes), TRACE the vLLM plugin's.
    The exit code is 0 where the saving is larger than the error, 1 where no claim can be made.

    Example: sooner whatif sqlite:///journal.db --policy sjf --json
    """
    from sooner import policies
    from sooner.sim.cost import load
    from sooner.whatif.answer import shown
    from sooner.whatif.replays import ask, sentence
    from sooner.whatif.sources import read

    chosen = [policies.get(name) for name in dict.fromkeys(("fcfs", *orders))]
    record = read(
        source, served, engine=load(engine) if engine else None, most=last, since=since, last_order=last_order
    )
    answer = ask(record, chosen)
    if not record.paced:
        say("the engine was not found well from this record: give --engine (sooner calibrate)")
    if as_json:
        click.echo(json.dumps(shown(answer, record, source)))
    else:
        _print(answer, record)
        click.echo(f"\n{sentence(answer)}")
    raise click.exceptions.Exit(0 if answer.claims else 1)


def _print(answer: Counterfactual, record: ServedTraffic) -> None:
    names = {"mean_e2e": "mean E2E", "p99_e2e": "P99 E2E", "mean_wait": "mean wait", "mean_ttft": "mean TTFT"}
    table(
        ("order", *(f"{words} [s]" for words in names.values())),
        [
            (f"{answer.served}, as it was", *(f"{answer.fidelity[name].real:.3f}" for name in names)),
            (f"{answer.served}, replayed", *(f"{answer.fidelity[name].replayed:.3f}" for name in names)),
            ("error of the replay", *(f"{answer.fidelity[name].error:.1%}" for name in names)),
            *(
                (f"{other.policy}, predicted", *(f"{other.measures[name]:.3f}" for name in names))
                for other in answer.others
            ),
            *(
                (f"saved against {other.policy}", *(_said(other.claims[name]) for name in names))
                for other in answer.others
            ),
        ],
    )
    clock = "engine work" if record.clock == "work" else "the wall clock"
    click.echo(f"\n{answer.requests} requests, seconds of {clock}; ~ is within the replay's error: no claim.")
    click.echo(f"Waited longer than in arrival order, by more than {answer.margin:.3f} s:\n")
    table(
        ("tenant", "requests", "lost", "mean extra [s]", "worst [s]", "all its requests [s]"),
        [
            (
                _plain(loss.tenant), str(loss.requests), str(loss.lost), f"{loss.mean_extra:.3f}",
                f"{loss.worst_extra:.3f}", f"{loss.mean_change:+.3f}",
            )
            for loss in answer.losses[:SHOWN]
        ],
    )  # fmt: skip
    if len(answer.losses) > SHOWN:
        click.echo(f"... and {len(answer.losses) - SHOWN} tenants more")


def _said(claim: Any) -> str:
    return f"{claim.saved:+.1%}" if claim.stands else f"~{claim.saved:+.1%}"


def _plain(name: str) -> str:
    """Return a tenant's name that a terminal can be shown."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:40]
