"""Other people's layouts as rows of a recipe: read as it states, once, and as `magpie import` reads
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core import files
from recipes import schema
from recipes.stages import graph
from synth.config.rows import ImportConfig
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_layouts import messages, real, saved


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("models") / "llama")


def chosen(folder: Path, llama: Path, url: str, rows: Any, where: str | None = None) -> Any:
    """What an arm that takes all takes of imported rows: [id, messages]."""
    arms = {"all": {"where": where, "choose": "all"} if where else {"choose": "all"}}
    path = small_recipe.recipe(
        folder, llama, url, arms=arms, synth__rows=rows, synth__heldout=0, random_arm=False
    )
    loaded = schema.load(path)
    graph.run(loaded, "select")
    return pl.read_parquet(loaded.recipe.folder / "select" / "all" / "selection.parquet")


def asked(selection: pl.DataFrame) -> list[str]:
    return sorted(turns[0]["content"] for turns in selection["messages"].to_list())


def test_rows_of_a_recipe_are_read_as_it_states_and_keyed_by_that(
    shared: Path, tmp_path: Path, llama: Path
) -> None:
    rows = real(shared, "lf_alpaca_en_demo.json")[:6]
    source = str(saved(tmp_path / "alpaca.json", rows))
    alone = {"import": source, "map": {"instruction": "instruction", "response": "output"}}
    with ScriptedServer(small_recipe.answer) as server:
        joined = chosen(tmp_path, llama, server.url, {"import": source})
        mapped = chosen(tmp_path, llama, server.url, alone)
    assert asked(joined) == sorted(
        "\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows
    )
    assert asked(mapped) == sorted(row["instruction"] for row in rows)


def test_a_null_language_is_measured_and_a_bad_file_is_told(
    shared: Path, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hermes"
    folder.mkdir()
    pairs = real(shared, "lf_alpaca_en_demo.json")[:6]
    texts = [[pair["instruction"], pair["output"]] for pair in pairs]
    rows = [{"language": None, "id": None, "messages": messages(talk)} for talk in texts]
    rows[0]["language"] = "French"
    saved(folder / "a.jsonl", rows)
    (folder / "b.json").write_text("[{")
    with ScriptedServer(small_recipe.answer) as server:
        selection = chosen(
            tmp_path, llama, server.url, {"import": str(folder)}, where="language <> 'FR'"
        )
    output = "".join(capsys.readouterr())
    assert "5 of 6 language" in output  # the one that the file tells is not measured again
    assert "messages: messages[role, content] -> instruction" in output
    assert f"not read: {folder / 'b.json'}" in output
    assert 0 < len(selection) <= 5 and texts[0][0] not in asked(selection)


def test_the_files_of_an_import_are_hashed_once(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "a.jsonl", [{"instruction": "ask", "output": "answer"}])
    hashed: list[Path] = []
    plain = files.file_digest

    def noted(path: Path) -> str:
        hashed.append(path)
        return plain(path)

    monkeypatch.setattr("core.files.file_digest", noted)
    later = source.stat().st_ctime + 60
    monkeypatch.setattr("core.files.time.time", lambda: later)
    path = small_recipe.recipe(
        tmp_path,
        llama,
        "http://127.0.0.1:9",
        arms={"all": {"choose": "all"}},
        synth__rows={"import": str(source)},
        random_arm=False,
    )
    for _ in range(3):
        graph.plan(schema.load(path))
    assert hashed.count(source) == 1


def test_how_rows_are_read_enters_their_key_only_where_it_is_stated() -> None:
    plain = ImportConfig.model_validate({"import": "me/set", "limit": 5})
    stated = ImportConfig.model_validate({"import": "me/set", "split": "test", "as": "sft"})
    assert plain.spec() == {} and json.loads(json.dumps(stated.spec())) == {
        "split": "test",
        "as": "sft",
    }
