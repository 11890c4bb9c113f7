"""A learner that starts from a log knows, at its first request, who gets long replies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sooner.chat import ChatRequest, Signals
from sooner.cli.train import train
from sooner.learning import Learner, Salt
from sooner.learning.memory import LearnedFile
from sooner.ordering.live import LiveLearner
from sooner.ordering.scoring import ReadQuestion
from sooner.ordering.wire import Question


def test_what_a_log_taught_is_known_at_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOONER_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    lines = [
        {"model": "m", "user": ("alice", "bob")[at % 2], "prompt": f"question {at}",
         "output_len": round((20, 400)[at % 2] * float(np.exp(0.2 * rng.standard_normal())))}
        for at in range(200)
    ]  # fmt: skip
    log, out = tmp_path / "log.jsonl", tmp_path / "learned.npz"
    log.write_text("\n".join(map(json.dumps, lines)))
    done = CliRunner().invoke(train, [str(log), "--learner", "--prior", "", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["learned"] == 200
    assert b"alice" not in out.read_bytes()
    assert LearnedFile(out).read(Learner()).seen == 200

    salt = Salt.of_installation()
    live = LiveLearner(out, salt)

    def expected(tenant: str, user: str) -> float:
        request = ChatRequest("a new one", Signals(model="m", sender=user))
        question = Question(1, request, salt.of("m"), salt.sender(tenant, user))
        length = live.answer("engine", question, ReadQuestion(request.conversation()))[0].predicted_len
        assert length is not None
        return length

    assert 10 < expected("", "alice") < 40
    assert 10 < expected("default", "alice") < 40  # a gateway without keys
    assert 200 < expected("bob", "") < 800  # whether it is called tenant or user


def test_lengths_alone_start_no_learner(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,10,20\n" * 1)
    done = CliRunner().invoke(train, [str(log), "--learner", "--prior", "", "--out", str(tmp_path / "x")])
    assert "starts no learner" in str(done.exception)
