"""The report: its numbers, its page, and what it refuses."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from sooner.cli import root
from sooner.core import Completed, DataError
from sooner.replay.record import Record, Run, write_run
from sooner.report import Arm, Timeline, as_json, gather, print_table, split_meta, write_html
from sooner.report.arms import by_length, length_deciles, timeline
from sooner.report.page import html
from sooner.report.svg import cdf, linear


def burst(scale: float, n: int = 40, steps: bool = True) -> Completed:
    """Replies of 1..n tokens, one at a time, each token `scale` seconds."""
    length = np.arange(1.0, n + 1)
    finish = np.cumsum(length)
    zero = np.zeros(n)
    start = finish - length
    step = (zero, start + 1, finish) if steps else (zero - 1, zero - 1, zero - 1)
    return Completed(
        length, zero, (start + 1) * scale, finish * scale, zero + 9, length, start * scale, zero, zero, *step
    )


def test_gain_is_first_over_this() -> None:
    rows = as_json({"fcfs": Arm(runs=[burst(2.0)]), "ltr": Arm(runs=[burst(1.0)], failed=3)}, {"seed": 1})
    first, second = rows["arms"]
    assert first["gain_vs_first"]["mean_e2e_s"] == 1
    assert second["gain_vs_first"]["mean_e2e_s"] == pytest.approx(2)
    assert second["gain_vs_first"]["mean_e2e_steps"] == 1
    assert (second["policy"], second["failed"], rows["meta"]) == ("ltr", 3, {"seed": 1})
    assert "throughput_tps" not in second["gain_vs_first"]
    json.dumps(rows, allow_nan=False)


def test_runs_of_one_name_are_one_arm_with_a_spread() -> None:
    arms = gather([("fcfs", burst(1.0), 0), ("ltr", burst(1.0), 0), ("fcfs", burst(3.0), 2)])
    assert (list(arms), arms["fcfs"].failed) == (["fcfs", "ltr"], 2)
    (row, _) = as_json(arms, {})["arms"]
    means = [np.mean(np.cumsum(np.arange(1, 41))) * scale for scale in (1, 3)]
    assert row["mean_e2e_s"] == pytest.approx(np.mean(means))
    assert row["spread"]["mean_e2e_s"] == pytest.approx(np.std(means, ddof=1))


def test_steps_show_only_where_all_have_them() -> None:
    arms = {"a": Arm(runs=[burst(1.0)]), "b": Arm(runs=[burst(1.0, steps=False)])}
    assert "mean_e2e_steps" not in as_json(arms, {})["arms"][0]
    assert "engine steps" not in html(arms, {})
    assert "engine steps" in html({"a": Arm(runs=[burst(1.0)])}, {})


def test_refuses_nothing() -> None:
    for arms in ({}, {"a": Arm(runs=[])}):
        with pytest.raises(DataError, match="nothing to compare"):
            as_json(arms, {})


def test_timeline_counts_running_and_waiting() -> None:
    line = timeline(Arm(runs=[burst(1.0)]), points=821)
    assert line.running[:-1].tolist() == [1.0] * 820
    assert (line.waiting[0], line.waiting[1], line.waiting[-1]) == (39, 38, 0)
    given = Timeline(np.zeros(1), np.zeros(1), np.zeros(1))
    assert timeline(Arm(runs=[burst(1.0)], timeline=given)) is given
    unseen = burst(1.0)._replace(start_time=np.full(40, np.nan))
    assert timeline(Arm(runs=[unseen]), points=821).waiting[0] == 40


def test_deciles_hold_every_request_once() -> None:
    arm = Arm(runs=[burst(1.0)])
    edges = length_deciles({"a": arm})
    latency = np.asarray(arm.pooled.finish_time)
    assert edges.tolist() == [1, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert by_length(arm.pooled, edges, latency)[0] == pytest.approx(np.mean([1, 3, 6, 10]))
    same = burst(1.0)._replace(output_len=np.full(40, 7.0))
    assert by_length(same, length_deciles({"a": Arm(runs=[same])}), latency) == pytest.approx(latency.mean())


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_is_well_formed(tmp_path: Path) -> None:
    arms = {"<fcfs>": Arm(runs=[burst(2.0)] * 2), "ltr": Arm(runs=[burst(1.0)], failed=1)}
    write_html(tmp_path / "r.html", arms, {"sampling": {"top_p": None}, "model": "<m>"}, title="A & B")
    text = (tmp_path / "r.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("figure") == 7
    assert "url(" not in text
    assert "@import" not in text
    assert "nan" not in text
    assert "&lt;m&gt;" in text
    assert "<fcfs>" not in text
    for part in text.split("<svg")[1:]:
        drawing = ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
        if drawing.get("role") == "img":
            assert drawing.get("aria-label")
            numbers = [float(node.get("cx", 0)) for node in drawing.iter("circle")]
            assert all(0 <= number <= 560 for number in numbers)


@pytest.mark.parametrize("high", [0.0, 0.013, 0.9, 1.0, 7.0, 99.0, 12_345.0, 2e9])
def test_ticks_are_tidy_and_cover(high: float) -> None:
    axis = linear("x", 0, high)
    assert axis.low == 0
    assert axis.high >= high
    assert 3 <= len(axis.ticks) <= 9
    assert len(set(axis.texts)) == len(axis.texts)
    assert 0 <= axis.at(high) <= 1


def test_a_distribution_climbs_from_none_to_all() -> None:
    for n in (1, 3, 5000):
        x, y = cdf(np.random.default_rng(0).random(n))
        assert (y[0], y[-1]) == (0, 1)
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert x.size <= 800


def test_the_terminal_table_names_every_arm() -> None:
    out = io.StringIO()
    print_table({"fcfs": Arm(runs=[burst(2.0)]), "ltr": Arm(runs=[burst(1.0)])}, Console(file=out, width=120))
    assert "fcfs" in out.getvalue()
    assert "2.00x" in out.getvalue()


def test_settings_are_split_into_shared_and_own() -> None:
    metas = {"a": {"model": "m", "label": "fcfs"}, "b": {"model": "m", "label": "ltr"}}
    assert split_meta(metas) == {"model": "m", "runs": {"a": {"label": "fcfs"}, "b": {"label": "ltr"}}}
    assert split_meta({"a": {"model": "m"}}) == {"model": "m"}


def test_the_command_reads_runs(tmp_path: Path) -> None:
    for name, scale in (("fcfs", 2.0), ("ltr", 1.0)):
        records = [
            Record(
                index=index, id=index, request_id="r", seed=0, arrival_time=0.0, first_token_time=scale,
                finish_time=scale * (index + 1), prompt_len=1, output_len=index + 1, finish_reason="stop",
            )
            for index in range(5)
        ]  # fmt: skip
        failed = Record(index=5, id=5, request_id="r", seed=0, arrival_time=0.0, error="status 500: x")
        write_run(tmp_path / f"{name}.jsonl", Run({"label": name, "model": "m"}, [*records, failed]))
    files = [str(tmp_path / "fcfs.jsonl"), str(tmp_path / "ltr.jsonl")]
    page = tmp_path / "r.html"
    result = CliRunner().invoke(root, ["report", *files, "--out", str(page), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert [(row["policy"], row["n"], row["failed"]) for row in rows["arms"]] == [
        ("fcfs", 5, 1),
        ("ltr", 5, 1),
    ]
    assert rows["meta"]["model"] == "m"
    assert page.exists()
    assert "Mean E2E" in CliRunner().invoke(root, ["report", *files]).output
