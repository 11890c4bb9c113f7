"""Gradient-boosted trees on plain numbers, topics and the lexical score: for those without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sooner.chat import Context
from sooner.core import MissingExtra
from sooner.metrics import kendall_tau
from sooner.rankers import ranker
from sooner.rankers.contract import Floats, Progress, Ranker, Rows, State
from sooner.rankers.features import hashed as features
from sooner.rankers.features.topics import Topics
from sooner.rankers.lexical import Lexical
from sooner.rankers.offers import Term
from sooner.rankers.scaling import normal_scores

try:
    import lightgbm
except ImportError as error:
    raise MissingExtra("lightgbm", "train") from error

_FOLDS = 5
_LEXICAL = "lexical"  # names the lexical score's file parts
_LEAST = 40  # rows that a leaf holds


@ranker("boosted")
class Boosted(Ranker):
    """The lexical score plus a correction by LightGBM, which sees that score, `features.NUMBERS` and topics.

    The lexical scores it learns from are out-of-fold. On a few dozen rows no leaf is large enough and the
    correction is nothing, so the ranker is the lexical one.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        topics: int = 48,
        trees: int = 300,
        leaves: int = 7,
        learning_rate: float = 0.03,
    ) -> None:
        super().__init__(seed=seed)
        self.topics = topics
        self.trees = trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.lexical = Lexical(seed=seed)

    def _fit(self, rows: Rows, progress: Progress) -> Floats | None:
        lexical = self.lexical._fit(rows, lambda done, words: progress(0.8 * done, f"lexical: {words}"))
        folded = lexical is not None
        if lexical is None:  # one conversation: nothing is out of fold
            lexical = self.lexical._score(rows.prompts, rows.context)
        progress(0.8, "topics")
        self._topics = Topics.fit(rows.prompts, self.topics, seed=self.seed)
        columns = self._columns(rows.prompts, rows.context, lexical)
        target = normal_scores(rows.lengths)  # as the lexical ranker's
        unseen = np.array(lexical, dtype=np.float64)
        fold = rows.folds(_FOLDS, self.seed)
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if inside.size:
                part = self._boost(columns[inside], target[inside] - lexical[inside])
                unseen[outside] += part.predict(columns[outside], num_threads=1)
            progress(0.85 + 0.025 * int(number), f"fold {number + 1} of {_FOLDS}")
        self._booster = self._boost(columns, target - lexical)
        self.training_ = {
            **self.lexical.training_,
            "trees": self._booster.num_trees(),
            **({"kendall_tau_out_of_fold": round(kendall_tau(unseen, target), 4)} if folded else {}),
        }
        progress(1.0, "done")
        return unseen if folded else None

    def _boost(self, columns: Floats, missing: Floats) -> lightgbm.Booster:
        settings = {
            "objective": "huber",
            "alpha": 1.0,
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": _LEAST,
            "feature_fraction": 0.6,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "boost_from_average": False,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": self.seed,
            "verbose": -1,
        }
        if missing.shape[0] < 2 * _LEAST:  # not one split is possible, and LightGBM refuses a single row
            columns, missing = np.zeros((2 * _LEAST, columns.shape[1])), np.zeros(2 * _LEAST)
        return lightgbm.train(settings, lightgbm.Dataset(columns, missing), self.trees)

    def _columns(self, prompts: Sequence[str], context: Sequence[Context], lexical: Floats) -> Floats:
        plain = [features.numbers(prompt, known) for prompt, known in zip(prompts, context, strict=True)]
        return np.column_stack([lexical, np.array(plain, dtype=np.float64), self._topics(prompts)])

    def _score(self, prompts: Sequence[str], context: Sequence[Context]) -> Floats:
        if not prompts:
            return np.empty(0)
        lexical = self.lexical._score(prompts, context)
        columns = self._columns(prompts, context, lexical)
        return np.asarray(lexical + self._booster.predict(columns, num_threads=1), dtype=np.float64)

    def part_scores(self, prompts: Sequence[str], context: Sequence[Context]) -> dict[str, Floats]:
        """Return the scores (n,) of the lexical ranker in it, and what the trees add."""
        lexical = self.lexical._score(prompts, context)
        return {"lexical": lexical, "trees": self._score(prompts, context) - lexical}

    def terms(
        self, prompts: Sequence[str], context: Sequence[Context]
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Return names and columns (n, k) of what each input of the trees adds to their correction.

        Exact Shapley values of the trees (TreeSHAP: Lundberg et al., 2020); with the lexical score they
        sum to the score. The first is the trees' mean, "trees' level".
        """
        columns = self._columns(prompts, context, self.lexical._score(prompts, context))
        shares = np.asarray(
            self._booster.predict(columns, pred_contrib=True, num_threads=1), dtype=np.float64
        )
        plain = 1 + len(features.NUMBERS)
        names = ["trees' level", "lexical score (trees)", *(f"{name} (trees)" for name in features.NUMBERS)]
        topics = shares[:, plain:-1].sum(axis=1)
        return [*names, "topics (trees)"], np.column_stack([shares[:, -1], shares[:, :plain], topics])

    def explain(self, prompt: str, context: Context) -> list[Term]:
        """Return the lexical terms, and what each input of the trees adds."""
        names, columns = self.terms([prompt], [context])
        trees = [Term("trees", *pair) for pair in zip(names, columns[0].tolist(), strict=True)]
        return [*self.lexical.explain(prompt, context), *trees]

    def _state(self) -> State:
        lexical = self.lexical._state()
        arrays: dict[str, NDArray[Any]] = {
            f"{_LEXICAL}.{name}": array for name, array in lexical.arrays.items()
        }
        return State(
            arrays | self._topics.arrays(),
            {_LEXICAL: dict(lexical.settings), "numbers": list(features.NUMBERS)},
            {"trees.txt": self._booster.model_to_string().encode("utf-8")},
        )

    def _restore(self, state: State) -> None:
        if state.settings["numbers"] != list(features.NUMBERS):
            raise ValueError(f"it was trained on other numbers: {state.settings['numbers']}")
        start = f"{_LEXICAL}."
        own = {
            name.removeprefix(start): array for name, array in state.arrays.items() if name.startswith(start)
        }
        self.lexical._restore(State(own, state.settings[_LEXICAL], {}))
        self._topics = Topics.from_arrays(state.arrays)
        try:
            self._booster = lightgbm.Booster(model_str=state.files["trees.txt"].decode("utf-8"))
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"trees.txt is not a model: {error}") from error
        if self._booster.num_feature() != 1 + len(features.NUMBERS) + self._topics.direction.shape[1]:
            raise ValueError(f"trees of {self._booster.num_feature()} columns")
