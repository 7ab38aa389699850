"""Prompts that exist, answered: which answers count, what is asked, and that nothing is bought
twice."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from core.errors import UserError
from core.sending import client
from core.sending.purse import Ledger
from recipes import schema
from recipes.cli import app
from recipes.stages import graph
from tests.scripted_server import Fault, ScriptedServer, chat, refusal
from tests.waiting import until

PRICES = {"input": 0.0, "output": 1000.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


def source(folder: Path, answered: int = 3, rows: int = 8) -> Path:
    """A file of prompts, the first of which have an answer."""
    lines = [
        {"id": f"r{i}", "instruction": f"say {i}", "response": f"old {i}" if i < answered else None}
        for i in range(rows)
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def new(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    return chat(f"new {body['messages'][-1]['content'][4:]}")


def recipe(
    folder: Path, url: str, answers: str, name: str = "answering", **responder: Any
) -> schema.Loaded:
    server = {"urls": [url], "max_in_flight": 4}
    hosted = {"model": "big-1", "api": "chat", "server": server, "prices": PRICES, **responder}
    data = {
        "name": name,
        "store": str(folder / "store"),
        "track": "none",
        "synth": {
            "teacher": hosted,
            "rows": {"import": str(folder / "prompts.jsonl"), "answers": answers},
            "response": {"max_tokens": 10},
        },
        "arms": {"every": {"choose": "all"}},
        "random_arm": False,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return schema.load(path)


def trained_on(loaded: schema.Loaded) -> dict[str, str]:
    """The arm's answers by row."""
    outcome = graph.run(loaded, until="select")
    chosen = pl.read_parquet(outcome.results["select/every"].path / "selection.parquet")
    return {row["id"]: row["messages"][-1]["content"] for row in chosen.to_dicts()}


OLD = {f"r{i}": f"old {i}" for i in range(3)}
NEW = {f"r{i}": f"new {i}" for i in range(8)}


@pytest.mark.parametrize(
    ("answers", "asked", "rows"),
    [("keep", 0, OLD), ("missing", 5, NEW | OLD), ("all", 8, NEW)],
)
def test_imported_rows_keep_their_answers_or_get_those_that_are_missing_or_all_anew(
    tmp_path: Path, answers: str, asked: int, rows: dict[str, str]
) -> None:
    source(tmp_path)
    with ScriptedServer(new) as server:
        assert trained_on(recipe(tmp_path, server.url, answers)) == rows
    assert len(server.requests) == asked


def test_another_choice_of_answers_shares_what_was_bought(tmp_path: Path) -> None:
    source(tmp_path)
    with ScriptedServer(new) as server:
        trained_on(recipe(tmp_path, server.url, "missing"))
        assert trained_on(recipe(tmp_path, server.url, "all", "renewed")) == NEW
        assert len(server.requests) == 8, "five, and the three that had answers"
        assert trained_on(recipe(tmp_path, server.url, "missing", "again")) == NEW | OLD
    assert len(server.requests) == 8


def test_the_old_answers_stand_beside_the_new_ones(tmp_path: Path) -> None:
    source(tmp_path)
    with ScriptedServer(new) as server:
        loaded = recipe(tmp_path, server.url, "all")
        graph.run(loaded, until="select")
    pool = pl.read_parquet(loaded.recipe.folder / "measure" / "pool.parquet").sort("id")
    assert pool["imported_response"].to_list() == ["old 0", "old 1", "old 2", *[None] * 5]
    assert pool["response"].to_list() == list(NEW.values())


