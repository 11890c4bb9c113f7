"""What every ranker must do, as a list of checks that your own ranker can run too:

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_my_ranker(check):
        check(MyRanker)

Each check takes something that makes a new, unfitted ranker (the class, or a `functools.partial`) and
raises AssertionError with what is broken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sooner.chat import Context
from sooner.core import DataError, NotFittedError, RankerFileError
from sooner.rankers.contract import Ranker
from sooner.rankers.offers import Explains, Indivisible, Refits

Make = Callable[[], Ranker]
Check = Callable[[Make], None]
CHECKS: list[Check] = []

ODD_PROMPTS = (
    "",
    " \n\t ",
    "a\ud800b",
    "\x00\x01\xff\ufffd" * 20,
    "Привет 你好 مرحبا 🙂 hello",
    "word " * 200_000,
    "x" * 1_000_000,
    "\n" * 10_000,
    "<|im_start|>user\n<|im_end|>",
    "0" * 500,
)


def _check(check: Check) -> Check:
    CHECKS.append(check)
    return check


def rows(n: int = 60) -> tuple[list[str], list[int]]:
    """Return n made-up prompts and lengths [tokens] with something to learn."""
    rng = np.random.default_rng(0)
    words = ("list", "explain", "write", "name", "why", "story", "code", "briefly")
    prompts = [
        f"{words[i % 8]} {rng.integers(1, 9)} {words[int(rng.integers(8))]} about topic {i}" for i in range(n)
    ]
    return prompts, [int(20 + 40 * (i % 8) + rng.integers(0, 20)) for i in range(n)]


@_check
def is_not_fitted_at_first(make: Make) -> None:
    """Predicting or saving before `fit` raises NotFittedError."""
    asks: tuple[Callable[[Ranker], object], ...] = (
        lambda ranker: ranker.predict(["a"]),
        lambda ranker: ranker.predict_len(["a"]),
        lambda ranker: ranker.save("nowhere"),
    )
    for ask in asks:
        try:
            ask(make())
        except NotFittedError:
            continue
        raise AssertionError("an unfitted ranker answered instead of raising NotFittedError")


@_check
def returns_one_finite_number_each(make: Make) -> None:
    """Scores and lengths are float64 columns (n,), finite; lengths are >= 0; no prompt gives (0,)."""
    prompts, lengths = rows()
    ranker = make()
    assert ranker.fit(prompts, lengths) is ranker, "fit must return self"
    for n in (0, 1, 7):
        for column in (ranker.predict(prompts[:n]), ranker.predict_len(prompts[:n])):
            assert column.shape == (n,), f"shape {column.shape} for {n} prompts"
            assert column.dtype == np.float64, f"dtype {column.dtype}"
            assert np.isfinite(column).all(), f"not finite: {column}"
    assert (ranker.predict_len(prompts) >= 0).all(), "a negative length"


@_check
def does_not_depend_on_the_batch(make: Make) -> None:
    """A prompt's score is the same alone and among others, and the same when asked again."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    together = ranker.predict(prompts)
    alone = np.concatenate([ranker.predict([prompt]) for prompt in prompts])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ranker.predict(prompts), together)
    both = ranker.predictions(prompts)
    np.testing.assert_array_equal([made.score for made in both], together)
    np.testing.assert_array_equal([made.predicted_len for made in both], ranker.predict_len(prompts))


@_check
def is_the_same_from_the_same_seed(make: Make) -> None:
    """Two rankers fitted on the same rows agree exactly."""
    prompts, lengths = rows()
    np.testing.assert_array_equal(
        make().fit(prompts, lengths).predict(prompts), make().fit(prompts, lengths).predict(prompts)
    )


