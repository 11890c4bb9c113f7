"""How sure a tau is: intervals cover, few requests recommend nothing, own rows are noticed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sooner import training
from sooner.cli import root
from sooner.core import ConfigError
from sooner.judging import measures
from sooner.judging.certainty import _students_t, certainty
from sooner.judging.verdict import judge
from sooner.rankers import Context, conformance, get, load
from sooner.rankers.seen import SeenPrompts


@pytest.mark.parametrize("n", [30, 80])
def test_the_interval_covers_the_true_tau(n: int) -> None:
    rng = np.random.default_rng(n)
    true = 2 / math.pi * math.asin(0.4)  # of two normal columns that correlate by 0.4
    held = 0
    for _ in range(200):
        x = rng.standard_normal(n)
        y = 0.4 * x + math.sqrt(1 - 0.16) * rng.standard_normal(n)
        sure = certainty(x, y, [str(i) for i in range(n)])
        held += sure.low <= true <= sure.high
    assert 0.93 <= held / 200 <= 1.0


def test_students_t_is_that_of_the_tables() -> None:
    for degrees, known in ((1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (1000, 1.962)):
        assert _students_t(degrees) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 29])
def test_few_requests_switch_nothing_on(n: int) -> None:
    lengths = np.arange(1.0, n + 1)
    sure = certainty(lengths, lengths, [str(i) for i in range(n)])
    assert sure.tau == pytest.approx(1.0)
    assert not judge(lengths, lengths, sure).switch_on
    if n < 5:
        assert (sure.low, sure.high) == (-1.0, 1.0)
        assert math.isnan(sure.se)


def test_enough_clear_requests_do() -> None:
    lengths = np.arange(1.0, 61)
    sure = certainty(lengths, lengths, [str(i) for i in range(60)])
    assert judge(lengths, lengths, sure).switch_on


def test_three_requests_in_a_log_recommend_nothing(tmp_path: Path) -> None:
    ranker = get("prompt_length")().fit(*conformance.rows())
    ranker.save(tmp_path / "r")
    rows = [{"prompt": "x " * (9 * i), "output_len": 10 * i} for i in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = CliRunner().invoke(
        root, ["evaluate", str(tmp_path / "r"), str(tmp_path / "log.jsonl"), "--json"], catch_exceptions=False
    )
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert not told["verdict"]["switch_on"]
    assert told["kendall_tau_interval"] == [-1.0, 1.0]


def rows_of(n: int, start: int = 0) -> training.Dataset:
    prompts, lengths = conformance.rows(n + start)
    prompts = [f"{prompt} {i}" for i, prompt in enumerate(prompts)]
    context, groups = [Context()] * n, [f"c{i}" for i in range(start, n + start)]
    return training.Dataset(prompts[start:], np.array(lengths[start:], dtype=np.float64), context, groups)


def test_a_ranker_judged_on_its_own_rows_is_told_so(tmp_path: Path) -> None:
    known, others = rows_of(300), rows_of(300, 300)
    ranker = training.fit("lexical", known.prompts, known.lengths)
    assert measures.evaluate(ranker, others)["verdict"]["switch_on"]
    assert measures.evaluate(ranker, others)["trained_on_share"] == 0
    ranker.save(tmp_path)
    own = measures.evaluate(load(tmp_path), known)
    assert own["trained_on_share"] == 1
    assert not own["verdict"]["switch_on"]
    assert "trained on 100% of these requests" in own["verdict"]["reason"]


def test_a_share_of_many_prompts_is_found_from_a_sketch() -> None:
    prompts = [f"prompt number {i}" for i in range(60_000)]
    sketch = SeenPrompts.of(prompts, [Context()] * len(prompts))
    assert sketch.hashes.nbytes == 32_768
    half = [*prompts[:5000], *(f"another {i}" for i in range(5000))]
    assert sketch.share(half, [Context()] * len(half)) == pytest.approx(0.5, abs=0.06)
    assert sketch.share(["other"], [Context()]) == 0
    assert sketch.share(prompts[:100], [Context(turn=1)] * 100) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="nothing can be written"):
        training.try_folder(tmp_path / "r")


def test_a_file_in_place_of_the_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("not a log")
    (tmp_path / "taken").write_text("")
    done = CliRunner().invoke(
        root, ["train", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "taken" / "r")]
    )
    assert isinstance(done.exception, ConfigError)
    assert "nothing can be written" in str(done.exception)


def test_what_was_computed_is_kept_where_the_folder_fails_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows_of(60)
    ranker = training.fit("prompt_length", data.prompts, data.lengths)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "gone").write_text("a file where the folder was")
    with pytest.raises(ConfigError, match="it is in") as told:
        training.keep(ranker, data, tmp_path / "gone", examples="none", seed=0)
    place = str(told.value).split("it is in ")[1].strip("'")
    np.testing.assert_array_equal(load(place).predict(data.prompts), ranker.predict(data.prompts))


def test_a_failed_save_leaves_the_ranker_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training.fit("lexical", *conformance.rows(60))
    first.save(tmp_path)
    second = training.fit("lexical", *conformance.rows(200))
    written: list[str] = []
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        written.append(path.name)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        second.save(tmp_path)
    monkeypatch.undo()
    prompts = conformance.rows(30)[0]
    np.testing.assert_array_equal(load(tmp_path).predict(prompts), first.predict(prompts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "manifest.json"]
