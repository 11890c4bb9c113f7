"""The simulator and the gateway of two trees of this repository, in turns: CPU time of this over the other.

    git worktree add /tmp/other e19594e
    python benchmarks/in_turns.py /tmp/other [--rounds 5] [--parts simulator gateway] [--out FILE]

Each round runs both trees, the first one changing from round to round, each in a process of its own with
that tree's `src` alone. A ratio is of one round; the median and the quartiles over rounds are printed as
JSON. CPU seconds do not count what else the machine does, but a busy neighbour still slows the caches: the
quartiles say how much.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
CASES = """
import json, sys
sys.path.insert(0, "benchmarks")
import simulator_speed as speed
from sooner.sim.engine import Options
rate = 0.8 * speed.capacity(speed.ENGINE)
tight = 0.8 * speed.capacity(speed.TIGHT)
n = 200_000
cases = {
    "plain fcfs": speed.run(n, "fcfs", rate),
    "plain ltr": speed.run(n, "ltr", rate),
    "plain aged": speed.run(n, "aged", rate),
    "kv pressure fcfs": speed.run(n, "fcfs", tight, speed.TIGHT),
    "kv pressure ltr": speed.run(n, "ltr", tight, speed.TIGHT),
    "hrrn": speed.run(n // 4, "hrrn", rate),
    "ltr with guard": speed.run(n // 4, "ltr", rate, options=Options(guard=200)),
    "iteration level srpt": speed.run(n // 4, "srpt", rate),
    "burst ltr": speed.run(n, "ltr", None),
}
print(json.dumps({name: case["cpu_s"] for name, case in cases.items()}))
"""


def simulator(tree: Path) -> dict[str, float]:
    """Return the CPU seconds of each case of the simulator, best of three."""
    cases: dict[str, float] = json.loads(_python(tree, "-c", CASES))
    return cases


def gateway(tree: Path) -> dict[str, float]:
    """Return the gateway's CPU [ms] a request and a streamed token [us]."""
    found = json.loads(_python(tree, "benchmarks/gateway_overhead.py", "--quick"))
    return _numbers(found)


def _numbers(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the CPU a request and a token of a report, by path."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{path}.")
        elif key == "tokens_per_cpu_s" and value:
            numbers[f"{prefix}cpu_s_per_token"] = 1.0 / value
        elif key.endswith("cpu_ms_per_request"):
            numbers[path] = float(value)
    return numbers


def _python(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


PARTS = {"simulator": simulator, "gateway": gateway}


def main() -> None:
    """Run the parts in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("other", type=Path, help="root of the other tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "other": _commit(options.other),
        "this": _commit(HERE),
        "rounds": options.rounds,
    }
    for part in options.parts:
        ratios: dict[str, list[float]] = {}
        for turn in range(options.rounds):
            trees = [options.other.resolve(), HERE]
            found = {tree: PARTS[part](tree) for tree in (trees if turn % 2 else trees[::-1])}
            for name, value in found[HERE].items():
                if found[trees[0]].get(name):  # 0 where a part has no process of its own
                    ratios.setdefault(name, []).append(value / found[trees[0]][name])
            print(f"{part}: round {turn + 1} of {options.rounds}", file=sys.stderr)
        report[part] = {name: _spread(values) for name, values in ratios.items()}
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 3), "lower": round(low, 3), "upper": round(high, 3)}


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
