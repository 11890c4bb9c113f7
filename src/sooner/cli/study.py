"""The options that make a study: each is declared once, and what is not given is the field's own default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sooner.cli.options import SEED, NameOption, policy_names
from sooner.core import ConfigError

if TYPE_CHECKING:
    from sooner.sim.study import Study

Command = TypeVar("Command", bound=Callable[..., Any])

SHAPE, BATCHING, STUDY = "shape", "options", "study"
"""Whose field an option sets: `Shape`, `Options` or `Study`."""
USUAL_ENGINE = "llama3-8b-a100"


class FieldOption(click.Option):
    """An option that sets a field of a study; its help shows the default, read only when it is shown.

    `read` turns what was typed into what the field holds; `unit` is what 1 of the option is in the field.
    """

    def __init__(
        self,
        *words: Any,
        of: str,
        field: str | None = None,
        read: Callable[[Any], Any] | None = None,
        unit: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(*words, default=None, **settings)
        self.of, self.unit = of, unit
        self.field = field or str(self.name)
        self._read = read

    def taken(self, given: Any) -> Any:
        """Return what the field is to hold."""
        value = self._read(given) if self._read else given
        return value if self.unit == 1.0 else value * self.unit

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help with the field's default."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        words, told = record
        value = _default(self.of, self.field)
        if isinstance(value, bool | tuple) or value is None:
            return words, told
        return words, f"{told}  [default: {value if self.unit == 1.0 else value / self.unit}]"


class PolicyOption(FieldOption, NameOption):
    """`--policy`: the default and the names, read only when help is shown."""


def _default(of: str, name: str) -> Any:
    """Return a field's default; None where it is made anew for each or there is none."""
    from sooner.sim.options import Options
    from sooner.sim.study import Study
    from sooner.workloads.build import Shape

    fields = dataclasses.fields({SHAPE: Shape, BATCHING: Options, STUDY: Study}[of])
    found = next(field.default for field in fields if field.name == name)
    return None if found is dataclasses.MISSING else found


