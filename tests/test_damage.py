"""Files of a store that were changed, cut, emptied, lost or swapped: each is named, set aside, and
only what it held is made again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.cells import kept, seals, whole
from core.cells.damage import ASIDE, Damage
from core.columns import Column
from core.errors import UserError
from core.files import replacing
from core.models import Model
from core.servers import Servers
from core.store import Store
from core.tracking import Log, Tracker
from eval.judging.asking.journal import Journal
from recipes import schema
from recipes.exchange import export_data
from recipes.exchange.export_data import Target
from recipes.stages import graph
from recipes.stages.graph import Outcome
from recipes.stages.session import Session
from recipes.stages.sets import held
from recipes.stages.tokens import Contents
from recipes.upkeep import page, verified
from recipes.verbs import why
from synth.duplicates import embeddings
from tests import small_recipe, test_kept_vectors
from tests import test_judged_recipe as judged
from tests.scripted_server import Fault, ScriptedServer

KEY = "a" * 64


def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """The judge and the judged models of one recipe, the teacher and tagger of the other."""
    judges = body.get("model") == "big-judge"
    answers = "messages" not in body and body.get("max_tokens") == 12
    return (judged.answer if judges or answers else small_recipe.answer)(path, body)


@dataclass(frozen=True)
class Made:
    """A store that two recipes filled, with everything in it that a store can hold."""

    folder: Path
    judged: Path
    pool: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def server(self) -> ScriptedServer:
        return ScriptedServer(answer)


def build(folder: Path, url: str) -> Made:
    """Run both recipes, and put beside their results what takes a GPU or a kill to make."""
    for name, family in zip(judged.ONE_OF, ("chatml", "llama3"), strict=True):
        small_recipe.model(folder / "models" / name, family)
    one = judged.recipe(folder, folder / "models", url)
    changes = {"store": str(folder / "store"), "name": "pool", "synth__rows": 40}
    other = small_recipe.recipe(folder / "pool", folder / "models" / "one", url, **changes)
    for path in (one, other):
        graph.run(schema.load(path))
    made = Made(folder, one, other)
    store = Store(made.store)
    with store.build("train", KEY, {"seed": 0}) as training:
        assert training is not None
        training.content = "checkpoint"
        weights = training.path / "checkpoint"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(bytes(range(256)) * 64)
        (weights / "config.json").write_text('{"hidden_size": 64}')
        (training.path / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n' * 9)
    with store.build("tokens", KEY, {"rows": 2}) as tokens:
        assert tokens is not None
        (tokens.path / "tokens.arrow").write_bytes(b"ARROW1" + bytes(range(255)) * 9)
    leave_journals(made.store)
    keep_vectors(made.store)
    return made


def column_of(root: Path) -> Column:
    return Column.open(root, "answered", {"model": "m"}, {"text": pl.String})


def leave_journals(root: Path) -> None:
    """What killed writers of a column leave: frames of cells, and lines of judgments."""
    column = column_of(root)
    for number in range(3):
        column.append([{"id": f"row-{number}", "text": f"words {number} " * 20}])
    with pytest.raises(KeyboardInterrupt), Journal(column) as journal:
        for number in range(3):
            journal.write({"id": f"row-{number}", "text": "a judgment " * 9, "status": "ok"})
        raise KeyboardInterrupt


def keep_vectors(root: Path) -> None:
    """Vectors of a few texts, and the names by which they are known."""
    model, texts = Model("letters", "", "a revision"), ["egg", "an egg", "two eggs"]
    embeddings.vectors(root, texts, texts, model, test_kept_vectors.Letters(), texts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with ScriptedServer(answer) as server:
        yield build(tmp_path_factory.mktemp("made"), server.url)


# -- ways to damage a file -------------------------------------------------------------------------


def flipped(path: Path) -> None:
    """One bit of a byte in the middle: a digit or letter stays one."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flipped_late(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def deleted(path: Path) -> None:
    path.unlink()


