"""Evaluating, explaining and comparing rankers: the library, the pages and the commands."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sooner import training as train
from sooner.cli import root
from sooner.core import DataError, UnknownName
from sooner.judging import comparison, evaluation, learned
from sooner.metrics import kendall_tau
from sooner.rankers import Context, conformance, get
from sooner.rankers.neural import encoding
from sooner.report import ranker as page
from sooner.report import terms as terms_page


def made(n: int = 400, start: int = 0) -> train.Dataset:
    prompts, lengths = conformance.rows(n + start)
    rows = train.Dataset(prompts, np.array(lengths, float), [Context()] * len(prompts), [""] * len(prompts))
    part = rows.take(range(start, n + start))
    return part._replace(groups=[f"c{(i + start) // 2}" for i in range(n)])


def write(path: Path, data: train.Dataset) -> str:
    lines = [
        json.dumps({"id": f"{group}_{i}", "prompt": prompt, "output_len": length})
        for i, (prompt, length, group) in enumerate(zip(data.prompts, data.lengths, data.groups, strict=True))
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def run(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(root, list(words), catch_exceptions=code != 0)
    assert done.exit_code == code, done.output
    return done


def test_the_ceiling_is_found_from_repeated_prompts() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(5, 1, 3000)
    samples = np.exp(means[:, None] + rng.normal(0, 0.5, (3000, 2)))
    prompts = [f"p{i}" for i in range(3000)]
    data = train.Dataset(prompts * 2, samples.T.reshape(-1), [Context()] * 6000, prompts * 2)
    ceiling = evaluation.noise_ceiling(data)
    assert ceiling is not None
    assert ceiling["prompts"] == 3000
    assert ceiling["kendall_tau_of_two_replies"] == pytest.approx(kendall_tau(*samples.T), abs=0.02)
    known = kendall_tau(means, samples[:, 0])
    assert ceiling["kendall_tau_of_a_perfect_ranker"] == pytest.approx(known, abs=0.02)
    assert evaluation.noise_ceiling(made()) is None
    other = data._replace(context=[Context(turn=i // 3000) for i in range(6000)])
    assert evaluation.noise_ceiling(other) is None


def test_repeated_prompts_count_once() -> None:
    data = made(100)
    twice = train.Dataset(
        data.prompts * 2, np.r_[data.lengths, data.lengths], data.context * 2, data.groups * 2
    )
    result = evaluation.evaluate(get("prompt_length")().fit(data.prompts, data.lengths), twice)
    assert (result["rows"], result["n"]) == (200, len(set(data.prompts)))
    assert result["noise_ceiling"]["kendall_tau_of_two_replies"] == pytest.approx(1.0)


def test_the_ceiling_of_four_replies_to_each_of_ten_thousand_prompts() -> None:
    """A ranker that knew three replies orders the fourth better than one reply orders another."""
    rng = np.random.default_rng(1)
    means, spread = rng.normal(4, 1.1, (10_000, 1)), rng.gamma(2, 0.25, (10_000, 1))
    lengths = np.ceil(np.minimum(np.exp(means + spread * rng.normal(size=(10_000, 4))), 512))
    prompts = [f"p{i}" for i in range(len(lengths))]
    data = train.Dataset(prompts * 4, lengths.T.reshape(-1), [Context()] * lengths.size, prompts * 4)
    ceiling = evaluation.noise_ceiling(data)
    assert ceiling is not None
    pairs = [kendall_tau(lengths[:, a], lengths[:, b]) for a, b in itertools.combinations(range(4), 2)]
    assert 0.6 < min(pairs) < max(pairs) < 0.75  # two replies of Vicuna-7B to one prompt agree at 0.64
    assert ceiling["kendall_tau_of_two_replies"] == pytest.approx(np.mean(pairs), abs=0.01)
    three = [kendall_tau(np.delete(lengths, a, 1).mean(axis=1), lengths[:, a]) for a in range(4)]
    assert max(pairs) < ceiling["kendall_tau_of_a_perfect_ranker"]
    assert np.mean(three) < ceiling["kendall_tau_of_a_perfect_ranker"] < np.mean(three) + 0.1


def test_a_lone_conversation_gives_no_verdict_to_trust() -> None:
    data = made(40)._replace(groups=["one"] * 40)
    result = evaluation.evaluate(get("prompt_length")().fit(data.prompts, data.lengths), data)
    assert result["kendall_tau_se"] is None
    assert not result["verdict"]["switch_on"]
    assert "one conversation" in result["verdict"]["reason"]
    assert "NaN" not in json.dumps(result)
    assert "<svg" in page.html(result)


def test_rankers_without_a_last_layer_refuse_a_refit() -> None:
    ranker = get("lexical")().fit(*conformance.rows())
    with pytest.raises(DataError, match="'lexical' ranker cannot be refitted"):
        evaluation.evaluate(ranker, made(100), refit=20)
    with pytest.raises(DataError, match="cannot spare"):
        evaluation.evaluate(ranker, made(10), refit=99)


def test_a_refit_is_judged_on_other_conversations() -> None:
    data = made(100)
    known, rest = evaluation._apart(data, 20, 0)
    assert 20 <= len(known.prompts) <= 21
    assert len(known.prompts) + len(rest.prompts) == 100
    assert not set(known.groups) & set(rest.groups)


def test_commands_from_a_log_to_pages(tmp_path: Path) -> None:
    known, unseen = write(tmp_path / "a.jsonl", made()), write(tmp_path / "b.jsonl", made(200, 400))
    place = str(tmp_path / "r")
    trained = run("train", known, "--ranker", "lexical", "--out", place, "--set", "damping=50")
    assert json.loads(trained.stdout)["damping"] == 50
    assert "Switch it on" in trained.stderr
    result = json.loads(run("evaluate", place, unseen, "--json", "--html", str(tmp_path / "r.html")).stdout)
    assert {
        *("n", "kendall_tau", "kendall_tau_se", "pairwise_accuracy", "spearman", "ms_per_request"),
        *("tau_by_ranker_part", "coverage", "ms_per_request_batch1", "ms_per_request_batch32", "verdict"),
    } <= set(result)
    assert {"0.1", "0.5", "0.9"} <= set(result["coverage"])
    assert result["verdict"]["reason"] in (tmp_path / "r.html").read_text()
    assert "tenth 10 of the score" in run("evaluate", place, unseen).stdout
    told = json.loads(run("explain", place, "list 3 code about topic 7", "--json").stdout)
    assert sum(term["amount"] for term in told["terms"]) == pytest.approx(told["score"], abs=1e-6)
    assert [one["prompt"] for one in told["nearest"]] == [None] * 5
    assert told["nearest"][0]["similarity"] > 0.3
    words = run(
        "explain", place, '{"messages": [{"role": "user", "content": "list"}]}', "--max-tokens", "9"
    ).stdout
    assert "expected reply 9 tokens" in words
    assert "smaller terms" in words
    every = run("explain", place, "briefly 3 code", "--max-tokens", "9", "--top", "9999").stdout
    assert "limit: max_tokens 9" in every
    overall = run("explain", place, "--log", unseen, "--html", str(tmp_path / "t.html"), "--json").stdout
    assert json.loads(overall)["exact"]
    assert "The strongest terms" in (tmp_path / "t.html").read_text()
    assert "longer reply expected" in run("explain", place, "--log", unseen).stdout
    run("explain", place, code=2)
    run("train", known, "--out", place, "--set", "nonsense", code=2)


def test_texts_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    known = write(tmp_path / "a.jsonl", made(60))
    place = tmp_path / "r"
    for what, count in (("text", 5), ("none", 0), ("lengths", 5)):
        run("train", known, "--ranker", "prompt_length", "--out", str(place), "--keep-examples", what)
        near = json.loads(run("explain", str(place), "list 3 code", "--json").stdout)["nearest"]
        assert len(near) == count
        assert all((one["prompt"] is not None) == (what == "text") for one in near)


def test_what_was_learned_is_found_again() -> None:
    data = made()
    ranker = get("lexical")().fit(data.prompts, data.lengths)
    view = learned.learned(ranker, data.prompts, data.context)
    assert sum(view.shares.values()) == pytest.approx(1)
    assert all(one.mean > 0 for one in view.longer)
    assert all(one.mean < 0 for one in view.shorter)
    assert any("briefly" in one.text for one in view.longer[:15])  # the longest replies of the made-up rows
    assert any("list" in one.text for one in view.shorter[:15])
    assert "<svg" in terms_page.html(view.as_json, title="x")
    sampled = learned.learned(get("oracle")().fit(data.prompts, data.lengths), [], [])
    assert sampled.rows == 0
    assert "<h1>x</h1>" in terms_page.html(sampled.as_json, title="x")


def test_the_page_leaves_out_what_was_not_found() -> None:
    data = made(60)
    result = evaluation.evaluate(get("constant")().fit(data.prompts, data.lengths), data)
    html = page.html(result | {"coverage": {}, "deciles": []}, title="<x>")
    assert "&lt;x&gt;" in html
    assert "Do not switch it on" in html
    assert html.count("<figure>") == 1


def test_the_page_has_one_colour_for_one_thing_and_its_numbers_beside_the_dots() -> None:
    data = made(200)
    result = evaluation.evaluate(get("prompt_length")().fit(*conformance.rows(40)), data)
    html = page.html(result | {"tau_by_ranker_part": {"lexical": 0.93, "transformer": 0.41}})
    for figure in html.split("<figure>")[1:3]:
        lines = re.findall(r'class="line (s\d)"[^>]*/></svg>([a-z ]+)</li>', figure)
        assert [style for style, _ in lines] == ["s0", "s1"]
        assert [name.removeprefix("as ") for _, name in lines] == ["predicted", "true"]
    dots = html.split("<figure>")[3]
    told = re.findall(r'class="value"[^>]*text-anchor="(\w+)">([^<]+)<', dots)
    own = f"{result['kendall_tau']:.3f} ± {result['kendall_tau_se']:.3f}"
    assert told == [("start", own), ("end", "0.930"), ("start", "0.410")]
    assert dots.count('class="whisker"') == 1


def test_the_papers_rankers_in_one_table(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the papers' heads are trained with torch")
    pytest.importorskip("sklearn", reason="hashed vectors are found with scikit-learn")
    known, unseen = write(tmp_path / "a.jsonl", made()), write(tmp_path / "b.jsonl", made(200, 400))
    arms = [
        word
        for name in ("ltr", "buckets 820", "buckets 100", "buckets 10", "buckets 1")
        for word in ("--arm", name)
    ]
    words = ["compare-rankers", known, unseen, "--encoder", "hashed", *arms]
    result = json.loads(run(*words, "--json").stdout)
    table = {row["name"]: row for row in result["arms"]}
    assert set(table) == {"ltr", "buckets 820", "buckets 100", "buckets 10", "buckets 1"}
    assert table["buckets 820"]["class_accuracy"] == 1.0  # all made-up replies are in the first bucket
    assert table["buckets 820"]["kendall_tau"] == 0.0
    assert table["ltr"]["kendall_tau"] > 0.3
    assert table["ltr"]["class_accuracy"] is None
    assert all(row["train_cpu_s"] > 0 and row["ms_per_request"] > 0 for row in table.values())
    outcomes = {claim["claim"]: claim["outcome"] for claim in result["claims"]}
    assert outcomes["ten buckets are the most accurate and order worst"] == "held"
    assert outcomes["pairs with a margin order better than ListMLE"] == "not run"
    printed = run(*words).stdout
    assert "not run" in printed
    assert "buckets 820" in printed


def test_a_trained_ranker_is_judged_beside_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # so that no name is cut
    known, unseen = write(tmp_path / "a.jsonl", made()), write(tmp_path / "b.jsonl", made(200, 400))
    place = str(tmp_path / "mine")
    run("train", known, "--out", place)
    words = ["compare-rankers", known, unseen, "--arm", "prompt_length", "--trained", place]
    table = {row["name"]: row for row in json.loads(run(*words, "--json").stdout)["arms"]}
    assert set(table) == {"prompt_length", place}
    assert table[place]["train_cpu_s"] is None
    assert table[place]["kendall_tau"] > table["prompt_length"]["kendall_tau"]
    printed = run(*words).stdout
    assert place in printed
    assert "400 training and 200 test rows" in " ".join(printed.split())


def test_claims_hold_fail_or_are_too_close() -> None:
    def row(name: str, tau: float, accuracy: float | None = None, rmse: float = 100.0) -> comparison.Standing:
        return comparison.Standing(name, tau, 0.02, (1 + tau) / 2, accuracy, rmse, 1.0, 1.0)

    def outcome(claim: str, *rows: comparison.Standing) -> tuple[str, bool | None]:
        found = comparison.claims({one.name: one for one in rows})
        return next((one.outcome, one.held) for one in found if claim in one.claim)

    assert outcome("margin", row("pars", 0.40), row("ltr", 0.35)) == ("held", True)
    assert outcome("margin", row("pars", 0.35), row("ltr", 0.40)) == ("did not hold", False)
    assert outcome("margin", row("pars", 0.36), row("ltr", 0.35)) == ("too close to call", None)
    assert outcome("margin", row("pars", 0.36)) == ("not run", None)
    forests = [
        row(f"magnus {kind}", 0.1, rmse=error)
        for kind, error in (("uilo", 190), ("inst", 180), ("usin", 190))
    ]
    assert outcome("error falls", *forests) == ("did not hold", False)
    classes = row("ssjf classes5", 0.30, 0.4), row("ssjf classes3", 0.25, 0.6)
    assert outcome("five classes", *classes) == ("held", True)


def test_a_comparison_leaves_leaks_out_and_knows_its_arms() -> None:
    data = made(100)
    with pytest.raises(DataError, match="share nothing"):
        comparison.compare(data, data, arms=["prompt_length"])
    with pytest.raises(UnknownName, match="did you mean 'pars'"):
        comparison.compare(data, data, arms=["parz"])
    result = comparison.compare(data, made(50, 80), arms=["prompt_length"], encoder=encoding.HASHED)
    assert result["test_rows"] == 30


POOR = {
    "twenty rows": lambda: made(20),
    "one class": lambda: made(60)._replace(lengths=np.full(60, 7.0)),
    "one prompt": lambda: made(60)._replace(prompts=["same"] * 60),
    "one conversation": lambda: made(60)._replace(groups=["c"] * 60),
    "odd prompts": lambda: made(60)._replace(prompts=[*conformance.ODD_PROMPTS, *made(60).prompts][:60]),
    "replies of no tokens": lambda: made(60)._replace(lengths=np.zeros(60)),
}


@pytest.mark.parametrize("kind", POOR)
@pytest.mark.parametrize("name", ["lexical", "boosted", "prompt_length", "buckets", "ssjf", "magnus"])
def test_poor_logs_give_a_ranker_and_an_honest_verdict(name: str, kind: str, tmp_path: Path) -> None:
    for needed in {
        "boosted": ["lightgbm"],
        "magnus": ["lightgbm"],
        "buckets": ["torch"],
        "ssjf": ["torch"],
    }.get(name, []):
        pytest.importorskip(needed, reason=f"{name} is trained with {needed}")
    log = write(tmp_path / "a.jsonl", POOR[kind]())
    more = ["--set", "encoder=hashed"] if name in ("buckets", "ssjf", "magnus") else []
    done = run("train", log, "--ranker", name, "--out", str(tmp_path / "r"), *more)
    facts = json.loads(done.stdout, parse_constant=pytest.fail)
    if kind != "odd prompts" and kind != "twenty rows":
        assert not facts.get("verdict", {"switch_on": False})["switch_on"] or kind == "one conversation"
    told = run("explain", str(tmp_path / "r"), "list 3 code", "--json").stdout
    assert np.isfinite(json.loads(told)["score"])
    if kind == "one prompt":
        with pytest.raises(DataError, match="1 prompt to judge on"):
            run("evaluate", str(tmp_path / "r"), log)
    else:
        judged = run("evaluate", str(tmp_path / "r"), log, "--json").stdout
        assert json.loads(judged, parse_constant=pytest.fail)["n"] >= 2
