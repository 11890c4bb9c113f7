"""Files that another put in our folders are neither followed nor believed, and break nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sooner.core import RankerFileError
from sooner.ordering.held import LockFile
from sooner.rankers import conformance, get, load
from sooner.training.examples import FILE, Examples
from sooner.vllm.counters import COUNTERS, Collector, PluginCounters, Publisher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    get("lexical")().fit(*conformance.rows()).save(tmp_path / "r")
    return tmp_path / "r"


@pytest.mark.parametrize("name", ["arrays.npz", "manifest.json"])
def test_a_linked_file_of_a_ranker_is_refused(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(RankerFileError, match=f"{name} is a link"):
        load(folder)


@pytest.mark.parametrize("name", ["arrays.npz", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(RankerFileError, match=f"{name} is not a file"):
        load(folder)


def test_a_file_of_terabytes_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "arrays.npz").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no disk
    with pytest.raises(RankerFileError, match="allowed: at most"):
        load(folder)


def test_arrays_that_unpack_to_more_than_is_allowed_are_refused_before_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(5 << 20))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {"arrays.npz": hashlib.sha256(packed.getvalue()).hexdigest()}
    (folder / "arrays.npz").write_bytes(packed.getvalue())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("sooner.rankers.files._MOST_BYTES", 1 << 20)
    with pytest.raises(RankerFileError, match="5242880 bytes unpacked; allowed"):
        load(folder)


def test_deep_and_huge_manifests_are_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RankerFileError, match="cannot be"):
        load(folder)
    (folder / "manifest.json").write_text('{"a": "' + "x" * (17 << 20) + '"}')
    with pytest.raises(RankerFileError, match="allowed: at most"):
        load(folder)


def test_linked_examples_are_refused(tmp_path: Path) -> None:
    Examples.of(["a", "b"], np.arange(2.0), ["c", "d"]).save(tmp_path)
    (tmp_path / FILE).rename(tmp_path / "elsewhere")
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RankerFileError, match="is a link"):
        Examples.load(tmp_path)


def published(folder: Path) -> Path:
    """The first engine's file, once it is there."""
    deadline = time.monotonic() + 60
    while not (found := sorted(folder.glob("[0-9]*.json"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found[0]


def test_files_of_others_do_not_break_metrics(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the collector makes Prometheus' families")
    own = Publisher(PluginCounters(), lambda: {"waiting": 3.0}, tmp_path, 0)
    published(tmp_path)
    held = [LockFile(tmp_path / f"{number}.lock") for number in range(1, 22)]
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"engine": 7, "counts": {"requests": 99}, "gauges": {}}))
    (tmp_path / "1.json").symlink_to(secret)
    os.mkfifo(tmp_path / "2.json")
    (tmp_path / "3.json").mkdir()
    for number, text in enumerate(
        (
            "[]",
            "{}",
            '{"engine": 1}',
            '{"engine": 1, "counts": [], "gauges": {}}',
            "[" * 50_000,
            "x" * 70_000,
            "",
        )
    ):
        (tmp_path / f"{10 + number}.json").write_text(text)
    (tmp_path / "20.json").write_text(
        '{"engine": 2, "counts": {"requests": "many"}, "gauges": {"waiting": null}}'
    )
    if os.geteuid() == 0:
        theirs = tmp_path / "21.json"
        theirs.write_text(json.dumps({"engine": 21, "counts": {"requests": 5}, "gauges": {}}))
        os.chown(theirs, 65534, 65534)
    families = list(Collector(tmp_path).collect())
    assert len(families) > len(COUNTERS)
    told = {sample.labels["engine"] for family in families for sample in family.samples}
    assert told == {"0", "2"}
    own.close()
    for lock in held:
        lock.release()


def test_a_link_in_place_of_the_draft_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "known")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"{os.getpid()}-known.tmp").symlink_to(victim)
    publisher = Publisher(PluginCounters(), dict, tmp_path, 0)
    assert json.loads(published(tmp_path).read_text())["engine"] == 0
    publisher.close()
    assert victim.read_text() == "precious"
