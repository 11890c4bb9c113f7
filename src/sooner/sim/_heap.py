"""Intrusive pairing heap over request ids (Fredman et al., 1986): two links a request, no capacity.

`key` is (n,), `child` and `sibling` are (n,) links with -1 for none; a heap is its root's id, -1
when empty. Smallest (key, id) is on top; ids are in order of arrival, so ties go to the earliest.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

from numba import njit


@njit(cache=True, inline="always")
def _meld(key: Any, child: Any, sibling: Any, a: Any, b: Any) -> Any:
    if key[b] < key[a] or (key[b] == key[a] and b < a):
        a, b = b, a
    sibling[b] = child[a]
    child[a] = b
    return a


@njit(cache=True)
def push(key: Any, child: Any, sibling: Any, root: Any, node: Any) -> Any:
    """Return the root after adding `node`."""
    child[node] = -1
    sibling[node] = -1
    return node if root < 0 else _meld(key, child, sibling, root, node)


@njit(cache=True)
def pop(key: Any, child: Any, sibling: Any, root: Any) -> Any:
    """Return the root after taking the top off: children melded in pairs, then right to left."""
    first = child[root]
    pairs = -1
    while first >= 0:
        second = sibling[first]
        if second < 0:
            sibling[first] = pairs
            pairs = first
            break
        rest = sibling[second]
        pair = _meld(key, child, sibling, first, second)
        sibling[pair] = pairs
        pairs = pair
        first = rest
    if pairs < 0:
        return -1
    merged = pairs
    pairs = sibling[merged]
    while pairs >= 0:
        rest = sibling[pairs]
        merged = _meld(key, child, sibling, merged, pairs)
        pairs = rest
    sibling[merged] = -1
    return merged
