"""SCLS's batcher: split requests sorted by input length into batches of least total estimated time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sooner.core import ConfigError
from sooner.sim.static import Bilinear, Counts

LLAMA2_13B_TOKEN_BYTES = 2 * 40 * 5120 * 2
"""KV bytes per token in fp16: 2 x layers x width x 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How many rows fit: by formula, or, with `steps`, by a profiled table.

    Formula: rows x (input + slice) x `token_bytes` <= `share` x `available_bytes`. Table: the rows
    of the first (total length up to, rows) that covers input + slice, as for an engine whose memory
    follows no formula (DeepSpeed-Inference). One row always fits: a request alone must be served.
    """

    available_bytes: float = 46e9
    token_bytes: float = LLAMA2_13B_TOKEN_BYTES
    share: float = 0.9
    steps: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if min(self.available_bytes, self.token_bytes, self.share) <= 0 or self.share > 1:
            raise ConfigError(f"memory must be > 0 bytes and share in (0, 1]: {self}")
        if any(rows < 1 for _, rows in self.steps) or list(self.steps) != sorted(self.steps):
            raise ConfigError(f"steps={self.steps!r}, allowed: (length, rows >= 1) by rising length")

    def rows(self, total_len: int) -> int:
        """Return the most rows of `total_len` tokens each, input and slice together; at least 1."""
        if self.steps:
            fitting = [rows for length, rows in self.steps if total_len <= length]
            return fitting[0] if fitting else 1
        return max(1, int(self.share * self.available_bytes / (self.token_bytes * total_len)))


def split(
    inputs: Counts, slice_len: int, estimator: Bilinear, memory: Memory, cap: int | None = None
) -> list[tuple[int, int, float]]:
    """Return batches as (begin, end, estimated seconds) over `inputs` (n,), sorted, shortest first.

    C[i] = min over j of C[i - j] + T(j, L_i, S), j rows ending at the i-th, whose input L_i is the
    longest; j only as far as memory and `cap` allow. O(n x rows).
    """
    n = inputs.shape[0]
    cost, best = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for i in range(1, n + 1):
        longest = int(inputs[i - 1])
        most = min(i, memory.rows(longest + slice_len), cap or n)
        rows = np.arange(1, most + 1)
        total = cost[i - most : i][::-1] + estimator.batch_s(rows, longest, slice_len)
        best[i] = int(np.argmin(total)) + 1
        cost[i] = total[best[i] - 1]
    batches, end = [], n
    while end > 0:
        begin = end - int(best[end])
        batches.append((begin, end, float(cost[end] - cost[begin])))
        end = begin
    return batches[::-1]
