"""What makes a large pool affordable: servers that never drain, texts that are read once, files
that are written once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from core.cells import seals, whole
from core.cells.content import beside, first_of_each, frame_digest
from core.columns import Column
from core.models import resolve
from core.servers import Servers
from core.tracking import Log
from recipes import schema
from recipes.stages import graph, tokens
from recipes.stages.graph import Outcome
from recipes.stages.tokens import rows_digest
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve as resolve_filter
from synth.pool import measure as measuring
from synth.pool import short_columns
from synth.pool.draw import draw
from synth.pool.pool import Pool
from synth.pool.short_columns import conversations_digest, messages_digest
from tests import small_recipe
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def test_the_digest_of_a_frame_is_what_it_was() -> None:
    """Keys of results hang on it, in stores of before too."""
    frame = pl.DataFrame({"b": [True, None, False], "n": [1.5, None, 2.0], "t": ["a", None, "ü"]})
    assert frame_digest(frame) == (
        "e5625e7f7a2f277177aefc08a0069274c06ca9b4fd484579753701a556fd405e"
    )


def test_requests_of_the_next_slice_are_sent_while_those_of_this_one_are_in_flight(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "SLICE", 4)
    recipe = schema.load(small_recipe.recipe(tmp_path, llama, server.url)).recipe
    pool = Pool(recipe.synth, Context(tmp_path, resolve))
    arm = ArmConfig.model_validate({"choose": "all"})
    rules = [(resolve_filter("all", arm), (0,))]
    with Servers(Log(), tmp_path / "logs") as servers:
        draw(pool, servers, Log())
    with (
        ScriptedServer(small_recipe.answer, delay=0.05) as slow,
        Servers(Log(), tmp_path / "logs") as servers,
    ):
        other = small_recipe.recipe(tmp_path, llama, slow.url)
        pool = Pool(schema.load(other).recipe.synth, Context(tmp_path, resolve))
        counts = measuring.measure(pool, rules, servers, Log())
    assert counts["response"]["cells"] == 100
    assert slow.high_water > 4, "one slice at a time would have four open"
    frame = pool.frame(["response"])
    assert frame["status:response"].to_list() == ["ok"] * 100, "each cell is of its row's text"


def run(path: Path, *overrides: str) -> Outcome:
    return graph.run(schema.load(path, overrides), "select")


def plan(path: Path, *overrides: str) -> dict[str, str]:
    return {s.name: s.state for s in graph.plan(schema.load(path, overrides)).steps}


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """(inode, size, time of the last change) of every file but locks and what is remembered of
    files that were read."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    files = [p for p in files if p.relative_to(folder).parts[0] != seals.VERIFIED]
    states = {str(p.relative_to(folder)): p.stat() for p in files}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path, server: ScriptedServer) -> Path:
    """The store of a recipe whose arms have chosen, with the recipe beside it."""
    folder = tmp_path_factory.mktemp("finished")
    run(small_recipe.recipe(folder, llama, server.url))
    return folder


@pytest.fixture
def store(tmp_path: Path, finished: Path, llama: Path, server: ScriptedServer) -> Path:
    """A copy of that, to be changed."""
    shutil.copytree(finished / "store", tmp_path / "store")
    return small_recipe.recipe(tmp_path, llama, server.url)


def test_a_run_with_nothing_to_do_writes_no_file(store: Path) -> None:
    run(store)  # hard links do not survive the copy
    before = state_of(store.parent / "store")
    run(store)
    assert state_of(store.parent / "store") == before


def test_a_plan_opens_no_text_of_the_pool(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_columns, "REMEMBERED", 1)
    monkeypatch.setattr(seals, "SETTLED", 0.0)
    plan(store)  # the digests and figures of the texts are remembered beside the parts
    plan(store)  # and now what was remembered is known to be whole

    def read(path: Path, *_: object, **__: object) -> None:
        raise AssertionError(f"{path} was read")

    def not_of_texts(column: Column, path: Path, names: object, run: object = None) -> pl.DataFrame:
        assert column.folder.parent.name not in ("instruction", "response"), path
        return reads(column, path, names, run)  # type: ignore[arg-type]

    reads = Column._read
    monkeypatch.setattr(Column, "_read", not_of_texts)
    monkeypatch.setattr(whole, "part_digest", read)
    monkeypatch.setattr(whole, "_seen", {})  # as in a new process
    monkeypatch.setattr(seals, "file_digest", read)
    states = plan(store)
    selections = {name: state for name, state in states.items() if name.startswith("select")}
    assert len(selections) == 3 and set(selections.values()) == {"reuse"}


