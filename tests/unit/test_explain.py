"""Explanations add up to the score, for every kind of ranker, and are the same when asked again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sharegpt import first_turns
from sooner import training as train
from sooner.core import NotFittedError, RankerFileError
from sooner.judging import evaluation
from sooner.judging.explain import Term, explain, pieces, shapley
from sooner.rankers import Context, Ranker, conformance, get
from sooner.rankers.neural import encoding
from sooner.training.examples import FILE, Examples


def thousand() -> list[str]:
    """Prompts nobody trained on, and made-up ones of all sizes."""
    made = [f"{'word ' * (i % 97)} please list {i} things; {'x' * (i % 31)}?" for i in range(200)]
    return [*first_turns(held_out=True, most=800).prompts, *made]


def test_a_thousand_explanations_of_the_shipped_ranker_add_up() -> None:
    ranker = train.load("default")
    known = [
        Context(turn=i % 3, reply_lens=(50.0,) * (i % 3), system="Be brief." * (i % 2)) for i in range(1000)
    ]
    worst = 0.0
    for prompt, context in zip(thousand(), known, strict=True):
        made = explain(ranker, prompt, context, sampled=False)
        worst = max(worst, abs(sum(term.amount for term in made.terms) - made.score))
    assert made.exact == (ranker.name != "blend")
    assert worst < 1e-6


def test_an_explanation_of_the_shipped_ranker_adds_up_when_its_encoder_is_divided_too() -> None:
    ranker = train.load("default")
    for prompt in ("Write a short story about a lighthouse keeper. Make it sad.", "hi", "1, 2, 3? " * 40):
        made = explain(ranker, prompt, Context())
        assert sum(term.amount for term in made.terms) == pytest.approx(made.score, abs=1e-6)


@pytest.mark.parametrize("name", ["lexical", "boosted", "prompt_length", "constant", "pars", "magnus"])
@pytest.mark.parametrize("prompt", ["list 3 things about code", "", " \n", "a b " * 4000, "one. two? three"])
def test_terms_add_up_for_every_ranker(name: str, prompt: str) -> None:
    if name in ("boosted", "magnus"):
        pytest.importorskip("lightgbm", reason=f"{name} is made of LightGBM's trees")
    if name == "pars":
        pytest.importorskip("torch", reason="its head is trained with torch")
    prompts, lengths = conformance.rows(200)
    settings = {"encoder": encoding.HASHED} if name in ("pars", "magnus") else {}
    ranker = get(name)(**settings).fit(prompts, lengths)
    for context in (Context(), Context(turn=1, reply_lens=(9.0,), max_tokens=30)):
        made = explain(ranker, prompt, context)
        assert sum(term.amount for term in made.terms) == pytest.approx(made.score, abs=1e-6)
        assert made == explain(ranker, prompt, context)
        assert list(made.quantiles.values()) == sorted(made.quantiles.values())
        assert made.exact == (name not in ("pars", "magnus"))
    assert made.predicted_len <= 30
    assert max(made.quantiles.values()) <= 30


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    for name in ("torch", "transformers", "onnxruntime"):
        pytest.importorskip(name, reason="a blend is fine-tuned with torch and runs on ONNX Runtime")
    from tiny_encoder import RECIPE, build, rows

    prompts, lengths = rows(200)
    known = [Context(turn=i % 3, reply_lens=(30.0,) * (i % 3)) for i in range(200)]
    settings = RECIPE | {"epochs": 2, "encoder": str(build(tmp_path_factory.mktemp("encoder")))}
    return get("blend")(**settings).fit(prompts, lengths, context=known)


@pytest.mark.parametrize("prompt", ["please write a poem", "", "essay " * 300])
def test_terms_of_a_blend_add_up_before_and_after_a_refit(blend: Ranker, prompt: str) -> None:
    from tiny_encoder import rows

    known = Context(turn=1, reply_lens=(40.0,))
    for ranker in (blend, blend.refit(*rows(60, seed=3))):
        made = explain(ranker, prompt, known)
        assert sum(term.amount for term in made.terms) == pytest.approx(made.score, abs=1e-6)
        assert any(term.kind == "transformer" for term in made.terms) == bool(prompt)
        assert not made.exact
        plain = explain(ranker, prompt, known, sampled=False)
        assert sum(term.amount for term in plain.terms) == pytest.approx(plain.score, abs=1e-6)


def test_a_refit_of_a_blend_is_judged(blend: Ranker) -> None:
    from tiny_encoder import rows

    prompts, lengths = rows(150, seed=5)
    data = train.Dataset(prompts, lengths, [Context()] * 150, [str(i) for i in range(150)])
    result = evaluation.evaluate(blend, data, refit=50)
    assert result["refit"]["rows"] >= 50
    assert result["n"] + result["refit"]["rows"] == len(set(prompts))
    assert result["kendall_tau"] > result["refit"]["kendall_tau_before"] - 0.1
    assert set(result["tau_by_ranker_part"]) == {"transformer", "lexical"}


def test_shapley_values_of_a_sum_are_its_summands() -> None:
    worth = {"a": 1.0, "b": -2.0, "c": 5.0}
    terms = shapley(
        lambda texts: np.array([3.0 + sum(worth[w] for w in text.split()) for text in texts]), "a b c", 0
    )
    assert terms[0] == Term("level", "of the empty prompt", pytest.approx(3.0))
    assert {term.text: term.amount for term in terms[1:]} == pytest.approx(worth)


def test_shapley_values_share_what_only_two_together_give() -> None:
    terms = shapley(lambda texts: np.array([8.0 * ("a" in t and "b" in t) for t in texts]), "a b", 0)
    assert [term.amount for term in terms] == pytest.approx([0.0, 4.0, 4.0])


@pytest.mark.parametrize("text", ["", "  x", "one", "w " * 100, "A b. C d? E f!" * 9, "\n" * 50, "日本" * 40])
def test_pieces_join_to_the_prompt(text: str) -> None:
    parts = pieces(text)
    assert "".join(parts) == text
    assert len(parts) <= 12


def test_an_unfitted_ranker_cannot_be_explained() -> None:
    with pytest.raises(NotFittedError):
        explain(get("lexical")(), "x")


def test_the_nearest_examples_are_those_that_share_words(tmp_path: Path) -> None:
    prompts = [
        f"tell me about {animal} in {place}" for animal in ("cats", "owls") for place in ("Rome", "Oslo")
    ]
    prompts += [f"unrelated filler {i} of other words" for i in range(60)]
    kept = Examples.of(prompts, np.arange(64.0), [f"c{i}" for i in range(64)])
    first = kept.nearest("tell me about owls in Oslo", 3)
    assert first[0].conversation == "c3"
    assert first[0].output_len == 3.0
    assert first[0].prompt is None
    assert first[0].similarity > first[2].similarity > 0.1
    kept.save(tmp_path)
    assert Examples.load(tmp_path).nearest("tell me about owls in Oslo", 3) == first
    stored = (tmp_path / FILE).read_bytes()
    assert b"owls" not in stored
    (tmp_path / FILE).write_bytes(stored[:-5] + b"12345")
    with pytest.raises(RankerFileError, match="checksum"):
        Examples.load(tmp_path)
    assert Examples.load(tmp_path / "absent") is None
    texts = Examples.of(prompts, np.arange(64.0), ["c"] * 64, texts=True, most=10)
    assert len(texts.prompts) == 10
    assert texts.nearest("", 2)[0].similarity == 0
