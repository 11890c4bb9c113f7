"""What commands do when something is wrong: one line, the right exit code, nothing made by mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sooner import policies, rankers
from sooner.cli import root


def sooner(*words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sooner", *words],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **more},
        timeout=120,
    )


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("train", "{log}", "--out", "/proc/nowhere/r"),
        ("train", "{folder}/none.jsonl", "--out", "{folder}/r"),
        ("train", "{log}", "--out", "{folder}/r", "--leave-out", "{folder}/latin1.txt"),
        ("train", "{log}", "--out", "{log}/r"),
        ("evaluate", "light", "{log}", "--html", "{folder}/none/x.html"),
        ("evaluate", "{log}", "{log}"),
        ("explain", "light", "--log", "{log}", "--html", "/proc/nowhere.html"),
        ("export", "{folder}/nosuch.db"),
        ("export", "sqlite:///{folder}/nosuch.db"),
        ("score", "{folder}/nothing"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_what_files_and_disks_refuse_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": f"p {i}", "output_len": i + 1}) + "\n" for i in range(40)))
    (tmp_path / "latin1.txt").write_bytes(b"\xe9t\xe9 c1")
    done = sooner(*(word.format(log=log, folder=tmp_path) for word in words))
    if "--leave-out" in words:
        assert done.returncode == 0, done.stderr
        return
    assert one_line(done).splitlines()[-1].startswith("sooner: ")
    assert not (tmp_path / "nosuch.db").exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "explain", "simulate", "compare-rankers"])
def test_a_negative_seed_is_refused_with_what_is_allowed(command: str) -> None:
    words = {
        "train": ["x", "--out", "y"],
        "evaluate": ["x", "y"],
        "explain": ["x", "y"],
        "compare-rankers": ["x", "y"],
    }
    done = CliRunner().invoke(root, [command, *words.get(command, ["sharegpt"]), "--seed", "-1"])
    assert done.exit_code == 2
    assert "0<=x<=2147483647" in done.output


def test_the_hub_without_a_network_is_one_line(tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = sooner("train", "hf:owner/name", "--out", str(tmp_path / "r"), **nobody)
    assert "owner/name" in one_line(done).splitlines()[-1]


def test_help_lists_the_names() -> None:
    for command, known in (("train", rankers.names()), ("simulate", policies.names())):
        told = CliRunner().invoke(root, [command, "--help"]).output
        assert all(name in told for name in known)


def test_a_bad_line_is_named_and_the_next_is_scored() -> None:
    lines = ["one", '{"messages": 5}', '{"messages": [{"role": "user", "content": "two"}]}', "[" * 5000, "x"]
    done = sooner("score", "light", "--json", given="\n".join(lines) + "\n")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [made["score"] is None for made in told] == [False, True, False, False, False]
    assert done.returncode == 1
    assert "line 2 is not scored: messages is int" in done.stderr
    assert "1 of 5 lines were not scored" in done.stderr


def test_who_reads_our_output_may_stop() -> None:
    program = f"yes prompt | head -20000 | {sys.executable} -m sooner score light | head -1"
    done = subprocess.run(program, shell=True, capture_output=True, text=True, check=False, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_a_comparison_that_is_piped_is_not_broken_into_lines(tmp_path: Path) -> None:
    from sooner.rankers import conformance

    prompts, lengths = conformance.rows(600)
    for name, part in (("a", slice(0, 400)), ("b", slice(400, 600))):
        rows = zip(prompts[part], lengths[part], strict=True)
        lines = [
            json.dumps({"id": f"{name}{i}", "prompt": p, "output_len": y}) for i, (p, y) in enumerate(rows)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    arms = ["--arm", "prompt_length", "--arm", "lexical"]
    done = sooner("compare-rankers", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), *arms)
    table = done.stdout.splitlines()
    assert [line.split()[0] for line in table[:3]] == ["ranker", "prompt_length", "lexical"]
    assert all(" ± " in line for line in table[1:3])
    assert len([line for line in table if ": not run" in line]) == 7  # a claim is a line
