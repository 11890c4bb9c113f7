"""Options of a study: declared once, no default of their own, each field of a study within reach."""

from __future__ import annotations

import dataclasses

import click
import pytest

from sooner.cli import root
from sooner.cli.study import BATCHING, SHAPE, STUDY, FieldOption, study_of
from sooner.sim.options import Options
from sooner.sim.study import Study
from sooner.workloads.build import Shape

PARTS = {SHAPE: Shape, BATCHING: Options, STUDY: Study}


def options(command: str) -> list[FieldOption]:
    group = root.get_command(click.Context(root), command)
    assert group is not None
    return [option for option in group.params if isinstance(option, FieldOption)]


@pytest.mark.parametrize("command", ["simulate", "sweep", "tune"])
def test_no_option_has_a_default_of_its_own(command: str) -> None:
    group = root.get_command(click.Context(root), command)
    assert group is not None
    words = ["w", *(["--out", "o", "--policies", "fcfs"] if command == "sweep" else [])]
    given = group.make_context(command, words)
    told = {option.name: given.params[option.name] for option in options(command)}
    assert all(value is None or value == () for value in told.values()), told
    study = study_of("w", engine="llama3-8b-a100", limits=(), **told)
    assert study == Study(workload="w", engine=study.engine)


def test_each_field_of_a_study_has_one_option() -> None:
    reached = [(option.of, option.field) for option in options("simulate")]
    fields = [(of, field.name) for of, kind in PARTS.items() for field in dataclasses.fields(kind)]
    parts = {(STUDY, name) for name in ("workload", "engine", "shape", "options")}
    assert sorted(reached) == sorted(set(fields) - parts)


def test_what_is_typed_becomes_what_the_field_holds() -> None:
    study = study_of(
        "w", engine="llama3-8b-a100", limits=("max_num_seqs=7",), predict_ms=2.5, tenants="0.9,0.1",
        classes="0.2:2,0.8:inf", weights=("0=2",), params=("gamma=0.5",), reorder=False, swap=None,
    )  # fmt: skip
    assert study.engine.max_num_seqs == 7
    assert study.options == Options(predict_s=0.0025, weights={0: 2}, iteration_level=False)
    assert study.shape == Shape(tenants=(0.9, 0.1), classes=((0.2, 2.0), (0.8, float("inf"))))
    assert study.parameters == {"gamma": 0.5}


def test_help_shows_the_fields_default() -> None:
    shown = {option.name: option.get_help_record(click.Context(root)) for option in options("simulate")}
    assert f"[default: {Options().quantum}]" in str(shown["quantum"])
    assert f"[default: {Study.__dataclass_fields__['router'].default}]" in str(shown["router"])
    assert "default" not in str(shown["deadline"])
