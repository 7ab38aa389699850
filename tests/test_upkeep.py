"""`magpie ls` and `magpie gc`: what refers to what, and only what nothing refers to is removed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from core.cells.damage import Damage
from core.cells.references import REFERS, References
from core.errors import UserError
from recipes import schema
from recipes.cli import app
from recipes.stages import graph
from recipes.upkeep import contents, listing, removal, verified, words
from recipes.upkeep.contents import Thing
from tests import small_recipe
from tests.scripted_server import ScriptedServer

LATER = 2 * removal.FRESH
SHORT = {"choose": "hash_order", "budget": {"rows": 4}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of two recipes: `changed`, which had an arm by quality and has it no more (nor asks
    for quality as it did), and `other`, which shares its random arm. One part of a stopped result,
    one file set aside."""
    folder = tmp_path_factory.mktemp("upkeep")
    llama, store = small_recipe.model(folder / "llama"), str(folder / "store")
    with ScriptedServer(small_recipe.answer) as server:

        def run(name: str, **changes: Any) -> None:
            path = small_recipe.recipe(
                folder / name, llama, server.url, name=name, store=store, synth__rows=30, **changes
            )
            graph.run(schema.load(path))

        run("changed")
        now = {"arms": {"random": SHORT}, "synth__tags": {"quality": {"mode": "explain"}}}
        run("changed", **now)
        run("changed", **now)
        run("other", **now)
    (folder / "store/results/train/0123456789abcdef.partial").mkdir(parents=True)
    (folder / "store/results/train/0123456789abcdef.partial/weights").write_bytes(b"w" * 9)
    aside = folder / "store/aside/results/score/ab.20261130-120000-000001"
    aside.mkdir(parents=True)
    (aside / "scores.parquet").write_bytes(b"s" * 5)
    yield folder / "store"


@pytest.fixture
def store(shared: Path, tmp_path: Path) -> Path:
    """A copy of it, with the times as they were."""
    return Path(shutil.copytree(shared, tmp_path / "store"))


def names(things: list[Thing]) -> set[str]:
    return {f"{thing.kind} {thing.name}" for thing in things}


def left(store: Path, *forget: str, at: float = LATER) -> set[str]:
    return names(removal.unreferred(contents.read(store, forget), time.time() + at))


LEFT = {
    "result select/good",
    "column quality",
    "unfinished train",
    "set aside ab.20261130-120000-000001",
}


def test_what_the_last_runs_do_not_name_is_left_behind(shared: Path) -> None:
    assert {name for name in left(shared) if "select/random" not in name} == LEFT


def test_what_killed_processes_left_is_removed_and_no_log_of_this_month(store: Path) -> None:
    old, key = time.time() - contents.LOGGED - 60, next((store / "results/select").iterdir()).name
    made = {
        f"results/select/.{key}.deadbeef.tmp/part": True,
        f"results/select/.{key}.lease.unsigned.grave": True,
        "results/select/0123456789abcdef.lease": True,
        "columns/quality/.part-0.parquet.12345678.tmp": True,
        "verified/results/select/0123456789abcdef.json": True,
        "verified/recipes/none.json": True,
        "logs/vllm-old.log": True,
        f"verified/results/select/{key}.json": False,
        "logs/vllm-new.log": False,
    }
    for name, goes in made.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("x")
        if goes:
            os.utime(store / name, (old, old))
    going = {thing.name for thing in removal.unreferred(contents.read(store), time.time())}
    wanted = {name.removesuffix("/part") for name, goes in made.items() if goes}
    assert going & {name.removesuffix("/part") for name in made} == wanted
    removal.main(store, removal.Asked(yes=True), lambda question: True)
    assert {name for name in made if (store / name).exists()} == {
        n for n, g in made.items() if not g
    }


def test_a_run_that_changes_nothing_refers_to_the_same(shared: Path) -> None:
    refers = References(shared / "recipes/changed" / REFERS)
    assert refers.columns >= {
        f"response/{key.name}" for key in (shared / "columns/response").iterdir()
    }
    assert set(refers.results) == {"select/random/0", "select/heldout"}


def test_what_was_written_within_the_hour_stays(shared: Path) -> None:
    assert left(shared, at=0) == set()


def test_a_result_that_two_recipes_share_is_both_recipes(shared: Path) -> None:
    found = contents.read(shared)
    by = {thing.name: thing.recipes for thing in found.things if thing.recipes}
    assert by["select/heldout"] == ("changed", "other")
    assert by["response"] == ("changed", "other")


def test_a_forgotten_recipe_leaves_what_only_it_had(shared: Path) -> None:
    assert left(shared, "other") == left(shared)
    everything = left(shared, "other", "changed")
    assert everything >= LEFT | {"result select/heldout", "column response", "column instruction"}
    assert any(name.startswith("snapshot") for name in everything)


def test_a_column_that_no_recipe_ever_named_stays(store: Path) -> None:
    shutil.copytree(next((store / "columns/quality").iterdir()), store / "columns/quality/ffff")
    assert "column quality" in left(store)
    quality = [thing for thing in contents.read(store).things if thing.name == "quality"]
    assert [thing.dropped for thing in quality if thing.path.name == "ffff"] == [False]