def test_what_was_measured_of_an_old_answer_does_not_count_with_a_new_one(tmp_path: Path) -> None:
    rows = [{"id": "r0", "instruction": "say 0", "response": "old 0", "instruct_reward": 3.0}]
    (tmp_path / "prompts.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with ScriptedServer(new) as server:
        loaded = recipe(tmp_path, server.url, "all")
        graph.run(loaded, until="select")
        kept = recipe(tmp_path, server.url, "keep", "kept")
        graph.run(kept, until="select")
    rewards = [
        pl.read_parquet(each.recipe.folder / "measure" / "pool.parquet")["instruct_reward"].item()
        for each in (loaded, kept)
    ]
    assert rewards == [None, 3.0]


def test_a_plan_estimates_what_answers_will_cost_and_a_run_says_what_they_cost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path, answered=0)
    with ScriptedServer(new) as server:
        loaded = recipe(tmp_path, server.url, "missing", budget=0.009)

        def planned() -> str:
            return " ".join(step.why for step in graph.plan(loaded).steps)

        with pytest.raises(UserError, match="the budget of big-1 is reached"):
            graph.run(loaded, until="select")
        assert server.requests == [], "an answer may cost 0.010"
        loaded = recipe(tmp_path, server.url, "missing", budget=1.0)
        assert "at most about 0.08 in money (an estimate: 8 requests" in planned()
        graph.run(loaded, until="select")
    assert Ledger(loaded.recipe.folder / "spent").bills()["big-1"].calls == 8
    assert "big-1: 8 requests answered" in capfd.readouterr().err


def test_a_forecast_takes_the_mean_of_what_was_answered(tmp_path: Path) -> None:
    source(tmp_path, answered=0, rows=8)
    with ScriptedServer(new) as server:
        loaded = recipe(tmp_path, server.url, "missing", budget=0.0135)
        with pytest.raises(UserError, match="raise `budget`"):
            graph.run(loaded, until="select")
        left = 8 - len(server.requests)
        steps = {step.name: step.why for step in graph.plan(loaded).steps}
    assert 0 < left < 8
    assert (
        f"about {left * 0.002:.4g} in money (an estimate: {left} x 1 + 2 tokens" in steps["measure"]
    )


def told(folder: Path, url: str, *more: str) -> Any:
    """`magpie answer` of the file of prompts by a service."""
    common = ["answer", str(folder / "prompts.jsonl"), "--model", "big-1", "--url", url]
    out = ["--out", str(folder / "answered.parquet"), "--store", str(folder / "store")]
    return CliRunner().invoke(app, [*common, *out, *more])


def test_the_verb_answers_what_has_no_answer_and_keeps_every_column(tmp_path: Path) -> None:
    source(tmp_path)
    with ScriptedServer(new) as server:
        result = told(tmp_path, server.url, "--sampling", "max_tokens=10", "--prices", "0,1000")
    assert result.exit_code == 0, result.output
    rows = pl.read_parquet(tmp_path / "answered.parquet").sort("id")
    assert dict(zip(rows["id"], rows["response"], strict=True)) == NEW | OLD
    assert rows["response_model"].to_list() == [None] * 3 + ["big-1"] * 5
    ours = {"thinking", "response_model", "messages", "source_columns", "status", "reason"}
    assert {*rows.columns} == {"id", "instruction", "response", "failed_tags", *ours}
    assert set(rows["status"]) == {"ok"}
    assert [r.body["max_tokens"] for r in server.requests] == [10] * 5
    assert "big-1: 5 requests answered" in result.output


def test_all_anew_keeps_the_old_answer_in_a_column_of_its_own(tmp_path: Path) -> None:
    source(tmp_path)
    with ScriptedServer(new) as server:
        result = told(tmp_path, server.url, "--answers", "all")
    assert result.exit_code == 0, result.output
    rows = pl.read_parquet(tmp_path / "answered.parquet").sort("id")
    assert rows["response"].to_list() == list(NEW.values())
    assert rows["imported_response"].to_list() == ["old 0", "old 1", "old 2", *[None] * 5]


def test_a_prompt_that_got_no_answer_is_a_failed_row_with_the_reason(tmp_path: Path) -> None:
    source(tmp_path)
    with ScriptedServer(lambda p, b: refusal() if "say 5" in str(b) else new(p, b)) as server:
        result = told(tmp_path, server.url)
    rows = pl.read_parquet(tmp_path / "answered.parquet").filter(pl.col("status") == "failed")
    assert rows.select("id", "reason").rows() == [("r5", "no answer: the model refused to answer")]
    assert "1 x no answer: the model refused to answer" in result.output


