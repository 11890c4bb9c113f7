"""What every test shares: hypothesis without a clock, since a loaded machine is slow, not wrong.

`make test` tries the same examples each time, so that a failure belongs to the change that brought it. New
ones are looked for with `pytest --hypothesis-profile=search`; what that finds becomes a test of its own.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sooner", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("sooner")
