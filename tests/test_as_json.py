"""`--json` of the verbs that write files: one document on stdout, and what a person reads on
stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recipes import schema
from recipes.cli import app
from recipes.verbs.readiness import doctor
from recipes.verbs.readiness.needs import Check
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def told(*words: object) -> tuple[Any, str]:
    """The document on stdout, and stderr."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    good = {"instruction": "a", "response": "b", "instruct_reward": 1.5, "input_quality": "good"}
    odd: list[dict[str, Any]] = [
        {"response": None},
        {"instruct_reward": True},
        {"instruction": "c", "response": "d"},
    ]
    lines = [json.dumps({**good, "uuid": f"u{n}", **each}) for n, each in enumerate(odd)]
    path.write_text("\n".join(lines))
    return path


def test_import(rows: Path, tmp_path: Path) -> None:
    said, words = told("import", rows, "--out", tmp_path / "ours.parquet")
    assert said["read"] == said["written"] == 3 and said["out"] == str(tmp_path / "ours.parquet")
    assert said["failed"] == {"no response": {"rows": 1, "first": "rows.jsonl line 1"}}
    wrong = {"column": "instruct_reward", "reason": "no number: 'true'", "cells": 1}
    assert said["failed_tags"] == [wrong] and list(said["layouts"].values()) == ["rows.jsonl"]
    assert "3 rows read, 1 of them failed" in words


def test_import_of_the_first_rows(rows: Path) -> None:
    said, words = told("import", rows, "--head", 1)
    assert said["rows"][0]["id"] == "u0" and "no response" in said["rows"][0]["reason"]
    assert "FAILED" in words


def test_export(rows: Path, tmp_path: Path) -> None:
    said, words = told("export", rows, "--form", "messages", "--out", tmp_path / "out.jsonl")
    assert (said["written"], said["failed"], said["form"]) == (2, 1, "messages")
    assert said["columns_left_out"] == ["input_quality", "instruct_reward"] and not said["pushed"]
    assert "2 rows in the form messages written to" in words


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("json")
    llama = small_recipe.model(folder / "llama")
    with ScriptedServer(small_recipe.answer) as server:
        yield small_recipe.recipe(folder, llama, server.url, synth__rows=60)


def test_answer(rows: Path, tmp_path: Path) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        model = ["--model", small_recipe.model(tmp_path / "llama"), "--url", server.url]
        more = ["--api", "completions", "--store", tmp_path / "store"]
        said, words = told("answer", rows, *model, *more, "--out", tmp_path / "a.parquet")
    assert said["written"] == 3 and said["answered"] + sum(said["failed"].values()) == 3
    assert "rows written to" in words and said["out"] == str(tmp_path / "a.parquet")


def test_run(recipe: Path) -> None:
    said, words = told("run", recipe, "--until", "select")
    assert said["recipe"] == "small" and said["answer"] is said["report"] is None
    assert said["scores"] == said["doubts"] == [] and said["unusable"] == {}
    assert said["made"].startswith("60 rows of which ") and "selections of" in said["made"]
    assert any(note.startswith("synthesis generated ") for note in said["notes"])
    assert "select/random/0: run" in words


def test_the_report_that_is_there(recipe: Path) -> None:
    page = schema.load(recipe).recipe.folder / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.touch()
    assert told("report", recipe) == ({"report": str(page)}, "")


def test_track_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "wandb").mkdir()
    said, words = told("track", "sync", tmp_path)
    assert said == {"sent": [], "live": [], "failed": {}} and "0 runs uploaded" in words


def test_doctor_says_once_that_the_hub_cannot_be_asked() -> None:
    checks = [Check("warn", f"{place}: me/{name}{doctor._UNASKED} (no route)", "with a network")
              for place, name in (("synth.teacher", "big"), ("train.base", "base"))]  # fmt: skip
    ok = Check("ok", "eval.judge: here")
    assert [*doctor._said_once([checks[0], ok, checks[1]])] == [
        ok,
        Check(
            "warn",
            "the hub cannot be asked (no route) of synth.teacher: me/big, train.base: me/base",
            "with a network",
        ),
    ]
