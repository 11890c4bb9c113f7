"""The answer as plain data."""

from __future__ import annotations

from typing import Any

from sooner.whatif.replays import Counterfactual, sentence
from sooner.whatif.served import ServedTraffic


def shown(answer: Counterfactual, record: ServedTraffic, source: str) -> dict[str, Any]:
    """Return what `--json` prints, and a gateway is answered."""
    engine = record.engine
    return {
        "source": source,
        "requests": answer.requests,
        "served": answer.served,
        "clock": record.clock,
        "engine": {
            name: getattr(engine, name)
            for name in (
                "iteration_s", "prefill_token_s", "decode_seq_s", "context_token_s", "overhead_s",
                "max_num_seqs", "max_num_batched_tokens", "num_blocks",
            )
        },
        "replay": {name: checked._asdict() for name, checked in answer.fidelity.items()},
        "orders": [
            {
                "policy": other.policy,
                **{f"{name}_s": value for name, value in other.measures.items()},
                "saved": {
                    name: {"share": claim.saved, "error": claim.error, "stands": claim.stands}
                    for name, claim in other.claims.items()
                },
            }
            for other in answer.others
        ],
        "lost": [loss._asdict() for loss in answer.losses],
        "lost_margin_s": answer.margin,
        "sentence": sentence(answer),
    }  # fmt: skip
