"""The past of a conversation as columns: what is asked of whom, and that the blend learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sooner import chat
from sooner.metrics import kendall_tau
from sooner.rankers import Context, load
from sooner.rankers.features import history
from sooner.rankers.features.history import History


def counted(prompts: Sequence[str], context: Sequence[Context]) -> np.ndarray:
    """A score that is known in advance: words, and a hundredth for each earlier reply."""
    return np.array(
        [len(p.split()) + 0.01 * len(c.reply_lens) for p, c in zip(prompts, context, strict=True)]
    )


def test_replies_are_held_against_what_was_expected() -> None:
    normal = np.exp(np.random.default_rng(0).normal(5, 1, 4001))
    past = History.of([Context(turn=1, reply_lens=(size,)) for size in normal])
    known = Context(turn=5, reply_lens=(9.0, np.exp(5), np.exp(6)), asked=("one", "one two"), system="s")
    nothing, told = past([Context(), known], counted)
    assert not nothing.any()
    row = dict(zip(history.NUMBERS, told, strict=True))
    assert row["earlier requests known"] == 1
    assert row["expected of the last request"] == pytest.approx(2.02)  # as it stood: two replies before
    assert row["expected of the earlier requests (mean)"] == pytest.approx((1.01 + 2.02) / 2)
    beyond = np.array([0.0 - 1.01, 1.0 - 2.02])  # normal deviates of the lengths less what was expected
    assert row["last reply, beyond what was expected"] == pytest.approx(beyond[1], abs=0.05)
    mean = row["earlier replies, beyond what was expected (mean)"]
    assert mean == pytest.approx(beyond.sum() / 3, abs=0.05)


def test_each_earlier_request_is_scored_as_it_stood() -> None:
    asked: list[tuple[str, Context]] = []

    def score(prompts: Sequence[str], context: Sequence[Context]) -> np.ndarray:
        asked.extend(zip(prompts, context, strict=True))
        return np.zeros(len(prompts))

    messages = [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "x" * 8),
        ("user", "b"),
        ("assistant", "y" * 40),
    ]
    seen = chat.read_messages([{"role": r, "content": c} for r, c in [*messages, ("user", "c")]])
    assert seen.context.asked == ("a", "b")
    History.of([seen.context])([seen.context], score)
    assert asked == [("a", Context(system="s")), ("b", Context(turn=1, reply_lens=(2.0,), system="s"))]


def test_rendered_prompts_and_messages_have_the_same_past() -> None:
    rendered = (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.read(rendered).context.asked == ("hello",)
    long = chat.read_messages(
        [{"role": r, "content": "w" * 9000} for r in ("user", "assistant", "user", "assistant", "user")]
    )
    assert [len(one) for one in long.context.asked] == [1801, 1801]
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": str(i)} for i in range(25)]
    many = chat.read_messages(turns).context
    assert many.asked == tuple(str(i) for i in range(8, 24, 2))
    assert many.turn == 12


@pytest.mark.parametrize("lengths", [(), (0.0,), (7.0, 7.0, 7.0)])
def test_poor_pasts_give_finite_columns(lengths: tuple[float, ...]) -> None:
    past = History.of([Context(turn=1, reply_lens=(size,)) for size in lengths])
    known = Context(turn=0, reply_lens=(0.0, 1e9), asked=("", "b", "more than replies"))
    assert np.isfinite(past([known, Context(asked=("a",))], counted)).all()
    assert past([], counted).shape == (0, len(history.NUMBERS))


def test_a_blend_learns_from_the_past_and_keeps_it(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch")
    pytest.importorskip("transformers", reason="training needs transformers")
    pytest.importorskip("onnxruntime", reason="the ranker runs on ONNX Runtime")
    from tiny_encoder import RECIPE, build, rows

    from sooner.rankers.blend import Blend

    prompts, plain = rows(800)
    talk = np.repeat(np.random.default_rng(1).lognormal(0, 0.8, 400), 2)  # some are talked to at length
    lengths = plain * talk
    context = [
        Context(turn=1, reply_lens=(float(lengths[i - 1]),), asked=(prompts[i - 1],)) if i % 2 else Context()
        for i in range(800)
    ]
    groups = [str(i // 2) for i in range(800)]
    known = slice(0, 600)
    ranker = Blend(encoder=str(build(tmp_path / "encoder")), held_out=0.3, **RECIPE)
    ranker.fit(prompts[known], lengths[known], context=context[known], groups=groups[known])
    later = [i for i in range(600, 800) if i % 2]
    tests = [prompts[i] for i in later], [context[i] for i in later]
    parts = ranker.parts(tests[0], context=tests[1])
    beyond = sum(parts[name] for name in history.NUMBERS if "beyond" in name)
    assert kendall_tau(beyond, talk[later]) > 0.5  # what the past adds is how much is said to whom
    assert sum(parts.values()) == pytest.approx(ranker.predict(tests[0], context=tests[1]), abs=1e-9)
    ranker.save(tmp_path / "saved")
    again = load(tmp_path / "saved").predict(tests[0], context=tests[1])
    assert again == pytest.approx(ranker.predict(tests[0], context=tests[1]), abs=1e-9)
