"""The files in `deploy/`: read by the gateway, a validator of Kubernetes' schemas, and systemd."""

from __future__ import annotations

import http.server
import json
import re
import runpy
import shutil
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.gateway import settings
from sooner.gateway.hints import pages
from sooner.ray.serving import SCHEDULER
from sooner.vllm import settings as plugin

DEPLOY = Path(__file__).parents[2] / "deploy"
VALIDATE = shutil.which("kubernetes-validate")
MANIFESTS = sorted(DEPLOY.glob("kubernetes*.yaml"))
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_is_accepted(path: Path) -> None:
    assert settings.read_with(path, {}).backends


@pytest.mark.skipif(VALIDATE is None, reason="kubernetes-validate is not installed (pip install, 100 MB)")
@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_are_kubernetes_own(path: Path, version: str) -> None:
    command = [str(VALIDATE), "--strict", "-k", version, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed for resource") == 3


def test_the_container_installs_by_hash_and_its_bill_of_materials_names_the_same() -> None:
    lock = (DEPLOY.parent / "requirements" / "gateway.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=[a-z0-9])", lock) if "==" in entry.split("\n")[0]]
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {tuple(entry.split()[0].split("==")) for entry in entries}
    bill = json.loads((DEPLOY / "gateway.cdx.json").read_text())
    assert {(part["name"], part["version"]) for part in bill["components"]} == locked
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gateway"]]
    assert {re.split("[>=]", one)[0] for one in wanted} <= {name for name, _ in locked}
    pinned = (DEPLOY.parent / "requirements" / "constraints.txt").read_text().lower().splitlines()
    known = dict(line.split("==") for line in pinned if "==" in line and not line.startswith("#"))
    assert all(known.get(name, version) == version for name, version in locked)
    assert "--require-hashes" in (DEPLOY / "Containerfile").read_text()


def containers(name: str) -> list[dict[str, Any]]:
    """Return the containers of a manifest's pods."""
    yaml = pytest.importorskip("yaml", reason="PyYAML, which vLLM brings, is not installed")
    found = yaml.safe_load_all((DEPLOY / name).read_text())
    pods = [one["spec"]["template"]["spec"] for one in found if "template" in one.get("spec", {})]
    return [container for pod in pods for container in pod["containers"]]


def test_the_hinters_arguments_are_its_own() -> None:
    (hint,) = containers("kubernetes-hint.yaml")
    assert hint["command"] == ["sooner", "hint"]
    done = CliRunner().invoke(root, ["hint", *hint["args"], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["target"] == "dynamo"
    assert f"--port={hint['ports'][0]['containerPort']}" in hint["args"]
    assert hint["readinessProbe"]["httpGet"]["path"] == pages.HEALTH


def test_the_engines_arguments_are_the_plugins() -> None:
    (vllm,) = containers("kubernetes-vllm.yaml")
    options = dict(arg.split("=", 1) for arg in vllm["args"] if arg.startswith("--"))
    assert options["--scheduler-cls"] == SCHEDULER
    chosen = plugin.load(json.loads(options["--additional-config"]))
    mounts = [mount["mountPath"] for mount in vllm["volumeMounts"]]
    assert str(Path(chosen.scorer_socket).parent) in mounts


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_unit_is_systemds_own(tmp_path: Path) -> None:
    unit = shutil.copy(DEPLOY / "sooner-gateway.service", tmp_path)
    done = subprocess.run([str(ANALYZE), "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class DockerHub(http.server.BaseHTTPRequestHandler):
    """Gives a token, and to who shows it the digest of an image's tag."""

    def do_GET(self) -> None:
        """Give a token."""
        body = json.dumps({"token": "t"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Say the digest."""
        known = (
            self.path == "/v2/library/python/manifests/3.12-slim"
            and self.headers["Authorization"] == "Bearer t"
        )
        self.send_response(200 if known else 401)
        self.send_header("Docker-Content-Digest", f"sha256:{'ab' * 32}")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_make_lock_names_the_containers_base_by_its_digest() -> None:
    pin = runpy.run_path(str(DEPLOY.parent / "scripts" / "pin_base.py"))
    text = (DEPLOY / "Containerfile").read_text()
    with http.server.HTTPServer(("127.0.0.1", 0), DockerHub) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{hub.server_port}"
            once = pin["pinned"](text, url, f"{url}/token?scope={{name}}")
            twice = pin["pinned"](once, url, f"{url}/token?scope={{name}}")
        finally:
            hub.shutdown()
            thread.join()
    assert f"ARG BASE=docker.io/library/python:3.12-slim@sha256:{'ab' * 32}\nFROM $BASE\n" in once
    assert twice == once


@pytest.mark.parametrize("name", ["gateway", "make"])
def test_what_is_locked_has_hashes_and_the_versions_of_the_constraints(name: str) -> None:
    folder = DEPLOY.parent / "requirements"
    lines = (folder / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    known = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    text = (folder / f"{name}.txt").read_text()
    locked = re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==([^ ;]+)[^\n]*\n((?: +--hash=sha256:[0-9a-f]{64}.*\n)*)", text, re.M
    )
    assert len(locked) == len(re.findall(r"^[\w.-]+(?:\[[\w,]+\])?==", text, re.M)) > 5
    for package, version, hashes in locked:
        assert hashes, package
        assert known.get(package, version) == version, package