def numbers(pairs: Sequence[str]) -> dict[str, float]:
    """Return NAME=VALUE pairs as a mapping. Raises ConfigError for what is not one."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{pair!r}, allowed: NAME=NUMBER") from None
    return found


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"tenants {text!r}, allowed: shares such as 0.9,0.1") from None


def _classes(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",") if part.strip()]
        return tuple((float(share), float(after)) for share, after in pairs)
    except ValueError:
        raise ConfigError(f"classes {text!r}, allowed: shares and seconds such as 0.2:2,0.8:inf") from None


def _weights(pairs: Sequence[str]) -> dict[int, int]:
    found = numbers(pairs)
    if any(not name.isdigit() or not weight.is_integer() for name, weight in found.items()):
        raise ConfigError(f"weights {list(pairs)}, allowed: whole numbers such as 0=2")
    return {int(name): int(weight) for name, weight in found.items()}


_BY_NAME: dict[str, FieldOption] = {}


def _set(
    *words: str, of: str, cls: type[FieldOption] = FieldOption, **settings: Any
) -> Callable[[Command], Command]:
    """Declare an option; `study_of` knows it from here on."""
    made = cls(words, of=of, **settings)
    _BY_NAME[str(made.name)] = made
    return click.option(*words, cls=cls, of=of, **settings)


policy_option = _set(
    "--policy", cls=PolicyOption, names=policy_names, of=STUDY, help="The order, or module:name of your own."
)
param_option = _set(
    "--param",
    "params",
    of=STUDY,
    field="parameters",
    read=numbers,
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the policy; repeatable.",
)
rate_option = _set("--rate", of=SHAPE, type=float, help="Poisson arrivals of this mean rate [req/s].")
tau_option = _set(
    "--tau",
    of=STUDY,
    type=float,
    help="Spoil the true lengths to this Kendall tau; else the policy is told the truth.",
)
seed_option = _set("--seed", of=STUDY, type=SEED, help="Of the draw, the arrivals and the noise of --tau.")

_SHARED = (
    click.option(
        "--engine",
        default=USUAL_ENGINE,
        show_default=True,
        help="llama3-8b-a100, llama3-8b-a100-40g, llama3-8b-h100, llama3-70b-8xa100, or a TOML file.",
    ),
    click.option(
        "--set", "limits", multiple=True, metavar="NAME=VALUE", help="Change a number of the engine."
    ),
    _set("--requests", of=SHAPE, type=click.IntRange(min=1), help="How many requests; else all there are."),
    _set("--burst", of=SHAPE, is_flag=True, help="Everything arrives at once."),
    _set("--load", of=STUDY, type=float, help="A rate as a share of what the engines can do, such as 0.8."),
    _set("--cv", of=SHAPE, type=float, help="Burstiness of --rate: the gaps' CV; 1 is Poisson."),
    _set("--time-scale", of=SHAPE, type=float, help="Stretches recorded arrival times."),
    _set("--cancel-after", of=SHAPE, type=float, help="Clients leave after this long [s]."),
    _set(
        "--weight",
        "weights",
        of=BATCHING,
        read=_weights,
        multiple=True,
        metavar="TENANT=NUMBER",
        help="A tenant's weight under vtc.",
    ),
    _set(
        "--tenants",
        of=SHAPE,
        read=_shares,
        metavar="SHARE,...",
        help="Tenants 0, 1, ... and their shares of requests.",
    ),
    _set(
        "--classes",
        of=SHAPE,
        read=_classes,
        metavar="SHARE:SECONDS,...",
        help="Classes of requests, most urgent first: each one's share and deadline after arrival.",
    ),
    _set("--deadline", of=SHAPE, type=float, help="Every request's deadline after its arrival [s], for edf."),
    _set("--prefix-cache", of=SHAPE, type=int, help="Size of a prefix cache [tokens]."),
    _set("--instances", of=STUDY, type=int, help="Engines behind the router."),
    _set(
        "--router",
        of=STUDY,
        help="round-robin, least-requests, least-tokens, least-work, free-first, max-min, prefix-affinity or "
        "vllm-dp.",
    ),
    _set(
        "--reorder/--admission",
        of=BATCHING,
        field="iteration_level",
        help="Order all requests at every iteration, as vllm-ltr, or admissions only, as vLLM; "
        "else as the policy is meant.",
    ),
    _set("--swap", of=BATCHING, is_flag=True, help="Evicted KV goes to the host (with --reorder)."),
    _set("--backfill", of=BATCHING, is_flag=True, help="Let later requests pass a head that does not fit."),
    _set("--guard", of=BATCHING, type=int, help="Starvation guard's threshold [steps]; 0: none."),
    _set("--quantum", of=BATCHING, type=int, help="Steps that the guard promotes for."),
    _set(
        "--predict-ms",
        of=BATCHING,
        field="predict_s",
        type=float,
        unit=1e-3,
        help="Charged for each prediction [ms].",
    ),
    _set("--predict-blocks", of=BATCHING, is_flag=True, help="The engine stands still while it predicts."),
)


def study_options(command: Command) -> Command:
    """Add what `simulate`, `sweep` and `tune` share: the workload's shape, the engine, how it batches."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def study_of(workload: str, *, engine: str, limits: Sequence[str], **given: Any) -> Study:
    """Return the study that options of this file describe, by their names; None and () are not given."""
    from sooner.sim.cost import changed
    from sooner.sim.cost import load as engine_of
    from sooner.sim.options import Options
    from sooner.sim.study import Study
    from sooner.workloads.build import Shape

    fields: dict[str, dict[str, Any]] = {SHAPE: {}, BATCHING: {}, STUDY: {}}
    for name, value in given.items():
        option = _BY_NAME[name]
        if value is not None and value != ():
            fields[option.of][option.field] = option.taken(value)
    return Study(
        workload=workload,
        engine=changed(engine_of(engine), numbers(limits)),
        shape=Shape(**fields[SHAPE]),
        options=Options(**fields[BATCHING]),
        **fields[STUDY],
    )
