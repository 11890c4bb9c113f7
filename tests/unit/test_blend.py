"""The blend: its stack, the sum of its parts, saving, and what a served model's requests change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.core import DataError, NotFittedError, RankerFileError
from sooner.metrics import kendall_tau

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("onnxruntime", reason="the ranker runs on ONNX Runtime")

from tiny_encoder import RECIPE, build, rows

from sooner.rankers import Context, load  # the heavy libraries come first
from sooner.rankers.blend import Blend, Stack
from sooner.rankers.lexical import Lexical
from sooner.rankers.simple import Constant


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def fitted(encoder: Path) -> Blend:
    prompts, lengths = rows(240)
    context = [Context(turn=i % 2, reply_lens=(50.0,) * (i % 2)) for i in range(240)]
    return Blend(encoder=str(encoder), **RECIPE).fit(prompts, lengths, context=context)


def test_it_learns_and_says_how_well(fitted: Blend) -> None:
    prompts, lengths = rows(200, seed=1)
    assert kendall_tau(fitted.predict(prompts), lengths) > 0.85
    told = fitted.training_["held_out_tau"]
    assert set(told) == {"transformer", "lexical", "blend"}
    assert fitted.training_["held_out_rows"] < 40
    assert fitted.training_["rows"] == 240


def test_the_parts_add_up_to_the_score(fitted: Blend) -> None:
    prompts, lengths = rows(1000, seed=2)
    context = [Context(turn=i % 5, reply_lens=(float(i),) * (i % 5)) for i in range(1000)]
    for ranker in (fitted, fitted.refit(prompts[:60], lengths[:60])):
        parts = ranker.parts(prompts, context=context)
        assert {"level", "transformer", "lexical", "turn (log)"} <= set(parts)
        assert sum(parts.values()) == pytest.approx(ranker.predict(prompts, context=context), abs=1e-9)


def test_context_counts_where_it_told_something(encoder: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.uniform(10, 800, 300)
    context = [Context(turn=1, reply_lens=(size,)) for size in lengths]
    ranker = Blend(encoder=str(encoder), **RECIPE).fit(["go on"] * 300, lengths, context=context)
    assert kendall_tau(ranker.predict(["go on"] * 300, context=context), lengths) > 0.9


def test_the_stack_is_the_ridge_it_says() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(5000, 4)) * [2.0, 1.0, 1.0, 0.0]
    scores = columns @ [0.3, 0.2, 0.1, 9.0]
    stack = Stack.fit(columns, np.exp(scores))
    wanted = np.array([0.6, 0.2, 0.1, 0.0])
    assert stack.weights == pytest.approx(wanted / np.linalg.norm(wanted), abs=0.02)
    few = Stack.fit(columns[:2], np.exp(scores[:2]))
    assert few.weights[:2] == pytest.approx([0.45, 0.15], abs=0.35)  # two rows say next to nothing
    assert few.terms(columns).shape == (5000, 4)


def test_saved_and_loaded_it_scores_the_same(fitted: Blend, tmp_path: Path) -> None:
    prompts, lengths = rows(30, seed=3)
    for ranker in (fitted, fitted.refit(prompts, lengths)):
        ranker.save(tmp_path)
        loaded = load(tmp_path)
        assert isinstance(loaded, Blend)
        assert loaded.predict(prompts) == pytest.approx(ranker.predict(prompts), abs=1e-9)
        assert loaded.predict_len(prompts) == pytest.approx(ranker.predict_len(prompts))
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "arrays.npz",
            "manifest.json",
            "model.onnx",
            "tokenizer.json",
        ]


def test_damage_is_noticed(fitted: Blend, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[:-1])
    with pytest.raises(RankerFileError, match="checksum"):
        load(tmp_path)


def test_inference_imports_no_torch(fitted: Blend, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    code = (
        "import sys; from sooner.rankers import load; "
        f"load({str(tmp_path)!r}).predict(['write a poem']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'sklearn', 'lightgbm')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_refit_turns_to_the_served_model(fitted: Blend) -> None:
    prompts, lengths = rows(150, seed=5)
    test_prompts, test_lengths = rows(150, seed=6)
    other = fitted.refit(prompts, 20000 / lengths)
    assert kendall_tau(other.predict(test_prompts), 20000 / test_lengths) > 0.7
    assert kendall_tau(fitted.predict(test_prompts), test_lengths) > 0.8  # the shipped one is as it was
    assert other.training_["refit_rows"] == 150


def test_a_prior_teaches_another_model_without_torch(fitted: Blend, tmp_path: Path) -> None:
    prompts, lengths = rows(150, seed=5)
    test_prompts, test_lengths = rows(150, seed=6)
    other = Blend(prior=fitted).fit(prompts, 20000 / lengths)
    assert kendall_tau(other.predict(test_prompts), 20000 / test_lengths) > 0.8
    assert kendall_tau(fitted.predict(test_prompts), test_lengths) > 0.8  # the prior is as it was
    assert other.training_["kendall_tau_left_out"] > 0.8
    parts = other.parts(test_prompts)
    assert sum(parts.values()) == pytest.approx(other.predict(test_prompts), abs=1e-9)
    other.save(tmp_path)
    assert load(tmp_path).predict(test_prompts) == pytest.approx(other.predict(test_prompts), abs=1e-9)
    lexical = Lexical(prior=fitted).fit(prompts, lengths)
    assert kendall_tau(lexical.predict(test_prompts), test_lengths) > 0.7


def test_other_priors(encoder: Path, fitted: Blend) -> None:
    prompts, lengths = rows(60)
    light = Lexical().fit(prompts, lengths)
    started = Blend(encoder=str(encoder), prior=light, **(RECIPE | {"epochs": 1})).fit(prompts, lengths)
    assert np.isfinite(started.predict(prompts)).all()
    assert np.isfinite(Blend(prior=fitted).fit(prompts[:1], lengths[:1]).predict_len(prompts)).all()
    with pytest.raises(TypeError, match="allowed: a fitted Lexical, or a Blend"):
        Blend(prior=Constant())


@pytest.mark.parametrize("n", [1, 3, 20])
def test_few_rows(encoder: Path, n: int) -> None:
    ranker = Blend(encoder=str(encoder), **(RECIPE | {"epochs": 1})).fit(*rows(n))
    assert np.isfinite(ranker.predict_len(["write", "", "x" * 100_000, "\ud800"])).all()


def test_one_conversation_and_one_length(encoder: Path) -> None:
    prompts, _ = rows(30)
    ranker = Blend(encoder=str(encoder), **(RECIPE | {"epochs": 1}))
    ranker.fit(prompts, np.full(30, 9.0), groups=["same"] * 30)
    assert ranker.predict_len(prompts) == pytest.approx(np.full(30, 9.0))


def test_wrong_use_is_refused(encoder: Path, fitted: Blend) -> None:
    with pytest.raises(NotFittedError):
        Blend().predict(["x"])
    with pytest.raises(NotFittedError):
        Blend().refit(["x", "y"], [1, 2])
    with pytest.raises(DataError, match="row 0"):
        fitted.refit(["x", "y"], [np.nan, 2])
    with pytest.raises(DataError, match="2 prompts but 1 replies"):
        Blend(encoder=str(encoder), **RECIPE).fit(["x", "y"], [1, 2], replies=["z"])


def test_a_training_that_was_broken_off_goes_on(encoder: Path, tmp_path: Path) -> None:
    prompts, lengths = rows(120)
    log = tmp_path / "log.jsonl"
    pairs = zip(prompts, lengths, strict=True)
    log.write_text("\n".join(json.dumps({"prompt": p, "output_len": n}) for p, n in pairs))
    settings = [f"{name}={value}" for name, value in (RECIPE | {"encoder": encoder, "epochs": 2}).items()]
    words = ["train", str(log), "--ranker", "blend", "--checkpoint", str(tmp_path / "kept")]
    told = []
    for out in ("one", "two"):
        extra = [word for one in settings for word in ("--set", one)]
        done = CliRunner().invoke(
            root, [*words, "--out", str(tmp_path / out), *extra], catch_exceptions=False
        )
        told.append(json.loads(done.stdout))
        assert (tmp_path / "kept" / "checkpoint.pt").is_file()
    scores = [load(tmp_path / out).predict(prompts) for out in ("one", "two")]
    assert np.array_equal(*scores)  # the second found every epoch finished
    assert told[0]["held_out_kendall_tau"] == told[1]["held_out_kendall_tau"]
