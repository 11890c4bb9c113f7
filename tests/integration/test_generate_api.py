"""A job as an async generator: samples as they come, whole groups, stragglers cut and gone on with."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import engine, run

from sooner.core import ConfigError
from sooner.emulator.engine import Lengths
from sooner.generate.api import Parts, generate, go_on, groups
from sooner.generate.goals import Goal
from sooner.generate.http import Server

LINES = [{"id": f"q{i}", "prompt": f"ask {i}"} for i in range(24)]


def lengths(folder: Path) -> Lengths:
    """Return lengths of 5 tokens, but 400 for every fourth prompt."""
    path = folder / "lengths.jsonl"
    rows = [
        {"prompt": line["prompt"], "output_len": 400 if i % 4 == 0 else 5} for i, line in enumerate(LINES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Lengths(str(path))


def test_samples_come_as_they_finish_and_nothing_stays_on_disk() -> None:
    async def test() -> None:
        async with engine(model="m").serving() as one:
            server = Server(one.url, window=8)
            await server.start()
            try:
                seen = [
                    (sample.id, sample.number)
                    async for sample in generate(LINES, engines=[server], samples=2, ranker="none")
                ]
                first = Goal(kind="first", n=5, control=0.0)
                few = [each async for each in generate(LINES, engines=[server], goal=first, ranker="none")]
            finally:
                await server.close()
        assert sorted(seen) == sorted((line["id"], k) for line in LINES for k in (0, 1))
        assert len(few) == 5
        assert all(sample.text and sample.output_len for sample in few)

    run(test)


def test_the_first_whole_groups_are_kept_and_the_stragglers_gone_on_with(tmp_path: Path) -> None:
    async def test() -> None:
        async with engine(model="m", lengths=lengths(tmp_path), iteration_s=0.004).serving() as one:
            server = Server(one.url, window=24, stream=True)
            await server.start()
            parts: Parts = {}
            try:
                made = groups(LINES, engines=[server], samples=3, keep=18, ended=parts, ranker="none")
                whole = [group async for group in made]
                assert len(whole) == 18
                assert all([sample.number for sample in group] == [0, 1, 2] for group in whole)
                assert {group[0].id for group in whole} == {f"q{i}" for i in range(24) if i % 4}
                assert parts
                assert not {name for name, _ in parts} & {group[0].id for group in whole}
                while one.emulator.running:  # what was cut is dropped by the engine too
                    await asyncio.sleep(0.01)
                (name, _), text = max(parts.items(), key=lambda part: len(part[1]))
                assert text
                line = next(line for line in LINES if line["id"] == name)
                rest = [each async for each in generate([go_on(line, text)], engines=[server], ranker="none")]
                assert rest[0].output_len < 400
                assert len((text + rest[0].text).split()) == 400
            finally:
                await server.close()

    run(test)


def test_who_leaves_the_loop_ends_the_job_and_the_next_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with engine(model="m").serving() as one:
            server = Server(one.url, window=4)
            await server.start()
            more: dict[str, Any] = {"engines": [server], "ranker": "none", "out": tmp_path / "kept.jsonl"}
            try:
                async with aclosing(generate(LINES, **more)) as arriving:
                    first = [(await anext(arriving)).id for _ in range(3)]
                rest = [sample.id async for sample in generate(LINES, **more)]
            finally:
                await server.close()
        there = [json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
        assert sorted(there) == sorted(line["id"] for line in LINES)
        assert set(rest).isdisjoint(first)

    run(test)


def test_errors_of_the_job_come_out_of_the_loop() -> None:
    async def test() -> None:
        async with engine(model="m").serving() as one:
            server = Server(one.url)
            await server.start()
            try:
                with pytest.raises(ConfigError, match="first=100, allowed: at most 24"):
                    async for _ in generate(LINES, engines=[server], goal=Goal(kind="first", n=100)):
                        pass
                with pytest.raises(ConfigError, match="keep=0, allowed"):
                    async for _ in groups(LINES, engines=[server], samples=2, keep=0):
                        pass
            finally:
                await server.close()

    run(test)
