"""What the live page costs the gateway: CPU a request, and CPU a look with a room full of requests.

    python benchmarks/page_cost.py [--waiting 10000] [--tenants 200] [--looks 20]

In one process, in CPU time, so that other load of the machine counts for little: what each finished request
adds, and what one look takes (state, HTML, JSON), of which there is at most one a second for all viewers,
and fewer where a look takes long.
The share is of the gateway's own CPU at `--rate` requests a second, at the milliseconds a request that
`results/gateway_overhead.json` has. Prints JSON, kept in `results/page_cost.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sooner.chat import ChatRequest
from sooner.gateway.admission.room import Waiting
from sooner.gateway.delivery.context import Finished
from sooner.gateway.dispatch import Dispatcher
from sooner.gateway.engines.backend import Backend
from sooner.gateway.page import html
from sooner.gateway.page.live import pause
from sooner.gateway.page.recent import KEPT, Recent
from sooner.gateway.page.remembered import RememberedPage
from sooner.gateway.page.state import state
from sooner.gateway.page.worth import Worth
from sooner.gateway.settings import BackendSettings, GatewaySettings
from sooner.gateway.switch import OrderSwitch
from sooner.gateway.visit import Newcomer, Visit

OUT = Path(__file__).parent / "results" / "page_cost.json"
CPU_A_REQUEST = 1.39e-3  # seconds; gateway_overhead.json
PATH = "/v1/chat/completions"


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--looks", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = asyncio.run(measure(options.waiting, options.tenants, options.looks, options.rate))
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


async def measure(waiting: int, tenants: int, looks: int, rate: float) -> dict[str, Any]:
    """Fill a dispatcher and the hour, and time what a request and a look take."""
    backend = BackendSettings(url="http://127.0.0.1:9", kind="vllm", name="a")
    settings = GatewaySettings(port=0, ranker="", learn=False, state="", backends=(backend,))
    dispatcher = Dispatcher(settings, [Backend(backend, settings.limits)])
    pool = dispatcher.pool_for("m", PATH)
    pool.backends[0].healthy = True
    pool.service.add(2.0)
    pool.load.add(0.1)  # so that it is known when each starts
    rng = np.random.default_rng(0)
    for n in range(waiting):
        ticket = pool.order.arrive(f"r{n}", time.monotonic(), int(rng.integers(10, 2000)))
        ticket.predicted_len = float(rng.lognormal(5, 1))
        pool.newcomers.append(Newcomer(ticket, f"tenant {n % tenants}", 0))
        visit = Visit(f"r{n}", f"tenant {n % tenants}", 0, ticket, asked=_asked(), pool=pool)
        assert isinstance(visit, Waiting)
        pool.room.push(visit, time.monotonic())
    recent = Recent(dispatcher.counters.counts, settings.slo)
    switch, worth = OrderSwitch(dispatcher, RememberedPage()), Worth("", settings.whatif, RememberedPage())

    def fill() -> None:
        for n in range(KEPT):
            recent.add(_finished(n, tenants))

    def glance() -> list[dict[str, Any]]:
        found = []
        for n in range(looks):
            if n % 10 == 0:  # the hour is reckoned anew every ten seconds
                recent._at = -1e9
            found.append(state(dispatcher, recent, switch, worth))
        return found

    def look() -> None:
        for seen in glance():
            json.dumps({"at": seen["at"], "sections": html.sections(seen)})

    empty = cpu(lambda: [_finished(n, tenants) for n in range(KEPT)])
    a_request = (cpu(fill) - empty) / KEPT
    a_look, between = cpu(look) / looks, pause(cpu(glance) / looks)
    dispatcher.close()
    for one in dispatcher.backends:
        one.close()
    return {
        "waiting": waiting,
        "tenants": tenants,
        "cpu_us_a_request": 1e6 * a_request,
        "cpu_ms_a_look": 1e3 * a_look,
        "seconds_between_looks": between,
        "rate": rate,
        "share_of_a_requests_cpu": (a_request + a_look / between / rate) / CPU_A_REQUEST,
    }


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that a piece of work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


class _Asked:
    """What is read of a request when it is over."""

    stream = True
    request = ChatRequest("x")


def _asked() -> Any:
    return _Asked()


def _finished(n: int, tenants: int) -> Finished:
    length = 1 + n * 7919 % 900
    return Finished(
        "r", f"tenant {n % tenants}", _asked(), "a", 0.0, n % 13 / 10, 0.1, 2.0 + n % 7, 100, length, True,
        200, None, 0.5 * length + 50,
    )  # fmt: skip


if __name__ == "__main__":
    main()
