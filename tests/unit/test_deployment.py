"""The files in `deploy/`: read by the gateway, a validator of Kubernetes' schemas, and systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sooner.gateway import settings

DEPLOY = Path(__file__).parents[2] / "deploy"
VALIDATE = shutil.which("kubernetes-validate")
ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_is_accepted(path: Path) -> None:
    assert settings.read_with(path, {}).backends


@pytest.mark.skipif(VALIDATE is None, reason="kubernetes-validate is not installed (pip install, 100 MB)")
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_manifests_are_kubernetes_own(version: str) -> None:
    command = [str(VALIDATE), "--strict", "-k", version, str(DEPLOY / "kubernetes.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed for resource") == 3


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_unit_is_systemds_own(tmp_path: Path) -> None:
    unit = shutil.copy(DEPLOY / "sooner-gateway.service", tmp_path)
    done = subprocess.run([str(ANALYZE), "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
