"""Count what SSJF's released predictors said of each true length, and note Azure's arrival times.

    python scripts/ssjf_predictors.py CLS.csv.gz MULTI_CLS.csv.gz azure2023_conv.csv

The CSVs are SSJF's own test predictions on LMSYS, vicuna-13b (Apache-2.0) and the Azure LLM
inference trace 2023, conversation (CC-BY 4.0, Microsoft). Writes src/sooner/sim/systems/ssjf_vicuna13b.npz.
"""

from __future__ import annotations

import csv
import gzip
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "src/sooner/sim/systems/ssjf_vicuna13b.npz"


def counts(path: str, classes: int) -> np.ndarray:
    """Return how often a true length (row, 0 to 511) was put in each class (column)."""
    table = np.zeros((512, classes), dtype=np.uint16)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            table[int(row["output_token_length"]), int(float(row["predicted_length"]))] += 1
    return table


def gaps_ms(path: str) -> np.ndarray:
    """Return the gaps between arrivals, whole milliseconds."""
    with open(path) as file:
        stamps = [row["TIMESTAMP"][:26] for row in csv.DictReader(file)]
    times = [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f").timestamp() for stamp in stamps]
    return np.diff(np.rint(1000 * (np.array(times) - times[0]))).astype(np.uint16)


np.savez_compressed(
    OUT, cls=counts(sys.argv[1], 3), multi=counts(sys.argv[2], 5), azure_gaps_ms=gaps_ms(sys.argv[3])
)
