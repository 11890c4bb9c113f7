"""Each format of a trace with its units, its failures and its gaps; what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sooner.cli import root
from sooner.core import DataError
from sooner.workloads import traces
from sooner.workloads.build import Shape, build
from sooner.workloads.traces import Trace, formats


def read(tmp_path: Path, text: str, name: str = "t.csv") -> Trace:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return traces.read(path)


def of(tmp_path: Path, *records: Any) -> Trace:
    return read(tmp_path, "\n".join(map(json.dumps, records)), "t.jsonl")


def times(trace: Trace) -> list[float]:
    assert trace.arrival_time is not None
    return trace.arrival_time.tolist()


@pytest.mark.parametrize("zone", ["", "Z", "+00:00", " UTC", "+02:00"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.filterwarnings("error")
def test_azures_dates_of_any_zone(tmp_path: Path, zone: str, mark: str, end: str) -> None:
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        f"2024-05-10 00:00:00.009930{zone},2162,5",
        f"2024-05-10 00:00:01{zone},2399,6",
        f"2024-05-10T00:00:03.5{zone},76,30",
    ]
    trace = read(tmp_path, mark + end.join(lines))
    assert times(trace) == pytest.approx([0, 0.99007, 3.49007])
    assert trace.output_len.tolist() == [5, 6, 30]


def test_qwens_seconds_and_blocks_are_not_mooncakes(tmp_path: Path) -> None:
    def rows(size: int, unit: float, **more: Any) -> list[Any]:
        lengths = (64, 640, 1030)
        return [
            {
                "timestamp": unit * i,
                "input_length": n,
                "output_length": 9,
                "hash_ids": list(range(-(-n // size))),
                **more,
            }
            for i, n in enumerate(lengths)
        ]

    qwen = of(tmp_path, *rows(16, 61.114, chat_id=0, parent_chat_id=-1, turn=1))
    assert (qwen.block_size, times(qwen)) == (16, pytest.approx([0, 61.114, 122.228]))
    bare = of(tmp_path, *rows(16, 61.114))
    assert (bare.block_size, times(bare)[-1]) == (16, pytest.approx(122.228))
    mooncake = of(tmp_path, *rows(512, 3000))
    assert (mooncake.block_size, times(mooncake)) == (512, [0, 3, 6])
    assert "milliseconds" in mooncake.notes[0]
    lengths = of(tmp_path, {"input_length": 5, "output_length": 6})
    assert lengths.arrival_time is None


def test_mooncakes_texts_are_prompts(tmp_path: Path) -> None:
    trace = of(
        tmp_path, *({"timestamp": 900 * i, "text_input": "x" * 40, "output_length": 9} for i in range(2))
    )
    assert (times(trace), trace.prompt_len.tolist()) == ([0, 0.9], [10, 10])
    assert trace.requests is not None


def test_failed_requests_are_dropped_and_counted(tmp_path: Path) -> None:
    head = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "5,s,1,ChatGPT,472,18,490,x\n45,s,0,ChatGPT,1087,0,1087,x\n118,s,3,GPT-4,417,276,693,x\n"
    trace = read(tmp_path, head + rows)
    assert (trace.output_len.tolist(), times(trace)) == ([18, 276], [0, 113])
    assert "1 rows dropped" in trace.notes[0]
    trace = of(tmp_path, {"prompt_len": -10, "output_len": -5}, {"prompt_len": 10, "output_len": 7})
    assert trace.output_len.tolist() == [7]
    assert "below 0" in trace.notes[0]
    with pytest.raises(DataError, match="no request"):
        of(tmp_path, {"prompt_len": -10, "output_len": -5})


def test_one_missing_time_does_not_cost_all_the_others(tmp_path: Path) -> None:
    trace = read(tmp_path, "arrival_time,prompt_len,output_len\n0,10,5\n,10,6\n500,10,7\n")
    assert (times(trace), trace.output_len.tolist()) == ([0, 500], [5, 7])
    assert "1 rows dropped: no arrival time" in trace.notes[0]
    trace = of(
        tmp_path, *({"prompt_len": 1, "output_len": 2, "arrival_time": t} for t in (3, None, float("nan")))
    )
    assert trace.arrival_time is None
    assert "2 of 3 rows have no arrival time" in trace.notes[0]


def test_a_missing_length_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="number in every row; 1 are not, row 2 the first"):
        of(tmp_path, {"prompt_len": 1, "output_len": 2}, {"prompt_len": 1})
    with pytest.raises(DataError, match="row 2 has 'two'"):
        read(tmp_path, "prompt_len,output_len\n1,2\n1,two\n")


def test_arrivals_may_be_dates_or_any_unit_of_the_epoch(tmp_path: Path) -> None:
    start = 1_735_689_600
    for given in (
        [start, start + 2],
        [start * 1000, start * 1000 + 2000],
        ["2025-01-01T00:00:00Z", "2025-01-01 00:00:02"],
    ):
        assert times(
            of(tmp_path, *({"prompt_len": 1, "output_len": 2, "arrival_time": t} for t in given))
        ) == [0, 2]
    with pytest.raises(DataError, match="row 1 has 'soon'"):
        of(tmp_path, {"prompt_len": 1, "output_len": 2, "arrival_time": "soon"})


def test_replies_of_no_token_are_told(tmp_path: Path) -> None:
    trace = of(tmp_path, {"prompt_len": 1, "output_len": 0}, {"prompt_len": 1, "output_len": 2})
    assert trace.output_len.tolist() == [1, 2]
    assert trace.notes == ("1 replies of 0 tokens were taken for 1",)


def test_names_of_tenants_and_senders_become_numbers(tmp_path: Path) -> None:
    rows = [
        {"prompt_len": 5, "output_len": 6, "arrival_time": i, "tenant": tenant, "sender": sender}
        for i, (tenant, sender) in enumerate((("b", "x"), ("a", "y"), ("b", None)))
    ]
    trace = of(tmp_path, *rows)
    assert trace.names == {"tenant": ["b", "a"], "sender": ["x", "y"]}
    workload, _ = build(trace, Shape(), np.random.default_rng(0))
    assert (workload.tenant.tolist(), workload.sender.tolist()) == ([0, 1, 0], [0, 1, 0])
    alone = build(
        of(tmp_path, *({k: v for k, v in row.items() if k != "sender"} for row in rows)),
        Shape(),
        np.random.default_rng(0),
    )
    assert alone.workload.sender.tolist() == [0, 1, 0]


def test_a_logs_arrivals_prompt_tokens_and_senders_are_used(tmp_path: Path) -> None:
    trace = of(
        tmp_path,
        *(
            {
                "prompt": "x" * 400,
                "prompt_tokens": 33,
                "output_len": 20,
                "arrival_time": 10 * i,
                "user": "ab"[i % 2],
            }
            for i in range(4)
        ),
    )
    assert (times(trace), trace.prompt_len.tolist()) == ([0, 10, 20, 30], [33] * 4)
    assert trace.sender is not None
    assert trace.sender.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [{"number_input_tokens": 5, "number_output_tokens": 6, "error_code": c} for c in (None, 500)],
            (None, [5], [6]),
        ),
        (
            [{"input_lens": [5, 7, 9], "output_lens": [6, 8, 0], "errors": ["", "", "timeout"]}],
            (None, [5, 7], [6, 8]),
        ),
        (
            [
                {
                    "metadata": {"request_start_ns": 10**18 + i * 10**9},
                    "metrics": {
                        "input_sequence_length": {"value": 5, "unit": "tokens"},
                        "output_sequence_length": {"value": 6, "unit": "tokens"},
                    },
                    "error": None,
                }
                for i in range(2)
            ],
            ([0, 1], [5, 5], [6, 6]),
        ),
        (
            [
                {
                    "messages": {},
                    "prompt_tokens": 5,
                    "completion_tokens": 6,
                    "startTime": f"2025-01-01T00:00:0{i}Z",
                }
                for i in range(2)
            ],
            ([0, 1], [5, 5], [6, 6]),
        ),
    ],
    ids=["llmperf", "vllm bench", "aiperf", "litellm without prompts"],
)
def test_what_holds_lengths_only_is_a_trace(tmp_path: Path, records: list[Any], expected: Any) -> None:
    trace = of(tmp_path, *records)
    found = None if trace.arrival_time is None else times(trace)
    assert (found, trace.prompt_len.tolist(), trace.output_len.tolist()) == expected


def test_what_sooner_export_writes_sooner_simulate_reads(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": "hi"}],
            "id": f"r{i}",
            "tenant": "default",
            "model": "m",
            "backend": "e",
            "arrival_time": 1_795_896_610.25 + i,
            "wait": 0.1,
            "first_byte": 0.2,
            "total": 0.3,
            "prompt_len": 3,
            "output_len": 20 + i,
            "counted": True,
            "status": 200,
            "stream": False,
            "max_tokens": 0,
            "temperature": None,
            "tools": 0,
            "structured": False,
            "score": None,
            "predicted_len": None,
        }
        for i in range(5)
    ]
    path = tmp_path / "export.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trace = traces.read(path)
    assert times(trace) == pytest.approx(range(5))
    assert trace.requests is not None
    assert trace.score is None
    done = CliRunner().invoke(root, ["simulate", str(path), "--policy", "fcfs", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n"] == 5


def test_commands_say_what_was_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_time,prompt_len,output_len\n0,10,5\n,10,6\n500,10,7\n", encoding="utf-8")
    done = CliRunner().invoke(root, ["simulate", str(path), "--policy", "fcfs", "--json"])
    assert done.exit_code == 0, done.output
    assert "1 rows dropped: no arrival time" in done.stderr


def test_formats_are_found_by_their_files() -> None:
    expected = {"ours", "azure", "burstgpt", "vidur", "mooncake", "counts"}
    assert {found.name for found in formats.known()} >= expected
    assert formats.known()[-1].name == "counts"
