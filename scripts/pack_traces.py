"""Pack the traces that ship with the package: scripts/pack_traces.py FOLDER_WITH_THE_ORIGINALS.

Reads azure2023_{conv,code}.csv, mooncake_conversation.jsonl.gz and sharegpt_first_turn_train.jsonl.gz,
writes src/sooner/workloads/data/*.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sooner.metrics import kendall_tau
from sooner.workloads import traces

OUT = Path(__file__).parents[1] / "src/sooner/workloads/data"
QUANTILES = 513


def pack(trace: traces.Trace) -> dict[str, np.ndarray]:
    """Return a trace as small integers; times and block ids as differences."""
    assert trace.arrival_time is not None
    columns = {
        "arrival_ms": np.diff(np.rint(trace.arrival_time * 1000), prepend=0).astype(np.int32),
        "prompt_len": trace.prompt_len.astype(np.int32),
        "output_len": trace.output_len.astype(np.int32),
    }
    if trace.blocks is not None:
        columns["block_count"] = np.array([len(ids) for ids in trace.blocks], dtype=np.int32)
        columns["blocks"] = np.diff(np.concatenate(trace.blocks), prepend=0).astype(np.int32)
    return columns


def main(folder: Path) -> None:
    """Write every file."""
    originals = {
        "azure-conv": "azure2023_conv.csv",
        "azure-code": "azure2023_code.csv",
        "mooncake": "mooncake_conversation.jsonl.gz",
    }
    for name, file in originals.items():
        np.savez_compressed(OUT / f"{name}.npz", **pack(traces.read(folder / file)))
    lengths = traces.read(folder / "sharegpt_first_turn_train.jsonl.gz")
    grid = np.linspace(0.0, 1.0, QUANTILES)
    np.savez_compressed(
        OUT / "sharegpt.npz",
        prompt_len=np.quantile(lengths.prompt_len, grid).astype(np.float32),
        output_len=np.quantile(lengths.output_len, grid).astype(np.float32),
        kendall_tau=np.float64(kendall_tau(lengths.prompt_len, lengths.output_len)),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
