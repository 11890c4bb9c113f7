"""Numbers that stand for a time that is not there."""

from __future__ import annotations

import numpy as np

FOREVER = np.int64(2**62)
WAITS, CANCELLED, REJECTED = -1, -2, -3  # in `finish`, where there is no time
