"""Ray Serve LLM with our scheduler in its replica: a real Ray, a real vLLM, the order read in the trace."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import rig, run
from ray_app import ENGINE
from serving import write_tiny_model

MISSING = [name for name in ("ray", "vllm") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not installed: {MISSING}; pip install 'sooner[ray]' brings Ray, 0.3 GB",
    ),
]
HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(home: Path, short: str) -> dict[str, str]:
    """Return what Ray and vLLM run under: a home of their own, and a short path for Ray's sockets."""
    return {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": short,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:2])),
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run the application in a home of its own; give its address and its trace."""
    folder = tmp_path_factory.mktemp("ray")
    model, trace, port = write_tiny_model(folder / "model"), folder / "trace.jsonl", free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        command = [sys.executable, str(HERE / "ray_app.py"), str(model), str(trace), short, str(port)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command,
                env=environment(folder, short),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            limit = threading.Timer(400, process.kill)
            limit.start()
            try:
                assert process.stdout is not None
                ready = any(line == "ready\n" for line in process.stdout)
                assert ready, (folder / "log").read_text()[-3000:]
                yield f"http://127.0.0.1:{port}", trace
            finally:
                process.communicate()  # its standard input ends, and so does it
                limit.cancel()


def post(url: str, **body: Any) -> int:
    data = json.dumps({"model": "tiny", "temperature": 0, "max_tokens": 4, "ignore_eos": True, **body})
    request = urllib.request.Request(
        f"{url}/v1/completions", data.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{error.code}: {error.read()[:500]!r}") from error


def lines(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []


def tagged(url: str, trace: Path, prefix: str) -> list[int]:
    """Send 20 requests while two hold the engine's slots; return the steps at which each was started."""
    with ThreadPoolExecutor(24) as pool:
        blockers = [pool.submit(post, url, prompt="word1", max_tokens=1000) for _ in range(2)]
        time.sleep(2.0)
        waiting = [
            pool.submit(
                post,
                url,
                prompt="word2",
                vllm_xargs={"sooner_predicted_len": 100 - i, "sooner_tag": f"{prefix}-{i}"},
            )
            for i in range(20)
        ]
        assert all(one.result() == 200 for one in [*blockers, *waiting])
    first = {line["tag"]: line["first_scheduled_step"] for line in lines(trace)}
    return [first[f"{prefix}-{i}"] for i in range(20)]


def test_a_replica_runs_in_our_order(served: tuple[str, Path]) -> None:
    url, trace = served
    steps = tagged(url, trace, "order")
    assert steps == sorted(steps, reverse=True)


def test_the_gateway_knows_ray(served: tuple[str, Path]) -> None:
    """Health where Ray has it; the models of the application; a request goes through."""
    url = served[0]

    async def test() -> None:
        import aiohttp

        async with rig([url], backend={"kind": "ray"}) as gateway:
            assert gateway.dispatcher.backends[0].healthy
            assert list(gateway.dispatcher.backends[0].cards) == ["tiny"]
            async with aiohttp.ClientSession(gateway.url) as http:
                body = {"model": "tiny", "prompt": "word3", "max_tokens": 3, "ignore_eos": True}
                async with http.post("/v1/completions", json=body) as response:
                    assert response.status == 200
                    assert (await response.json())["usage"]["completion_tokens"] == 3

    run(test, 60)


def test_an_offline_job_whose_driver_is_killed_has_every_row_once(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": f"row{i}", "prompt": f"word{i}", "max_tokens": 8 + i} for i in range(64)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = write_tiny_model(tmp_path / "model")
    command = [
        sys.executable, "-m", "sooner", "generate", str(prompts), "--out", str(out), "--ray",
        "--model", str(model),
        "--engine", json.dumps(ENGINE), "--api", "completions",
        "--ranker", "none", "--window", "4", "--json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        own = environment(tmp_path, short)
        with (tmp_path / "log").open("w") as log:
            first = subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=log)
        try:
            until = time.monotonic() + 400
            while time.monotonic() < until and first.poll() is None:
                if len(lines(out)) >= 8:
                    break
                time.sleep(0.2)
        finally:
            first.kill()
            first.wait()
        begun = len(lines(out))
        assert 8 <= begun < 64, (tmp_path / "log").read_text()[-2000:]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(line["id"] for line in lines(out)) == sorted(row["id"] for row in rows)
    assert json.loads(done.stdout)["kept"] == 64
