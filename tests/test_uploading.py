"""Offline runs are uploaded once, also after kills: W&B's own command against its API on
loopback."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import UserError
from core.tracking import Tracker
from recipes.report import uploading
from tests.loopback_wandb import LoopbackWandb
from tests.waiting import until

RUN = "train-" + "k" * 12


def report(root: Path, *losses: float) -> None:
    """One attempt at a training, offline."""
    with Tracker("wandb", project="magpie", group="demo-1", folder=root).stage(
        "train/a/0", "train", "k" * 20, {}
    ) as log:
        for loss in losses:
            log.metrics({"loss": loss})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackWandb]:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with LoopbackWandb() as server:
        yield server


def sync(root: Path, server: LoopbackWandb, monkeypatch: pytest.MonkeyPatch) -> uploading.Uploaded:
    with monkeypatch.context() as context:
        context.setenv("WANDB_API_KEY", "k" * 40)
        context.setenv("WANDB_BASE_URL", server.url)
        return uploading.sync(root, print)


def settle(root: Path) -> list[uploading.RunFile]:
    """The files of all attempts, as if they had been written long ago."""
    files = uploading.run_files(root / "wandb")
    for file in files:
        os.utime(file.path, (time.time() - 999, time.time() - 999))
    return files


@pytest.mark.process
@pytest.mark.slow
def test_attempts_at_a_run_are_one_run_and_are_sent_once(
    tmp_path: Path, server: LoopbackWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(tmp_path, 3.0, 2.5)
    report(tmp_path, 2.0)
    settle(tmp_path)
    first = sync(tmp_path, server, monkeypatch)
    assert (len(first.sent), first.live, first.failed) == (2, [], {})
    assert server.losses(RUN) == [3.0, 2.5, 2.0] and server.groups[RUN] == "demo-1"
    opened = len(server.opened)
    again = sync(tmp_path, server, monkeypatch)
    assert (again.sent, len(server.opened)) == ([], opened)


@pytest.mark.process
@pytest.mark.slow
def test_an_upload_that_was_killed_before_it_was_marked_repeats_no_line(
    tmp_path: Path, server: LoopbackWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(tmp_path, 3.0, 2.5)
    report(tmp_path, 2.0)
    first, second = settle(tmp_path)
    sync(tmp_path, server, monkeypatch)
    first.sent.unlink()  # killed after the last line arrived
    second.sent.unlink()
    second.note.write_text(json.dumps({"lines": 2}))
    assert len(sync(tmp_path, server, monkeypatch).sent) == 2
    assert server.losses(RUN) == [3.0, 2.5, 2.0]
    assert second.sent.exists() and not second.note.exists()


@pytest.mark.process
@pytest.mark.slow
def test_half_of_a_continuation_is_not_sent_twice_and_is_named(
    tmp_path: Path, server: LoopbackWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(tmp_path, 3.0)
    report(tmp_path, 2.0, 1.0)
    _, second = settle(tmp_path)
    sync(tmp_path, server, monkeypatch)
    second.sent.unlink()
    second.note.write_text(json.dumps({"lines": 1}))
    del server.histories[RUN][2]
    done = sync(tmp_path, server, monkeypatch)
    assert done.sent == [] and "1 of its 2 lines arrived" in next(iter(done.failed.values()))
    assert server.losses(RUN) == [3.0, 2.0] and not second.sent.exists()


@pytest.mark.process
def test_a_run_that_is_still_written_to_is_left_for_the_next_time(
    tmp_path: Path, server: LoopbackWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(tmp_path, 3.0)
    [file] = uploading.run_files(tmp_path / "wandb")
    until(lambda: uploading.complete(file.path), "the run's end: W&B writes in the background")
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-20])  # its end is not written yet
    assert not uploading.complete(file.path)
    assert sync(tmp_path, server, monkeypatch).live == [file.path.parent.name]
    assert server.opened == []
    settle(tmp_path)
    assert uploading.complete(file.path)  # a killed run has no end


def test_without_a_key_nothing_is_sent_and_one_sentence_says_so(
    tmp_path: Path, server: LoopbackWandb
) -> None:
    with pytest.raises(UserError, match="set WANDB_API_KEY"):
        uploading.sync(tmp_path, print)


def test_the_first_attempt_begins_a_run_and_later_ones_continue_it(tmp_path: Path) -> None:
    for when, run in (("01", "a"), ("02", "b"), ("03", "a")):
        folder = tmp_path / f"offline-run-202601{when}_000000-{run}"
        folder.mkdir()
        (folder / f"run-{run}.wandb").touch()
    found = [(file.run, file.continues) for file in uploading.run_files(tmp_path)]
    assert found == [("a", False), ("b", False), ("a", True)]


def attempt(root: Path, name: str, run: str) -> None:
    folder = root / "wandb" / name
    folder.mkdir(parents=True)
    (folder / f"run-{run}.wandb").touch()
    os.utime(folder / f"run-{run}.wandb", (time.time() - 999, time.time() - 999))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were given to W&B's command, which takes all but the first of run `a`."""
    given: list[str] = []

    def command(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        for folder in map(Path, words[4:]):
            given.append(folder.name)
            if folder.name != "offline-run-20260101_000000-a":
                [file] = folder.glob("run-*.wandb")
                file.with_name(f"{file.name}.synced").touch()
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(uploading.subprocess, "run", command)
    monkeypatch.setattr(uploading, "lines_there", lambda *_: 0)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    return given


def test_nothing_of_a_run_is_sent_before_what_begins_it(tmp_path: Path, asked: list[str]) -> None:
    for day in ("01", "02", "03"):
        attempt(tmp_path, f"offline-run-202601{day}_000000-a", "a")
    attempt(tmp_path, "offline-run-20260104_000000-b", "b")
    done = uploading.sync(tmp_path, print)
    assert asked == ["offline-run-20260101_000000-a", "offline-run-20260104_000000-b"]
    assert done.sent == ["offline-run-20260104_000000-b"]
    assert list(done.failed.values())[1:] == ["an earlier part is not uploaded yet"] * 2


def test_a_beginning_is_not_sent_over_what_was_reported_online_since(
    tmp_path: Path, asked: list[str]
) -> None:
    attempt(tmp_path, "offline-run-20260102_000000-b", "b")
    attempt(tmp_path, "run-20260103_000000-b", "b")
    attempt(tmp_path, "run-20260103_000000-c", "c")
    attempt(tmp_path, "offline-run-20260104_000000-c", "c")
    done = uploading.sync(tmp_path, print)
    assert asked == ["offline-run-20260104_000000-c"] == done.sent
    assert "went on online" in done.failed["offline-run-20260102_000000-b"]


def test_a_damaged_file_is_named_and_stops_no_other(tmp_path: Path, asked: list[str]) -> None:
    attempt(tmp_path, "run-20260102_000000-b", "b")
    for day in ("03", "04"):
        attempt(tmp_path, f"offline-run-202601{day}_000000-{day}", day)
    attempt(tmp_path, "offline-run-20260105_000000-b", "b")
    record = uploading.RECORD_HEADER.pack(0, 2, 1) + b"\xff\xff"
    damaged = tmp_path / "wandb/offline-run-20260105_000000-b/run-b.wandb"
    damaged.write_bytes(bytes(uploading.FILE_HEADER) + record)
    assert not uploading.complete(damaged)
    os.utime(damaged, (time.time() - 999, time.time() - 999))
    done = uploading.sync(tmp_path, print)
    assert len(done.sent) == 2 and "is damaged" in done.failed["offline-run-20260105_000000-b"]
