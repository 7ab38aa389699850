"""`magpie why`: from an arm to what it is made of, and from a row to its source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.store import Result
from recipes import schema
from recipes.stages import graph
from recipes.stages.graph import Outcome
from recipes.verbs import why
from tests import small_recipe, test_rated_recipe
from tests.fabricated_run import fabricate_judged
from tests.scripted_server import ScriptedServer
from tests.test_data_arms import ids, recipe, run, theirs


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> tuple[Path, Outcome]:
    """A recipe with an arm over data, one over the pool, and a mixture of both and more data."""
    folder = tmp_path_factory.mktemp("why")
    llama = small_recipe.model(folder / "llama")
    a, b = theirs(folder / "a.jsonl", 20), theirs(folder / "b.jsonl", 20, topic="sea")
    sea = {"share": 0.4, "data": str(b), "choose": "longest", "licence": "mit"}
    arms = {
        "theirs": {"data": str(a), "where": "response_length > 100", "budget": {"rows": 6}},
        "good": {"where": "input_quality >= 'average'", "choose": "longest", "budget": {"rows": 6}},
        "mixed": {"mix": {"theirs": 0.3, "good": 0.3, "sea": sea}, "budget": {"rows": 10}},
    }
    path = recipe(folder, llama, server, arms=arms, synth__rows=30)
    return path, run(path)


def lines(path: Path, what: str) -> list[str]:
    return list(why.explain(schema.load(path), what))


def test_an_arm_with_seeds_is_no_prompt(
    mixed: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = mixed
    scores = {f"score/theirs/{seed}": Result(Path(), {"digest": "0" * 64}) for seed in (0, 1)}
    monkeypatch.setattr(graph, "plan", lambda _: Outcome([], scores, False))
    monkeypatch.setattr(why, "_run", lambda *given: iter([f"run {given[2]}"]))
    monkeypatch.setattr(why, "_cell", lambda *given: iter([f"{given[3]} under {given[2]}"]))
    assert lines(path, "theirs") == ["run theirs/0", "run theirs/1"]
    assert lines(path, "theirs/1") == ["run theirs/1"]
    assert lines(path, "theirs/1/p7") == ["p7 under ['theirs/1']"]
    assert lines(path, "theirs/p7") == ["p7 under ['theirs/0', 'theirs/1']"]


def test_an_arms_rows_have_the_seeds_that_they_were_sampled_with(
    mixed: tuple[Path, Outcome],
) -> None:
    path, made = mixed
    pool = pl.read_parquet(path.parent / "store/recipes/small/measure/pool.parquet")
    row = ids(made, "good")[0]
    seed = pool.filter(id=row)["seed"][0]
    assert seed is not None
    assert any(f"{row} (sampling seed {seed})" in line for line in lines(path, "good"))


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished models with two prompt sets: WildBench's tasks and MT-Bench's questions."""
    with ScriptedServer(test_rated_recipe.answer) as running:
        path = test_rated_recipe.recipe(tmp_path_factory.mktemp("rated"), running.url)
        graph.run(schema.load(path))
    return path


@pytest.mark.parametrize(
    ("item", "benchmark", "metric"),
    [("s0", "wildbench", "wb_score"), ("81", "mtbench", "mt_score")],
)
def test_a_cell_is_found_in_whichever_prompt_set_it_is(
    rated: Path, item: str, benchmark: str, metric: str
) -> None:
    told = lines(rated, f"two/{item}")
    assert any(line.startswith(f"two {benchmark} {metric}: ") for line in told)
    assert any(line.startswith(f"prompt {item}: ") for line in told)
    ratings = [line for line in told if line.startswith(f"judge/{benchmark}/two: ")]
    assert ratings and all('"rating": ' in line for line in ratings)
    assert any(line.startswith("  <- model ") for line in told)


def test_a_question_is_told_with_both_of_its_turns(rated: Path) -> None:
    told = lines(rated, "one/81")
    assert [line.partition(":")[0] for line in told if line.startswith("prompt ")] == [
        "prompt 81",
        "prompt 81#2",
    ]
    assert any(line.startswith("one mtbench mt_score#2: ") for line in told)


def test_an_item_that_no_benchmark_has_is_one_sentence(rated: Path) -> None:
    with pytest.raises(UserError, match="no prompt or item of one is called that; did you mean"):
        lines(rated, "one/821")


def test_a_cell_of_fourteen_arms_with_three_seeds_takes_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out here is the plan, which other verbs make as well."""
    llama = small_recipe.model(tmp_path / "llama")
    judged, seeds = [f"arm{n:02d}" for n in range(13)], (0, 1, 2)
    arms: dict[str, Any] = {name: {"choose": "longest", "budget": {"rows": 4}} for name in judged}
    arms["rival"] = {"model": str(llama)}
    path = small_recipe.recipe(tmp_path, llama, "http://127.0.0.1:1", train=True, arms=arms)
    runs = [f"{arm}/{seed}" for arm in judged for seed in seeds]
    made = fabricate_judged(tmp_path / "made", runs, "rival", prompts=805)
    monkeypatch.setattr(graph, "plan", lambda _: Outcome([], made, False))
    loaded = schema.load(path, [f"train.seeds={list(seeds)}"])
    before = time.process_time()
    of_rival = list(why.explain(loaded, "rival/p7"))
    of_arm = list(why.explain(loaded, "arm03/p7"))
    assert time.process_time() - before < 4, "two cells, two seconds of one processor each"
    assert sum("where rival was the rival" in line for line in of_rival) == len(runs)
    assert sum(line.startswith("judge/alpaca/arm03/") for line in of_arm) == len(seeds)


def test_a_mixture_tells_what_each_part_gave(mixed: tuple[Path, Outcome]) -> None:
    told = "\n".join(lines(mixed[0], "mixed"))
    assert "theirs (arm theirs): 3 rows of 3" in told and "licence: mit (4)" in told


def test_a_row_of_a_mixture_leads_to_the_row_of_its_arm(mixed: tuple[Path, Outcome]) -> None:
    path, made = mixed
    of_pool = next(name for name in ids(made, "mixed") if name.startswith("good:"))
    told = lines(path, of_pool)
    row = of_pool.removeprefix("good:")
    assert told[0] == f"mixture mixed: good gave it, as {row} (licence: not stated)"
    assert f"id: {row}" in told and "arm good: chosen" in told
    assert any(line.startswith("input_quality: ") for line in told)


def test_a_row_of_data_leads_to_its_text_and_to_what_each_arm_said(
    mixed: tuple[Path, Outcome],
) -> None:
    path, made = mixed
    told = lines(path, f"theirs:{ids(made, 'theirs')[0]}")
    assert "arm theirs: chosen" in told
    assert any(line.startswith("  assistant: Fact ") for line in told)
    assert any(line.startswith("  response_length: ") for line in told)
    dropped = pl.read_parquet(path.parent / "store/recipes/small/select/theirs/dropped.parquet")
    out = dropped.filter(reason="response_length > 100")["id"][0]
    assert "arm theirs: dropped, response_length > 100" in lines(path, out)


def test_a_row_of_data_that_is_only_mixed_in_leads_to_the_data(
    mixed: tuple[Path, Outcome],
) -> None:
    path, _ = mixed
    assert lines(path, "sea:19") == [
        "mixture mixed: sea gave it, as 19 (licence: mit)",
        f"data {path.parent / 'b.jsonl'}",
    ]


def test_what_is_no_row_is_one_sentence(mixed: tuple[Path, Outcome]) -> None:
    with pytest.raises(UserError, match="no arm and no row is called that"):
        lines(mixed[0], "theirs:nothing")
