"""Which ranker "default" and "light" are, with and without a package that brings a better one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sooner import rankers
from sooner.rankers import shipped


class Point:
    def load(self) -> Path:
        return Path("brought")


def test_other_names_are_folders() -> None:
    assert shipped.folder("my-ranker") is None
    assert shipped.folder("./default") is None


def test_light_is_in_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [Point()])
    assert rankers.load("light").name == "lexical"


def test_default_is_what_a_package_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: asked.append(wanted) or [Point()])
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy",))
    assert shipped.folder("default") == Path("brought")
    assert asked == [{"group": "sooner.shipped", "name": "default"}]


def test_default_is_light_where_nothing_better_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [Point()])
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy", "no_such_module"))
    assert shipped.folder("default") == shipped.folder("light")
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy",))
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [])
    assert shipped.folder("default") == shipped.folder("light")
