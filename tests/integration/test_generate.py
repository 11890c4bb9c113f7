"""`sooner generate` against emulated engines and the real vLLM: every sample once, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gateway_rig import engine, run

from sooner.cli import root
from sooner.core import EngineError
from sooner.emulator.engine import Lengths
from sooner.generate.goals import Goal
from sooner.generate.http import Server
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings
from sooner.report import generation

N = 120
CONTRACT = (
    "goal kept finished aborted failed makespan_s steps tokens_discarded kept_mean_len estimated_mean_len"
    " control_mean_len weights_variance"
)
"""What `--json` promises."""


def prompts(path: Path, n: int = N, **more: Any) -> Path:
    lines = [{"id": f"q{i}", "prompt": f"word{i % 7} " * (1 + i % 20) + str(i), **more} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def job(
    folder: Path, goal: Goal | None = None, n: int = N, name: str = "out.jsonl", **more: Any
) -> OfflineJob:
    path = folder / "prompts.jsonl"
    if not path.exists():
        prompts(path, n)
    return OfflineJob(path, folder / name, JobSettings(goal=goal or Goal(), ranker="light", **more))


async def serve(made: OfflineJob, *urls: str, **driving: Any) -> dict[str, Any]:
    servers = [Server(url, window=16, stream=made.settings.goal.selects) for url in urls]
    try:
        for server in servers:
            await server.start()
        with made:
            made.prepare(servers[0].model)
            return await made.run(servers, **driving)
    finally:
        for server in servers:
            await server.close()


def test_two_engines_make_every_sample_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with engine().serving() as one, engine().serving() as two:
            report = await serve(job(tmp_path, samples=2), one.url, two.url)
            assert report["kept"] == report["finished"] == 2 * N
            assert set(CONTRACT.split()) <= set(report)
            assert min(one.emulator.finished, two.emulator.finished) > N // 2

    run(test)
    lines = read(tmp_path / "out.jsonl")
    assert sorted((line["id"], line["sample"]) for line in lines) == sorted(
        (f"q{i}", k) for i in range(N) for k in (0, 1)
    )
    assert json.loads((tmp_path / "out.meta.json").read_text())["complete"] is True


def test_the_first_n_are_exactly_n_and_controls_stand_beside(tmp_path: Path) -> None:
    async def test() -> None:
        drawn = Lengths(str(lengths))
        async with engine(max_num_seqs=8, lengths=drawn).serving() as one:
            report = await serve(job(tmp_path, Goal(kind="first", n=30, control=0.1)), one.url)
            assert report["kept"] == 30
            assert set(CONTRACT.split()) <= set(report)
            assert report["aborted"] + report["finished"] <= N
            assert report["goal_s"] <= report["makespan_s"]
            assert report["controls"] == round(0.1 * N)
            assert report["kept_mean_len"] < report["estimated_mean_len"]
            assert await serve(job(tmp_path, Goal(kind="first", n=30, control=0.1)), one.url) == report
            generation.write(tmp_path / "page.html", report)

    lengths = tmp_path / "lengths.jsonl"
    lengths.write_text("".join(f'{{"output_len": {3 + 7 * (i % 9)}}}\n' for i in range(40)))
    run(test)
    assert len(read(tmp_path / "out.jsonl")) == 30
    weights = {line["id"]: line["weight"] for line in read(tmp_path / "out.weights.jsonl")}
    assert set(weights) >= {line["id"] for line in read(tmp_path / "out.jsonl")}
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg viewBox") > 2
    assert generation.verdict(report_of(tmp_path)) in page


def test_what_the_engine_declines_is_named_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        '{"id": "good", "prompt": "a"}\n{"id": "bad", "prompt": "b", "max_tokens": 0}\n'
    )

    async def test() -> None:
        async with engine().serving() as one:
            made = job(tmp_path)
            report = await serve(made, one.url)
            assert (report["kept"], report["failed"]) == (1, 1)
            assert read(made.failures)[0]["id"] == "bad"
            assert "400" in read(made.failures)[0]["error"]

    run(test)


def test_an_engine_that_goes_and_comes_back_loses_no_sample(tmp_path: Path) -> None:
    async def test() -> None:
        came = asyncio.Event()
        seen: list[int] = []

        def on_sample(sample: int, line: dict[str, Any]) -> None:
            seen.append(sample)
            if len(seen) == 20:
                came.set()

        first = engine(max_num_seqs=4, model="m")
        async with first.serving() as one:
            running = asyncio.create_task(serve(job(tmp_path), one.url, on_sample=on_sample))
            await came.wait()
        port = int(first.url.rpartition(":")[2])
        async with engine(model="m").serving(port=port):
            report = await running
        assert (report["kept"], report["failed"]) == (N, 0)
        assert sorted(seen) == list(range(N))

    run(test)


def test_a_job_without_any_engine_says_how_to_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        came = asyncio.Event()
        first = engine(max_num_seqs=4, model="m")
        async with first.serving() as one:
            made = serve(job(tmp_path), one.url, on_sample=lambda *_: came.set(), patience=0.0)
            running = asyncio.create_task(made)
            await came.wait()
        with pytest.raises(EngineError, match="the same command goes on from here"):
            await running
        async with engine(model="m").serving() as two:
            assert (await serve(job(tmp_path), two.url))["kept"] == N

    run(test)


def test_what_was_begun_otherwise_is_refused_with_what_differs(tmp_path: Path) -> None:
    async def test(**more: Any) -> None:
        async with engine(model="m").serving() as one:
            await serve(job(tmp_path, n=10, **more), one.url)

    run(test)
    with pytest.raises(ValueError, match="max_tokens was None and is 7") as refused:
        run(lambda: test(max_tokens=7))
    assert "--restart" in str(refused.value)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"id": "more", "prompt": "x"}\n')
    with pytest.raises(ValueError, match="prompts_sha256 was"):
        run(test)


def test_an_earlier_epoch_orders_the_next_and_lines_go_back_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with engine(max_num_seqs=4, lengths=Lengths("lognormal:20,1.0")).serving() as one:
            await serve(job(tmp_path), one.url)
            servers = [Server(one.url, window=4)]
            await servers[0].start()
            try:
                with job(tmp_path, name="next.jsonl") as made:
                    made.prepare(servers[0].model, history=tmp_path / "out.jsonl")
                    order: list[int] = []
                    await made.run(servers, on_sample=lambda sample, line: order.append(line["output_len"]))
                    made.in_order()
            finally:
                await servers[0].close()
            assert sum(order[: N // 2]) > 2 * sum(
                order[N // 2 :]
            )  # the longest first, without a word of theirs
            with (
                pytest.raises(ValueError, match="history_sha256 was"),
                job(tmp_path, name="next.jsonl") as made,
            ):
                made.prepare(servers[0].model)

    run(test)
    assert [line["id"] for line in read(tmp_path / "next.jsonl")] == [f"q{i}" for i in range(N)]


def test_an_openai_batch_goes_in_and_comes_out(tmp_path: Path) -> None:
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "m", "messages": [{"role": "user", "content": f"{i}"}], "max_tokens": 9}}
        for i in range(20)
    ]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    async def test() -> None:
        async with engine(model="m").serving() as one:
            await serve(job(tmp_path), one.url)
            assert (await serve(job(tmp_path), one.url))["kept"] == 20  # read back

    run(test)
    out = read(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in out) == sorted(line["custom_id"] for line in lines)
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in out)
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in out)


@contextmanager
def emulated(folder: Path) -> Iterator[str]:
    """Run an emulated engine in a process of its own, for jobs that are processes too."""
    program = (
        "import asyncio, sys\nsys.path.insert(0, sys.argv[1])\nfrom gateway_rig import engine\n"
        "async def main():\n"
        "    async with engine(iteration_s=0.003, max_num_seqs=8).serving() as one:\n"
        "        print(one.url, flush=True)\n        await asyncio.to_thread(sys.stdin.read)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent)], stdout=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def test_killed_at_ten_random_moments_every_sample_is_there_once(tmp_path: Path) -> None:
    rng = random.Random(7)
    prompts(tmp_path / "p.jsonl", 150)

    def words(url: str, out: str) -> list[str]:
        return [
            sys.executable, "-m", "sooner", "generate", str(tmp_path / "p.jsonl"),
            "--out", str(tmp_path / out),
            "--url", url, "--ranker", "none", "--seed-base", "1", "--window", "8", "--samples", "2", "--json",
        ]  # fmt: skip

    with emulated(tmp_path) as url:
        subprocess.run(words(url, "whole.jsonl"), check=True, capture_output=True, timeout=120)
        out, kills = tmp_path / "out.jsonl", 0
        while kills < 10:
            process = subprocess.Popen(
                words(url, "out.jsonl"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            there = out.stat().st_size if out.exists() else 0
            more = rng.randrange(1, 4000)
            while process.poll() is None and (out.stat().st_size if out.exists() else 0) < there + more:
                time.sleep(0.002)
            assert process.poll() is None, "the job ended before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        done = subprocess.run(words(url, "out.jsonl"), check=True, capture_output=True, timeout=120)
    assert json.loads(done.stdout)["kept"] == 300
    whole, broken = read(tmp_path / "whole.jsonl"), read(out)
    assert len(broken) == 300
    assert sorted(map(json.dumps, broken)) == sorted(map(json.dumps, whole))


@pytest.mark.engine
def test_on_the_real_vllm_steps_are_counted_and_ctrl_c_is_gone_on_from(
    plain_server: str, tmp_path: Path
) -> None:
    prompts(tmp_path / "p.jsonl", 24)
    words = ["generate", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--url", plain_server]
    words += ["--max-tokens", "24", "--seed-base", "3", "--ranker", "light", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "sooner", *words], stdout=subprocess.DEVNULL)
    out = tmp_path / "o.jsonl"
    while process.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (130, 0)
    done = CliRunner().invoke(root, words)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["kept"], report["failed"]) == (24, 0)
    assert report["steps"] >= 24
    lines = read(out)
    assert sorted(line["id"] for line in lines) == sorted(f"q{i}" for i in range(24))
    again = [*words[:3], str(tmp_path / "again.jsonl"), *words[4:]]
    assert CliRunner().invoke(root, again).exit_code == 0
    by_id = {line["id"]: line["text"] for line in read(tmp_path / "again.jsonl")}
    assert sum(by_id[line["id"]] == line["text"] for line in lines) >= 20  # sums differ in other batches


@pytest.mark.engine
def test_vllm_in_this_process_replaces_its_own_batch_run(tiny_model: Path, tmp_path: Path) -> None:
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": f"word{i} " * (i + 1)}],
                  "max_tokens": 8 + 4 * (i % 5), "ignore_eos": True}}
        for i in range(20)
    ]  # fmt: skip
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    engine = {"load_format": "dummy", "max_num_seqs": 4, "max_model_len": 1024, "dtype": "float32"}
    words = ["generate", str(tmp_path / "batch.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    words += [
        "--first",
        "10",
        "--model",
        str(tiny_model),
        "--engine",
        json.dumps({**engine, "enforce_eager": True}),
    ]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "sooner", *words, "--control", "0.1", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, **small},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert (report["kept"], report["failed"]) == (10, 0)
    assert 0 < report["goal_steps"] <= report["steps"]
    out = read(tmp_path / "out.jsonl")
    asked = {line["custom_id"]: line["body"]["max_tokens"] for line in lines}
    assert len(out) == 10
    for line in out:
        body = line["response"]["body"]
        assert body["usage"]["completion_tokens"] == asked[line["custom_id"]]
        assert body["choices"][0]["finish_reason"] == "length"
    ended = read(tmp_path / "out.partial.jsonl")
    assert report["tokens_discarded"] == sum(part["output_len"] for part in ended)


def report_of(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "out.meta.json").read_text())["report"]
    return told


IN_TURNS = """
import asyncio, json, sys
from sooner.generate.engines import Begun
from sooner.generate.inprocess import InProcess
from sooner.generate.prompts import ROUTES, Ask

