"""Held-out loss on rows that no arm was drawn from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.scoring import of_checkpoint
from recipes import schema
from recipes.stages import graph
from recipes.stages.sets.foreign import sample
from synth.config.rows import Reading
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def data(folder: Path, rows: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "people.jsonl"
    lines = [{"question": f"why {k}?", "response": f"because {k}"} for k in range(rows)]
    lines.append({"question": "nobody answers this", "response": ""})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


HOW = Reading(map={"instruction": "question"})


def test_a_sample_is_spread_over_the_file_and_holds_usable_rows_alone(tmp_path: Path) -> None:
    rows, seen = sample(str(data(tmp_path)), HOW, 10)
    assert (len(rows), seen) == (10, 41)
    asked = [int(messages[0]["content"].split()[1][:-1]) for messages in rows["messages"].to_list()]
    assert max(asked) > 20 and len(set(asked)) == 10


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    few, many = (sample(str(data(tmp_path)), HOW, limit)[0] for limit in (5, 20))
    assert set(few["id"]) < set(many["id"])


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def recipe(folder: Path, url: str, **changes: Any) -> Path:
    """Two finished models with a judge-free evaluation on foreign rows alone."""
    llama = small_recipe.model(folder / "llama")
    server = {"urls": [url], "max_in_flight": 8}
    foreign = {
        "data": str(data(folder)),
        "limit": 8,
        "reading": {"map": {"instruction": "question"}},
    }
    given: dict[str, Any] = {
        "arms": {"one": {"model": str(llama)}, "other": {"model": str(llama)}},
        "random_arm": False,
        "synth__heldout": 0,
        "eval": {"answers": {"server": server}, "heldout": {"foreign": foreign}},
    }
    return small_recipe.recipe(folder, llama, url, **(given | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> Path:
    path = recipe(tmp_path_factory.mktemp("foreign"), server.url)
    graph.run(schema.load(path))
    return path


def test_the_loss_on_foreign_rows_is_scored_and_compared(finished: Path) -> None:
    results = graph.plan(schema.load(finished)).results
    comparison = json.loads((results["compare"].path / "comparison.json").read_text())
    found = [(s["arm"], s["metric"], s["n"], s["primary"]) for s in comparison["scores"]]
    assert found == [("one", "foreign_loss", 8, True), ("other", "foreign_loss", 8, True)]


def test_it_stands_beside_the_loss_on_the_pools_own_rows(tmp_path: Path) -> None:
    inputs = {}
    for name, loss in (("heldout", 1.0), ("heldout-foreign", 2.0)):
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        rows = {"id": ["a", "b"], "loss": [loss] * 2, "tokens": [3, 4], "status": ["ok"] * 2}
        pl.DataFrame(rows | {"reason": ["", ""]}).write_parquet(inputs[name] / "losses.parquet")
    of_checkpoint.run(inputs, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {m: f["value"] for m, f in summary["heldout"].items()} == {
        "loss": 1.0,
        "foreign_loss": 2.0,
    }


def test_it_may_be_declared_as_what_decides(finished: Path) -> None:
    loaded = schema.load(finished, ["eval.primary=heldout/foreign_loss"])
    assert loaded.recipe.eval is not None and loaded.recipe.eval.deciding == "heldout/foreign_loss"
    with pytest.raises(UserError, match="which this recipe does not run"):
        schema.load(finished, ["eval.primary=held/foreign_loss"])


def test_what_was_declared_is_kept_before_the_first_score(finished: Path) -> None:
    (kept,) = json.loads((schema.load(finished).recipe.folder / "declared.json").read_text())
    assert kept["declared"] == {
        "primary": "heldout",
        "baseline": "one",
        "controls": [],
        "seeds": [0],
    }
    assert kept["scores"] == 0


def test_what_is_declared_anew_after_the_scores_is_said(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.parent, copy)
    path = copy / "recipe.yaml"
    path.write_text(path.read_text().replace(str(finished.parent / "store"), str(copy / "store")))
    for _ in range(2):  # the second run knows it as well
        graph.run(schema.load(path, ["baseline=other"]))
        results = graph.plan(schema.load(path, ["baseline=other"])).results
        notes = json.loads((results["compare"].path / "comparison.json").read_text())["notes"]
        (said,) = [note for note in notes if note.startswith("Declared beforehand")]
        assert "baseline one; it was changed to other" in said and "2 runs had been scored" in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "eval.heldout.foreign.data=nowhere.jsonl",
            "eval.heldout.foreign.data: nowhere.jsonl does not exist",
        ),
        (
            "eval.heldout.foreign.reading={slit: train}",
            "eval.heldout.foreign.reading: unknown key `slit`",
        ),
    ],
)
def test_foreign_rows_that_cannot_be_read_are_a_sentence(
    finished: Path, override: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        graph.plan(schema.load(finished, [override]))
