"""`sooner serve`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sooner.cli.options import NameOption, policy_names

if TYPE_CHECKING:
    from sooner.gateway.settings import GatewaySettings


@click.command()
@click.option(
    "--backend", "backends", multiple=True, metavar="[KIND=]URL", help="An engine; may be repeated."
)
@click.option("--emulate", metavar="NAME", help="Put an emulated engine behind it: a preset or a .toml file.")
@click.option("--bare", is_flag=True, help="With --emulate: only the emulated engine, no gateway.")
@click.option(
    "--lengths",
    default="lognormal:180,0.9",
    show_default=True,
    help="Reply lengths of --emulate: a number, lognormal:MEDIAN,SIGMA, or JSONL with output_len.",
)
@click.option("--time-scale", default=1.0, show_default=True, help="Stretches the time of --emulate.")
@click.option("--by-priority", is_flag=True, help="With --emulate: the engine itself goes by priority.")
@click.option("--model", help="Name of the model that --emulate serves; else the engine's.")
@click.option(
    "--policy",
    cls=NameOption,
    names=policy_names,
    help="Order of the waiting requests, or module:name of your own.  [default: boost]",
)
@click.option(
    "--ranker", help="Folder of a ranker, 'module:name', or '' for none.  [default: the shipped one]"
)
@click.option(
    "--learn/--no-learn",
    default=None,
    help="Learn the order from what is served, beside the ranker or alone.  [default: learn]",
)
@click.option("--shadow-policy", help="A second policy: compared on who waits, see sooner promote --policy.")
@click.option("--shadow", help="A second ranker, or 'learner': compared on live traffic, see sooner promote.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file with every setting; flags win over it.",
)
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen at; 0 takes a free one.  [default: 8080]")
@click.option("--keys", help="Database of API keys; see sooner keys.")
@click.option("--journal", help="Database for finished requests, such as sqlite:///journal.db.")
@click.option(
    "--log", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the log."
)
@click.option("--access-log", type=int, help="A line for each finished request, so many a second at most.")
def serve(
    backends: tuple[str, ...],
    emulate: str | None,
    bare: bool,
    lengths: str,
    time_scale: float,
    by_priority: bool,
    model: str | None,
    policy: str | None,
    ranker: str | None,
    learn: bool | None,
    shadow: str | None,
    shadow_policy: str | None,
    config_file: Path | None,
    host: str | None,
    port: int | None,
    keys: str | None,
    journal: str | None,
    log: str,
    access_log: int | None,
) -> None:
    """Serve an OpenAI-compatible API in front of engines, shortest expected reply first.

    Waiting requests are ordered by the policy, tenants share fairly, overload is refused early, and
    each answer says how long it waited. SIGHUP reads --config again; SIGTERM finishes what runs.

    Example: sooner serve --backend vllm=http://127.0.0.1:8000 --port 8080
    """
    from sooner.emulator.api import EmulatedEngine
    from sooner.emulator.engine import Lengths
    from sooner.gateway import logs
    from sooner.gateway import serve as server

    logs.set_up(log)
    read = functools.partial(
        _settings, config_file, backends, policy=policy, ranker=ranker, learn=learn, shadow=shadow,
        shadow_policy=shadow_policy, host=host, port=port, keys=keys, journal=journal, access_log=access_log,
    )  # fmt: skip
    settings = read()
    engine = None
    if emulate is not None:
        from sooner.sim.cost import load

        engine = EmulatedEngine(
            load(emulate), Lengths(lengths), model=model or "", by_priority=by_priority, time_scale=time_scale
        )
    if bare:
        if engine is None:
            raise click.UsageError("--bare needs --emulate")
        server.run(server.serve_engine(engine, settings.host, settings.port, _say_engine))
        return
    if engine is None and not settings.backends:
        raise click.UsageError("no engine: give --backend, --emulate, or a --config with [[backend]]")
    reload = read if config_file is not None and engine is None else None
    server.run(server.serve(settings, engine, lambda gateway: _say(gateway.url), reload))


def _say(url: str) -> None:
    click.echo(f"serving {url}/v1", err=True)


def _say_engine(url: str) -> None:
    click.echo(f"serving an emulated engine at {url}/v1", err=True)


def _settings(
    config_file: Path | None, backends: tuple[str, ...], **flags: str | int | None
) -> GatewaySettings:
    """Return the settings of a file with the flags over them."""
    import dataclasses

    from sooner.gateway import settings

    journal = flags.pop("journal")
    chosen = settings.read_with(config_file, {k: v for k, v in flags.items() if v is not None})
    if backends:
        more = tuple(settings.backend(text) for text in backends)
        chosen = dataclasses.replace(chosen, backends=(*chosen.backends, *more))
    if journal is not None:
        chosen = dataclasses.replace(chosen, journal=dataclasses.replace(chosen.journal, url=str(journal)))
    return chosen
