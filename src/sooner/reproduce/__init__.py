"""The published results of the field, run again: ours beside theirs, each claim held or not, with the reason.

result.py    what a reproduction says: rows, claims, figures, settings
page.py      one as an HTML page; plots.py draws its figures
ltr.py       vllm-ltr's figures 2 and 3; ltr_burst.py its table 3, synthetic data and fairness
ssjf.py      SSJF's table of orders, predictors and batching modes
scls.py      SCLS's ladder from SLS to slices
magnus.py    Magnus's ladder from VS to HRRN
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

from sooner.core import UnknownName
from sooner.reproduce.result import Reproduction

NAMES = {
    # name: (module, function)
    "ltr-fig2": ("ltr", "fig2"),
    "ltr-fig3": ("ltr", "fig3"),
    "ltr-table3": ("ltr_burst", "table3"),
    "ltr-synthetic": ("ltr_burst", "synthetic"),
    "ltr-fairness": ("ltr_burst", "fairness"),
    "ssjf-table": ("ssjf", "table"),
    "scls-ladder": ("scls", "ladder"),
    "magnus-ladder": ("magnus", "ladder"),
}


def run(name: str, *, seed: int = 1, report: Callable[[str], None] = lambda _: None) -> Reproduction:
    """Run the reproduction `name`; `report` is told what is being run.

    The result is the same for the same seed. Raises UnknownName for a name not in NAMES.
    """
    if name not in NAMES:
        raise UnknownName("reproduction", name, NAMES)
    module, function = NAMES[name]
    begun = time.process_time()
    found: Reproduction = getattr(importlib.import_module(f"sooner.reproduce.{module}"), function)(
        seed, report
    )
    return found.timed(time.process_time() - begun)
