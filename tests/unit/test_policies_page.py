"""The policy in `docs/policies.md` keeps the contract and runs in all three homes; its table is true."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
from click.testing import CliRunner

from sooner import policies
from sooner.cli import root
from sooner.core import ConfigError, Prediction, View
from sooner.gateway.settings import GatewaySettings
from sooner.ordering.order import Order
from sooner.policies import conformance
from sooner.sim import conformance as simulated
from sooner.vllm.counters import PluginCounters
from sooner.vllm.settings import load

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
NAME = "favoured:favoured"

BROKEN = """
import numpy as np

from sooner.policies import policy

TABLE = {"first": 1.0}


def branches(q, now):
    return 1.0 if q.predicted_len > 3.0 else 2.0


def strings(q, now):
    return q.score * TABLE["first"]


def infinite(q, now):
    return np.exp(800.0 * q.predicted_len) + np.maximum(q.attained, 1.0)


def early(q):
    return q.arrival_time


class Callable:
    def __call__(self, q, now):
        return q.score


made = Callable()


def has_none(q, now, *, weight):
    return weight * q.score


def deep(q, now):
    return inner(q)


def inner(q):
    return np.where(q.counter > 0.0, q[0], getattr(q, "score"))
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (folder / "favoured.py").write_text(code, encoding="utf-8")
    (folder / "broken.py").write_text(BROKEN, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("check", conformance.CHECKS + simulated.CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check: conformance.Check) -> None:
    check(policies.get(NAME))


def test_the_simulator_runs_it() -> None:
    words = [
        "simulate",
        "lognormal",
        "--policy",
        NAME,
        "--param",
        "patience=20",
        "--classes",
        "0.2:inf,0.8:inf",
    ]
    done = CliRunner().invoke(root, [*words, "--load", "0.9", "--requests", "2000", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["policy"], report["n"]) == (NAME, 2000)


def test_plugin_and_gateway_run_it() -> None:
    plugin = load({"sooner": {"policy": NAME, "patience": 20}}).chosen_policy()
    gateway = GatewaySettings(policy=NAME, parameters={"patience": 20.0}).chosen_policy
    assert plugin.parameters == gateway.parameters == {"patience": 20.0, "head_start_s": 2.0}
    order = Order(plugin, None, PluginCounters())
    usual = order.arrive("usual", 0.0, 10)
    first = order.arrive("first", 1.0, 10, level=0)
    assert usual.level == first.level == 0
    lax = order.arrive("lax", 0.0, 10, level=1)
    assert lax.key == pytest.approx(usual.key + 2.0)
    order.predicted("usual", Prediction(1.0, 500.0), 0)
    assert usual.key > lax.key
    assert not order.counters.counts.get("policy_errors")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken:branches", "given columns of requests: .*ambiguous.* np.where"),
        ("broken:early", r"takes \(q\), allowed: \(view, now"),
        ("broken:made", "allowed: a plain function"),
        ("broken:has_none", "weight=.*allowed as a default"),
        ("broken:nothing", "no attribute 'nothing'; allowed: 'module:name'"),
        ("nowhere_at_all:x", "No module named 'nowhere_at_all'"),
    ],
)
def test_what_is_no_policy_says_why(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policies.get(name)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled with the JIT off")
def test_what_cannot_be_compiled_says_why_and_where() -> None:
    with pytest.raises(
        ConfigError, match=r"'broken:strings' cannot be compiled.*TABLE.*broken.py\", line \d+"
    ):
        simulated.is_the_same_compiled(policies.get("broken:strings"))


def test_what_is_read_in_a_helper_by_place_or_by_text_is_read() -> None:
    assert policies.get("broken:deep").reads == {"counter", "arrival_time", "score"}


def test_an_infinite_key_is_a_key() -> None:
    chosen = policies.get("broken:infinite")
    assert chosen.reads == {"attained", "predicted_len"}
    for check in conformance.CHECKS:
        check(chosen)


def test_a_host_names_the_field_that_it_does_not_tell() -> None:
    with pytest.raises(ConfigError, match="'vtc' reads 'counter', which the vLLM plugin does not tell"):
        load({"sooner": {"policy": "vtc"}})
    with pytest.raises(
        ConfigError, match=r"'edf_classes' reads 'deadline', 'level', which .* without client_s"
    ):
        load({"sooner": {"policy": "edf_classes", "client_scores": False}})
    for name in policies.names():
        assert GatewaySettings(policy=name).chosen_policy.reads <= set(View._fields)
        if name != "vtc":
            assert load({"sooner": {"policy": name}}).chosen_policy().name == name


def test_a_promise_that_what_it_reads_breaks_is_refused() -> None:
    for promise in ({"static": True}, {"timeless": True}):
        with pytest.raises(ConfigError, match=r"is said to be .* but reads 'counter'"):

            @policies.policy(**promise)
            def owed(q: View, now: float) -> float:
                return float(q.counter)


def test_a_policy_of_yours_takes_no_name_of_ours() -> None:
    @policies.policy()
    def fcfs(q: View, now: float) -> float:
        return -float(q.arrival_time)

    assert policies.get("fcfs").key(View(3.0), 0.0) == 3.0


def test_the_table_is_true() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## The policies")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "| `" in line]
    expected = []
    for name in policies.names():
        chosen = policies.get(name)
        promises = [
            word
            for word in ("static", "timeless", "linear", "preemptive")
            if getattr(chosen, word) and not (word == "timeless" and chosen.static)
        ]
        expected.append(
            [
                f"`{name}`",
                ", ".join(f"`{field}`" for field in View._fields if field in chosen.reads),
                ", ".join(f"`{key}` {value:g}" for key, value in chosen.parameters.items()),
                ", ".join(promises),
            ]
        )
    assert rows == expected
