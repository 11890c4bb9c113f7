"""A Ray Serve LLM application of the tiny model with our scheduler, in a process of its own.

    python ray_app.py MODEL TRACE FOLDER PORT

Says `ready` once it serves, and ends with its standard input. FOLDER is where Ray keeps what it writes.
"""

from __future__ import annotations

import sys

ENGINE = {
    "load_format": "dummy",
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 2,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": False,
    "max_num_batched_tokens": 2048,
}
"""What vLLM 0.32 needs to survive on a CPU, as in `sooner.demo.engine`."""


def main(model: str, trace: str, folder: str, port: str) -> None:
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    from sooner.ray import llm_config

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, _temp_dir=folder)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    config = llm_config(
        LLMConfig(
            model_loading_config={"model_id": "tiny", "model_source": model},
            engine_kwargs=ENGINE,
            deployment_config={"num_replicas": 1},
            placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": 0}},
            log_engine_metrics=False,
        ),
        policy="ltr",
        ranker="ranker_by_length:Ranker",
        trace=trace,
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
