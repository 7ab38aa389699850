"""Tracking: the offline W&B files hold what the stage said, and nothing secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.sending.pace import Pace, clock
from core.tracking import Log, Made, Tracker, lineage, wandb_mode
from tests import wandb_file


def tracker(folder: Path) -> Tracker:
    return Tracker("wandb", project="magpie", group="demo-1", folder=folder)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_without_a_key_runs_are_offline_and_it_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tracker(tmp_path)
    assert made.mode == "offline"
    with made.stage("none", "select", "none" * 4, {}):
        pass
    assert capfd.readouterr().err == ""  # nothing was tracked
    for name in ("one", "two"):
        with made.stage(name, "train", name * 4, {}, trainer=True) as log:
            log.trainer_env()
    said = capfd.readouterr().err
    assert said.count("no API key") == 1 and f"`magpie track sync {tmp_path}`" in said


@pytest.mark.process
def test_a_run_holds_group_job_type_metrics_table_and_digests(tmp_path: Path) -> None:
    with tracker(tmp_path).stage(
        "judge/alpaca/magpie/0", "judge", "abcdef0123456789", {"inputs": {"answers": "digest-in"}}
    ) as log:
        log.metrics({"judged": 3.0})
        log.table("judgments", pl.DataFrame({"item": ["a"], "verdict": ["<script>"]}))
        log.finish({"output": "digest-out", "counts": {"rows": 3}})
    run = wandb_file.read(tmp_path)["judge-abcdef012345"]
    assert (run.group, run.job_type, run.project) == ("demo-1", "judge", "magpie")
    assert any(row.get("judged") == 3.0 for row in run.history)
    assert any(row.get("judgments/nrows") == 1 for row in run.history)
    assert run.config["inputs"] == {"answers": "digest-in"} and run.config["output"] == "digest-out"
    assert run.summary["rows"] == 3


@pytest.mark.process
def test_a_table_is_kept_though_the_folder_that_wandb_was_loaded_in_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.sdk.data_types._private import MEDIA_TMP

    monkeypatch.setattr(MEDIA_TMP, "name", str(tmp_path / "gone" / "media"))
    with tracker(tmp_path).stage("judge/a/0", "judge", "b" * 20, {}) as log:
        log.table("judgments", pl.DataFrame({"item": ["a"]}))
        log.metrics({"judged": 3.0})
    assert wandb_file.read(tmp_path)["judge-" + "b" * 12].history[-1]["judged"] == 3


@pytest.mark.process
def test_a_continued_stage_continues_the_same_run(tmp_path: Path) -> None:
    for step in (1.0, 2.0):
        with tracker(tmp_path).stage("train/a/0", "train", "k" * 20, {}) as log:
            log.metrics({"loss": step})
    runs = wandb_file.read(tmp_path)
    assert list(runs) == ["train-" + "k" * 12]
    assert [row["loss"] for row in runs["train-" + "k" * 12].history] == [1.0, 2.0]


def test_track_none_writes_nothing(tmp_path: Path) -> None:
    with Tracker("none", project="p", group="g", folder=tmp_path).stage(
        "a", "select", "k" * 20, {}
    ) as log:
        log.metrics({"x": 1.0})
        log.table("t", pl.DataFrame({"a": [1]}))
        assert log.trainer_env() == {}
    assert list(tmp_path.iterdir()) == []


def test_the_trainer_gets_the_same_run(tmp_path: Path) -> None:
    with tracker(tmp_path).stage("train/a/0", "train", "k" * 20, {}, trainer=True) as log:
        env = log.trainer_env()
    assert env["WANDB_RUN_ID"] == "train-" + "k" * 12
    assert (env["WANDB_RUN_GROUP"], env["WANDB_JOB_TYPE"], env["WANDB_MODE"]) == (
        "demo-1",
        "train",
        "offline",
    )


@pytest.mark.parametrize("earlier", ["offline-run", "run"])
def test_only_what_an_earlier_attempt_began_is_continued_offline(
    tmp_path: Path, earlier: str
) -> None:
    for begun in (False, True):
        with tracker(tmp_path).stage("train/a/0", "train", "k" * 20, {}, trainer=True) as log:
            assert ("WANDB_RESUME" in log.trainer_env()) is begun
        (tmp_path / f"wandb/{earlier}-20260101_000000-train-{'k' * 12}").mkdir(
            parents=True, exist_ok=True
        )


def test_a_key_is_never_in_the_trainers_environment_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 8)
    with tracker(tmp_path).stage("train/a/0", "train", "k" * 20, {}, trainer=True) as log:
        assert "s3cret" not in str(log.trainer_env())


def test_an_unknown_mode_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="did you mean 'offline'"):
        wandb_mode()


class Recorded:
    """In place of a W&B run: the artifacts that it was given."""

    def __init__(self) -> None:
        self.used: list[Any] = []
        self.logged: list[Any] = []

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)


def test_lineage_names_one_result_alike_whoever_names_it() -> None:
    trained = Made("train/a/0", "train", "k" * 64, "d" * 64)
    answers = Made("answers/a/0", "answers", "j" * 64, "e" * 64)
    made, used = Recorded(), Recorded()
    lineage(made, trained, [])
    lineage(used, answers, [trained])
    [logged], [parent] = made.logged, used.used
    assert (logged.name, logged.type) == (parent.name, parent.type) == ("train-a-0", "train")
    assert logged.manifest.digest() == parent.manifest.digest()
    assert used.logged[0].manifest.digest() != logged.manifest.digest()


# -- what a person watches -------------------------------------------------------------------------


def test_the_rate_is_counted_from_the_first_finished_item() -> None:
    pace = Pace()
    pace.count(0, "rows", 100.0)
    pace.count(1, "rows", 140.0)  # forty seconds of a server that starts
    assert pace.rate(1, 140.0) is None and pace.words(1, 1000, 140.0) == ""
    pace.count(81, "rows", 150.0)
    assert pace.rate(81, 150.0) == 8.0
    assert pace.words(81, 881, 150.0) == ", 8.0/s, 1:40 left"
    assert pace.seconds(150.0) == 50.0


@pytest.mark.parametrize(("done", "unit"), [(3, "rows"), (9, "games")])
def test_another_thing_that_is_counted_begins_anew(done: int, unit: str) -> None:
    pace = Pace()
    for at in (0, 4, 8):
        pace.count(at, "rows", float(at))
    pace.count(done, unit, 20.0)
    assert pace.rate(done, 21.0) is None and pace.seconds(21.0) == 1.0


def test_a_count_that_is_told_twice_has_no_first_item_yet() -> None:
    pace = Pace()
    for done, now in ((5, 0.0), (5, 30.0), (6, 40.0)):  # five are here from before
        pace.count(done, "rows", now)
    assert pace.rate(6, 50.0) is None and pace.rate(26, 50.0) == 2.0


def test_slow_work_is_counted_by_the_minute_and_long_times_by_the_hour() -> None:
    pace = Pace()
    for done, now in ((0, 0.0), (1, 1.0), (3, 121.0)):
        pace.count(done, "steps", now)
    assert pace.words(3, 100, 121.0) == ", 1.0/min, 1:37:00 left"
    assert (clock(59.4), clock(60), clock(3599.6)) == ("0:59", "1:00", "1:00:00")


def test_nothing_is_left_of_what_is_done_or_has_no_end() -> None:
    pace = Pace()
    for done, now in ((0, 0.0), (1, 1.0), (5, 2.0)):
        pace.count(done, "rows", now)
    assert pace.words(5, 5, 2.0) == pace.words(5, None, 2.0) == ", 4.0/s"


def test_a_terminal_gets_one_line_for_all_that_is_reused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log = Log()
    for arm in ("a", "b"):
        log.step(f"train/{arm}/0", "reuse", "")
    log.step("select/a", "reuse", "")
    log.step("train/c/0", "run", "not made yet")
    log.step("score/c/0", "run", "stale: x")
    log.tell_reused()
    assert capsys.readouterr().err == "reused: 2 train, 1 select\nscore/c/0: run (stale: x)\n"


def test_a_log_file_gets_a_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.step("train/a/0", "reuse", "")
    log.step("train/c/0", "run", "not made yet")
    log.tell_reused()
    assert capsys.readouterr().err == "train/a/0: reuse\ntrain/c/0: run (not made yet)\n"
