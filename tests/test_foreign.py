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
def measured(tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> Path:
    """A recipe of which losses can be read, and nothing is scored."""
    path = recipe(tmp_path_factory.mktemp("foreign"), server.url)
    graph.run(schema.load(path), until="heldout")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, measured: Path) -> Path:
    path = copied(measured, tmp_path_factory.mktemp("finished") / "copy")
    graph.run(schema.load(path))
    return path


def copied(path: Path, folder: Path) -> Path:
    """A recipe with its store in another folder."""
    shutil.copytree(path.parent, folder)
    copy = folder / path.name
    copy.write_text(copy.read_text().replace(str(path.parent / "store"), str(folder / "store")))
    return copy


def declared(path: Path) -> list[dict[str, Any]]:
    """All that a recipe declared."""
    folder = schema.load(path).recipe.folder
    return list(json.loads((folder / "declared.json").read_text()))


def notes(path: Path, *overrides: str) -> list[str]:
    """What stands below the comparison of a finished recipe."""
    results = graph.plan(schema.load(path, overrides)).results
    comparison = json.loads((results["compare"].path / "comparison.json").read_text())
    return list(comparison["notes"])


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
    (kept,) = declared(finished)  # one: a run that goes on declares nothing anew
    assert kept["declared"] == {
        "primary": "heldout",
        "baseline": "one",
        "controls": [],
        "seeds": [0],
    }
    assert kept["scores"] == 0
    said = [note for note in notes(finished) if "eclared" in note]
    assert said == [
        "heldout is the primary benchmark, declared beforehand, and its foreign_loss decides; "
        "every other figure is exploratory."
    ]


def test_it_is_declared_before_a_loss_can_be_read(measured: Path) -> None:
    (kept,) = declared(measured)
    assert kept["scores"] == 0 and kept["declared"]["baseline"] == "one"


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_declared_when_losses_can_be_read_is_not_beforehand(
    measured: Path, tmp_path: Path, killed: bool
) -> None:
    path = copied(measured, tmp_path / "copy")
    if killed:  # before it noted what it had made
        (schema.load(path).recipe.folder / "specs.json").unlink()
    graph.run(schema.load(path, ["baseline=other"]))
    assert [entry["scores"] for entry in declared(path)] == [0, 2]
    (said,) = [note for note in notes(path, "baseline=other") if note.startswith("Declared")]
    assert "beforehand was baseline one; other was declared on" in said
    assert "after scores of 2 runs existed" in said


def test_a_recipe_that_finds_the_scores_of_another_declared_nothing_beforehand(
    measured: Path, tmp_path: Path
) -> None:
    path = copied(measured, tmp_path / "copy")
    graph.run(schema.load(path, ["name=later"]))
    said = notes(path, "name=later")
    assert said[0].startswith("Nothing was declared before the first score: primary heldout;")
    assert "declared when scores existed already" in said[1]
    assert not [note for note in said if "beforehand" in note]


def test_what_is_declared_anew_after_the_scores_is_said(finished: Path, tmp_path: Path) -> None:
    path = copied(finished, tmp_path / "copy")
    for _ in range(2):  # the second run knows it as well
        graph.run(schema.load(path, ["baseline=other"]))
        said = notes(path, "baseline=other")
        (changed,) = [note for note in said if note.startswith("Declared beforehand")]
        assert "was baseline one; other was declared" in changed and "scores of 2 runs" in changed
        assert "heldout is the primary benchmark, declared beforehand" in said[1]


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
