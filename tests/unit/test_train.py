"""Training and judging: merging, splitting, the figures, and the three commands."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sharegpt import first_turns
from sooner import rankers
from sooner import training as train
from sooner.cli import root
from sooner.core import DataError, RankerFileError, UnknownName
from sooner.judging import measures
from sooner.metrics import kendall_tau
from sooner.rankers import Context, conformance
from sooner.workloads import logs

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def made(n: int = 400) -> train.Dataset:
    prompts, lengths = conformance.rows(n)
    return train.Dataset(prompts, np.array(lengths, float), [Context()] * n, [f"c{i // 2}" for i in range(n)])


def write(path: Path, data: train.Dataset) -> Path:
    rows = zip(data.prompts, data.lengths, data.groups, strict=True)
    lines = [json.dumps({"id": f"{g}_{i}", "prompt": p, "output_len": y}) for i, (p, y, g) in enumerate(rows)]
    path.write_text("\n".join(lines))
    return path


def test_repeated_prompts_are_merged_to_their_mean() -> None:
    known = [Context(), Context(), Context(turn=1), Context()]
    data = train.Dataset(["a", "b", "a", "a"], np.array([1.0, 5.0, 9.0, 3.0]), known, list("wxyz"))
    kept = train.merged(data)
    assert kept.prompts == ["a", "b", "a"]
    assert kept.lengths.tolist() == [2.0, 5.0, 9.0]
    assert kept.groups == ["w", "x", "y"]


def test_no_conversation_or_prompt_is_on_both_sides() -> None:
    data = made()
    data = data._replace(prompts=[*data.prompts[:-9], *data.prompts[:9]])
    known, unseen = train.split(data, 0.25, 3)
    assert not set(known.groups) & set(unseen.groups)
    assert not set(known.prompts) & set(unseen.prompts)
    assert 0.15 < len(unseen.prompts) / len(data.prompts) < 0.3
    with pytest.raises(DataError, match="cannot be split"):
        train.split(data.take([0, 1]), 0.25, 0)


def test_what_can_be_learned_is_learned_and_judged() -> None:
    known, unseen = train.split(made(), 0.25, 0)
    ranker = train.fit("lexical", known.prompts, known.lengths, groups=known.groups)
    result = measures.evaluate(ranker, unseen)
    assert result["kendall_tau"] > 0.8
    assert 0 < result["kendall_tau_se"] < 0.1
    assert result["pairwise_accuracy"] > 0.9
    assert result["ms_per_request"] > 0
    assert result["verdict"]["switch_on"]
    assert result["coverage"]["0.5"] == pytest.approx(0.5, abs=0.2)
    assert sum(decile["n"] for decile in result["deciles"]) == result["n"] == len(unseen.prompts)
    constant = train.fit("constant", known.prompts, known.lengths)
    judged = measures.evaluate(constant, unseen)["verdict"]
    assert not judged["switch_on"]
    assert "not clearly above 0" in judged["reason"]


def test_a_prior_helps_on_few_rows() -> None:
    data = made(800)
    far, near, unseen = data.take(range(600)), data.take(range(600, 640)), data.take(range(640, 800))
    prior = train.fit("lexical", far.prompts, far.lengths)
    alone = train.fit("lexical", near.prompts, near.lengths)
    warm = train.fit("lexical", near.prompts, near.lengths, prior=prior)
    tau = {
        name: measures.evaluate(r, unseen)["kendall_tau"] for name, r in (("alone", alone), ("warm", warm))
    }
    assert tau["warm"] > tau["alone"]
    with pytest.raises(DataError, match="cannot be made with"):
        train.fit("constant", near.prompts, near.lengths, prior=prior)
    with pytest.raises(UnknownName, match="did you mean 'lexical'"):
        train.fit("lexicle", near.prompts, near.lengths)


def test_context_counts() -> None:
    rng = np.random.default_rng(0)
    context = [Context(turn=1, reply_lens=(float(rng.integers(5, 900)),)) for _ in range(400)]
    lengths = [known.reply_lens[0] * rng.uniform(0.8, 1.2) for known in context]
    prompts = [f"go on {i}" for i in range(400)]
    ranker = train.fit("lexical", prompts[:300], lengths[:300], context=context[:300])
    order = ranker.predict(prompts[300:], context=context[300:])
    assert kendall_tau(order, lengths[300:]) > 0.7


def test_a_rendered_prompt_in_a_log_is_cleaned() -> None:
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    row = logs.LogRow(conversation="a", messages=[{"role": "user", "content": rendered}], output_len=3)
    assert train.dataset([row]).prompts == ["hello"]


def test_commands_train_evaluate_and_score(tmp_path: Path) -> None:
    known, unseen = train.split(made(), 0.25, 0)
    log, test = write(tmp_path / "log.jsonl", known), write(tmp_path / "test.jsonl", unseen)
    run = CliRunner().invoke
    trained = run(root, ["train", str(log), "--out", str(tmp_path / "r")], catch_exceptions=False)
    assert trained.exit_code == 0
    facts = json.loads(trained.stdout)
    assert facts["held_out_kendall_tau"] > 0.7
    assert "Switch it on" in trained.stderr
    judged = run(root, ["evaluate", str(tmp_path / "r"), str(test), "--json"], catch_exceptions=False)
    keys = {"n", "kendall_tau", "kendall_tau_se", "pairwise_accuracy", "spearman", "ms_per_request"}
    assert keys <= set(json.loads(judged.stdout))
    assert "kendall_tau" in run(root, ["evaluate", str(tmp_path / "r"), str(test)]).stdout
    asked = 'one\n{"messages": [{"role": "user", "content": "one"}]}\n{"prompt": "one"}\n{odd\n'
    scored = run(root, ["score", str(tmp_path / "r")], input=asked, catch_exceptions=False)
    scores = [float(line) for line in scored.stdout.splitlines()]
    assert len(scores) == 4
    assert scores[0] == scores[1] == scores[2]
    assert "predicted_len" in run(root, ["score", str(tmp_path / "r"), "--json"], input="one\n").stdout


def test_conversations_that_a_file_names_are_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", made(60))
    names = tmp_path / "names.txt"
    words = ["train", str(log), "--ranker", "prompt_length", "--out", str(tmp_path / "r")]
    names.write_text("c0\nc3\nelsewhere\n")
    done = CliRunner().invoke(root, [*words, "--leave-out", str(names)], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"] == 56
    assert json.loads(done.stdout)["data"] == "log.jsonl"
    assert "4 rows left out" in done.stderr
    names.write_text(" ".join(f"c{i}" for i in range(30)))
    none = CliRunner().invoke(root, [*words, "--leave-out", str(names)])
    assert isinstance(none.exception, DataError) or "leaves no row" in none.stderr


def test_the_shipped_ranker_loads_and_is_small() -> None:
    ranker = train.load("light")
    assert ranker.name == "lexical"
    folder = Path(rankers.__file__).parent / "default"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    low, high = ranker.predict(["hi", "Write a detailed 2000 word essay on the history of Rome."])
    assert low < high


def test_files_of_other_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RankerFileError, match=r"manifest\.json is missing"):
        train.load(tmp_path)
    prompts, lengths = conformance.rows()
    train.save(train.fit("prompt_length", prompts, lengths), tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value, words in (
        ("format", 99, "format 99"),
        ("ranker", "gone", "unknown ranker 'gone'"),
        ("sha256", {"../x": "0"}, "not a file of this directory"),
        ("settings", None, "has no 'settings'"),
    ):
        path.write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(RankerFileError, match=words):
            train.load(tmp_path)


def test_lexical_reaches_its_tau_on_sharegpt() -> None:
    known, unseen = first_turns(held_out=False, most=6868), first_turns(held_out=True, most=1700)
    ranker = train.fit("lexical", known.prompts, known.lengths, groups=known.groups)
    assert measures.evaluate(ranker, unseen)["kendall_tau"] >= 0.35


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this checkout")
def test_the_shipped_ranker_never_saw_the_held_out_conversations() -> None:
    listed = set((Path(__file__).parents[2] / "scripts" / "held_out_conversations.txt").read_text().split())
    assert set((SHARED / "sharegpt_reserved_conversations.txt").read_text().split()) <= listed
    with gzip.open(SHARED / "sharegpt_first_turn_dev.jsonl.gz", "rt") as lines:
        assert {json.loads(line)["id"].rpartition("_")[0] for line in lines} <= listed
