"""A journal of a million rows: how long the gateway, its page and the commands that read it take.

    python benchmarks/journal_million.py

The rows are written by SQL: four days, one every 0.35 s, served under `boost`. Prints JSON and writes it to
`results/journal_million.json`.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from sooner.gateway.database import Database

OUT = Path(__file__).parent / "results" / "journal_million.json"
FILL = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows)
INSERT INTO sooner_requests (id, tenant, model, backend, arrival_time, wait, first_byte, total, prompt_len,
    output_len, counted, status, stream, max_tokens, score, predicted_len, policy)
SELECT 'r' || i, 'tenant ' || (i % 50), 'm', 'a', :last - 0.35 * (:rows - i), 0.1 * (i % 17), 0.05,
    0.1 * (i % 17) + 0.05 + 0.01 * (1 + (i * 7919) % 400), 20 + i % 200, 1 + (i * 7919) % 400, 1, 200, 1, 0,
    1.0 + (i * 7919) % 400, 1.0 + (i * 7919) % 400, 'boost'
FROM n
"""


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "journal.db", options.rows)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def measure(path: Path, rows: int) -> dict[str, Any]:
    """Fill a journal and time what reads it [s]."""
    url, now = f"sqlite:///{path}", time.time()
    database = Database(url)
    database.open()
    database.close()
    with sqlite3.connect(path) as opened:
        opened.execute(FILL, {"rows": rows, "last": now})
    opened.close()
    found: dict[str, Any] = {"rows": rows, "bytes": path.stat().st_size}
    found["whatif_s"] = timed("whatif", url, "--json")
    found["whatif_of_the_last_minute_s"] = timed("whatif", url, "--since", str(now - 60), "--json")
    found["export_of_the_last_hour_s"] = timed(
        "export", url, "--lengths-only", "--since", str(now - 3600), "--out", str(path.with_suffix(".jsonl"))
    )
    found |= served(url)
    return found


def timed(*command: str) -> float:
    """Return how long a command takes, its process and imports included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sooner", *command], stdout=subprocess.DEVNULL, check=False)
    return round(time.perf_counter() - began, 2)


def served(url: str) -> dict[str, float]:
    """Return how long a gateway on the journal takes to start, and for a page."""
    began = time.perf_counter()
    options = ("--port", "0", "--ranker", "", "--emulate", "llama3-8b-a100", "--journal", url)
    process = subprocess.Popen([sys.executable, "-m", "sooner", "serve", *options], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith(b"serving "))
        start = time.perf_counter() - began
        page = said.split()[1].decode().removesuffix("/v1") + "/sooner/"
        began = time.perf_counter()
        for _ in range(20):
            with urllib.request.urlopen(page, timeout=30) as reply:
                reply.read()
        return {"start_s": round(start, 2), "page_s": round((time.perf_counter() - began) / 20, 4)}
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
