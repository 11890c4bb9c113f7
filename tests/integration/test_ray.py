"""Ray Serve LLM with our scheduler in its replica: a real Ray, a real vLLM, the order read in the trace."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
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
TIMES = ("makespan_s", "goal_s", "steps", "goal_steps", "made_room")
"""What a report says of how it ran: not the same after a kill, and replies on Ray take no turns."""


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
        "RAY_worker_niceness": "0",  # 15 by default, at which a busy machine starves the engine
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:2])),
    }


def came_up(told: str) -> str:
    """Return what a program of Ray wrote; skip where its node was not up in the 30 s Ray gives it."""
    if "timed out during startup" in told:
        pytest.skip("this machine is too busy for Ray, which gives a node 30 s to start")
    return told


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
                assert ready, came_up((folder / "log").read_text())[-3000:]
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


def picked(rows: list[dict[str, Any]], first: Callable[[dict[str, Any], dict[str, Any]], bool]) -> int:
    """Hold each start against those who had come and waited on; return how many of these there were."""
    pairs = 0
    for row in rows:
        start = row["first_scheduled_step"]
        waited = [one for one in rows if one["arrival_step"] < start < one["first_scheduled_step"]]
        assert all(first(row, one) for one in waited)
        pairs += len(waited)
    return pairs


def test_a_replica_runs_in_our_order(served: tuple[str, Path]) -> None:
    """20 requests while two hold the engine's slots."""
    url, trace = served
    with ThreadPoolExecutor(24) as pool:
        blockers = [pool.submit(post, url, prompt="word1", max_tokens=1000) for _ in range(2)]
        end = time.monotonic() + 100
        while not any(step["running"] == 2 for step in lines(Path(f"{trace}.steps"))[-3:]):
            assert time.monotonic() < end
            time.sleep(0.05)
        waiting = [
            pool.submit(
                post,
                url,
                prompt="word2",
                vllm_xargs={"sooner_predicted_len": 100 - i, "sooner_tag": f"order-{i}"},
            )
            for i in range(20)
        ]
        assert all(one.result() == 200 for one in [*blockers, *waiting])
    asked = [line for line in lines(trace) if str(line["tag"]).startswith("order-")]
    assert len(asked) == 20
    assert picked(asked, lambda one, other: one["predicted_len"] <= other["predicted_len"]) > 20


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


def rows(folder: Path, times: int = 1) -> list[int]:
    """Write 64 prompts in random order, and an earlier epoch's lengths; return those, longest first."""
    lengths = [times * (8 + i) for i in range(64)]
    made = [
        {"id": f"row{i}", "prompt": f"word{i}", "max_tokens": length, "ignore_eos": True}
        for i, length in enumerate(lengths)
    ]
    random.Random(1).shuffle(made)
    earlier = [{"id": row["id"], "output_len": row["max_tokens"], "text": ""} for row in made]
    for name, records in (("prompts", made), ("earlier", earlier)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return sorted(lengths, reverse=True)


def kill_actor(home: Path) -> None:
    """Kill the process in which an engine of ours runs, in the Ray that has `home`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = b"ray::_Hosted" in (process / "cmdline").read_bytes()
            if named and f"HOME={home}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def test_an_offline_job_survives_its_engine_and_its_driver_and_reports_as_on_one_machine(
    tmp_path: Path,
) -> None:
    """One slot, so that rows end in the order in which they were begun: the longest first."""
    lengths = rows(tmp_path)
    model = write_tiny_model(tmp_path / "model")

    def command(out: str, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "sooner", "generate", str(tmp_path / "prompts.jsonl"),
            "--out", str(tmp_path / out), "--model", str(model), "--api", "completions",
            "--engine", json.dumps({**ENGINE, "max_num_seqs": 1}), "--ranker", "none",
            "--history", str(tmp_path / "earlier.jsonl"), "--json", *more,
        ]  # fmt: skip

    def whole(words: list[str]) -> dict[str, Any]:
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, came_up(done.stderr)[-2000:]
        told: dict[str, Any] = json.loads(done.stdout)
        return {name: value for name, value in told.items() if name not in TIMES}

    out = tmp_path / "out.jsonl"
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        own = {**environment(tmp_path, short), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        alone = whole(command("alone.jsonl"))
        with (tmp_path / "log").open("w") as log:
            first = subprocess.Popen(command("out.jsonl", "--ray"), env=own, stdout=log, stderr=log)
        try:
            for enough in (8, 16):
                until = time.monotonic() + 500
                while len(lines(out)) < enough and time.monotonic() < until and first.poll() is None:
                    time.sleep(0.05)
                assert enough <= len(lines(out)) < 64, came_up((tmp_path / "log").read_text())[-2000:]
                if enough == 8:
                    kill_actor(tmp_path)
        finally:
            first.kill()
            first.wait()
        begun = len(lines(out))
        on_ray = whole(command("out.jsonl", "--ray"))
    kept = [line["output_len"] for line in lines(out)]
    assert sorted(line["id"] for line in lines(out)) == sorted(f"row{i}" for i in range(64))
    assert kept[:8] == lengths[:8]
    assert kept[begun:] == sorted(kept[begun:], reverse=True)
    assert on_ray == alone


def test_ray_data_runs_in_our_order_and_goes_on_after_its_driver_was_killed(tmp_path: Path) -> None:
    """Rows leave with their block of 8, so what a killed driver loses is blocks; none is lost or doubled."""
    rows(tmp_path, times=4)  # half a minute of work: a task that writes a block takes seconds to start
    model, trace, out = write_tiny_model(tmp_path / "model"), tmp_path / "trace.jsonl", tmp_path / "out"
    command = [sys.executable, str(HERE / "ray_data.py"), str(model), str(tmp_path / "prompts.jsonl")]
    command += [str(tmp_path), str(trace)]

    def kept() -> list[str]:
        from pyarrow import parquet

        return [
            name
            for file in sorted(out.rglob("*.parquet"))
            for name in parquet.ParquetFile(file).read(["id"])["id"].to_pylist()
        ]

    with tempfile.TemporaryDirectory(prefix="ray") as short:
        own = environment(tmp_path, short)
        with (tmp_path / "log").open("w") as log:
            first = subprocess.Popen(command, env=own, stdout=log, stderr=log)
            try:
                until = time.monotonic() + 500
                while time.monotonic() < until and first.poll() is None and not list(out.rglob("*.parquet")):
                    time.sleep(0.05)
            finally:
                first.kill()
                first.wait()
        ran = lines(trace)
        assert 0 < len(ran) < 64, came_up((tmp_path / "log").read_text())[-3000:]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, came_up(done.stderr)[-3000:]
    assert sorted(kept()) == sorted(f"row{i}" for i in range(64))
    assert picked(ran, lambda one, other: one["output_tokens"] >= other["output_tokens"]) > 8
