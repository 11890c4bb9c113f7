"""Magnus's forests of regression trees: one of all rows, and one for each group with rows enough."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sooner.core import MissingExtra
from sooner.rankers.contract import Floats

try:
    import lightgbm
except ImportError as error:
    raise MissingExtra("lightgbm", "train") from error

_LEAST = 20  # rows; LightGBM refuses to bag a row or two


class Forests:
    """Lengths by a random forest with squared error; a group without a forest of its own asks that of all."""

    def __init__(self, by_group: dict[str, lightgbm.Booster]) -> None:
        self._by_group = by_group
        by_group[""]  # a KeyError says that the forest of all is not there

    @classmethod
    def grow(
        cls, x: Floats, lengths: Floats, groups: NDArray[np.object_], *, least: int, trees: int, seed: int
    ) -> Forests:
        """Fit features (n, d) to lengths (n,) [tokens]; a group "" or of fewer than `least` rows has none."""
        own = [name for name in sorted(set(groups)) if name and int((groups == name).sum()) >= least]
        grown = {"": _forest(x, lengths, trees, seed)}
        for name in own:
            grown[name] = _forest(x[groups == name], lengths[groups == name], trees, seed)
        return cls(grown)

    @classmethod
    def read(cls, names: Iterable[str], texts: Iterable[bytes]) -> Forests:
        """Take what `texts` gave; ValueError where one is not a model, KeyError without that of all."""
        try:
            return cls(
                {
                    name: lightgbm.Booster(model_str=text.decode("utf-8"))
                    for name, text in zip(names, texts, strict=True)
                }
            )
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"a forest is not a model: {error}") from error

    @property
    def names(self) -> list[str]:
        """The groups that have a forest, "" for that of all."""
        return list(self._by_group)

    def texts(self) -> list[bytes]:
        """Return each forest as LightGBM writes it, in the order of `names`."""
        return [forest.model_to_string().encode() for forest in self._by_group.values()]

    def ask(self, x: Floats, groups: NDArray[np.object_]) -> Floats:
        """Return the expected lengths (n,) [tokens] of features (n, d), at least 1."""
        lengths = np.empty(len(groups))
        asked = np.array([name if name in self._by_group else "" for name in groups], dtype=object)
        for name in set(asked):
            lengths[asked == name] = self._by_group[name].predict(x[asked == name], num_threads=1)
        return np.maximum(lengths, 1.0)


def _forest(x: Floats, lengths: Floats, trees: int, seed: int) -> lightgbm.Booster:
    settings = {
        "boosting": "rf",
        "objective": "regression",
        "bagging_freq": 1,
        "bagging_fraction": 0.632,
        "feature_fraction_bynode": 0.5,
        "num_leaves": 255,
        "min_data_in_leaf": 5,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbose": -1,
    }
    if len(lengths) < _LEAST:
        times = -(-_LEAST // len(lengths))
        x, lengths = np.tile(x, (times, 1)), np.tile(lengths, times)
    return lightgbm.train(settings, lightgbm.Dataset(x, lengths), trees)
