"""Each number on the page is that of `/metrics` or of the journal, under the traffic of `sooner replay`."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gateway_faults import serving

from sooner.gateway.admission.shares import charge
from sooner.gateway.page import html
from sooner.gateway.page.settings import SloSettings
from sooner.metrics import kendall_tau

REPLAYED = 120
TENANTS = ("<b>a", "b", "b")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:
        return str(reply.read().decode())


def metrics(url: str) -> dict[str, float]:
    """Return each sample of `/metrics`, by its name and labels."""
    lines = [line.rpartition(" ") for line in get(f"{url}/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def post(url: str, tenant: str, model: str) -> int:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"Content-Type": "application/json", "x-sooner-tenant": tenant}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
        reply.read()
        return int(reply.status)


def rows_of(journal: Path) -> list[dict[str, Any]]:
    """Return the journal's rows as their requests ended."""
    if not journal.exists():
        return []
    with sqlite3.connect(journal) as opened:
        opened.row_factory = sqlite3.Row
        found = [dict(row) for row in opened.execute("SELECT * FROM sooner_requests ORDER BY number")]
    opened.close()
    return found


def bracketed(url: str, last: dict[str, float]) -> dict[str, float]:
    """Look at the page, which is at most a second old, between `/metrics` before and after it.

    What only grows is no more than it is by now, and no less than at the `last` look, which is returned anew.
    """
    seen, after = json.loads(get(f"{url}/sooner/v1/state")), metrics(url)
    for name, shown in (*seen["total"].items(), *seen["hour"]["refused"].items()):
        assert last.get(name, 0.0) <= shown <= after[f"sooner_{name}_total"], name
    assert seen["hour"]["requests"] == seen["total"]["finished"]
    assert seen["day"]["requests"] == seen["hour"]["requests"]
    return {**seen["total"], **seen["hour"]["refused"]}


def of_journal(seen: dict[str, Any], rows: list[dict[str, Any]], slo: SloSettings) -> None:
    """Hold the hour, the day, the tenants and the predictions against the journal."""
    whole = [row for row in rows if 200 <= row["status"] < 300]
    times = {
        "wait": [row["wait"] for row in whole],
        "ttft": [row["wait"] + row["first_byte"] for row in whole if row["stream"]],
        "e2e": [row["total"] for row in whole],
    }
    first = {row["id"]: row["wait"] + row["first_byte"] if row["stream"] else None for row in whole}
    in_time = [row for row in whole if slo.in_time(first[row["id"]], row["total"], row["output_len"])]
    for stretch in ("hour", "day"):
        shown = seen[stretch]
        assert shown["requests"] == len(whole)
        assert shown["in_time"] == len(in_time)
        assert shown["cut"] == sum(row["status"] == 0 for row in rows)
        assert shown["failed"] == len(rows) - len(whole) - shown["cut"]
        for rate, amount in (
            ("per_second", len(whole)), ("goodput", len(in_time)),
            ("tokens_per_second", sum(row["output_len"] for row in whole)),
        ):  # fmt: skip
            assert shown[rate] == pytest.approx(amount / shown["length_s"]), rate
    for name, values in times.items():
        for q, key in ((50, "p50"), (90, "p90"), (99, "p99")):
            assert seen["hour"][name][key] == pytest.approx(float(np.percentile(values, q))), name
            near = float(np.percentile(values, q, method="inverted_cdf"))
            assert seen["day"][name][key] == pytest.approx(near, rel=0.0101, abs=1e-3), name
    cost = dict.fromkeys({row["tenant"] for row in rows}, 0.0)
    for row in rows:
        cost[row["tenant"]] += charge(row["prompt_len"], row["output_len"])
    assert {row["name"] for row in seen["tenants"]["rows"]} == set(cost)
    for row in seen["tenants"]["rows"]:
        own = [one for one in rows if one["tenant"] == row["name"]]
        assert row["requests"] == len(own)
        assert row["share"] == pytest.approx(cost[row["name"]] / sum(cost.values()))
        assert row["fair_share"] == pytest.approx(1 / len(cost))
        assert row["mean_wait_s"] == pytest.approx(np.mean([one["wait"] for one in own]))
    judged = [row for row in reversed(whole) if row["predicted_len"] is not None][:1000]  # the newest first
    predicted = np.array([row["predicted_len"] for row in judged])
    real = np.array([float(row["output_len"]) for row in judged])
    truth = seen["truth"]
    assert truth["judged"] == len(judged) >= REPLAYED // 2
    assert truth["ratio"] == pytest.approx(predicted.sum() / real.sum())
    assert truth["tau"] == pytest.approx(float(kendall_tau(predicted, real)))
    quarters = np.array_split(np.argsort(predicted, kind="stable"), 4)
    for shown, at in zip(truth["groups"], quarters, strict=True):
        assert shown["predicted"] == pytest.approx(predicted[at].mean())
        assert shown["real"] == pytest.approx(real[at].mean())
        assert shown["requests"] == at.size