@_check
def comes_back_from_disk(make: Make) -> None:
    """A loaded ranker gives exactly the saved one's answers; a damaged file raises RankerFileError."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    with tempfile.TemporaryDirectory() as folder:
        ranker.save(folder)
        loaded = type(ranker).load(folder)
        np.testing.assert_array_equal(loaded.predict(prompts), ranker.predict(prompts))
        np.testing.assert_array_equal(loaded.predict_len(prompts), ranker.predict_len(prompts))
        for path in sorted(Path(folder).iterdir()):
            whole = path.read_bytes()
            for broken in (whole[: len(whole) // 2], b"", whole[:-9] + b"?" + whole[-8:]):
                path.write_bytes(broken)
                try:
                    type(ranker).load(folder)
                except RankerFileError:
                    continue
                raise AssertionError(f"a damaged {path.name} was loaded")
            path.write_bytes(whole)


@_check
def reads_any_text(make: Make) -> None:
    """Empty, huge, binary and mixed prompts get finite scores, whatever the context."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    context = Context(
        turn=3,
        reply_lens=(0.0, 1e6),
        asked=("", "a" * 10_000),
        system="s" * 10_000,
        max_tokens=1,
        temperature=0.0,
        tools=9,
    )
    for known in (None, [context] * len(ODD_PROMPTS)):
        assert np.isfinite(ranker.predict(ODD_PROMPTS, context=known)).all(), "a score is not finite"
        assert np.isfinite(ranker.predict_len(ODD_PROMPTS, context=known)).all(), "a length is not finite"


@_check
def fits_poor_data(make: Make) -> None:
    """One row, twenty rows, equal lengths, equal prompts, odd prompts: fitted, and scores are finite."""
    prompts, lengths = rows()
    cases: list[tuple[Sequence[str], Sequence[int]]] = [
        (prompts[:1], lengths[:1]),
        (prompts[:20], lengths[:20]),
        (prompts, [7] * len(prompts)),
        (["same"] * 30, lengths[:30]),
        (ODD_PROMPTS, lengths[: len(ODD_PROMPTS)]),
        (prompts[:20], [0] * 20),
    ]
    for some, known in cases:
        assert np.isfinite(make().fit(some, known).predict(prompts)).all(), (
            f"not finite after {len(some)} rows"
        )


@_check
def refuses_wrong_data(make: Make) -> None:
    """No rows, unlike columns, NaN, infinite and negative lengths raise DataError."""
    for prompts, lengths in (
        ([], []),
        (["a"], [1, 2]),
        (["a", "b"], [1, float("nan")]),
        (["a", "b"], [1, float("inf")]),
        (["a", "b"], [1, -1]),
        ("ab", [1, 2]),
    ):
        try:
            make().fit(prompts, lengths)
        except DataError:
            continue
        raise AssertionError(f"fitted {prompts!r} with {lengths!r} instead of raising DataError")


@_check
def never_exceeds_max_tokens(make: Make) -> None:
    """An expected length is at most the client's `max_tokens`."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    capped = ranker.predict_len(prompts, context=[Context(max_tokens=5)] * len(prompts))
    assert (capped <= 5).all(), f"{capped.max()} tokens expected of 5 allowed"


@_check
def explains_itself(make: Make) -> None:
    """A ranker that `Explains`: its terms sum to the score, `max_tokens` left aside."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    if not isinstance(ranker, Explains):
        return
    known = Context(turn=1, reply_lens=(40.0,), asked=("hi",))
    for prompt in (*prompts[:5], "", "a\ud800b", "word " * 3000):
        for context in (Context(), known):
            terms = ranker.explain(prompt, context)
            wanted = float(ranker.predict([prompt], context=[context])[0])
            found = sum(term.amount for term in terms)
            assert abs(found - wanted) < 1e-6, f"terms sum to {found}, the score is {wanted}"
            for whole in (term for term in terms if isinstance(term, Indivisible)):
                assert whole.of(["", prompt]).shape == (2,), "of() must give one number for each text"


@_check
def refits_and_stays_a_ranker(make: Make) -> None:
    """A ranker that `Refits`: a copy learns, answers and comes back from disk; the first stays as it was."""
    prompts, lengths = rows()
    ranker = make().fit(prompts, lengths)
    if not isinstance(ranker, Refits):
        return
    before = ranker.predict(prompts)
    other = ranker.refit(prompts[:30], lengths[:30][::-1])
    np.testing.assert_array_equal(ranker.predict(prompts), before)
    assert np.isfinite(other.predict(prompts)).all(), "a score is not finite after a refit"
    with tempfile.TemporaryDirectory() as folder:
        other.save(folder)
        np.testing.assert_array_equal(type(ranker).load(folder).predict(prompts), other.predict(prompts))
