"""An offline job of the tiny model by Ray Data, our scheduler in its engine, in a process of its own.

    python ray_data.py MODEL ROWS FOLDER TRACE

ROWS is JSONL with `id`, `prompt`, `max_tokens`. Two jobs, for a sort turns a checkpoint off: the first ranks
and sorts, the second generates, with Ray's own checkpoint by id. Run again, it goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray_app import ENGINE

BLOCK = 2048  # bytes
"""Where a block of rows ends: it is written, and kept by the checkpoint, while others run. Else 128 MB."""


def ask(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the engine is asked; its order knows the length that was predicted."""
    return {
        "prompt": row["prompt"],
        "sampling_params": {
            "max_tokens": row["max_tokens"],
            "ignore_eos": True,
            "extra_args": {"sooner_predicted_len": float(row["predicted_len"]), "sooner_tag": row["id"]},
        },
    }


def keep(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a row."""
    return {name: row[name] for name in ("id", "generated_text", "num_generated_tokens")}


def main(model: str, rows: str, folder: str, trace: str) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from sooner.ray import processor_config

    where = Path(folder)
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK
    ranked = where / "ranked"
    if not (where / "ranked.done").exists():
        source = ray.data.read_json(rows).map(lambda row: {**row, "predicted_len": row["max_tokens"]})
        source.sort("predicted_len", descending=True).write_parquet(str(ranked))
        (where / "ranked.done").touch()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(where / "checkpoint"), delete_checkpoint_on_success=False
    )
    processor = build_processor(
        processor_config(
            vLLMEngineProcessorConfig(
                model_source=model,
                engine_kwargs=ENGINE,
                batch_size=8,
                concurrency=1,
                placement_group_config={"bundles": [{"CPU": 1, "GPU": 0}]},
                chat_template_stage=False,
                tokenize_stage=False,
                detokenize_stage=False,
                log_engine_metrics=False,
            ),
            policy="longest",
            ranker="ranker_by_length:Ranker",
            trace=trace,
        ),
        preprocess=ask,
        postprocess=keep,
    )
    processor(ray.data.read_parquet(str(ranked))).write_parquet(str(where / "out"))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
