"""`sooner watch`: what is seen of a plugin or a gateway from outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.core import DataError, EngineError
from sooner.watch import scrape, tail

DATA = Path(__file__).parents[1] / "data"


def test_a_real_trace_is_told_in_a_line(tmp_path: Path) -> None:
    for end in ("", ".steps"):
        packed = (DATA / f"whatif_boost.jsonl{end}.gz").read_bytes()
        (tmp_path / f"t.jsonl{end}").write_bytes(gzip.decompress(packed) + b'{"torn')
    told = tail.look(tmp_path / "t.jsonl")
    assert told["requests"] == 200
    assert told["scored"] > 0.9
    assert 0.2 < told["tau"] < 1.0
    assert 0 < told["p50_wait_steps"] < told["p99_wait_steps"]
    done = CliRunner().invoke(root, ["watch", str(tmp_path / "t.jsonl"), "--count", "1", "--json"])
    assert json.loads(done.stdout)["step"] == told["step"] > 900
    with pytest.raises(DataError, match="hold nothing yet"):
        tail.look(tmp_path / "nowhere")
    (tmp_path / "odd").write_text("no JSON\n")
    with pytest.raises(DataError, match="not JSON"):
        tail.look(tmp_path / "odd")


def test_counts_are_told_a_second_and_over_all_engines() -> None:
    page = (
        "# HELP sooner_requests_total x\n"
        'vllm:sooner_requests_total{engine="0"} 10\nvllm:sooner_requests_total{engine="1"} 20\n'
        'sooner_waiting{engine="0"} 3\nsooner_waiting{engine="1"} 4\nsooner_ranker_tau 0.5\n'
        "sooner_wait_seconds_sum 4\nsooner_wait_seconds_count 2\nother 1\nsooner_odd NaN\nsooner_bad x\n"
        'sooner_wait_seconds_bucket{le="1"} 2\n'
    )
    now = scrape.numbers(page)
    assert now["requests_total"] == 30
    assert now["waiting"] == 7
    assert "odd" not in now
    assert "wait_seconds_bucket" not in now
    told = scrape.look(now, {"requests_total": 10.0}, 2.0)
    assert told["requests_per_s"] == 10.0
    assert told["mean_wait_seconds"] == 2.0
    assert told["ranker_tau"] == 0.5
    with pytest.raises(EngineError, match="no metrics at"):
        scrape.fetch("http://127.0.0.1:9")
