"""Intrusive pairing heap over request ids (Fredman et al., 1986): two links a request, no capacity.

`request` is (n,) with `key` and the links `child` and `sibling`, -1 for none; a heap is its root's
id, -1 when empty. Smallest (key, id) is on top; ids are in order of arrival, so ties go to the
earliest.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from typing import Any

from sooner.sim.compiled.jit import compiled, inlined


@inlined
def _meld(request: Any, a: Any, b: Any) -> Any:
    if request.key[b] < request.key[a] or (request.key[b] == request.key[a] and b < a):
        a, b = b, a
    request.sibling[b] = request.child[a]
    request.child[a] = b
    return a


@compiled
def push(request: Any, root: Any, node: Any) -> Any:
    """Return the root after adding `node`."""
    request.child[node] = -1
    request.sibling[node] = -1
    return node if root < 0 else _meld(request, root, node)


@compiled
def pop(request: Any, root: Any) -> Any:
    """Return the root after taking the top off: children melded in pairs, then right to left."""
    child, sibling = request.child, request.sibling
    first, pairs = int(child[root]), -1
    while first >= 0:
        second = int(sibling[first])
        if second < 0:
            sibling[first] = pairs
            pairs = first
            break
        rest = int(sibling[second])
        pair = _meld(request, first, second)
        sibling[pair] = pairs
        pairs = pair
        first = rest
    if pairs < 0:
        return -1
    merged = pairs
    pairs = int(sibling[merged])
    while pairs >= 0:
        rest = int(sibling[pairs])
        merged = _meld(request, merged, pairs)
        pairs = rest
    sibling[merged] = -1
    return merged
