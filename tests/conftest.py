"""What every test shares: hypothesis without a clock (a loaded machine is slow, not wrong), one engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("sooner", deadline=None)
settings.load_profile("sooner")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of parallel processes let one have all tests of the real engine; a file's tests stay together.

    An engine takes gigabytes and every core, and the servers are shared within a process.
    """
    from xdist.scheduler import LoadScopeScheduling

    files = Path(__file__).parent.rglob("test_*.py")
    engine = {path.name for path in files if "mark.engine" in path.read_text(encoding="utf-8")}

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "engine" if Path(file).name in engine else file

    return ByFile(config, log)