def zeroed(path: Path) -> None:
    """As after a power cut: the size, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path) -> None:
    path.write_text("{]")


def wrong_type(path: Path) -> None:
    path.write_text("[1, 2]")


def other_content(path: Path) -> None:
    """Of the size that it had."""
    size = path.stat().st_size
    path.write_bytes((b'{"a": 1}' * (size // 8 + 1))[:size])


def swapped(path: Path) -> None:
    """With a file of the same name in another folder, else another file of this one."""
    same = [p for p in path.parent.parent.rglob(path.name) if p.parent != path.parent]
    rest = [p for p in path.parent.parent.rglob(f"*{path.suffix}") if p.stem != path.stem]
    content = path.read_bytes()
    others = (p.read_bytes() for p in [*same, *rest])
    path.write_bytes(next((other for other in others if other != content), b"another's"))


BYTES = (flipped, flipped_late, truncated, emptied, zeroed, swapped)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


JSON = (*BYTES, garbage, wrong_type, other_content)
KINDS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "results/answers/*/answers.parquet": (*BYTES, deleted),
    "results/answers/*/manifest.json": (*JSON, deleted),
    "results/judge/*/judgments.parquet": (*BYTES, deleted),
    "results/judge/*/protocol.json": (*JSON, deleted),
    "results/judge/*/manifest.json": (*JSON, deleted),
    "results/score/*/scores.parquet": (*BYTES, deleted),
    "results/score/*/summary.json": (*JSON, deleted),
    "results/compare/*/comparison.json": (*JSON, deleted),
    "results/compare/*/comparison.parquet": (*BYTES, deleted),
    "results/prompts/*/prompts.jsonl": (*BYTES, deleted, garbage),
    "results/report/*/report.html": (*BYTES, deleted),
    "results/report/*/tables/scores.csv": (*BYTES, deleted),
    "results/select/*/selection.parquet": (*BYTES, deleted),
    "results/select/*/heldout.parquet": (*BYTES, deleted),
    "results/train/*/checkpoint/model.safetensors": (*BYTES, deleted),
    "results/train/*/checkpoint/config.json": (*JSON, deleted),
    "results/train/*/log.jsonl": (*BYTES, deleted),
    "results/train/*/manifest.json": (*JSON, deleted),
    "results/tokens/*/tokens.arrow": (*BYTES, deleted),
    "columns/instruction/*/part-*.parquet": (*BYTES, deleted),
    "columns/response/*/part-*.parquet": (*BYTES, deleted),
    "columns/judgments-alpaca/*/part-*.parquet": (*BYTES, deleted),
    "columns/quality/*/column.json": (*JSON, deleted),
    "columns/response/*/seconds-*.json": JSON,
    "columns/answered/*/journal-*.cells": (flipped, flipped_late, zeroed, swapped),
    "columns/answered/*/journal-*.jsonl": (flipped, flipped_late, other_content),
    "vectors/*/vectors.f32": (*BYTES, deleted),
    "vectors/*/rows-*.parquet": BYTES,
    "vectors/*/known-*.parquet": BYTES,
    "vectors/*/model.json": JSON,
    "recipes/pool/specs.json": (*JSON, deleted),
    "recipes/pool/refers.json": (*JSON, deleted),
    "recipes/pool/select/good/funnel.json": (*JSON, deleted),
    "recipes/pool/select/good/held.json": (*JSON, deleted),
    "recipes/pool/select/good/dropped.parquet": (*BYTES, deleted),
    "recipes/pool/measure/cost.json": (*JSON, deleted),
    "recipes/pool/measure/pool.parquet": (*BYTES, deleted),
    "recipes/small/declared.json": (*JSON, deleted),
    "recipes/small/report.html": (*BYTES, deleted),
    "recipes/small/tables/scores.parquet": (*BYTES, deleted),
    "recipes/small/spent/spent-*.jsonl": (*BYTES, deleted),
    "selections/*": (flipped, truncated, emptied, zeroed, garbage),
}
"""Every kind of file that a store holds, and what is done to one of it. A journal that is gone or
cut short is no damage: its cells are unmeasured, as after a kill."""
TABLE = [(kind, way) for kind, ways in KINDS.items() for way in ways]
IDS = [f"{kind}-{way.__name__}" for kind, way in TABLE]


def file_of(store: Path, kind: str) -> Path:
    return sorted(store.glob(kind))[0]


@pytest.fixture
def restored() -> Iterator[Callable[[Path], Path]]:
    """Gives every file that it is told of back what it held."""
    kept: dict[Path, bytes] = {}

    def keep(path: Path) -> Path:
        kept[path] = path.read_bytes()
        return path

    yield keep
    for path, data in kept.items():
        path.write_bytes(data)


def verify(store: Path) -> dict[Path, str]:
    """What `magpie verify` finds damaged."""
    return dict(verified.verify(store, Damage(lambda line: None, moves=False)).damaged)


def verify_one(store: Path, path: Path) -> dict[Path, str]:
    """What `magpie verify` finds where it comes to a file."""
    noting, found = Damage(lambda line: None, moves=False), verified.Found()
    kind, *rest = path.relative_to(store).parts
    with noting.noted():
        if path.suffix == ".jsonl" and kind == "columns":
            verified.check_lines(path, found)
        elif kind == "results":
            verified.check_result(store, store / kind / rest[0] / rest[1], found)
        elif kind == "columns":
            verified.check_column(store, store / kind / rest[0] / rest[1], found)
        elif kind == "vectors":
            verified.check_vectors(store, path.parent, found)
        elif kind == "recipes":
            kept.look(store, rest[0], anew=True)
        else:
            Contents(store).all()
    return noting.found


def test_a_store_that_was_just_made_is_whole(made: Made) -> None:
    found = verified.verify(made.store, Damage(lambda line: None, moves=False))
    assert not found.damaged and not found.unsealed
    assert found.results >= 10 and found.parts >= 3 and found.files > 50


@pytest.mark.parametrize(("kind", "way"), TABLE, ids=IDS)
def test_verify_names_what_is_damaged(
    made: Made, restored: Callable[[Path], Path], kind: str, way: Callable[[Path], None]
) -> None:
    path = restored(file_of(made.store, kind))
    way(path)
    found = verify_one(made.store, path)
    named = path.name in " ".join(found.values())  # vectors are by the part that names them
    assert named or any(path == each or each in path.parents for each in found), found


# -- what is gone as a whole -----------------------------------------------------------------------


@contextmanager
def moved_away(path: Path, made: Made) -> Iterator[None]:
    """Without a file or folder of the store for the block."""
    away = made.folder / "away"
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("results/prompts/*", "recipe small, answers/"),
        ("results/compare/*", "recipe small, report/"),
        ("results/report/*", "recipe small;"),
        ("results/select/*", "recipe pool;"),
    ],
)
def test_verify_names_who_refers_to_a_result_that_is_gone(made: Made, kind: str, by: str) -> None:
    folder = file_of(made.store, kind)
    with moved_away(folder, made):
        found = verify(made.store)
    assert list(found) == [folder]
    assert found[folder].startswith(f"is gone, and is referred to by {by}"), found
    assert folder.name in {path.stem for path in (made.store / "verified").rglob("*.json")}


def test_a_result_that_is_gone_and_nobody_refers_to_is_not_missed(made: Made) -> None:
    with moved_away(file_of(made.store, "results/train/*"), made):
        assert not verify(made.store)


def test_verify_names_a_column_that_is_gone(made: Made) -> None:
    folder = file_of(made.store, "columns/quality/*")
    with moved_away(folder, made):
        found = verify(made.store)
        assert "quality" in reasons(made.pool)["measure"]
    assert list(found) == [folder]
    assert found[folder].startswith("is gone with its 1 part; a run that needs it"), found


def test_a_repair_notes_what_is_gone_and_puts_right_what_has_a_copy(copied: Made) -> None:
    about = file_of(copied.store, "columns/quality/*/column.json")
    said = about.read_text()
    deleted(about)
    part = file_of(copied.store, "columns/judgments-alpaca/*/part-*.parquet")
    deleted(part)
    column = file_of(copied.store, "columns/instruction/*")
    shutil.rmtree(column)
    spoiled = file_of(copied.store, "columns/response/*/part-*.parquet")
    flipped(spoiled)
    found = verified.verify(copied.store, Damage(lambda line: None, moves=True)).damaged
    assert {*found} == {about, part, column, spoiled}
    assert json.loads(about.read_text()) == json.loads(said)
    assert not verify(copied.store)


def test_a_run_tells_of_a_part_that_is_gone_and_measures_its_cells_again(copied: Made) -> None:
    part = file_of(copied.store, "columns/response/*/part-*.parquet")
    deleted(part)
    with made_again(copied) as outcomes:
        assert part in outcomes[1].damaged
    assert not verify(copied.store) and not stale(copied)


def test_parts_that_were_merged_are_not_missed(tmp_path: Path) -> None:
    column = column_of(tmp_path)
    for number in range(3):
        column.append([{"id": f"row-{number}", "text": "words"}])
        column.cut()
    (tmp_path / "columns/answered/none").mkdir()  # no column, and no parts
    first = column.parts()[0]
    column.compact(files=1)
    assert not first.exists() and len(column.parts()) == 1
    assert not verify(tmp_path)
    (left,) = column.parts()
    deleted(left)
    assert list(verify(tmp_path)) == [left]


def test_a_part_that_is_removed_while_it_is_noted_is_not_missed(tmp_path: Path) -> None:
    part = tmp_path / "columns/answered/k/part-t0.parquet"
    whole.note(part, tmp_path)
    assert whole.count(part.parent, tmp_path) == []


@pytest.mark.parametrize("name", ["store.json", ".store.json"])
@pytest.mark.parametrize("way", [emptied, garbage, wrong_type, deleted, zeroed])
def test_either_file_that_says_how_files_lie_is_put_right_from_the_other(
    tmp_path: Path, name: str, way: Callable[[Path], None]
) -> None:
    column_of(tmp_path).append([{"id": "0", "text": "first"}])
    path = tmp_path / name
    held = path.read_text()
    way(path)
    assert list(verify(tmp_path)) == [path]
    assert list(verified.verify(tmp_path, Damage(lambda line: None, moves=True)).damaged) == [path]
    assert path.read_text() == held and not verify(tmp_path)


def test_a_newer_version_counts_by_its_copy_too(tmp_path: Path) -> None:
    (tmp_path / ".store.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="install the version that wrote it"):
        Store(tmp_path)


# -- what is no file any more, or cannot be read ---------------------------------------------------


def test_verify_names_every_file_that_became_a_folder_and_goes_on(copied: Made) -> None:
    broken = [file_of(copied.store, kind) for kind in KINDS if not kind.startswith("vectors/")]
    broken = [*dict.fromkeys([*broken, copied.store / "store.json"])]
    for path in broken:
        a_folder(path)
    found = verify(copied.store)
    named = " ".join(f"{path} {why}" for path, why in found.items())
    missing = [path for path in broken if path.name not in named and not {*path.parents} & {*found}]
    assert not missing
    assert {path for path in found if path.parent == copied.store} == {copied.store / "store.json"}
    repaired = verified.verify(copied.store, Damage(lambda line: None, moves=True)).damaged
    assert {*repaired} >= {path for path in found if "columns" not in path.parts}


def test_verify_goes_on_behind_what_cannot_be_read_and_leaves_it_there(
    copied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file_of(copied.store, "results/answers/*/answers.parquet")
    last = file_of(copied.store, "results/score/*/summary.json")
    flipped(last)
    digest = seals.file_digest

    def refuse(path: Path) -> str:
        if path == first:
            raise PermissionError(13, "Permission denied", str(path))
        return digest(path)

    monkeypatch.setattr(seals, "file_digest", refuse)
    for moves in (False, True):
        found = verified.verify(copied.store, Damage(lambda line: None, moves=moves)).damaged
        assert {*found} == {first.parent, last.parent}
        assert str(first) in found[first.parent] and "permission denied" in found[first.parent]
    assert first.is_file() and not last.exists()
    assert list(verify(copied.store)) == [first.parent], "what was set aside is not missed"


# -- what reads a recipe's files -------------------------------------------------------------------


@pytest.mark.parametrize("way", [flipped, emptied, deleted, a_folder])
def test_the_report_is_not_named_where_its_page_is_damaged(
    copied: Made, way: Callable[[Path], None]
) -> None:
    recipe = schema.load(copied.judged).recipe
    path = copied.store / "recipes/small/report.html"
    assert page.of_recipe(recipe, "small.yaml") == path
    way(path)
    with pytest.raises(UserError, match=r"report.html: .*`magpie verify .* --repair` sets it"):
        page.of_recipe(recipe, "small.yaml")


def test_the_report_is_not_named_where_its_comparison_is_damaged_or_gone(copied: Made) -> None:
    recipe = schema.load(copied.judged).recipe
    comparison = file_of(copied.store, "results/compare/*/comparison.json")
    other_content(comparison)
    with pytest.raises(UserError, match=r"comparison.json was changed after it was made; `magpie"):
        page.of_recipe(recipe, "small.yaml")
    shutil.rmtree(comparison.parent)
    with pytest.raises(UserError, match=r"is not there; make it with `magpie run small.yaml`"):
        page.of_recipe(recipe, "small.yaml")


def test_a_page_that_nobody_sealed_is_compared_with_the_one_that_was_made(copied: Made) -> None:
    kept.open_again(copied.store, "small")
    path = copied.store / "recipes/small/report.html"
    flipped(path)
    with pytest.raises(UserError, match=r"report.html: was changed after it was made; make it"):
        page.of_recipe(schema.load(copied.judged).recipe, "small.yaml")


@pytest.mark.parametrize("file", ["measure/pool.parquet", "select/good/selection.parquet"])
@pytest.mark.parametrize("way", [flipped, emptied, deleted])
def test_nothing_is_exported_of_a_damaged_pool_or_selection(
    copied: Made, tmp_path: Path, file: str, way: Callable[[Path], None]
) -> None:
    way(copied.store / "recipes/pool" / file)
    with pytest.raises(UserError, match=r"parquet: .*`magpie verify .* --repair` sets it aside"):
        export_data.main(str(copied.pool), Target(tmp_path / "out.jsonl", "25"), arm="good")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("way", [flipped, emptied])
def test_why_believes_no_damaged_pool(copied: Made, way: Callable[[Path], None]) -> None:
    loaded = schema.load(copied.pool)
    assert any("rows: " in line for line in why.explain(loaded, "good"))
    way(copied.store / "recipes/pool/measure/pool.parquet")
    with pytest.raises(UserError, match=r"parquet: .*`magpie verify .* --repair` sets it aside"):
        list(why.explain(loaded, "good"))


def test_what_an_export_does_not_read_may_be_damaged(copied: Made, tmp_path: Path) -> None:
    for file in ("report.html", "select/random/0/selection.parquet"):
        (copied.store / "recipes/pool" / file).write_text("other")
    export_data.main(str(copied.pool), Target(tmp_path / "out.jsonl", "25"), arm="good")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 10


# -- plans and runs --------------------------------------------------------------------------------


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """The store once more, to be damaged; the recipes, and the models, are those of the first."""
    shutil.copytree(made.store, tmp_path / "store", symlinks=True)
    paths = {}
    for name, path in (("judged", made.judged), ("pool", made.pool)):
        text = path.read_text().replace(str(made.store), str(tmp_path / "store"))
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(text)
    return Made(tmp_path, paths["judged"], paths["pool"])


def reasons(path: Path) -> dict[str, str]:
    """Why each stage of a plan is not reused."""
    steps = graph.plan(schema.load(path)).steps
    return {step.name: step.why for step in steps if step.state != "reuse"}


def stale(copied: Made) -> set[str]:
    """What both plans make again; not the page, which shows the recipe and so where its store
    lies."""
    return {*reasons(copied.judged), *reasons(copied.pool)} - {"report"}


ANSWERS, JUDGMENTS = "results/answers/*/answers.parquet", "results/judge/*/judgments.parquet"


def test_a_copied_store_is_reused_whole(copied: Made) -> None:
    assert not stale(copied)


@pytest.mark.parametrize("way", [flipped, truncated, emptied, deleted, swapped])
def test_a_plan_says_which_file_of_a_stage_was_changed(
    copied: Made, way: Callable[[Path], None]
) -> None:
    way(file_of(copied.store, JUDGMENTS))
    said = reasons(copied.judged)
    assert said["judge/alpaca/two"].startswith("judgments.parquet ")
    assert set(said) == {"judge/alpaca/two", "score/two", "compare", "report"}
    assert not (copied.store / ASIDE).exists(), "a plan changes nothing"


def test_a_run_sets_damaged_files_aside_and_makes_only_them_again(copied: Made) -> None:
    """Of both recipes, many at once: afterwards everything is as it was."""
    before = comparison(copied.store)
    broken = [
        file_of(copied.store, kind)
        for kind in (ANSWERS, JUDGMENTS, "results/select/*/heldout.parquet")
    ]
    broken += [
        file_of(copied.store, "columns/response/*/part-*.parquet"),
        file_of(copied.store, "recipes/pool/measure/pool.parquet"),
        file_of(copied.store, "recipes/pool/select/good/dropped.parquet"),
        file_of(copied.store, "recipes/pool/specs.json"),
        file_of(copied.store, "results/compare/*/manifest.json"),
    ]
    for path in broken:
        flipped(path)
    with made_again(copied) as outcomes:
        ran = {step.name for outcome in outcomes for step in outcome.steps if step.state == "run"}
    assert not verify(copied.store)
    assert not stale(copied)
    assert comparison(copied.store) == before
    assert {"judge/alpaca/two", "select/heldout"} < ran
    assert len(ran & {"answers/one", "answers/two"}) == 1, "the other one is whole"
    assert not ran & {"prompts/alpaca", "select/good", "select/random/0", "instructions"}
    aside = [path.name for path in (copied.store / ASIDE).rglob("*.*-*") if path.is_file()]
    assert any(name.startswith("part-") for name in aside)


@contextmanager
def made_again(store: Made) -> Iterator[list[Outcome]]:
    with ScriptedServer(answer) as server:
        outcomes = []
        for path in (store.judged, store.pool):
            path.write_text(re.sub(r"http://127\.0\.0\.1:\d+", server.url, path.read_text()))
            outcomes.append(graph.run(schema.load(path)))
        yield outcomes


def comparison(store: Path) -> Any:
    """comparison.json of the store's one comparison."""
    paths = [p for p in store.glob("results/compare/*/comparison.json") if p.parent.name[-1] != "l"]
    (path,) = paths
    return json.loads(path.read_text())


