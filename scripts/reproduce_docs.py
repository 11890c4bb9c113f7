"""Write the generated part of docs/reproduce.md from benchmarks/results/reproduce/NAME.json.

Each of those is the output of `sooner reproduce NAME --json`. Then: python scripts/reproduce_docs.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/reproduce"
PAGE = ROOT / "docs/reproduce.md"
WIDTH = 118
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def section(found: dict) -> str:
    """Return one reproduction's claims as a table, and its unconfirmed constants."""
    held = sum(claim["holds"] for claim in found["claims"])
    lines = [
        f"### {found['name']}",
        "",
        textwrap.fill(
            f"{found['title']}. **{held} of {len(found['claims'])} claims reproduced**;"
            f" {found['cpu_s']:.0f} s of CPU. `sooner reproduce {found['name']}`",
            WIDTH,
        ),
        "",
        "| claim | reproduced | ours, and how sure the claim is |",
        "|---|---|---|",
    ]
    for claim in found["claims"]:
        held_text = "yes" if claim["holds"] else "**no**"
        reason = claim["reason"].replace("|", "/")
        if claim.get("reworded"):
            held_text += ", reworded"
            reason += f". *Reworded after a first run*: {claim['reworded']}"
        lines.append(f"| {claim['text']} | {held_text} | {reason} ({claim['source']}) |")
    beside = [row for row in found["rows"] if row["paper"] is not None]
    if beside:
        within = [row for row in beside if row["paper"] and 0.8 <= row["ours_over_paper"] <= 1.25]
        lines += ["", f"Of {len(beside)} numbers beside the paper's, {len(within)} are within 25 %."]
    if found["unconfirmed"]:
        doubts = "; ".join(f"`{name}` ({why})" for name, why in found["unconfirmed"].items())
        lines += ["", textwrap.fill(f"Unconfirmed: {doubts}.", WIDTH, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace what stands between the two marks."""
    files = sorted(RESULTS.glob("*.json"))
    text = "\n".join(section(json.loads(file.read_text(encoding="utf-8"))) for file in files)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


main()
