"""What was learned is kept over a restart, and a broken file is as good as none."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sooner import policies
from sooner.ordering import kept as module
from sooner.ordering.kept import Kept
from sooner.ordering.order import Order
from sooner.vllm.counters import PluginCounters
from sooner.work import Pace


def order() -> Order:
    return Order(policies.get("boost"), None, PluginCounters())


def test_a_restart_goes_on_with_what_was_learned(tmp_path: Path) -> None:
    before, after = order(), order()
    before.set_pace(Pace(prefill_token_s=1e-3, batch=6))
    for i in range(50):
        before.arrive(str(i), float(i), 100)
        before.take_news()
    kept = Kept(tmp_path / "deep" / "state.json")
    assert kept.save(before)
    assert Kept(tmp_path / "deep" / "state.json").restore(after)
    assert after.pace == before.pace
    assert after.usual.state() == before.usual.state()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "usual": {}, "pace": {}}', "\x00"]
)
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    fresh, asked = order(), order()
    assert not Kept(path).restore(asked)
    assert (asked.pace, asked.usual.state()) == (fresh.pace, fresh.usual.state())


def test_a_pace_that_cannot_be_is_refused_whole(tmp_path: Path) -> None:
    path, full, asked = tmp_path / "state.json", order(), order()
    full.usual.arrive(5.0)
    Kept(path).save(full)
    body = json.loads(path.read_text())
    body["pace"]["prefill_token_s"] = -1.0
    path.write_text(json.dumps(body))
    assert not Kept(path).restore(asked)
    assert asked.usual.state() == order().usual.state()


def test_a_folder_that_cannot_be_written_hurts_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "state.json")
    assert not kept.save(order())
    assert not kept.restore(order())


def test_a_disk_that_stands_still_holds_no_step_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    draft = tmp_path / f"state.json.{os.getpid()}.tmp"
    os.mkfifo(draft)  # who writes to it waits until somebody reads
    kept, told = Kept(tmp_path / "state.json"), order()
    steps = threading.Thread(target=lambda: [kept.tick(told) for _ in range(100)], daemon=True)
    steps.start()
    steps.join(timeout=30)
    held_up = steps.is_alive()
    assert json.loads(draft.read_text())["version"] == 1
    assert not held_up
