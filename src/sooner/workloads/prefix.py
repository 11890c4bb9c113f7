"""What a prefix cache would hold: prompt tokens found, request by request, in order of arrival."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cached_tokens(
    blocks: Sequence[NDArray[np.int64]], prompt_len: NDArray[np.int64], block_size: int, capacity: int
) -> NDArray[np.int64]:
    """Return how many tokens of each prompt a cache of `capacity` tokens holds when it arrives, (n,).

    The cache keeps whole blocks, the least recently used leave first, and only a run of blocks from
    the start counts. At least one token of a prompt is always computed.
    """
    kept: OrderedDict[int, None] = OrderedDict()
    room = capacity // block_size
    found = np.zeros(len(blocks), dtype=np.int64)
    for i, ids in enumerate(blocks):
        hits = 0
        for block in ids.tolist():
            if block not in kept:
                break
            hits += 1
        for block in ids.tolist():
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > room:
            kept.popitem(last=False)
        found[i] = hits * block_size
    return np.minimum(found, prompt_len - 1)


def affinity(blocks: Sequence[NDArray[np.int64]], common: float = 0.01) -> NDArray[np.int64]:
    """Return what names each request's conversation, (n,): its first block that is not in everybody's prompt.

    A block is in everybody's, such as a system prompt, where more than a share `common` of the
    requests hold it; a request of such blocks only is named by its last one, one without any by -1.
    """
    every = np.concatenate(blocks) if len(blocks) else np.zeros(0, dtype=np.int64)
    ids, counts = np.unique(every, return_counts=True)
    shared = set(ids[counts > max(common * len(blocks), 1.0)].tolist())
    own = (next((b for b in chain.tolist() if b not in shared), None) for chain in blocks)
    last = (int(chain[-1]) if len(chain) else -1 for chain in blocks)
    return np.array([b if a is None else a for a, b in zip(own, last, strict=True)], dtype=np.int64)