def test_a_lost_manifest_is_put_right_from_its_copy_and_nothing_is_made_again(
    copied: Made,
) -> None:
    manifest = file_of(copied.store, "results/answers/*/manifest.json")
    held = manifest.read_text()
    manifest.unlink()
    assert not stale(copied)
    graph.run(schema.load(copied.judged))
    assert json.loads(manifest.read_text()) == json.loads(held)


def test_a_training_whose_log_is_damaged_is_not_trained_again(copied: Made) -> None:
    store, noting = Store(copied.store), Damage(lambda line: None, moves=True)
    log = file_of(copied.store, "results/train/*/log.jsonl")
    emptied(log)
    with noting.noted():
        assert store.find("train", KEY) is not None
    assert "checkpoint is whole" in noting.found[log]


def test_emptied_weights_do_not_count(copied: Made) -> None:
    store, noting = Store(copied.store), Damage(lambda line: None, moves=False)
    emptied(file_of(copied.store, "results/train/*/checkpoint/model.safetensors"))
    with noting.noted():
        assert store.find("train", KEY) is None
    (why,) = noting.found.values()
    assert why == "checkpoint/model.safetensors is empty and was not"
    with pytest.raises(UserError, match=r"model.safetensors is empty .* --repair"):
        store.find("train", KEY)


