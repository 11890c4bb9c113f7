"""How flat memory stays and what CPU a request costs: a large job against an emulated engine.

    python benchmarks/generate_million.py [--prompts 1000000] [--ranker light] [--work FOLDER]

The engine is a process of its own and answers at once, so that the job is what is measured: its memory and
its CPU seconds, noted a hundred times. Everything is in `--work` as soon as it is there, and the same
command goes on; each run's memory and CPU count from its own start. Prints JSON, kept in `results/`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sooner.generate.goals import Goal
from sooner.generate.http import Server
from sooner.generate.job import OfflineJob
from sooner.generate.settings import JobSettings

OUT = Path(__file__).parent / "results" / "generate_million.json"


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
    beside = path.with_name("prompts.part")
    with beside.open("w", encoding="utf-8") as file:
        for i in range(n):
            words = " ".join(f"word{(i * 7 + j) % 997}" for j in range(10 + i % 50))
            file.write(json.dumps({"id": f"q{i}", "prompt": f"Say something about {words}"}) + "\n")
    beside.replace(path)


class Notes:
    """A run's memory and CPU, noted in a file at every hundredth of the job."""

    def __init__(self, path: Path, n: int) -> None:
        self._path, self._every = path, max(n // 100, 1)
        self._began, self._cpu = time.monotonic(), time.process_time()

    def take(self, kept: int, *, last: bool = False) -> None:
        """Note a moment, where it is one of the hundred."""
        if not last and kept % self._every:
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {
            "run": self._began, "kept": kept, "mb": round(resident(), 1), "peak_mb": round(peak, 1),
            "cpu_s": round(time.process_time() - self._cpu, 3), "s": round(time.monotonic() - self._began, 1),
        }  # fmt: skip
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


async def run(url: str, folder: Path, n: int, ranker: str) -> dict[str, Any]:
    """Run the job, or what is left of it, and return its report."""
    server = Server(url, window=128)
    await server.start()
    try:
        settings = JobSettings(goal=Goal(), ranker=ranker)
        with OfflineJob(folder / "prompts.jsonl", folder / "out.jsonl", settings) as job:
            start, ranked = time.process_time(), (folder / "out.work" / "ranked.npz").exists()
            job.prepare(server.model)
            if not ranked:
                spent = 1000 * (time.process_time() - start) / n
                (folder / "ranking.json").write_text(json.dumps({"ranking_ms_per_prompt": round(spent, 4)}))
            notes = Notes(folder / "notes.jsonl", n)
            notes.take(job.course.kept, last=True)
            report = await job.run([server], on_sample=lambda sample, line: notes.take(job.course.kept))
            notes.take(job.course.kept, last=True)
    finally:
        await server.close()
    return report


def told(folder: Path) -> dict[str, Any]:
    """Return what the notes of all runs say."""
    rows = [json.loads(line) for line in (folder / "notes.jsonl").read_text(encoding="utf-8").splitlines()]
    runs = [
        [row for row in rows if row["run"] == began] for began in dict.fromkeys(row["run"] for row in rows)
    ]
    requests = sum(run[-1]["kept"] - run[0]["kept"] for run in runs)
    cpu, seconds = (sum(run[-1][key] - run[0][key] for run in runs) for key in ("cpu_s", "s"))
    during = [row["mb"] for run in runs for row in run[1:]]
    return {
        **json.loads((folder / "ranking.json").read_text(encoding="utf-8")),
        "cpu_ms_per_request": round(1000 * cpu / requests, 4), "requests_noted": requests, "runs": len(runs),
        "seconds": round(seconds, 1), "mb_after_ranking": runs[0][0]["mb"],
        "mb_least": min(during), "mb_most": max(during), "peak_mb": max(row["peak_mb"] for row in rows),
        "mb_by_kept": [[row["kept"], row["mb"]] for row in rows][:: max(len(rows) // 20, 1)],
    }  # fmt: skip


@contextmanager
def engine() -> Iterator[str]:
    """Run an emulated engine in a process of its own; give its URL."""
    context = multiprocessing.get_context("spawn")
    (ready, tell_ready), (hear_over, over) = context.Pipe(False), context.Pipe(False)
    process = context.Process(target=serve, args=(tell_ready, hear_over))
    process.start()
    try:
        yield ready.recv()
    finally:
        over.send(None)
        process.join()


def main() -> None:
    """Go on with the job to its end and print what was noted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--ranker", default="light")
    parser.add_argument("--work", type=Path, default=Path("generate_million.work"))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    prompts = asked.work / "prompts.jsonl"
    if not prompts.exists():
        write(prompts, asked.prompts)
    with engine() as url:
        report = asyncio.run(run(url, asked.work, asked.prompts, asked.ranker))
    settings = {"prompts": asked.prompts, "ranker": asked.ranker, "python": platform.python_version()}
    result = {**settings, "kept": report["kept"], "failed": report["failed"], **told(asked.work)}
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
