"""WildBench and MT-Bench in a recipe: answered, rated, scored, compared, reported, and never paid
for twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.test_ratings import MT, WILD, lines


def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """The scripted model; the two judges are told apart by their sampling."""
    if body.get("max_tokens") == 2001:
        return completion(
            json.dumps(
                {"strengths": "", "weaknesses": "", "score": str(1 + len(body["prompt"]) % 10)}
            )
        )
    if body.get("max_tokens") == 2002:
        return completion(f"Fine.\nRating: [[{1 + len(body['prompt']) % 10}]]")
    return small_recipe.answer(path, body)


def recipe(folder: Path, url: str) -> Path:
    """Two finished models, rated on 4 tasks and 2 questions: nothing trains, nothing is the
    baseline of anything."""
    one, two = small_recipe.model(folder / "one"), small_recipe.model(folder / "two", "llama3")
    where = {"urls": [url], "max_in_flight": 16}
    settings = {
        "judge": {
            "model": str(one),
            "server": where,
            "api": "completions",
            "prices": {"input": 1, "output": 1},
        },
        "answers": {"sampling": {"temperature": 0, "max_tokens": 12}, "server": where},
        "wildbench": {
            "prompts": str(lines(folder / "wild.jsonl", WILD)),
            "sampling": {"temperature": 0, "max_tokens": 2001},
        },
        "mtbench": {
            "prompts": str(lines(folder / "question.jsonl", MT)),
            "sampling": {"temperature": 0, "max_tokens": 2002},
        },
    }
    arms = {"one": {"model": str(one)}, "two": {"model": str(two)}}
    return small_recipe.recipe(
        folder,
        one,
        url,
        arms=arms,
        random_arm=False,
        eval=settings,
        synth__rows=4,
        synth__heldout=0,
    )


def test_a_recipe_answers_rates_scores_and_compares_both_benchmarks_once(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        loaded = schema.load(recipe(tmp_path, server.url))
        waiting = {step.name: step.why for step in graph.plan(loaded).steps}
        assert (
            "at most 4 calls" in waiting["judge/wildbench/one"]
            and "at most 4 calls" in waiting["judge/mtbench/two"]
        )
        assert "in money" in waiting["judge/wildbench/one"] and not any(
            name.startswith("baseline") for name in waiting
        )
        results = graph.run(loaded).results
        asked = len(server.requests)
        again = graph.run(loaded)
    assert len(server.requests) == asked and {
        step.state for step in again.steps if step.name != "measure"
    } == {"reuse"}
    answers = pl.read_parquet(results["answers/one/mtbench"].path / "answers.parquet")
    assert answers["id"].to_list() == ["81", "82", "81#2", "82#2"] and set(answers["status"]) == {
        "ok"
    }
    rated = pl.read_parquet(results["judge/wildbench/two"].path / "ratings.parquet")
    summary = json.loads((results["score/two"].path / "summary.json").read_text())
    assert (
        rated["status"].to_list() == ["ok"] * 4
        and summary["wildbench"]["wb_score"]["value"] == rated["rating"].mean()
    )
    comparison = json.loads((results["compare"].path / "comparison.json").read_text())
    compared = {(s["benchmark"], s["metric"], s["arm"]): s for s in comparison["scores"]}
    assert compared.keys() == {
        (b, m, arm)
        for b, m in (
            ("wildbench", "wb_score"),
            ("wildbench", "task_macro_score"),
            ("mtbench", "mt_score"),
        )
        for arm in ("one", "two")
    }
    assert (
        compared[("wildbench", "wb_score", "one")]["primary"]
        and not compared[("mtbench", "mt_score", "one")]["primary"]
    )
    assert {d["benchmark"]: d["n"] for d in comparison["differences"]} == {
        "wildbench": 4,
        "mtbench": 4,
    }
    page = (tmp_path / "store" / "recipes" / "small" / "report.html").read_text()
    assert "wb_score" in page and "mt_score" in page
