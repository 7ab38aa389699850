"""kill -9 of the harness in every stage, then the same command: it continues, no cell is lost or
doubled, nothing is left running.

The model server is scripted and kills the harness itself, in the middle of answering, so each kill
comes at a known request.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer
from tests.waiting import exit_code, last_words, until

IN_FLIGHT = 16
"""Requests in flight at most in the small recipe."""


class Killer:
    """Answers like the scripted model; at the n-th request of a kind it kills the harness."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.when: tuple[str, int] | None = None
        self.pid = 0

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        asked = small_recipe.kind(body)
        self.seen[asked] += 1
        if (
            self.when is not None
            and self.pid
            and asked == self.when[0]
            and self.seen[asked] >= self.when[1]
        ):
            self.when = None
            os.kill(self.pid, signal.SIGKILL)
        return small_recipe.answer(path, body)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def killer() -> Killer:
    return Killer()


@pytest.fixture
def server(killer: Killer) -> Iterator[ScriptedServer]:
    with ScriptedServer(killer, delay=0.02) as running:
        yield running


def start(path: Path, until: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recipes.cli", "run", str(path), "--until", until]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def assert_columns_whole(store: Path) -> None:
    """Every column holds each of its ids exactly once."""
    for folder in (store / "columns").glob("*/*"):
        ids = pl.concat(
            [pl.read_parquet(p, columns=["id"]) for p in folder.glob("part-*.parquet")]
        )["id"]
        assert ids.n_unique() == len(ids), folder


def leftovers(marker: str) -> list[str]:
    """Processes whose command line names this test's folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if marker in line and process.info["pid"] != os.getpid():
            found.append(line)
    return found


@pytest.mark.process
@pytest.mark.parametrize(("stage", "at"), [("instructions", 60), ("tags", 60), ("responses", 12)])
def test_a_killed_synthesis_continues(
    tmp_path: Path, llama: Path, killer: Killer, server: ScriptedServer, stage: str, at: int
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    harness = start(path, "select")
    killer.pid, killer.when = harness.pid, (stage, at)
    assert exit_code(harness) == -signal.SIGKILL
    assert leftovers(str(tmp_path)) == []
    again = start(path, "select")
    assert exit_code(again) == 0, last_words(again)
    assert_columns_whole(tmp_path / "store")
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    assert len(pool) == 100, "no row is lost or doubled"
    done = {s.name: s.state for s in graph.plan(schema.load(path)).steps}
    assert done["measure"] == "reuse" and done["select/good"] == "reuse"
    asked = Counter(json.dumps(request.body, sort_keys=True) for request in server.requests)
    twice = sum(times - 1 for times in asked.values())
    assert twice <= 2 * IN_FLIGHT, "only what was in flight or waited to be stored is asked again"


@pytest.mark.stack
def test_killed_training_and_judging_continue(
    tmp_path: Path, llama: Path, killer: Killer, server: ScriptedServer
) -> None:
    """One recipe, killed while it trains and again while it judges: two kills for the price of one
    training."""
    good = {"where": "input_quality >= 'good'", "choose": "longest", "budget": {"rows": 10}}
    path = small_recipe.recipe(
        tmp_path,
        llama,
        server.url,
        train=True,
        arms={"good": good, "untuned": {"model": str(llama)}},
        random_arm=False,
        train__trainer__max_steps=150,
        train__trainer__save_steps=10,
        eval__arena=None,
        eval__limit=40,
    )
    harness = start(path, "train")
    logs = tmp_path / "store" / "results" / "train"

    def trained_a_while() -> bool:
        return any(
            len(log.read_text().splitlines()) >= 12 for log in logs.glob("*.partial/log.jsonl")
        )

    until(trained_a_while, "a training of some steps", harness)
    harness.kill()
    harness.wait()
    until(lambda: not leftovers(str(tmp_path)), "the end of every trainer")
    again = start(path, "train")
    assert exit_code(again) == 0
    log = next(p for p in logs.glob("*/log.jsonl") if not p.parent.name.endswith(".partial"))
    assert "resuming from step" in (log.parent / "trainer.log").read_text(), (
        "it continues from a checkpoint"
    )
    steps = pl.read_ndjson(log).filter(pl.col("loss").is_not_null())["step"].to_list()
    assert steps == sorted(set(steps)) and steps[-1] == 150

    judged = start(path, "judge")
    killer.pid, killer.when = judged.pid, ("judging", killer.seen["judging"] + 30)
    assert exit_code(judged) == -signal.SIGKILL, last_words(judged)
    before = killer.seen["judging"]
    last = start(path, "judge")
    assert exit_code(last) == 0, last_words(last)
    assert_columns_whole(tmp_path / "store")
    judgments = pl.read_parquet(
        next((tmp_path / "store" / "results" / "judge").glob("*/judgments.parquet"))
    )
    assert len(judgments) == 80 and set(judgments["status"].to_list()) == {"ok"}
    assert killer.seen["judging"] - before < 80, (
        "what was judged before the kill is not bought again"
    )
