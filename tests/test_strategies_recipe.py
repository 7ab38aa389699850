"""Strategies that compare rows, and random controls, in a whole recipe: drawn, tagged, embedded by
a service and chosen, with what a plan says before and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer

ROWS = 12
ARMS = {
    "good": {"where": "input_quality >= 'poor'", "choose": "longest", "budget": {"rows": ROWS}},
    "covering": {
        "strategy": "qdit",
        "params": {"alpha": 0.7, "quality": "input_quality"},
        "budget": {"rows": ROWS},
    },
    "informed": {
        "strategy": "mig",
        "params": {"labels": "knowledge", "score": "input_quality"},
        "budget": {"rows": ROWS},
    },
    "even": {"strategy": "random-balanced", "budget": {"rows": ROWS}},
    "control": {"strategy": "random-length-matched", "params": {"arm": "good"}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    llama = small_recipe.model(folder / "llama")
    embeds = {"model": "embedder", "server": {"urls": [server.url]}}
    tags = {"difficulty": {"mode": "explain"}, "neighbors": {"model": embeds}}
    return small_recipe.recipe(
        folder, llama, server.url, synth__tags=tags, arms=ARMS, synth__response__max_tokens=400
    )


def states(recipe: Path) -> dict[str, str]:
    steps = graph.plan(schema.load(recipe)).steps
    return {step.name: step.state for step in steps if step.name.startswith("select/")}


@pytest.fixture(scope="module")
def chosen(recipe: Path) -> dict[str, list[str]]:
    """The ids of each arm, in order."""
    assert {*states(recipe).values()} == {"waits"}
    graph.run(schema.load(recipe), "select")
    found = {}
    for arm in ARMS:
        folder = recipe.parent / "store" / "recipes" / "small" / "select" / arm
        path = sorted(folder.rglob("selection.parquet"))[0]  # of the first seed
        found[arm] = pl.read_parquet(path)["id"].to_list()
    return found


def test_each_strategy_has_its_rows_and_a_plan_then_finds_them(
    recipe: Path, chosen: dict[str, list[str]]
) -> None:
    assert {arm: len({*ids}) for arm, ids in chosen.items()} == dict.fromkeys(ARMS, ROWS)
    assert {*states(recipe).values()} == {"reuse"}


def test_strategies_that_compare_choose_otherwise_than_by_length(
    chosen: dict[str, list[str]],
) -> None:
    others = [{*chosen[arm]} for arm in ("covering", "informed", "even")]
    assert len({frozenset(each) for each in (*others, {*chosen["good"]})}) == 4


def test_a_balanced_random_arm_has_as_many_rows_of_each_category(
    recipe: Path, chosen: dict[str, list[str]]
) -> None:
    pool = pl.read_parquet(recipe.parent / "store/recipes/small/measure/pool.parquet")
    rows = pool.filter(pl.col("id").is_in(chosen["even"]))
    counts = rows["task_category"].value_counts()["count"]
    assert counts.max() - counts.min() <= 1


def test_nothing_is_embedded_or_bought_twice(
    recipe: Path, chosen: dict[str, list[str]], server: ScriptedServer
) -> None:
    asked = len(server.requests)
    outcome = graph.run(schema.load(recipe), "select")
    assert {s.state for s in outcome.steps if s.name.startswith("select/")} == {"reuse"}
    assert len(server.requests) == asked
