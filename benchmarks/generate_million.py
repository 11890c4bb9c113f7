"""How flat memory stays and what CPU a request costs: a large job against an emulated engine.

    python benchmarks/generate_million.py [--prompts 1000000] [--ranker light]

The engine is a process of its own and answers at once, so that the job is what is measured: its memory every
tenth of the job, and its CPU seconds. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sooner.generate.goals import Goal
from sooner.generate.http import Server
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings


def serve(ready: Connection, over: Connection) -> None:
    """Run an engine whose iterations take no time, until told that it is over."""
    from sooner.emulator.api import EmulatedEngine
    from sooner.emulator.engine import Lengths
    from sooner.sim.cost import Engine

    cost = Engine(iteration_s=1e-6, prefill_token_s=0.0, decode_seq_s=0.0, context_token_s=0.0)

    async def main() -> None:
        async with EmulatedEngine(cost, Lengths("lognormal:6,0.5"), model="m").serving() as engine:
            ready.send(engine.url)
            await asyncio.to_thread(over.recv)

    asyncio.run(main())


def resident() -> float:
    """Return this process's memory now [MB]."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def write(path: Path, n: int) -> None:
    """Write n prompts of 10 to 60 words."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            words = " ".join(f"word{(i * 7 + j) % 997}" for j in range(10 + i % 50))
            file.write(json.dumps({"id": f"q{i}", "prompt": f"Say something about {words}"}) + "\n")


async def run(url: str, folder: Path, n: int, ranker: str) -> dict[str, Any]:
    seen: list[tuple[int, float]] = []
    cpu = {}

    def look(kept: int) -> None:
        if kept % max(n // 10, 1) == 0:
            seen.append((kept, round(resident(), 1)))

    server = Server(url, window=128)
    await server.start()
    try:
        settings = JobSettings(goal=Goal(), ranker=ranker)
        with OfflineJob(folder / "prompts.jsonl", folder / "out.jsonl", settings) as job:
            start, since = time.process_time(), time.monotonic()
            job.prepare(server.model)
            cpu["ranking_ms_per_prompt"] = round(1000 * (time.process_time() - start) / n, 4)
            ranked = resident()
            start = time.process_time()
            report = await job.run([server], on_sample=lambda sample, line: look(job.course.kept))
            cpu["cpu_ms_per_request"] = round(1000 * (time.process_time() - start) / n, 4)
            seconds = time.monotonic() - since
    finally:
        await server.close()
    return {
        "prompts": n, "kept": report["kept"], "failed": report["failed"], **cpu,
        "seconds": round(seconds, 1), "mb_after_ranking": round(ranked, 1), "mb_by_kept": seen,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--ranker", default="light")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    (ready, tell_ready), (hear_over, over) = context.Pipe(False), context.Pipe(False)
    process = context.Process(target=serve, args=(tell_ready, hear_over))
    process.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            before = round(resident(), 1)
            write(Path(folder) / "prompts.jsonl", asked.prompts)
            told = asyncio.run(run(ready.recv(), Path(folder), asked.prompts, asked.ranker))
        print(json.dumps({"mb_before": before, "ranker": asked.ranker, **told}))
    finally:
        over.send(None)
        process.join()


if __name__ == "__main__":
    main()
