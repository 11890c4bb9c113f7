"""Readers of traces: every format gives the same columns; what is wrong is said."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from sooner import config
from sooner.chat import ChatRequest, Turn
from sooner.core import DataError, SoonerError, UnknownName
from sooner.metrics import kendall_tau
from sooner.workloads import named, traces
from sooner.workloads.traces import servegen


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.1805900,396,0\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "45,ChatGPT,374,44,418,Conversation log\n46.5,GPT-4,396,1,397,API log\n"
)
OURS = "\n".join(
    json.dumps({"arrival_time": time, "prompt_len": prompt, "output_len": output})
    for time, prompt, output in ((8.5, 396, 1), (7.0, 374, 44))
)
MOONCAKE = "\n".join(
    json.dumps({"timestamp": time, "input_length": prompt, "output_length": output, "hash_ids": ids})
    for time, prompt, output, ids in ((3000, 374, 44, [0, 1]), (4500, 396, 1, [0, 2]))
)
RUN = "\n".join(
    json.dumps(
        {
            "input_toks": prompt, "output_toks": output, "arrival_time": 1000 + at, "queued_ts": 5 + at,
            "scheduled_ts": 5 + at, "first_token_ts": 6 + at, "last_token_ts": 9 + at,
        }
    )
    for at, prompt, output in ((0.0, 374, 44), (1.5, 396, 1))
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("azure.csv", AZURE),
        ("azure.csv.gz", AZURE),
        ("burst.csv", BURSTGPT),
        ("ours.jsonl", OURS),
        ("ours.jsonl.gz", OURS),
        ("mooncake.jsonl", MOONCAKE),
        ("run.jsonl", RUN),
    ],
)
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str, text: str) -> None:
    trace = traces.read(write(tmp_path, name, text))
    assert trace.prompt_len.tolist() == [374, 396]
    assert trace.output_len.tolist() == [44, 1]
    assert trace.arrival_time is not None
    assert trace.arrival_time.tolist() == pytest.approx([0.0, 1.5])


def test_mooncake_keeps_the_blocks_of_each_prefix(tmp_path: Path) -> None:
    trace = traces.read(write(tmp_path, "m.jsonl", MOONCAKE))
    assert trace.blocks is not None
    assert [ids.tolist() for ids in trace.blocks] == [[0, 1], [0, 2]]


def test_a_trace_of_lengths_has_no_arrivals(tmp_path: Path) -> None:
    trace = traces.read(write(tmp_path, "v.csv", "num_prefill_tokens,num_decode_tokens\n10,20\n30,40\n"))
    assert trace.arrival_time is None
    assert trace.output_len.tolist() == [20, 40]


def test_predictions_deadlines_and_prompts_of_ours(tmp_path: Path) -> None:
    plain = {"prompt_len": 3, "output_len": 4}
    rows = [
        plain | {"arrival_time": 10.0, "score": 1.5, "predicted_len": 7, "prompt": "a"},
        plain | {"arrival_time": 11.0, "score": 2.5, "prompt": "b", "deadline": 12.0, "cancel_time": 13.0},
    ]
    trace = traces.read(write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows))))
    assert trace.score is not None
    assert trace.score.tolist() == [1.5, 2.5]
    assert trace.deadline is not None
    assert trace.deadline.tolist() == [np.inf, 2.0]
    assert trace.cancel_time is not None
    assert trace.cancel_time.tolist() == [np.inf, 3.0]
    assert trace.requests == [ChatRequest("a"), ChatRequest("b")]


def test_a_log_with_prompts_is_a_workload(tmp_path: Path) -> None:
    log = {"messages": [{"role": "user", "content": "x" * 40}], "output_tokens": 12}
    trace = traces.read(write(tmp_path, "log.jsonl", json.dumps(log)))
    assert trace.prompt_len.tolist() == [10]
    assert trace.output_len.tolist() == [12]
    assert trace.requests == [ChatRequest((Turn("user", "x" * 40),))]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "x,y\n1,2\n", "allowed: prompt_len and output_len"),
        ("a.csv", "", "no request"),
        ("a.csv", "prompt_len,output_len\n1,two\n", "output_len must be a number"),
        ("a.csv", "prompt_len,output_len\n1,\n", "number in every row"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "must be dates"),
        ("a.jsonl", '{"prompt_len": 1, "output_len": 2}\n{"prompt_len"', "not JSONL"),
        ("a.tar.gz", "no archive", "ServeGen"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SoonerError, match=says):
        traces.read(path)


def servegen_archive(folder: Path, more: Mapping[str, str] | None = None) -> Path:
    path = folder / "clients.tar.gz"
    files = {
        "chunk-0-trace.csv": "0,2.0,1.0,Gamma,1.0,0.5\n600,0,0,,0,0\n",
        "chunk-0-dataset.json": json.dumps(
            {"0": {"input_tokens": "{100: 1.0}", "output_tokens": "{7: 0.5, 9: 0.5}"}}
        ),
        "chunk-1-trace.csv": "0,1.0,1.0,Weibull,0.8,0.5\n600,0,0,,0,0\n",
        "chunk-1-dataset.json": json.dumps({"0": {"input_tokens": "{}", "output_tokens": "{}"}}),
        **(more or {}),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"data/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_servegen_clients_send_at_their_rates(tmp_path: Path) -> None:
    times, prompt, output = servegen.sample(servegen_archive(tmp_path), seed=1)
    assert 1500 < times.size < 2100  # 3 a second for ten minutes
    assert (np.diff(times) >= 0).all()
    assert times.max() < 600
    assert set(prompt) == {100}
    assert set(output) == {7, 9}
    with pytest.raises(DataError, match="nobody sends"):
        servegen.sample(tmp_path / "clients.tar.gz", start=600)


def test_servegen_tables_may_have_more_columns_a_head_and_plain_histograms(tmp_path: Path) -> None:
    lengths = {"0": {"input_tokens": {"50": 1}, "output_tokens": {"30": 2, "40": 2}, "image_tokens": "{}"}}
    more = {
        "chunk-2-trace.csv": "start,rate,cv,law,shape,scale,x\n0,1.0,1,weibull,0.9,0.5,7\n600,1,1,,nan,,\n",
        "chunk-2-dataset.json": json.dumps(lengths),
    }
    path = servegen_archive(tmp_path, more)
    sent = servegen.sent(path, start=0.0)
    assert set(sent.output_len) == {7, 9, 30, 40}
    assert set(sent.sender[sent.output_len >= 30]) == {2}
    assert len(set(sent.sender)) == 3
    assert len(set(servegen.sent(path, start=0.0, measured=True).sender)) == 2


def test_shipped_workloads_have_the_numbers_of_their_sources() -> None:
    conv = named.load("azure-conv")
    assert len(conv) == 19_366
    assert conv.arrival_time is not None
    assert len(conv) / conv.arrival_time[-1] == pytest.approx(5.53, abs=0.01)
    assert np.median(conv.output_len) == 129
    assert len(named.load("azure-code")) == 8_819
    mooncake = named.load("mooncake")
    assert len(mooncake) == 12_031
    assert np.median(mooncake.prompt_len) == 6909
    assert mooncake.blocks is not None
    assert mooncake.blocks[1].tolist()[:2] == [0, 14]
    sharegpt = named.load("sharegpt", 50_000)
    assert np.median(sharegpt.output_len) == pytest.approx(246, rel=0.05)
    assert np.percentile(sharegpt.output_len, 99) == pytest.approx(769, rel=0.05)
    assert kendall_tau(sharegpt.prompt_len, sharegpt.output_len) == pytest.approx(0.11, abs=0.03)


def test_drawn_workloads_depend_on_the_seed_only() -> None:
    for name in ("sharegpt", "lognormal"):
        first, again, other = (named.load(name, 100, seed) for seed in (1, 1, 2))
        assert first.output_len.tolist() == again.output_len.tolist()
        assert first.output_len.tolist() != other.output_len.tolist()


def test_a_name_that_does_not_ship_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOONER_DATA", str(tmp_path))
    assert config.data_folder() == tmp_path
    with pytest.raises(DataError, match="HPMLL/BurstGPT"):
        named.load("burstgpt", folder=tmp_path)
    write(tmp_path, "burstgpt.csv", BURSTGPT)
    assert len(named.load("burstgpt", folder=tmp_path)) == 2
    with pytest.raises(UnknownName, match="did you mean 'mooncake'"):
        named.load("moncake")
    with pytest.raises(DataError, match="is not there"):
        named.load("no/such.jsonl")


def test_tenants_classes_and_deadlines_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    rows = [
        {"arrival_time": 1.0, "prompt_len": 5, "output_len": 6, "tenant": 3, "level": 1, "deadline": 4.0},
        {"arrival_time": 2.0, "prompt_len": 5, "output_len": 6},
    ]
    names = list(rows[0])
    text = "\n".join(",".join(str(row.get(name, "")) for name in names) for row in rows)
    jsonl = write(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    table = write(tmp_path, "t.csv", f"{','.join(names)}\n{text}\n")
    for path in (jsonl, table):
        trace = traces.read(path)
        for column, expected in (("tenant", [3, 0]), ("level", [1, 0]), ("deadline", [3.0, np.inf])):
            assert getattr(trace, column).tolist() == expected
