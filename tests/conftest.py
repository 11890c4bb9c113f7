"""What every test shares: hypothesis without a clock (a loaded machine is slow, not wrong), and the order."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("sooner", deadline=None)
settings.load_profile("sooner")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of parallel processes let one have all tests of the real engine, first; a file's tests stay together.

    An engine takes gigabytes and every core, and the servers are shared within a process.
    """
    for item in items:
        engine = item.get_closest_marker("engine") is not None
        item.add_marker(pytest.mark.xdist_group("engine" if engine else item.path.name))
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)