@pytest.mark.parametrize("file", ["example_instructions.jsonl", "example_instructions_5res.json"])
def test_the_samples_of_the_magpie_repository_are_prompts(tmp_path: Path, file: str) -> None:
    shared = Path(os.environ.get("MAGPIE_SHARED", "../shared")) / "data" / "magpie_samples" / file
    if not shared.is_file():
        pytest.skip("the samples are not here")
    (tmp_path / "prompts.jsonl").symlink_to(shared.resolve())
    if shared.suffix == ".json":
        rows = [json.dumps(row) for row in json.loads(shared.read_text())]
        (tmp_path / "prompts.jsonl").unlink()
        (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    with ScriptedServer(lambda *_: chat("an answer")) as server:
        result = told(tmp_path, server.url)
    assert result.exit_code == 0, result.output
    assert pl.read_parquet(tmp_path / "answered.parquet")["response"].to_list() == ["an answer"] * 5


def asked_for(server: ScriptedServer, least: int) -> bool:
    return len(server.requests) >= least


@pytest.mark.process
def test_a_killed_answer_run_goes_on_and_buys_nothing_twice(tmp_path: Path) -> None:
    source(tmp_path, answered=0, rows=120)
    with ScriptedServer(new, delay=0.03) as server:
        options = ["--url", server.url, "--prices", "0,1000", "--server", "max_in_flight=8"]
        command = [sys.executable, "-m", "recipes.cli", "answer", str(tmp_path / "prompts.jsonl")]
        command += ["--model", "big-1", "--out", str(tmp_path / "answered.parquet"), *options]
        command += ["--store", str(tmp_path / "store")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
            until(functools.partial(asked_for, server, 40), "requests")
            running.kill()
        done = told(tmp_path, server.url, "--prices", "0,1000")
    assert done.exit_code == 0, done.output
    rows = pl.read_parquet(tmp_path / "answered.parquet")
    assert len(rows) == 120 and rows["response"].null_count() == 0
    bill = Ledger(tmp_path / "store" / "spent" / "answered").bills()["big-1"]
    assert bill.calls == 120, "what came back was paid once"
    assert len(server.requests) <= 120 + 8, (
        "only what was in flight when a run was killed was asked again"
    )


def test_a_setting_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    source(tmp_path)
    for more, sentence in [
        (("--prices", "cheap"), "--prices 0.15,0.60"),
        (("--budget", "3"), "`budget` needs `prices`"),
        (("--answers", "some"), "answers: needs one of 'keep', 'missing', 'all'"),
        (("--map", "question"), "--map"),
    ]:
        result = told(tmp_path, "http://127.0.0.1:9", *more)
        assert sentence in str(result.exception) and isinstance(result.exception, UserError)


def test_a_prompt_that_comes_with_a_system_prompt_is_not_answered_without_it(
    tmp_path: Path,
) -> None:
    user = {"role": "user", "content": "say 1"}
    system = {"role": "system", "content": "Answer in French."}
    talks = [[user], [system, user], [user, {"role": "assistant", "content": "old"}]]
    lines = [json.dumps({"id": f"r{i}", "messages": talk}) for i, talk in enumerate(talks)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    with ScriptedServer(new) as server:
        result = told(tmp_path, server.url)
    rows = pl.read_parquet(tmp_path / "answered.parquet").sort("id")
    assert rows["response"].to_list() == ["new 1", None, "old"] and len(server.requests) == 1
    assert "1 x no answer: its conversation has a system prompt" in result.output


def test_an_export_names_who_gave_the_new_answers_and_holds_the_old_ones(tmp_path: Path) -> None:
    source(tmp_path, answered=8)
    with ScriptedServer(new) as server:
        graph.run(recipe(tmp_path, server.url, "all"), until="select")
    out = ["--form", "magpie", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "answering.yaml"), *out])
    assert result.exit_code == 0, result.output
    rows = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").sort("id")
    assert rows["response"].to_list() == list(NEW.values())
    assert rows["imported_response"].to_list()[:3] == ["old 0", "old 1", "old 2"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\bresponder\b[^\n]*big-1", card), card
