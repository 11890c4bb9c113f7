"""The gateway's own OpenAPI document: as wide as its routes, and true of whatever is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import schemathesis
from gateway_rig import run
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS
from test_gateway_faults import serving

from sooner.gateway.admission import paths
from sooner.gateway.app import Gateway
from sooner.gateway.routes import Routes
from sooner.gateway.settings import GatewaySettings

DOCUMENT = json.loads(resources.files("sooner.gateway").joinpath("openapi.json").read_text("utf-8"))
ADMIN = "open-sesame"
NAMES = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance",
)  # fmt: skip
schema = schemathesis.openapi.from_dict(DOCUMENT)


def test_the_document_names_every_route_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    found: list[tuple[str, str]] = []

    async def test() -> None:
        gateway = Gateway(GatewaySettings(ranker="", learn=False, admin_key_file=str(tmp_path / "admin")))
        for route in Routes(gateway).application().router.routes():
            path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical if route.resource else "")
            found.append((route.method, path))
        gateway.dispatcher.close()

    run(test)
    found += [("POST", path) for path in DOCUMENT["paths"] if paths.called(path)]  # what the entrance serves
    told = [(method.upper(), path) for path, at in DOCUMENT["paths"].items() for method in at]
    assert sorted(set(found) - {("*", "/v1/{rest}"), *[("HEAD", path) for _, path in found]}) == sorted(told)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a gateway before an emulated engine, admin routes included."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "admin").write_text(ADMIN)
    (folder / "gateway.toml").write_text(f'admin_key_file = "{folder / "admin"}"\n')
    options = ("--emulate", "llama3-8b-a100", "--lengths", "3", "--time-scale", "0.1")
    with serving(*options, "--config", str(folder / "gateway.toml")) as (_, served):
        yield served


@schema.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_the_document_says(case: schemathesis.Case, url: str) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"} if "/admin/" in case.path else {}
    response = case.call(base_url=url, headers=headers, timeout=20)
    case.validate_response(response, checks=[CHECKS.get_one(name) for name in NAMES])
