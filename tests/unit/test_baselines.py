"""The papers' predictors: the contract, their labels and losses, and what they learn."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sooner.core import ConfigError, UnknownName
from sooner.metrics import kendall_tau
from sooner.rankers import Context, Ranker, conformance, get, load
from sooner.rankers.neural import encoding

torch = pytest.importorskip("torch", reason="the papers' heads are trained with torch")
pytest.importorskip("lightgbm", reason="Magnus is a forest of LightGBM")
pytest.importorskip("sklearn", reason="hashed vectors are found with scikit-learn")

from tiny_encoder import RECIPE, build, rows  # noqa: E402

from sooner.rankers.neural import objectives  # noqa: E402

SETTINGS: dict[str, tuple[str, float, dict[str, object]]] = {
    # name: (ranker, the tau it must reach on rows it has not seen, settings)
    "ltr": ("ltr", 0.3, {}),
    "buckets of 820": ("buckets", -0.01, {"size": 820}),  # all replies are in the first one
    "buckets of 10": ("buckets", 0.1, {"size": 10}),
    "ssjf regression": ("ssjf", 0.3, {"task": "regression", "distance": "l1"}),
    "ssjf classes": ("ssjf", 0.3, {"task": "classes5"}),
    "ssjf ordinal": ("ssjf", 0.3, {"task": "ordinal3"}),
    "pars": ("pars", 0.3, {}),
    "magnus": ("magnus", 0.1, {"trees": 20}),
    "magnus raft": ("magnus", -0.1, {"trees": 20, "variant": "raft"}),  # the instruction tells nothing here
    "magnus pca": ("magnus", 0.1, {"trees": 20, "compression": "pca"}),
}


def make(name: str) -> partial[Ranker]:
    kind, _, settings = SETTINGS[name]
    return partial(get(kind), encoder=encoding.HASHED, **settings)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["ltr", "buckets of 820", "ssjf ordinal", "pars", "magnus raft"])
def test_contract(name: str, check: conformance.Check) -> None:
    check(make(name))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_learns_and_comes_back(name: str, tmp_path: Path) -> None:
    prompts, lengths = conformance.rows(600)
    ranker = make(name)().fit(prompts[:500], np.array(lengths[:500]) * 3)
    scores = ranker.predict(prompts[500:])
    assert kendall_tau(scores, lengths[500:]) > SETTINGS[name][1]
    ranker.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict(prompts[500:]), scores)


def test_a_frozen_encoder_serves_as_vectors(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the encoder is opened with transformers")
    pytest.importorskip("onnxruntime", reason="the encoder runs on ONNX Runtime")
    prompts, lengths = rows(400)
    ranker = get("pars")(encoder=str(build(tmp_path / "encoder"))).fit(prompts[:300], lengths[:300])
    scores = ranker.predict(prompts[300:])
    assert kendall_tau(scores, lengths[300:]) > 0.3
    ranker.save(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved").predict(prompts[300:]), scores)
    vectors = encoding.Remembered(ranker._encoding)
    np.testing.assert_array_equal(vectors(prompts[:3]), vectors(prompts[:3]))
    assert vectors([]).shape == (0, 64)


def test_the_encoder_of_a_trained_ranker_serves_as_vectors(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the encoder is opened with transformers")
    pytest.importorskip("onnxruntime", reason="the encoder runs on ONNX Runtime")
    prompts, lengths = rows(400)
    place = str(build(tmp_path / "encoder"))
    get("transformer")(encoder=place, **RECIPE).fit(prompts[:200], lengths[:200]).save(tmp_path / "tuned")
    tau = {
        name: kendall_tau(
            get("pars")(encoder=name).fit(prompts[:300], lengths[:300]).predict(prompts[300:]), lengths[300:]
        )
        for name in (place, str(tmp_path / "tuned"))
    }
    assert tau[str(tmp_path / "tuned")] > tau[place] + 0.05  # it was trained on lengths
    get("prompt_length")().fit(prompts, lengths).save(tmp_path / "none")
    with pytest.raises(ConfigError, match="allowed: transformer or blend"):
        get("pars")(encoder=str(tmp_path / "none")).fit(prompts, lengths)


def test_an_encoder_is_tuned_under_a_papers_objective(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the encoder is opened with transformers")
    pytest.importorskip("onnxruntime", reason="the encoder runs on ONNX Runtime")
    prompts, lengths = rows(300)
    place = str(build(tmp_path / "encoder"))
    tau = {}
    for tuned in (False, True):
        ranker = get("ltr")(encoder=place, tuned=tuned, epochs=12, max_pieces=32, encoder_learning_rate=3e-3)
        ranker.fit(prompts[:200], lengths[:200])
        tau[tuned] = kendall_tau(ranker.predict(prompts[200:]), lengths[200:])
        assert ranker.training_["encoder_trained"] == tuned
        assert ranker.training_["epochs"] == 12
    assert tau[True] > tau[False] + 0.05
    ranker.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        load(tmp_path / "saved").predict(prompts[200:]), ranker.predict(prompts[200:])
    )
    with pytest.raises(ConfigError, match="needs an encoder by name"):
        get("ltr")(encoder=encoding.HASHED, tuned=True)


def test_list_mle_is_vllm_ltrs() -> None:
    lengths = [3.0, 25.0, 9.0, 8200.0, 9000.0]
    scores = [0.3, -1.0, 2.0, 0.1, 0.2]
    label = [8192 // 10 - min(8192, int(y)) // 10 for y in lengths]
    assert label == [819, 817, 819, 0, 0]
    ordered = [scores[i] for i in sorted(range(5), key=lambda i: -label[i])]
    wanted = sum(math.log(sum(math.exp(s) for s in ordered[i:])) - ordered[i] for i in range(5))
    loss = objectives.list_mle(10)(torch.tensor(scores)[:, None], torch.tensor(lengths))
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_buckets_are_vllm_ltrs() -> None:
    prompts, lengths = conformance.rows(60)
    for size, count in ((820, 10), (100, 82), (10, 820)):
        ranker = get("buckets")(encoder=encoding.HASHED, size=size).fit(prompts, lengths)
        assert len(ranker.edges_) + 1 == count
        assert ranker.classes([1, size - 1, size, 8191, 99999]).tolist() == [
            *(0, 0, 1),
            8191 // size,
            count - 1,
        ]
        assert 0 <= ranker.accuracy(prompts, lengths) <= 1
    with pytest.raises(ConfigError, match="size is 0"):
        get("buckets")(size=0)


def test_ssjf_edges_are_percentiles_and_rare_classes_count_more() -> None:
    lengths = np.arange(1.0, 1001.0)
    ranker = get("ssjf")(encoder=encoding.HASHED, task="classes5")
    width, loss, _ = ranker._objective(lengths)
    assert width == 5
    assert ranker.edges_ == pytest.approx([250.75, 500.5, 750.25, 990.01])
    flat = torch.zeros(2, 5)
    flat[:, 4] = 1.0
    wrong_rare = float(loss(flat, torch.tensor([995.0, 10.0])))
    by_hand = [-math.log(math.e / (4 + math.e)), -math.log(1 / (4 + math.e))]
    held = ranker.classes(lengths)
    weight = [1 / (held == 4).sum(), 1 / (held == 0).sum()]
    assert wrong_rare == pytest.approx(np.dot(by_hand, weight) / sum(weight), rel=1e-5)
    with pytest.raises(UnknownName, match="did you mean 'classes5'"):
        get("ssjf")(task="clases5")
    with pytest.raises(ConfigError, match="distance"):
        get("ssjf")(distance="l3")


def test_magnus_keeps_instruction_and_user_input_apart() -> None:
    from sooner.rankers.papers import magnus

    known = [Context(), Context(), Context(system="Translate to French.")]
    split = magnus._split(["Fix this:\nabc def", "", "Good day."], known)
    assert split == (["Fix this:", "", "Translate to French."], ["abc def", "", "Good day."])
    rng = np.random.default_rng(0)
    apps = [Context(system=f"App {i % 2}.") for i in range(400)]
    size = rng.integers(1, 60, 400)
    prompts = ["word " * int(n) for n in size]
    lengths = np.where(np.arange(400) % 2, size * 9.0, 600.0 - size * 9.0)
    tau = {}
    for variant in magnus.VARIANTS:
        ranker = get("magnus")(encoder=encoding.HASHED, variant=variant, trees=50)
        ranker.fit(prompts[:300], lengths[:300], context=apps[:300])
        tau[variant] = kendall_tau(ranker.predict(prompts[300:], context=apps[300:]), lengths[300:])
    assert min(tau["raft"], tau["inst"], tau["usin"]) > tau["uilo"] + 0.3
