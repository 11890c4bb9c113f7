"""Dashboards and alerts ask for metrics that exist, and hold together as Grafana and Prometheus read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import chat, client, engine, rig, run

from sooner.vllm.counters import COUNTERS, GAUGES

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"sooner_[a-z0-9_]+")


@pytest.fixture(scope="module")
def gateways() -> set[str]:
    """Return the names of all samples and metrics on a gateway's page."""
    found: set[str] = set()

    async def test() -> None:
        async with rig([engine()]) as gateway, client(gateway) as http:
            async with http.post("/v1/chat/completions", json=chat()) as response:
                await response.read()
            async with http.get("/metrics") as response:
                found.update(NAME.findall(await response.text()))

    run(test)
    return found


PLUGINS = {f"sooner_{name}_total" for name in COUNTERS} | {f"sooner_{name}" for name in GAUGES}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("name", ["gateway", "plugin"])
def test_a_dashboard_asks_for_what_there_is(name: str, gateways: set[str]) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / f"{name}.json").read_text(encoding="utf-8"))
    known = gateways if name == "gateway" else PLUGINS
    asked = {found for text in expressions(dashboard) for found in NAME.findall(text)}
    assert asked - known == set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["datasource"]["uid"] == "${source}"


def test_alerts_ask_for_what_there_is(gateways: set[str]) -> None:
    lines = (DEPLOY / "alerts.yaml").read_text(encoding="utf-8").splitlines()
    rules = [line.strip().removeprefix("expr: ") for line in lines if line.strip().startswith("expr:")]
    alerts = [line for line in lines if line.strip().startswith("- alert:")]
    assert len(rules) == len(alerts) == len(set(alerts)) > 5
    assert (
        sum("severity:" in line for line in lines) == sum("summary:" in line for line in lines) == len(rules)
    )
    asked = {found for text in rules for found in NAME.findall(text)}
    assert asked - gateways - PLUGINS == set()
    for text in rules:
        assert text.count("(") == text.count(")")
        assert text.count("[") == text.count("]")
