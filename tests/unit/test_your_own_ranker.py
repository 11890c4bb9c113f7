"""The ranker in `docs/your-own-ranker.md` keeps the contract, and every command takes it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.judging.explain import explain
from sooner.rankers import Ranker, conformance
from sooner.rankers.offers import Explains

PAGE = Path(__file__).parents[2] / "docs" / "your-own-ranker.md"


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Ranker]]:
    folder = tmp_path_factory.mktemp("own")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (folder / "by_opening.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("by_opening").ByOpening
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(kind: type[Ranker], check: conformance.Check) -> None:
    check(kind)


def test_it_is_explained_exactly(kind: type[Ranker]) -> None:
    ranker = kind().fit(*conformance.rows(200))
    assert isinstance(ranker, Explains)
    made = explain(ranker, "story 3 code")
    assert made.exact
    assert [term.kind for term in made.terms] == ["level", "word"]


def test_every_command_takes_it(kind: type[Ranker], tmp_path: Path) -> None:
    prompts, lengths = conformance.rows(400)
    lines = [json.dumps({"prompt": p, "output_len": y}) for p, y in zip(prompts, lengths, strict=True)]
    for name, part in (("a.jsonl", lines[:300]), ("b.jsonl", lines[300:])):
        (tmp_path / name).write_text("\n".join(part), encoding="utf-8")

    def run(*words: str) -> str:
        done = CliRunner().invoke(root, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    place = str(tmp_path / "r")
    told = json.loads(run("train", str(tmp_path / "a.jsonl"), "--ranker", "by_opening", "--out", place))
    assert told["held_out_kendall_tau"] > 0.5
    judged = json.loads(run("evaluate", place, str(tmp_path / "b.jsonl"), "--json"))
    assert judged["kendall_tau"] > 0.5
    assert json.loads(run("explain", place, "story 3", "--json"))["exact"]
