"""What `sooner reproduce` says: rows, claims, the page, JSON and the exit code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sooner import reproduce
from sooner.cli import root
from sooner.core import UnknownName
from sooner.reproduce.page import html
from sooner.reproduce.plots import curves, ranks
from sooner.reproduce.result import Claim, Reproduction, Row


def found(*, holds: bool) -> Reproduction:
    return Reproduction(
        name="case",
        title="A case <of> two",
        paper="Someone (2024)",
        rows=[
            Row(setting="8 req/s", measure="latency", ours=3.0, paper=2.0, unit="s"),
            Row(setting="9 req/s", measure="latency", ours=4.0),
        ],
        claims=[
            Claim(text="It falls", holds=holds, reason="3 to 2", source="stated", reworded="once by half")
        ],
        figures=[
            curves("Line", "x", [1.0, 2.0], "y", {"ours": [3.0, 2.0]}),
            ranks("Dots", "x", {"ours": 1.5}),
        ],
        settings={"limit": 1024, "seed": 1},
        unconfirmed={"limit": "recalled"},
        notes=["Read this."],
    )


def test_a_result_as_data() -> None:
    data = json.loads(json.dumps(found(holds=True).timed(1.234).as_json()))
    assert data["reproduced"] is True
    assert data["rows"][0]["ours_over_paper"] == 1.5
    assert data["rows"][1]["ours_over_paper"] is None
    assert data["unconfirmed"] == {"limit": "recalled"}
    assert data["cpu_s"] == 1.23
    assert found(holds=False).as_json()["reproduced"] is False


def test_the_page_says_everything_and_escapes_it() -> None:
    page = html(found(holds=False))
    for text in (
        "A case &lt;of&gt; two",
        "0 of 1 claims",
        "<b>no, reworded</b>",
        "3 to 2. Reworded after a first run: once by half",
        "3 to 2",
        "recalled",
        "Read this.",
        "1.50",
    ):
        assert text in page
    assert page.count('<svg viewBox="0 0 560') == 2
    assert "<script" not in page


@pytest.mark.parametrize("name", reproduce.NAMES)
def test_every_name_has_its_function(name: str) -> None:
    module, function = reproduce.NAMES[name]
    assert callable(getattr(importlib.import_module(f"sooner.reproduce.{module}"), function))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ltr-fig2'"):
        reproduce.run("ltr-fig22")


def test_the_names_are_listed() -> None:
    listed = CliRunner().invoke(root, ["reproduce"])
    assert listed.output.split() == list(reproduce.NAMES)


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_it_was_reproduced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, holds: bool, code: int
) -> None:
    monkeypatch.setattr(reproduce, "run", lambda name, seed, report: found(holds=holds))
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(root, ["reproduce", "case", "--out", str(page)])
    assert shown.exit_code == code
    assert ("NOT reproduced" in shown.output) is not holds
    assert "unconfirmed: limit=1024" in shown.output
    assert page.read_text().startswith("<!doctype html>")
    data = CliRunner().invoke(root, ["reproduce", "case", "--json"])
    assert data.exit_code == code
    assert json.loads(data.stdout)["reproduced"] is holds


def test_figure_2_is_reproduced() -> None:
    result = reproduce.run("ltr-fig2")
    assert result.reproduced, [claim.reason for claim in result.claims if not claim.holds]
    assert {row.setting for row in result.rows} >= {"16 req/s, tau 0", "16 req/s, tau 1"}


def test_dots_stand_beside_the_papers_where_it_has_them() -> None:
    both = ranks("Dots", "x", {"a": 1.0, "b": 2.0}, paper={"a": 3.0})
    assert both.legend == {"ours": "s1", "paper": "s2"}
    assert both.svg.count("<circle") == 3
    assert "paper: 3.00" in both.svg
    assert not ranks("Dots", "x", {"a": 1.0}).legend
