"""`sooner hint`."""

from __future__ import annotations

import logging
import sys

import click
from click.core import ParameterSource

from sooner.cli.options import NameOption, policy_names


def target_names() -> tuple[str, ...]:
    """Return the names of the targets."""
    from sooner.gateway.hints.targets import TARGETS

    return tuple(TARGETS)


@click.command()
@click.option(
    "--target", cls=NameOption, names=target_names, required=True, help="Whose queue executes the order."
)
@click.option(
    "--backend", "backends", multiple=True, metavar="URL", default=("http://127.0.0.1:8000",),
    show_default=True, help="An address of the target; may be repeated.",
)  # fmt: skip
@click.option("--policy", cls=NameOption, names=policy_names, help="The order to hint.  [default: boost]")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the policy.")
@click.option(
    "--ranker", help="As for sooner serve; 'light' is asked in the process.  [default: the shipped one]"
)
@click.option("--usual-wait", type=float, help="How long requests wait when they do [s].  [default: 10]")
@click.option("--usual-work", type=float, help="Beyond this size work counts as large [s].  [default: 0.15]")
@click.option("--engine", help="What work is counted with: a preset, or a .toml of sooner calibrate.")
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen at; 0 takes a free one.  [default: 8081]")
@click.option(
    "--ext-proc",
    is_flag=True,
    help="Be asked by an Envoy (ext_proc, gRPC at --port), instead of a proxy. Needs sooner[envoy].",
)
@click.option(
    "--metrics-port",
    type=int,
    help="With --ext-proc: a port for health and metrics by HTTP.  [default: none]",
)
@click.option("--json", "as_json", is_flag=True, help="Say as JSON what would be hinted to whom, and end.")
def hint(
    target: str,
    backends: tuple[str, ...],
    policy: str | None,
    params: tuple[str, ...],
    ranker: str | None,
    usual_wait: float | None,
    usual_work: float | None,
    engine: str | None,
    host: str | None,
    port: int | None,
    ext_proc: bool,
    metrics_port: int | None,
    as_json: bool,
) -> None:
    """Let another queue execute our order: a gateway without a queue, in front of llm-d, Dynamo or engines.

    Each request is read, its work predicted, and the header or field written by which the target orders.
    Nothing is kept or shared, so any number of instances may run; a request that cannot be read goes on as
    it came.

    Example: sooner hint --target dynamo --backend http://frontend:8000 --port 8081
    Example: sooner hint --target vllm --ext-proc --port 9002 --metrics-port 9003
    """
    import json
    from typing import Any

    from sooner.gateway.hints import server
    from sooner.gateway.hints.settings import HintSettings
    from sooner.gateway.hints.targets import TARGETS
    from sooner.gateway.serve import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    given: dict[str, Any] = {
        "policy": policy, "ranker": ranker, "usual_wait": usual_wait, "usual_work": usual_work,
        "host": host, "port": port, "metrics_port": metrics_port,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    if params:
        chosen["parameters"] = dict(_parameter(text) for text in params)
    if engine is not None:
        from sooner.sim.cost import load

        chosen["pace"] = load(engine).pace
    if metrics_port is not None and not ext_proc:
        raise click.BadParameter(
            "only with --ext-proc: a proxy has its pages at --port", param_hint="--metrics-port"
        )
    if (
        ext_proc
        and click.get_current_context().get_parameter_source("backends") is ParameterSource.COMMANDLINE
    ):
        raise click.BadParameter(
            "not with --ext-proc: Envoy sends requests on itself", param_hint="--backend"
        )
    settings = HintSettings(target=target, backends=backends, ext_proc=ext_proc, **chosen)
    if as_json:
        rule = TARGETS[target]
        late = settings.lateness()
        click.echo(json.dumps({
            "target": target, "header": rule.header or None, "field": rule.field or None, "unit_s": rule.unit,
            "asks": rule.asks, "read_in": rule.source, "policy": settings.policy,
            "late_s": [late.least, late.most],
        }))  # fmt: skip
        return
    path = "" if ext_proc else "/v1"
    run(
        server.serve(settings, lambda hinter: click.echo(f"hinting {target} at {hinter.url}{path}", err=True))
    )


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r}, allowed: NAME=NUMBER", param_hint="--param") from None