# -- what is not damage ----------------------------------------------------------------------------


def test_what_was_read_once_is_known_by_size_and_times(
    copied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm plan reads no file again, however large."""
    monkeypatch.setattr(seals, "SETTLED", 0.0)
    for _ in range(2):
        assert not stale(copied)

    def read(path: Path, *_: object) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(seals, "file_digest", read)
    monkeypatch.setattr(whole, "part_digest", read)
    monkeypatch.setattr(whole, "_seen", {})
    assert not stale(copied)


def test_what_is_remembered_of_files_may_be_lost_or_damaged(copied: Made) -> None:
    for number, path in enumerate(sorted((copied.store / seals.VERIFIED).rglob("*.json"))):
        (garbage, wrong_type, emptied, deleted)[number % 4](path)
    assert not stale(copied)


def test_a_file_that_may_not_be_read_is_not_damaged(
    copied: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(seals, "file_digest", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(permission denied\).* nothing was"):
        graph.run(schema.load(copied.judged))
    assert not (copied.store / ASIDE).exists()


def test_a_part_that_is_gone_is_measured_again(copied: Made) -> None:
    deleted(file_of(copied.store, "columns/response/*/part-*.parquet"))
    assert "response" in reasons(copied.pool)["measure"]


@pytest.mark.parametrize("place", [0, 7, 40], ids=["magic", "length", "cells"])
def test_frames_behind_a_damaged_one_count(tmp_path: Path, place: int) -> None:
    column = column_of(tmp_path)
    column.append([{"id": "0", "text": "first"}])
    (path,) = tmp_path.rglob("journal-*.cells")
    first = path.stat().st_size
    column.append([{"id": "1", "text": "second"}, {"id": "2", "text": "third"}])
    second = path.stat().st_size
    column.append([{"id": "3", "text": "fourth"}])
    data = bytearray(path.read_bytes())
    data[first + place] ^= 1
    path.write_bytes(data)
    noting = Damage(lambda line: None, moves=False)
    with noting.noted():
        assert column_of(tmp_path).read()["id"].to_list() == ["0", "3"]
    assert f"{second - first} bytes" in noting.found[path]


def test_a_torn_last_frame_is_a_kill_and_no_damage(tmp_path: Path) -> None:
    column = column_of(tmp_path)
    column.append([{"id": "0", "text": "first"}])
    column.append([{"id": "1", "text": "second"}])
    (path,) = tmp_path.rglob("journal-*.cells")
    path.write_bytes(path.read_bytes()[:-3])
    noting = Damage(lambda line: None, moves=False)
    with noting.noted():
        assert column_of(tmp_path).read()["id"].to_list() == ["0"]
    assert not noting.found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "restore it from a copy"),
        ("[2]", "does not say how"),
        ('{"version": "2"}', "does not say how"),
        ('{"version": 3}', "install the version that wrote it"),
        ('{"version": 0}', "does not say how"),
    ],
)
def test_a_store_of_another_version_or_of_none_says_what_to_do(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(UserError, match=says):
        Store(tmp_path)


@pytest.mark.parametrize("runs", [True, False])
def test_a_damaged_file_beside_what_counts_is_set_aside_by_a_run_so_that_nobody_reads_it(
    tmp_path: Path, runs: bool
) -> None:
    with Store(tmp_path).build("train", "k" * 16, {}) as build:
        assert build is not None
        (build.path / "checkpoint").mkdir()
        (build.path / "checkpoint" / "weights").write_text("w")
        (build.path / "ledger.json").write_text('{"trained_rows": 1}')
        build.content = "checkpoint"
    ledger = Store(tmp_path).folder("train", "k" * 16) / "ledger.json"
    ledger.write_text('{"trained_r')
    said: list[str] = []
    with Damage(said.append, moves=runs).noted():
        assert Store(tmp_path).find("train", "k" * 16) is not None
    assert len(said) == 1 and "ledger.json" in said[0]
    assert ledger.exists() != runs
    assert len(list((tmp_path / "aside").rglob("ledger.json.*"))) == int(runs)


@pytest.mark.parametrize("text", ["", '{"a": "1"', "[1]", "null"])
def test_what_is_said_of_large_files_and_cannot_be_read_is_said_anew(
    tmp_path: Path, text: str
) -> None:
    """A run that was killed has sealed none of it."""
    said = {"selection.parquet": "abc"}
    held.say(tmp_path, said)
    assert held.says(tmp_path, said)
    (tmp_path / held.HELD).write_text(text)
    noting = Damage(lambda line: None, moves=True)
    with noting.noted():
        assert not held.says(tmp_path, said)
        assert held.told(tmp_path)
    assert tmp_path / held.HELD in noting.found
    held.say(tmp_path, said)
    assert held.says(tmp_path, said)


@pytest.mark.parametrize("planning", [True, False])
def test_what_killed_runs_left_half_written_in_a_store_is_swept_by_a_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planning: bool
) -> None:
    places = ["columns/quality/k", "snapshots", "recipes/small/select/good", "verified/results/x"]
    places.append("verified/columns/quality/k")
    monkeypatch.setattr(os, "getpid", lambda: 99_999_999)  # no process has this number
    for place in places:
        with pytest.raises(KeyError), replacing(tmp_path / place / "x.json") as temporary:
            temporary.touch()
            temporary.rename(temporary.with_name(temporary.name.replace(".x.", ".y.")))
            raise KeyError
    left = sorted(path.parent for path in tmp_path.rglob(".y.json.*.tmp"))
    monkeypatch.undo()
    tracker = Tracker("none", project="p", group="g", folder=tmp_path)
    with Servers(Log(), tmp_path / "logs") as servers:
        Session(Store(tmp_path), "small", planning, tracker, servers, Log())
    now = sorted(path.parent for path in tmp_path.rglob(".y.json.*.tmp"))
    assert len(left) == len(places) and now == (left if planning else [])
