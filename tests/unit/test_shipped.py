"""Which ranker "default" and "light" are, with and without a package that brings a better one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sooner import rankers
from sooner.rankers import shipped


class Point:
    def load(self) -> Path:
        return Path("brought")


def test_other_names_are_folders() -> None:
    assert shipped.folder("my-ranker") is None
    assert shipped.folder("./default") is None


def test_light_is_in_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [Point()])
    assert rankers.load("light").name == "lexical"


def test_default_is_what_a_package_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: asked.append(wanted) or [Point()])
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy",))
    assert shipped.folder("default") == Path("brought")
    assert asked == [{"group": "sooner.shipped", "name": "default"}]


def test_default_is_light_where_nothing_better_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [Point()])
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy", "no_such_module"))
    assert shipped.folder("default") == shipped.folder("light")
    monkeypatch.setattr(shipped, "_NEEDED", ("numpy",))
    monkeypatch.setattr(shipped, "entry_points", lambda **wanted: [])
    assert shipped.folder("default") == shipped.folder("light")


def test_the_shipped_score_of_a_prompt_does_not_depend_on_its_batch_mates() -> None:
    """In a batch, int8 ranges over all prompts had moved it by 0.03 in the mean and by up to 0.22."""
    ranker = rankers.load("default")
    prompts = [
        "hi",
        "Write a long story about Rome.",
        "x = [i for i in range(9)]\n" * 40,
        "\u4f60\u597d" * 30,
        *("Explain " + "very " * i + "briefly why the sky is blue." for i in range(40)),
    ]
    alone = np.concatenate([ranker.predict([prompt]) for prompt in prompts])
    rng = np.random.default_rng(0)
    for _ in range(3):
        order = rng.permutation(len(prompts))
        together = ranker.predict([prompts[i] for i in order])
        np.testing.assert_allclose(together, alone[order], rtol=0, atol=1e-9)
    np.testing.assert_allclose(ranker.predict(prompts[:2]), alone[:2], rtol=0, atol=1e-9)
