"""The papers' rankers on one log: accuracy beside tau, cost, and which of the papers' claims hold.

    python benchmarks/compare_rankers.py TRAIN TEST [--encoder NAME] [--rows N] [--arm NAME ...]
        [--trained DIR ...] [--out FILE]

The same as `sooner compare-rankers TRAIN TEST`, with machine and versions beside the figures. `--table
FILE` prints a file that was written before as the table of docs/baselines.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sooner import training as train
from sooner.judging import comparison
from sooner.rankers.neural.encoding import DEFAULT_ENCODER
from sooner.workloads import logs


def main() -> None:
    """Run the comparison, or print a table of an earlier one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="*", help="TRAIN and TEST")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--rows", type=int, help="at most so many training rows")
    parser.add_argument("--arm", action="append", help="only this arm; may be given several times")
    parser.add_argument(
        "--trained", action="append", default=[], help="a trained ranker to judge beside them"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    if args.table is not None:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))))
        return
    known, unseen = (train.dataset(logs.read(path).rows) for path in args.data)
    if args.rows is not None:
        known = known.take(range(min(args.rows, len(known.prompts))))
    result = comparison.compare(
        known,
        unseen,
        arms=args.arm or comparison.QUICK,
        trained=args.trained,
        encoder=args.encoder,
        progress=lambda done, words: print(f"{done:4.0%} {words}", file=sys.stderr),
    )
    result["machine"] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("numpy", "torch", "lightgbm", "onnxruntime")},
    }
    text = json.dumps(result, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def table(result: dict[str, Any]) -> str:
    """Return the arms and the claims as Markdown."""
    rows = f"{result['train_rows']:,} training rows, {result['test_rows']} test rows"
    trained = "trained before" if result["encoder_trained"] else "not trained"
    lines = [
        f"{rows}; encoder: `{result['encoder']}`, {trained}.",
        "",
        "| ranker | tau | accuracy | RMSE [tokens] | training [CPU s] | CPU ms a request | known of it |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        cells = [
            arm["name"],
            f"{arm['kendall_tau']:.3f} ± {arm['kendall_tau_se']:.3f}",
            "" if arm["class_accuracy"] is None else f"{arm['class_accuracy']:.1%}",
            f"{arm['rmse']:.0f}",
            "" if arm["train_cpu_s"] is None else f"{arm['train_cpu_s']:.0f}",
            f"{arm['ms_per_request']:.2f}",
            arm["reported"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| paper | claim | here | figures |", "|---|---|---|---|"]
    lines += [
        f"| {one['paper']} | {one['claim']} | {one['outcome']} | {one['here']} |" for one in result["claims"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