def test_runs_that_noted_nothing_keep_their_results_by_what_they_are_made_of(store: Path) -> None:
    for recipe in ("changed", "other"):
        (store / "recipes" / recipe / REFERS).unlink()
    kept = {thing.name for thing in contents.read(store).of("other") if thing.kind == "result"}
    assert kept == {"select/heldout", "select/random/0"}
    assert not {name for name in left(store) if name.startswith("column")}


def test_removal_takes_what_is_left_behind_and_nothing_else(store: Path) -> None:
    before = {path for path in (store / "results").glob("*/*") if path.is_dir()}
    going = removal.unreferred(contents.read(store), time.time() + LATER)
    gone, failed = removal._removed(store, (), going)
    assert failed == [] and names(gone) == names(going)
    assert not any(thing.path.exists() for thing in gone)
    after = {path for path in (store / "results").glob("*/*") if path.is_dir()}
    assert before - after == {thing.path for thing in gone if thing.path in before}
    assert left(store) == set()
    assert names(contents.read(store).of("other")) >= {"result select/heldout"}


def test_a_result_that_is_being_made_stays(store: Path) -> None:
    from core.cells.leases import leased

    being_made = store / "results/train/0123456789abcdef"
    going = removal.unreferred(contents.read(store), time.time() + LATER)
    train = [thing for thing in going if thing.name == "train"]
    with leased(being_made.with_name(f"{being_made.name}.lease"), "taken by {holder}", None):
        gone, failed = removal._removed(store, (), train)
    assert gone == [] and "is making it right now" in failed[0]
    assert (store / "results/train/0123456789abcdef.partial/weights").is_file()


def test_nothing_is_removed_without_an_answer(store: Path) -> None:
    recipe = store / "recipes/other"
    result = CliRunner().invoke(app, ["gc", str(store), "--forget", "other"])
    assert "nothing was removed" in result.stdout and recipe.is_dir()
    result = CliRunner().invoke(app, ["gc", str(store), "--forget", "other", "--yes"])
    assert result.exit_code == 0 and not recipe.exists()


def test_what_a_run_took_up_while_the_question_stood_open_stays(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "FRESH", -1.0)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    going = removal.unreferred(contents.read(store), time.time())
    taken, other = going[0].path, going[1].path

    def asked(_: str) -> bool:
        for file in (path for path in taken.rglob("*") if path.is_file()):
            os.utime(file, (time.time() + 99, time.time() + 99))
        return True

    removal.main(store, removal.Asked(), asked)
    assert taken.exists() and not other.exists()


def test_a_recipe_that_the_store_does_not_have_is_a_sentence(store: Path) -> None:
    with pytest.raises(UserError, match=r"--forget othr: .*did you mean 'other'"):
        removal.main(store, removal.Asked(("othr",)), lambda _: True)


def test_a_folder_that_is_no_store_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no store"):
        contents.read(tmp_path)


@pytest.mark.parametrize("verb", ["ls", "gc"])
def test_a_store_of_a_newer_version_is_refused_as_by_every_verb(store: Path, verb: str) -> None:
    for name in ("store.json", ".store.json"):
        (store / name).write_text('{"version": 99}')
    result = CliRunner().invoke(app, [verb, str(store)])
    assert isinstance(result.exception, UserError)
    assert "install the version that wrote it" in str(result.exception)
    (store / "store.json").write_text("{")
    result = CliRunner().invoke(app, [verb, str(store)])
    assert "install the version that wrote it" in str(result.exception)
    (store / ".store.json").write_text("{")
    result = CliRunner().invoke(app, [verb, str(store)])
    assert 'write {"version": 2} into it' in str(result.exception)


def test_a_removed_column_is_not_missed_and_a_result_that_was_lost_is(store: Path) -> None:
    at = References(store / "recipes/other" / REFERS).results["select/heldout"]
    shutil.rmtree(store / "results" / at)
    going = removal.unreferred(contents.read(store), time.time() + LATER)
    assert "column quality" in names(going)
    removal._removed(store, (), going)
    found = verified.verify(store, Damage(lambda line: None, moves=False)).damaged
    assert list(found) == [store / "results" / at]
    assert "referred to by recipe changed, recipe other" in found[store / "results" / at]


def test_the_listing_says_who_refers_to_what(shared: Path) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ls", str(shared), "--json"])
    told = json.loads(result.stdout)
    assert set(told["recipes"]) == {"changed", "other"}
    assert told["recipes"]["other"]["bytes_alone"] < told["recipes"]["other"]["bytes"]
    things = {thing["name"]: thing["recipes"] for thing in told["things"]}
    assert things["train"] == []


def test_hard_links_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert contents.measured(tmp_path, set())[0] == 100


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1_250_000, "1.25 MB"),
        (4.61e9, "4.61 GB"),
        (0, "0 bytes"),
    ],
)
def test_sizes_in_words(count: int, said: str) -> None:
    assert words.size(int(count)) == said


def test_a_store_is_found_by_its_recipe(tmp_path: Path) -> None:
    path = small_recipe.recipe(tmp_path, tmp_path, "http://127.0.0.1:1")
    assert listing.root_of(str(path)) == tmp_path / "store"
    with pytest.raises(UserError, match="neither the folder of a store nor a recipe"):
        listing.root_of("nowhere")