def of_metrics(seen: dict[str, Any], told: dict[str, float]) -> None:
    """Hold what is now, and what was counted since the start, against `/metrics`."""
    assert seen["waiting"] == told["sooner_waiting"]
    assert seen["running"] == told["sooner_running"]
    for name, shown in (*seen["total"].items(), *seen["hour"]["refused"].items()):
        assert shown == told[f"sooner_{name}_total"], name
    assert seen["hour"]["in_time"] == told["sooner_in_time_total"]
    assert seen["hour"]["requests"] == told["sooner_finished_total"] == told["sooner_wait_seconds_count"]
    for row in seen["engines"]["rows"]:
        label = f'{{backend="{row["name"]}"}}'
        for name, metric in (
            ("running", "in_flight"), ("limit", "in_flight_limit"), ("waiting_inside", "waiting_inside"),
            ("kv", "kv_usage"),
        ):  # fmt: skip
            assert (row[name] or 0.0) == told[f"sooner_backend_{metric}{label}"], name
        assert (row["state"] == "up") == bool(told[f"sooner_backend_up{label}"])
    for row in seen["learned"]:
        of_all = row["of"] == "all"
        family = "sooner_ranker" if of_all else "sooner_ranker_group"
        label = "" if of_all else f'{{of="{row["of"]}",group="{row["group"]}"}}'
        for name, metric in (("tau", "tau"), ("gain", "expected_gain"), ("on", "on")):
            missing = {"default": math.nan} if of_all else {}  # of all, what is not known is left out
            found = told.get(f"{family}_{metric}{label}", missing.get("default"))
            assert (row[name] is None and found != found) or row[name] == found, name
    if "sooner_ranker_tau" in told:
        assert seen["learned"][0]["of"] == "all"


def test_each_number_on_the_page_is_that_of_metrics_or_of_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    work = [{"id": str(n), "prompt": f"tell me {'more ' * (n % 9)}{n}"} for n in range(REPLAYED)]
    (tmp_path / "work.jsonl").write_text("".join(json.dumps(row) + "\n" for row in work))
    options = ("--emulate", "llama3-8b-a100", "--lengths", "lognormal:30,0.7", "--journal", str(journal))
    with serving(*options) as (_, url):
        model = json.loads(get(f"{url}/v1/models"))["data"][0]["id"]
        command = [sys.executable, "-m", "sooner", "replay", str(tmp_path / "work.jsonl"), "--url", url]
        command += ["--model", model, "--arrivals", "poisson", "--rate", "30", "--max-tokens", "400"]
        replay = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out.jsonl")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        looks, last = 0, dict[str, float]()
        while replay.poll() is None:
            last = bracketed(url, last)
            looks += 1
            time.sleep(0.3)
        assert replay.returncode == 0
        assert looks > 2
        for tenant in TENANTS:
            assert post(f"{url}/v1/chat/completions", tenant, model) == 200
        end = time.monotonic() + 30
        while len(rows := rows_of(journal)) < REPLAYED + len(TENANTS):
            assert time.monotonic() < end, len(rows)
            time.sleep(0.1)
        while True:  # the page is some seconds old at most, and what is learned is told once a second
            time.sleep(1.0)
            before, seen = metrics(url), json.loads(get(f"{url}/sooner/v1/state"))
            page, told = get(f"{url}/sooner/"), metrics(url)
            over = not seen["running"] and seen["total"]["finished"] == len(rows)
            if over and before == told and page == html.page(seen, signed_in=False):
                break
            assert time.monotonic() < end
    of_metrics(seen, told)
    of_journal(seen, rows, SloSettings())
    assert re.search(rf'id="n-finished">{len(rows)}<', page)
