"""Was it worth it? The page's answer is that of `sooner whatif`, and who asks ends with the gateway."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from gateway_rig import client, engine, rig, run, until

from sooner import policies
from sooner.cli import root
from sooner.gateway.database import REQUESTS, Database
from sooner.gateway.page.settings import WhatifSettings
from sooner.gateway.settings import JournalSettings
from sooner.sim.cost import Engine
from sooner.sim.engine import simulate
from sooner.sim.options import Options
from sooner.workloads.columns import Workload

ENGINE = Engine(max_num_seqs=8, num_blocks=100_000)


def served(policy: str, n: int, seed: int, begin: float) -> list[dict[str, Any]]:
    """Return the journal's rows of requests that a simulated engine served, from `begin` [Unix s] on."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(4.5, 1.0, n), 1).astype(np.int64)
    arrival = np.cumsum(rng.exponential(0.2, n))
    workload = Workload(
        arrival_time=arrival, prompt_len=rng.integers(20, 400, n), output_len=lengths,
        tenant=rng.integers(0, 3, n),
    )  # fmt: skip
    told = lengths * rng.lognormal(0.0, 0.4, n)
    done = simulate(
        workload, ENGINE, policies.get(policy), predicted_len=told, score=told,
        options=Options(iteration_level=False),
    ).completed  # fmt: skip
    start, first, finish = map(np.asarray, (done.start_time, done.first_token_time, done.finish_time))
    return [
        {
            "id": f"{policy}{at}", "tenant": f"<b>tenant {workload.tenant[at]}", "model": "m", "backend": "a",
            "arrival_time": begin + float(arrival[at]), "wait": float(start[at] - arrival[at]),
            "first_byte": float(first[at] - start[at]), "total": float(finish[at] - arrival[at]),
            "prompt_len": int(workload.prompt_len[at]), "output_len": int(lengths[at]), "counted": True,
            "status": 200, "stream": True, "max_tokens": 0, "score": float(told[at]),
            "predicted_len": float(told[at]), "policy": policy,
        }
        for at in np.argsort(finish)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a journal that was served by arrival first, and under boost since."""
    url = f"sqlite:///{tmp_path_factory.mktemp('worth')}/journal.db"
    database = Database(url)
    now = time.time()
    with database.begin() as connection:
        connection.execute(REQUESTS.insert(), served("fcfs", 60, 1, now - 9000.0))
        connection.execute(REQUESTS.insert(), served("boost", 500, 2, now - 4000.0))
    database.close()
    return url


def test_the_pages_answer_is_that_of_the_command(
    journal: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sooner.gateway")
    state = str(tmp_path / "state.json")

    async def look(every: float) -> tuple[dict[str, Any], str]:
        settings = {"journal": JournalSettings(url=journal), "state": state}
        async with (
            rig([engine()], whatif=WhatifSettings(every=every), **settings) as gateway,
            client(gateway) as http,
        ):
            await until(lambda: gateway.page.worth.answer is not None, 120.0)
            async with http.get("/sooner/v1/state") as response:
                told = (await response.json())["worth"]
            async with http.get("/sooner/") as response:
                return told, await response.text()

    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith("was it worth it?")]

    async def test() -> None:
        told, page = await look(0.01)
        answer = told["answer"]
        shown = CliRunner().invoke(root, ["whatif", journal, "--last-order", "--json"])
        assert shown.exit_code == 0, shown.output
        command = json.loads(shown.stdout)
        for name in ("requests", "served", "sentence", "orders", "replay", "lost_margin_s"):
            assert answer[name] == command[name], name
        assert answer["lost"] == command["lost"]
        assert 400 < answer["requests"] <= 500
        assert answer["served"] == "boost"
        assert answer["claims"]
        assert answer["sentence"].startswith("Saved ")
        assert f'<p class="told">{answer["sentence"]}</p>' in page
        assert "<bdi>&lt;b&gt;tenant 1</bdi>" in page[page.index('id="worth"') : page.index('id="now"')]
        assert lines() == [f"was it worth it? {answer['sentence']} ({answer['requests']} requests)"]
        again, _ = await look(3600.0)  # it is remembered, and the line in the log is a week's
        assert again["answer"] == answer
        assert len(lines()) == 1

    run(test, 240.0)


def test_who_asks_is_ended_with_the_gateway(journal: str) -> None:
    async def test() -> None:
        chosen = JournalSettings(url=journal)
        async with rig([engine()], journal=chosen, whatif=WhatifSettings(every=0.001)) as gateway:
            await until(lambda: gateway.page.worth.pid is not None, 60.0)
            pid = gateway.page.worth.pid
            assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(test, 120.0)


@pytest.mark.parametrize("settings", [{}, {"journal": "there", "whatif": WhatifSettings(every=0.0)}], ids=str)
def test_where_nobody_asks_nothing_is_started_and_the_page_says_why(
    settings: dict[str, Any], journal: str
) -> None:
    if settings.get("journal"):
        settings = {**settings, "journal": JournalSettings(url=journal)}

    async def test() -> None:
        async with rig([engine()], **settings) as gateway, client(gateway) as http:
            assert gateway.page.worth.off
            async with http.get("/sooner/") as response:
                assert f"Nobody asks: {gateway.page.worth.off}." in await response.text()
            await until(
                lambda: "gateway-worth" not in {task.get_name() for task in gateway._tasks if not task.done()}
            )
            assert gateway.page.worth.pid is None

    run(test)


def asked(question: dict[str, Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sooner.whatif"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return process


def test_what_cannot_be_answered_has_its_reason(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/empty.db"
    database = Database(url)
    with database.begin() as connection:
        connection.execute(REQUESTS.insert(), served("boost", 5, 3, time.time() - 100.0))
        assert connection.execute(sa.select(sa.func.count()).select_from(REQUESTS)).scalar() == 5
    database.close()
    for source, why in (
        (url, "allowed: at least"), (f"sqlite:///{tmp_path}/none.db", "no database"),
        ("nonsense://x", "database"),
    ):  # fmt: skip
        with asked({"source": source, "since": 0.0, "most": 1000}) as process:
            assert process.stdout is not None
            assert why in json.loads(process.stdout.read())["none"]


def test_it_ends_with_who_asked(journal: str) -> None:
    with asked({"source": journal, "since": 0.0, "most": 1000}) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.wait(60) == 0
