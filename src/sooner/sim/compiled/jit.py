"""How the kernels are compiled: cached on disk, and without counting references to arrays.

Kernels work in place and make no arrays, so nobody needs the counts, and counting took more time
than everything else. A function that does make arrays is compiled with `allocating`.
"""
# mypy: allow-untyped-decorators

from __future__ import annotations

from numba import njit

entered = njit(cache=True, _nrt=False, nogil=True)  # from Python, which may look on meanwhile
compiled = njit(cache=True, _nrt=False)
inlined = njit(cache=True, _nrt=False, inline="always")
allocating = njit(cache=True, _nrt=True)
