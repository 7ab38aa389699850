"""Tracking: the offline W&B files hold what the stage said, and nothing secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.tracking import Made, Tracker, lineage, wandb_mode
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
    for name in ("one", "two"):
        with made.stage(name, "select", name * 4, {}):
            pass
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
