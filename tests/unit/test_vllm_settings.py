"""The plugin's settings: where they come from, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sooner.core import ConfigError, UnknownName
from sooner.vllm import settings


def test_defaults_are_boost_with_the_shipped_ranker() -> None:
    chosen = settings.load({})
    assert (chosen.policy, chosen.ranker, chosen.preemption) == ("boost", "default", False)
    assert chosen.chosen_policy().name == "boost"


def test_a_policy_parameter_may_stand_beside_the_policy() -> None:
    chosen = settings.load({"sooner": {"policy": "aged", "beta": 0.5, "parameters": {"follow": 0}}})
    assert dict(chosen.chosen_policy().parameters) == {"beta": 0.5, "follow": 0.0}


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'preemption'"):
        settings.load({"sooner": {"preemptoin": True}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "nearest"},
        {"policy": 3},
        {"policy": "ltr", "parameters": {"beta": 1.0}},
        {"beta": -1.0},
        {"scorer_timeout": 0},
        {"starvation_threshold": 0},
        {"starvation_quantum": 0},
        {"preemption_gain": 0.5},
        {"max_preemptions": -1},
        {"preemption": "yes"},
        {"shadow": "default"},
        {"ranker": "", "shadow": "learner"},
        {"shadow": "mine", "learn": False},
        {"shadow_policy": "boost"},
        {"shadow_policy": "nearest"},
        {"shadow_policy": "edf", "client_scores": False},
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings.load({"sooner": wrong})


def test_a_shadow_is_another_than_what_acts() -> None:
    chosen = settings.load({"sooner": {"shadow": "learner", "shadow_policy": "boost",
                                       "shadow_parameters": {"gamma": 0.1}}})  # fmt: skip
    assert dict(chosen.shadowing_policy().parameters) == {"gamma": 0.1}


def test_settings_must_be_an_object() -> None:
    with pytest.raises(ConfigError, match="an object of settings"):
        settings.load({"sooner": "aged"})


def test_the_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOONER_VLLM_POLICY", "ltr")
    monkeypatch.setenv("SOONER_VLLM_STARVATION_GUARD", "true")
    chosen = settings.load({"sooner": {"policy": "hrrn"}})
    assert (chosen.policy, chosen.starvation_guard) == ("hrrn", True)


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOONER_VLLM_POLCY", "ltr")
    with pytest.raises(UnknownName, match="SOONER_VLLM_POLICY"):
        settings.load({})


def test_the_package_can_be_imported_without_vllm() -> None:
    probe = (
        "import sys, sooner.vllm, sooner.vllm.settings, sooner.vllm.plugin, sooner.vllm.middleware;"
        "assert 'vllm' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_the_package_has_no_other_names() -> None:
    import sooner.vllm

    with pytest.raises(AttributeError, match="Schedular"):
        sooner.vllm.Schedular  # noqa: B018  # looking it up is the test
