"""What every test shares: hypothesis without a clock, since a loaded machine is slow, not wrong."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sooner", deadline=None)
settings.load_profile("sooner")
