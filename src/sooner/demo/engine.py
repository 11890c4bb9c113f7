"""A `vllm serve` of our own: started, waited for, and stopped with every process it made."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sooner.core import EngineError

MAX_CORES = 16  # a small model gains nothing from more


@contextmanager
def serve(
    model: Path,
    *,
    name: str,
    log: Path,
    settings: Mapping[str, Any] | None,
    max_num_seqs: int,
    options: Sequence[str] = (),
    cores: Sequence[int] = (),
    patience: float = 600.0,
) -> Iterator[str]:
    """Run `vllm serve` on this machine's CPU and give its URL once it answers.

    `settings` are the plugin's; None leaves vLLM's own scheduler in place. The model runs on `cores`,
    one thread on each; empty: on all. The server and all its
    processes are gone when the block ends, however it ends. Raises EngineError with the end of the
    log when the server stops or does not answer within `patience` [s].
    """
    port = _free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)),
        *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", str(max_num_seqs)),
        # On a CPU, vLLM 0.32 dies of a seeded request whose prompt is split into chunks.
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
        *("--enforce-eager", "--no-enable-prefix-caching", *options),
    ]
    if settings is not None:
        command += ["--scheduler-cls", "sooner.vllm.Scheduler"]
        command += ["--additional-config", json.dumps({"sooner": dict(settings)})]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env=_environment(cores), start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_healthy(process, port, log, patience)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def shares(n: int) -> list[list[int]]:
    """Return the cores of this machine in at most n equal shares, one for each server beside others."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // n)
    return [cores[at : at + size][:MAX_CORES] for at in range(0, min(n, len(cores)) * size, size)]


def _environment(cores: Sequence[int]) -> dict[str, str]:
    chosen = cores or sorted(os.sched_getaffinity(0))[:MAX_CORES]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, chosen)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
    }


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"vllm serve ended with code {process.returncode}; {_end_of(log)}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise EngineError(f"vllm serve did not answer within {patience:.0f} s; {_end_of(log)}")


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    telling = [line for line in lines if "Error" in line] or lines
    return f"its log, {log}, ends: " + " | ".join(telling[-3:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server's whole process group to end, and kill what is left of it."""
    for sent, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
