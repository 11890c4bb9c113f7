"""The gateway's documents and deployment files agree with its settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sooner.gateway import settings
from sooner.gateway.counts import COUNTERS

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "gateway.md").read_text(encoding="utf-8")
KINDS = (
    settings.GatewaySettings, settings.QueueSettings, settings.LimitSettings, settings.JournalSettings,
    settings.SliceSettings, settings.BackendSettings, settings.ClassSettings, settings.TenantSettings,
    settings.SloSettings, settings.WhatifSettings,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_is_documented(kind: type) -> None:
    tables = {"backends": "[[backend]]", "classes": "[[class]]", "tenants": "[[tenant]]"}
    tables |= {name: f"`[{name}]`" for name in ("queue", "limits", "slices", "journal", "slo", "whatif")}
    for field in dataclasses.fields(kind):
        known = tables if kind is settings.GatewaySettings else {}
        assert known.get(field.name, f"`{field.name}`") in PAGE, f"{kind.__name__}.{field.name}"


def test_the_example_configuration_is_accepted() -> None:
    chosen = settings.read_with(REPOSITORY / "deploy" / "gateway.toml", {})
    assert [one.title for one in chosen.backends] == ["vllm-0:8000", "vllm-1:8000"]
    assert chosen.queue == settings.QueueSettings()


def test_the_documented_limits_leave_time_to_drain() -> None:
    drain = settings.LimitSettings().drain
    unit = (REPOSITORY / "deploy" / "sooner-gateway.service").read_text(encoding="utf-8")
    stop = next(line for line in unit.splitlines() if line.startswith("TimeoutStopSec="))
    assert float(stop.split("=")[1]) > drain
    manifest = (REPOSITORY / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")
    grace = next(line for line in manifest.splitlines() if "terminationGracePeriodSeconds" in line)
    assert float(grace.split(":")[1]) > drain


def test_refusals_are_documented() -> None:
    for name in COUNTERS:
        if name.startswith("refused_"):
            assert f"`{name}`" in PAGE
