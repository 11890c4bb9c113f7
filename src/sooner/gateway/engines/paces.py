"""Paces that were not learned here: of an engine's file, of a restart before, of several engines together."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sooner.core import ConfigError
from sooner.work import Pace, work

_LONGEST = {"iteration_s": 100.0, "prefill_token_s": 1.0, "decode_seq_s": 1.0, "context_token_s": 1e-4}
"""Coefficients [s] above these are no engine's, as in the simulator."""
_TYPICAL = (500.0, 0.0, 150.0)  # prompt, cached and reply tokens by which engines are compared


def sensible(coefficients: Any) -> Pace | None:
    """Return the pace of coefficients by name; None where they are no engine's."""
    try:
        pace = Pace(**coefficients)
    except (ConfigError, TypeError):
        return None
    if any(getattr(pace, name) > most for name, most in _LONGEST.items()):
        return None
    return pace if work(pace, *_TYPICAL) > 0.0 else None


def in_file(path: str, most_at_once: int) -> Pace | None:
    """Return the pace in an `engine.toml`, as `sooner calibrate` writes it; None where it makes no sense.

    `most_at_once` requests go there at a time; 0: unknown. Raises ConfigError for a file that cannot be read.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read engine {path!r}: {error}") from error
    if "iteration_s" not in values:
        raise ConfigError(f"engine {path!r} has no iteration_s; allowed: what `sooner calibrate` writes")
    bounds = [Pace().batch, most_at_once, values.get("max_num_seqs", 0)]
    batch = min(float(bound) for bound in bounds if isinstance(bound, int | float) and bound > 0)
    return sensible({**{name: values[name] for name in _LONGEST if name in values}, "batch": batch})


def mixed(paces: Sequence[Pace]) -> Pace:
    """Return the pace by which a request is priced that may go to any of several engines.

    Each counts by how much it does: the work of a typical request is the harmonic mean of theirs.
    """
    if not paces:
        return Pace()
    speeds = [1.0 / max(float(work(pace, *_TYPICAL)), 1e-9) for pace in paces]
    whole = sum(speeds)

    def mean(values: Sequence[float]) -> float:
        return sum(speed * value for speed, value in zip(speeds, values, strict=True)) / whole

    batch = mean([pace.batch for pace in paces])
    return Pace(
        iteration_s=batch * mean([pace.iteration_s / pace.batch for pace in paces]),
        prefill_token_s=mean([pace.prefill_token_s for pace in paces]),
        decode_seq_s=mean([pace.decode_seq_s for pace in paces]),
        context_token_s=mean([pace.context_token_s for pace in paces]),
        batch=batch,
    )
