"""The hours of a pool: kept a column across runs, in the ledger of costs with all other stages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cells import seconds
from core.cells.damage import Damage
from core.cells.seconds import Took, filling, took
from recipes.report import ending
from recipes.report.sections import costs, origins
from recipes.schema import Recipe, load
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer

WHERE = "input_quality >= 'good' AND language LIKE '%' AND minhash_group LIKE '%'"


class Runs:
    """One recipe that is run to its selections, then with more rows; what each run says."""

    def __init__(self, folder: Path, server: ScriptedServer) -> None:
        llama = small_recipe.model(folder / "llama")
        tags = {"quality": {"check": 5}}
        self.path = small_recipe.recipe(
            folder, llama, server.url, synth__rows=30, synth__tags=tags, arms__good__where=WHERE
        )
        self.store = folder / "store"
        self.recipe: Recipe = load(self.path, []).recipe
        self.first, self.second, self.again = self.run(), self.run("synth.rows=60"), self.run()

    def run(self, *overrides: str) -> dict[str, Any]:
        """The cost of the pool after a run."""
        graph.run(load(self.path, list(overrides)), until="select")
        return self.cost

    @property
    def cost(self) -> dict[str, Any]:
        told = json.loads((self.recipe.folder / "measure" / "cost.json").read_text())
        return {column["name"]: column for column in told["columns"]}

    def ledger(self) -> dict[str, Any]:
        return costs.costs({"measure": self.recipe.folder / "measure"})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with ScriptedServer(small_recipe.answer) as server:
        yield Runs(tmp_path_factory.mktemp("runs"), server)


def test_every_column_of_a_pool_says_its_seconds(runs: Runs) -> None:
    assert {"instruction", "quality", "response", "language", "minhash"} <= set(runs.first)
    for column in runs.first.values():
        assert column["seconds"] > 0 and column["untimed"] == 0, column


def test_a_second_run_adds_to_the_seconds_of_the_first(runs: Runs) -> None:
    for name in ("instruction", "quality", "response"):
        assert runs.second[name]["cells"] > runs.first[name]["cells"]
        assert runs.second[name]["seconds"] > runs.first[name]["seconds"]


def test_rows_of_a_larger_pool_take_their_share_of_its_seconds(runs: Runs) -> None:
    half, whole = runs.again["instruction"], runs.second["instruction"]
    assert half["cells"] * 2 == whole["cells"]
    assert half["seconds"] == pytest.approx(whole["seconds"] / 2, abs=0.002)


def test_the_ledger_the_tile_and_the_closing_line_count_the_pool(runs: Runs) -> None:
    shown = runs.ledger()
    rows = {row["name"]: row["seconds"] for row in shown["rows"]}
    assert rows["pool: quality asked the other way"] > 0 and all(rows.values())
    assert shown["total"]["seconds"] == pytest.approx(sum(rows.values())) and not shown["lacks"]
    assert origins.totals(shown)[0]["of"] == "all stages together"
    assert "of machine time, " in ending.closing(runs.recipe, {}, {})["cost"]


def test_seconds_that_nobody_kept_are_a_dash_and_left_out_of_the_sum(runs: Runs) -> None:
    """A store of before, last in this file: it takes the seconds away."""
    for path in runs.store.glob("columns/*/*/seconds-*.json"):
        if path.parent.parent.name != "response":
            path.unlink()
    cost = runs.run()
    assert cost["instruction"]["seconds"] is None and cost["response"]["seconds"] > 0
    shown = runs.ledger()
    assert shown["total"]["seconds"] == cost["response"]["seconds"]
    assert "the pool's instruction (not kept)" in shown["lacks"]
    assert "response" not in shown["lacks"]
    assert origins.totals(shown)[0]["of"] == "without a part of the pool (see Costs)"
    assert f"({shown['lacks']})" in ending.closing(runs.recipe, {}, {})["cost"]
    grown = runs.run("synth.rows=80")
    assert 0 < grown["instruction"]["untimed"] < 1
    assert f"instruction ({100 * 60 / 80:.0f} % of its cells)" in runs.ledger()["lacks"]


# -- the clock of a column -------------------------------------------------------------------------


def test_a_block_within_a_block_counts_for_its_own_column(tmp_path: Path) -> None:
    outer, inner = tmp_path / "instruction/k", tmp_path / "category/k"
    for folder in (outer, inner):
        folder.mkdir(parents=True)
    began = time.monotonic()
    with filling(outer) as made:
        with filling(inner) as labelled:
            time.sleep(0.05)
            labelled(3)
        made(2)
    whole = time.monotonic() - began
    one, other = took(outer), took(inner)
    assert one is not None and other is not None and (one.cells, other.cells) == (2, 3)
    assert other.seconds >= 0.05 and one.seconds + other.seconds <= whole
    assert one.seconds < 0.05


def test_a_run_that_ends_by_an_error_keeps_what_it_took_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seconds, "KEPT", 0.0)
    folder = tmp_path / "response/k"
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), filling(folder) as made:
        made(1)
        assert took(folder) is not None, "kept while it runs: a kill loses no more"
        made(1)
        raise KeyboardInterrupt
    with filling(folder) as made:
        made(5)
    found = took(folder)
    assert found is not None and found.cells == 7 and found.seconds < 5


def test_processes_have_files_of_their_own_that_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "response/k"
    folder.mkdir(parents=True)
    for pid in (1, 2):
        monkeypatch.setattr(seconds.os, "getpid", lambda pid=pid: pid)
        with filling(folder) as made:
            made(4)
    assert len(list(folder.iterdir())) == 2
    found = took(folder)
    assert found is not None and found.cells == 8


def test_a_changed_file_is_told_of_left_out_and_set_aside_by_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "columns/response/k"
    folder.mkdir(parents=True)
    with filling(folder) as made:
        made(4)
    [path] = folder.iterdir()
    path.write_text(path.read_text().replace('"cells": 4', '"cells": 9'))
    said: list[str] = []
    with Damage(said.append, moves=True).noted():
        assert took(folder) == Took()
    assert "left out of what the column cost" in said[0]
    assert not path.exists() and (tmp_path / "aside/columns/response/k").is_dir()


def test_nothing_is_made_where_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no server"), filling(tmp_path / "quality/k"):
        raise ValueError("no server")
    assert not (tmp_path / "quality").exists()
