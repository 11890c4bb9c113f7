"""The transformer ranker on a tiny encoder that is built here: training, export, saving, odd input."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sooner.core import ConfigError, DataError, NotFittedError, RankerFileError, UnknownName
from sooner.metrics import kendall_tau

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("onnxruntime", reason="the ranker runs on ONNX Runtime")

from tiny_encoder import RECIPE, build, rows  # noqa: E402

from sooner.rankers import Context, load  # noqa: E402  # the heavy libraries come first
from sooner.rankers.neural import finetune  # noqa: E402  # the heavy libraries come first
from sooner.rankers.neural.recipe import NetworkRows, Recipe  # noqa: E402
from sooner.rankers.transformer import Encoder, Transformer  # noqa: E402

ODD = (
    "",
    " ",
    "x" * 1_000_000,
    "\x00\xff\x01" * 50,
    "lone \ud800 surrogate",
    "日本語と English",
    "\n" * 5000,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("encoder"))


def tiny(encoder: Path, **settings: object) -> Transformer:
    return Transformer(encoder=str(encoder), **(RECIPE | settings))


@pytest.fixture(scope="module")
def fitted(encoder: Path) -> Transformer:
    return tiny(encoder).fit(*rows(200))


def test_it_learns_what_can_be_learned(fitted: Transformer) -> None:
    prompts, lengths = rows(200, seed=1)
    assert kendall_tau(fitted.predict(prompts), lengths) > 0.85


def test_scores_do_not_depend_on_company(fitted: Transformer) -> None:
    prompts, _ = rows(40, seed=2)
    mixed = [*prompts, "write " * 25]
    alone = np.array([fitted.predict([prompt])[0] for prompt in mixed])
    assert fitted.predict(mixed) == pytest.approx(alone, abs=0.15)  # int8 scales are chosen for each call


@pytest.mark.parametrize("loss", ["list_mle", "pairwise_margin", "cross_entropy"])
def test_the_other_losses_learn_too(encoder: Path, loss: str) -> None:
    prompts, lengths = rows(200, seed=1)
    ranker = tiny(encoder, loss=loss, epochs=24, patience=24).fit(*rows(200))
    assert kendall_tau(ranker.predict(prompts), lengths) > 0.7


def test_the_graph_equals_torch_within_int8(encoder: Path) -> None:
    recipe = Recipe(encoder=str(encoder), max_pieces=32)
    pieces = finetune.wordpieces(recipe)
    network = finetune.Network(recipe, 0, 0).eval()
    graph = Encoder(finetune.export(network, pieces))
    ids = [pieces.encode(prompt) for prompt in rows(30)[0]]
    with torch.no_grad():
        batch = pieces.batch(ids)
        truth = network.pool(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
    pooled = graph.pool(pieces, ids)
    assert pooled.shape == truth.shape == (30, 64)
    assert np.abs(pooled - truth).max() < 0.1 * truth.std()


def test_saved_and_loaded_it_scores_the_same(fitted: Transformer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, Transformer)
    prompts, _ = rows(20, seed=3)
    assert np.array_equal(loaded.predict(prompts), fitted.predict(prompts))
    assert np.array_equal(loaded.predict_len(prompts), fitted.predict_len(prompts))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "arrays.npz"])
def test_damage_is_noticed(fitted: Transformer, tmp_path: Path, name: str) -> None:
    fitted.save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(RankerFileError, match="checksum"):
        load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RankerFileError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_files_of_something_else_are_noticed(fitted: Transformer, tmp_path: Path, name: str) -> None:
    fitted.save(tmp_path)
    (tmp_path / name).write_bytes(b"something else")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(b"something else").hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RankerFileError, match="do not fit together"):
        load(tmp_path)


def test_inference_imports_no_torch(fitted: Transformer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    code = (
        "import sys; from sooner.rankers import load; "
        f"print(load({str(tmp_path)!r}).predict(['write a poem'])[0]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'sklearn', 'lightgbm')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(fitted.predict(["write a poem"])[0])


class Broken(Exception):
    """Training was broken off."""


def break_off(ranker: Transformer, prompts: list[str], lengths: np.ndarray) -> None:
    """Fit, and stop after more than half of it."""

    def stop(done: float, words: str) -> None:
        if done > 0.6:
            raise Broken

    with pytest.raises(Broken):
        ranker.fit(prompts, lengths, progress=stop)


def test_a_broken_off_run_goes_on_to_the_same_weights(encoder: Path, tmp_path: Path) -> None:
    prompts, lengths = rows(80)
    whole = tiny(encoder, epochs=4).fit(prompts, lengths)

    break_off(tiny(encoder, epochs=4, checkpoint=tmp_path), prompts, lengths)
    told: list[float] = []
    resumed = tiny(encoder, epochs=4, checkpoint=tmp_path)
    resumed.fit(prompts, lengths, progress=lambda done, words: told.append(done))
    assert min(told) > 0.5  # two epochs were kept
    assert resumed.predict(prompts) == pytest.approx(whole.predict(prompts), abs=1e-4)
    other = tiny(encoder, epochs=2, checkpoint=tmp_path)
    told.clear()
    other.fit(prompts, lengths, progress=lambda done, words: told.append(done))
    assert min(told) < 0.5  # another recipe starts anew


def test_a_second_cycle_begins_at_the_best_weights(encoder: Path, tmp_path: Path) -> None:
    prompts, lengths = rows(200)
    still = {"cycles": 2, "epochs": 2, "patience": 9}
    one = tiny(encoder, **(still | {"cycles": 1})).fit(prompts, lengths)
    two = tiny(encoder, checkpoint=tmp_path, **still).fit(prompts, lengths)
    assert two.taus_[:2] == one.taus_
    assert len(two.taus_) == 4
    assert max(two.taus_) >= max(one.taus_)

    break_off(tiny(encoder, checkpoint=tmp_path / "broken", **still), prompts, lengths)
    resumed = tiny(encoder, checkpoint=tmp_path / "broken", **still).fit(prompts, lengths)
    assert resumed.predict(prompts) == pytest.approx(two.predict(prompts), abs=1e-4)


def test_a_damaged_checkpoint_says_so(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match="delete it"):
        tiny(encoder, checkpoint=tmp_path).fit(*rows(20))


def test_training_stops_when_nothing_improves(encoder: Path) -> None:
    ranker = tiny(encoder, epochs=40, patience=1, learning_rate=0.0, head_learning_rate=0.0)
    ranker.fit(*rows(60))
    assert len(ranker.taus_) < 5


def test_a_second_cycle_is_not_held_against_the_end_of_the_first() -> None:
    recipe = Recipe(cycles=2, epochs=4, patience=2)
    first = [0.41, 0.43, 0.45, 0.46]
    assert not recipe.stalled([])
    assert not recipe.stalled([*first, 0.44, 0.45])
    assert not recipe.stalled([0.4, 0.46, 0.45, 0.45])  # the second begins at the best of it
    assert recipe.stalled([*first, 0.45, 0.44, 0.43])
    assert recipe.stalled([0.46, 0.45, 0.44])


def test_the_seed_decides(encoder: Path) -> None:
    prompts, lengths = rows(60)
    one, same, other = (tiny(encoder, seed=s, epochs=1).fit(prompts, lengths) for s in (1, 1, 2))
    assert np.array_equal(one.predict(prompts), same.predict(prompts))
    assert not np.array_equal(one.predict(prompts), other.predict(prompts))


def test_replies_are_learned_from_and_not_kept(encoder: Path, tmp_path: Path) -> None:
    prompts, lengths = rows(200)
    replies = ["Sure, a list:\n\n- secret item\n" * int(1 + n // 50) for n in lengths]
    ranker = tiny(encoder).fit(prompts, lengths, replies=replies)
    assert kendall_tau(ranker.predict(prompts), lengths) > 0.8
    ranker.save(tmp_path)
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_odd_prompts(encoder: Path, fitted: Transformer) -> None:
    assert np.isfinite(fitted.predict(ODD)).all()
    lengths = np.arange(1.0, 1.0 + 4 * len(ODD))
    assert np.isfinite(tiny(encoder, epochs=1).fit(list(ODD) * 4, lengths).predict_len(ODD)).all()
    assert fitted.predict([]).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_few_rows(encoder: Path, n: int) -> None:
    assert np.isfinite(tiny(encoder, epochs=1).fit(*rows(n)).predict_len(["write"])).all()


def test_one_length_for_all(encoder: Path) -> None:
    prompts, _ = rows(40)
    ranker = tiny(encoder, epochs=1).fit(prompts, np.full(40, 7.0))
    assert ranker.predict_len(prompts) == pytest.approx(np.full(40, 7.0))


def test_wrong_rows_are_refused(encoder: Path) -> None:
    prompts, lengths = rows(20)
    lengths[3] = np.nan
    with pytest.raises(DataError, match="row 3"):
        tiny(encoder).fit(prompts, lengths)
    with pytest.raises(DataError, match="19 replies"):
        tiny(encoder).fit(*rows(20), replies=["x"] * 19)


def test_wrong_settings_are_refused(encoder: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'list_mle'"):
        Transformer(loss="listmle")
    with pytest.raises(ConfigError, match="allowed: at least 1"):
        Transformer(epochs=0)
    with pytest.raises(ConfigError, match="below 1"):
        Transformer(held_out=1.0)
    with pytest.raises(ConfigError, match="allowed: -1 to 2"):
        tiny(encoder, frozen_layers=3).fit(*rows(20))
    with pytest.raises(ConfigError, match="cannot be opened"):
        tiny(encoder / "nowhere").fit(*rows(20))


def test_too_large_a_step_is_an_error(encoder: Path) -> None:
    with pytest.raises(DataError, match="smaller learning_rate"):
        tiny(encoder, learning_rate=1e30, head_learning_rate=1e30).fit(*rows(60))


def test_unfitted() -> None:
    with pytest.raises(NotFittedError):
        Transformer().predict(["x"])
    with pytest.raises(NotFittedError):
        Transformer().refit(["x", "y"], [1, 2])


def test_context_counts(encoder: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(10, 800, 300)
    context = [Context(turn=1, reply_lens=(size,)) for size in before]
    ranker = tiny(encoder, epochs=6).fit(["go on"] * 300, before, context=context)
    assert kendall_tau(ranker.predict(["go on"] * 300, context=context), before) > 0.9


def test_refit_turns_to_the_served_model(fitted: Transformer, tmp_path: Path) -> None:
    prompts, lengths = rows(150, seed=5)
    backwards = 20000 / lengths  # a model that is brief where the others talk
    test_prompts, test_lengths = rows(150, seed=6)
    other = fitted.refit(prompts, backwards)
    assert kendall_tau(other.predict(test_prompts), 20000 / test_lengths) > 0.7
    assert kendall_tau(fitted.predict(test_prompts), test_lengths) > 0.8  # the shipped one is as it was
    other.save(tmp_path)
    assert load(tmp_path).predict(test_prompts) == pytest.approx(other.predict(test_prompts))
    with pytest.raises(DataError, match="at least 2"):
        fitted.refit(prompts[:1], lengths[:1])


def test_refit_on_noise_keeps_the_shipped_order(fitted: Transformer) -> None:
    prompts, lengths = rows(60, seed=7)
    noise = np.random.default_rng(0).lognormal(5, 1, 60)
    other = fitted.refit(prompts[:2], lengths[:2])
    assert np.isfinite(other.predict(prompts)).all()
    assert np.isfinite(fitted.refit(prompts, noise).predict_len(prompts)).all()


def test_examples_stay_together() -> None:
    examples = NetworkRows(
        [np.array([i]) for i in range(4)], np.eye(4), np.arange(4.0), np.eye(4), np.arange(4) > 1
    )
    taken = examples.take(np.array([2, 0]))
    assert [int(row[0]) for row in taken.ids] == [2, 0]
    assert taken.lengths.tolist() == [2.0, 0.0]
    assert taken.later.tolist() == [True, False]
