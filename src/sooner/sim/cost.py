"""What one engine can do: iteration time, limits, KV memory; presets and TOML files.

One iteration takes `t = a + b * prefill_tokens + c * decode_seqs + d * context`, context being the
tokens held by the sequences that decode in it. The simulator counts in whole picoseconds, so that
skipping k iterations in closed form gives the very number that stepping through them gives.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sooner import config
from sooner.core import ConfigError, UnknownName
from sooner.work import Pace

TICKS_PER_SECOND = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine instance: its cost coefficients [s], batch limits and KV cache.

    `overhead_s` is what every request spends outside the iterations, between client and scheduler.
    `watermark` is the share of KV blocks an admission must leave free. `swap_block_s` is the time
    to move one block between GPU and host and `swap_blocks` the room on the host; both matter only
    where preemption swaps. `approximate` marks numbers that were not measured on a real engine.
    """

    name: str = "custom"
    iteration_s: float = 0.0075
    prefill_token_s: float = 25e-6
    decode_seq_s: float = 9e-6
    context_token_s: float = 0.06e-6
    overhead_s: float = 0.0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int = 27_900
    watermark: float = 0.0
    swap_block_s: float = 80e-6
    swap_blocks: int = 8_192
    approximate: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        ranges = (
            ("iteration_s", 0 < self.iteration_s <= 100, "in (0, 100] [s]"),
            ("prefill_token_s", 0 <= self.prefill_token_s <= 1, "in [0, 1] [s]"),
            ("decode_seq_s", 0 <= self.decode_seq_s <= 1, "in [0, 1] [s]"),
            ("context_token_s", 0 <= self.context_token_s <= 1e-4, "in [0, 1e-4] [s]"),
            ("overhead_s", 0 <= self.overhead_s <= 100, "in [0, 100] [s]"),
            ("swap_block_s", 0 <= self.swap_block_s <= 1, "in [0, 1] [s]"),
            ("max_num_seqs", self.max_num_seqs >= 1, ">= 1"),
            ("max_num_batched_tokens", self.max_num_batched_tokens >= self.max_num_seqs, ">= max_num_seqs"),
            ("block_size", self.block_size >= 1, ">= 1 [tokens]"),
            ("num_blocks", self.num_blocks >= 1, ">= 1"),
            ("swap_blocks", self.swap_blocks >= 0, ">= 0"),
            ("watermark", 0 <= self.watermark < 1, "in [0, 1)"),
        )
        for field, good, allowed in ranges:
            if not good:
                raise ConfigError(
                    f"engine {self.name!r}: {field}={getattr(self, field)!r}, allowed: {allowed}"
                )

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """a [s], b [s/prefill token], c [s/decoding sequence], d [s/token of context]."""
        return self.iteration_s, self.prefill_token_s, self.decode_seq_s, self.context_token_s

    @property
    def pace(self) -> Pace:
        """What a request's expected work is counted with; with every slot taken."""
        a, b, c, d = self.coefficients
        return Pace(
            iteration_s=a, prefill_token_s=b, decode_seq_s=c, context_token_s=d, batch=self.max_num_seqs
        )

    @property
    def watermark_blocks(self) -> int:
        """Blocks an admission must leave free while others run."""
        return int(self.watermark * self.num_blocks)

    def with_coefficients(self, a: float, b: float, c: float, d: float) -> Engine:
        """Return the same engine with other cost coefficients [s]."""
        return dataclasses.replace(self, iteration_s=a, prefill_token_s=b, decode_seq_s=c, context_token_s=d)

    def to_toml(self) -> str:
        """Return the engine as TOML text that `load` reads back."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                text = str(value).lower()
            elif isinstance(value, str):
                text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            else:
                text = repr(value)
            lines.append(f"{field.name} = {text}")
        return "\n".join(lines) + "\n"


def ticks(seconds: float) -> int:
    """Seconds as whole picoseconds."""
    return round(seconds * TICKS_PER_SECOND)


_A100 = "fit to vidur's batch times and real attention rows, A100-80G; KV at 0.9 utilisation"
_SKETCH = "between roofline and published fits; not measured on a real engine"
PRESETS = {
    preset.name: preset
    for preset in (
        Engine(
            name="llama3-8b-a100",
            iteration_s=10.5e-3,
            prefill_token_s=53e-6,
            decode_seq_s=22e-6,
            context_token_s=0.074e-6,
            num_blocks=27_900,
            source=_A100,
        ),
        Engine(
            name="llama3-8b-a100-40g",
            iteration_s=10.5e-3,
            prefill_token_s=53e-6,
            decode_seq_s=22e-6,
            context_token_s=0.074e-6,
            num_blocks=9_700,
            source=_A100,
        ),
        Engine(
            name="llama3-8b-h100",
            iteration_s=7.5e-3,
            prefill_token_s=25e-6,
            decode_seq_s=9e-6,
            context_token_s=0.06e-6,
            num_blocks=27_900,
            source=_SKETCH,
        ),
        Engine(
            name="llama3-70b-8xa100",
            iteration_s=22e-3,
            prefill_token_s=115e-6,
            decode_seq_s=60e-6,
            context_token_s=0.03e-6,
            num_blocks=85_600,
            swap_block_s=200e-6,
            source="dense part profiled at TP 8; " + _SKETCH,
        ),
    )
}


def changed(engine: Engine, values: Mapping[str, float]) -> Engine:
    """Return an engine with other numbers. Raises UnknownName for a field there is not."""
    kinds = {field.name: field.type for field in dataclasses.fields(engine) if field.type in ("int", "float")}
    for name in values:
        if name not in kinds:
            raise UnknownName("number of an engine", name, kinds)
    new: dict[str, Any] = {
        name: int(value) if kinds[name] == "int" else value for name, value in values.items()
    }
    return dataclasses.replace(engine, **new) if new else engine


def load(name: str) -> Engine:
    """Return the engine preset `name`, or the one in the TOML file at that path.

    Raises UnknownName where it is neither, ConfigError where the file is wrong.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return config.read_toml(Engine, path)
    near = difflib.get_close_matches(name, PRESETS, n=1)
    raise UnknownName("engine (a preset or a .toml file)", name, PRESETS if near else [*PRESETS, "FILE.toml"])