async def main():
    engine = InProcess(sys.argv[1], json.loads(sys.argv[2]), stream=True)
    await engine.start()
    try:
        body = {"messages": [{"role": "user", "content": "word"}], "max_tokens": 200, "temperature": 0.0}
        ask = Ask("a", ROUTES["chat"], {**body, "ignore_eos": True})
        whole = await engine.reply(ask, None)
        begun, seen, pieces = None, [], 0
        while True:  # in turns of 40 tokens or some more
            last = 0 if begun is None else len(begun.ids)
            made = await engine.reply(ask, lambda n, text: seen.append(n) or n >= last + 40, begun)
            pieces += 1
            if not isinstance(made, Begun):
                break
            assert len(made.ids) >= last + 40
            begun = made
        assert seen == sorted(seen)
        seeded = await engine.reply(ask._replace(body={**ask.body, "seed": 1}), lambda n, text: True)
    finally:
        await engine.close()
    print(json.dumps({"whole": whole, "in_turns": made, "pieces": pieces, "seeded": seeded.output_len}))

asyncio.run(main())
"""


@pytest.mark.engine
def test_a_reply_of_the_real_vllm_that_is_interrupted_comes_out_as_if_it_were_not(tiny_model: Path) -> None:
    settings = {"load_format": "dummy", "max_num_seqs": 2, "max_model_len": 512, "dtype": "float32"}
    done = subprocess.run(
        [sys.executable, "-c", IN_TURNS, str(tiny_model), json.dumps({**settings, "enforce_eager": True})],
        capture_output=True, text=True, check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["in_turns"] == told["whole"]
    assert told["whole"][1] == 200
    assert told["pieces"] > 1
    assert told["seeded"] == 200  # a seeded reply would come out differently, so it is never interrupted
