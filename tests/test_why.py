"""`magpie why`: from an arm to what it is made of, and from a row to its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from core.errors import UserError
from core.store import Result
from recipes import schema
from recipes.stages import graph
from recipes.stages.graph import Outcome
from recipes.verbs import why
from tests import small_recipe
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
    monkeypatch.setattr(why, "_prompt", lambda *given: iter([f"prompt {given[2]}"]))
    assert lines(path, "theirs") == ["run theirs/0"]
    assert lines(path, "theirs/1") == ["run theirs/1"]
    assert lines(path, "theirs/1/p7") == ["prompt p7"]


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