def test_a_plan_of_rows_that_were_never_chosen_reads_none_and_says_that_they_are_to_be_selected(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a text was read")

    plan(store)
    monkeypatch.setattr(short_columns.Lean, "texts", read)
    states = plan(store, "arms.random.budget.rows=7")
    assert (states["select/random/0"], states["select/good"]) == ("run", "reuse")


def test_a_store_of_an_earlier_version_keeps_its_selections(store: Path) -> None:
    root = store.parent / "store"
    shutil.rmtree(root / "selections")
    for held in root.glob("recipes/*/select/**/held.json"):
        held.unlink()
    assert set(plan(store).values()) == {"reuse"}
    assert (root / "selections").is_dir(), "their texts were read once, and are not again"


def test_a_selection_that_was_removed_is_made_again_with_the_same_content(store: Path) -> None:
    before = run(store).results["select/good"]
    shutil.rmtree(before.path)
    after = run(store).results["select/good"]
    assert after.digest == before.digest
    rows = pl.read_parquet(after.path / "selection.parquet")
    assert rows_digest(rows) == after.digest and len(rows) == 10


def test_two_recipes_with_the_same_pool_share_its_snapshot(
    tmp_path: Path, store: Path, llama: Path, server: ScriptedServer
) -> None:
    run(store)
    other = small_recipe.recipe(tmp_path / "b", llama, server.url, name="other")
    run(other, f"store={tmp_path / 'store'}")
    folders = [tmp_path / "store" / "recipes" / name for name in ("small", "other")]
    one, two = (folder / "measure" / "pool.parquet" for folder in folders)
    assert one.samefile(two)
    run(store, "synth.rows=110")
    assert not one.samefile(two) and len(pl.read_parquet(two)) == 100
    assert len(list((tmp_path / "store" / "snapshots").iterdir())) == 2
    run(other, f"store={tmp_path / 'store'}", "synth.rows=110")
    assert one.samefile(two), "what no recipe shows any more is gone"
    assert len(list((tmp_path / "store" / "snapshots").iterdir())) == 1


def test_a_frame_has_another_digest_when_a_value_a_name_a_type_or_the_order_changes() -> None:
    frame = pl.DataFrame({"a": ["x", "yz", None], "b": [1, None, 3], "c": [0.5, 1.5, 2.5]})
    others = [
        frame.with_columns(a=pl.Series(["xy", "z", None])),
        frame.with_columns(a=pl.Series(["x", "yz", ""])),
        frame.with_columns(b=pl.Series([1, 0, 3])),
        frame.with_columns(pl.col("b").cast(pl.Int32)),
        frame.rename({"c": "d"}),
        frame.reverse(),
        frame.with_columns(a=pl.col("a").cast(pl.Enum(["x", "yz"]))),
    ]
    digests = [frame_digest(each) for each in (frame, *others)]
    assert len({*digests}) == len(digests) and frame_digest(frame.clone()) == digests[0]


def test_a_snapshot_holds_statuses_as_text_and_is_found_by_what_it_holds(store: Path) -> None:
    recipe = schema.load(store).recipe
    pool = Pool(recipe.synth, Context(Path(recipe.store), resolve))
    frame = pool.frame()
    texts = frame.with_columns(pl.col("^status:.*$").cast(pl.String))
    assert pool.content(frame) == pool.content(texts), "of a store of an earlier version"
    pool.snapshot(frame, store.parent / "pool.parquet")
    written = pl.read_parquet(store.parent / "pool.parquet")
    assert {written.schema[n] for n in written.columns if n.startswith("status:")} == {pl.String}
    assert written["status:response"].to_list() == texts["status:response"].to_list()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 1], [0, 1, 2, 3, 4]], ids=str)
def test_cells_beside_rows_are_those_of_a_left_join(order: list[int]) -> None:
    rows = pl.DataFrame(
        {"id": ["a", "b", "c", "d"], "of": ["1", "2", None, "4"], "x": [1, 2, 3, 4]}
    )
    cells = pl.DataFrame({"id": [*"abcde"], "of": ["1", "0", None, "4", "5"], "y": [*range(5)]})
    made = beside(rows, cells[order], ["id", "of"])
    joined = rows.join(cells[order], on=["id", "of"], how="left", maintain_order="left")
    assert made.equals(joined) and made["y"].to_list()[1:3] == [None, None]
    whole = beside(rows, cells.head(4).drop("of"), ["id"])
    assert whole["y"].to_list() == [0, 1, 2, 3]


def test_of_keys_that_are_there_twice_the_first_row_counts() -> None:
    rows = pl.DataFrame({"id": ["a", "b", "a"], "of": ["1", "1", "1"], "y": [1, 2, 3]})
    assert first_of_each(rows, ["id", "of"])["y"].to_list() == [1, 2]
    assert first_of_each(rows, ["id", "y"])["y"].to_list() == [1, 2, 3]


def test_a_conversation_that_goes_on_otherwise_is_another_one() -> None:
    row = {"id": ["a"], "of_pair": ["1"]}
    talks = [[{"role": "user", "content": "b"}], [{"role": "user", "content": "c"}], None]
    frames = [pl.DataFrame(row).with_columns(messages_digest(pl.Series([talk]))) for talk in talks]
    digests = {conversations_digest(frame) for frame in frames}
    assert len(digests) == 3


def test_tokens_of_a_row_are_counted_once_and_a_plan_counts_none(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_recipe.recipe(
        tmp_path, llama, server.url, train=True, arms__good__budget={"tokens": 400}
    )
    plan_before = [s.why for s in graph.plan(schema.load(path)).steps if s.name == "measure"]
    assert plan_before == ["depends on instructions"]
    run(path)
    counted: list[object] = []
    monkeypatch.setattr(tokens, "count_tokens", lambda *given: counted.append(given))
    run(path)
    assert plan(path)["select/good"] == "reuse" and counted == []
    shutil.rmtree(tmp_path / "store" / "columns" / "student_tokens")
    steps = {s.name: s.why for s in graph.plan(schema.load(path)).steps}
    assert counted == [] and "are estimates until a run counts them" in steps["select/good"]
    monkeypatch.undo()
    run(path)
    assert plan(path)["select/good"] == "reuse"
