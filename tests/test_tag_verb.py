"""`magpie tag`: any file measured, what is there not measured again, failures counted; and a tagger
against the labels that a file has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from core.errors import UserError
from recipes.exchange.tag_data import Asked, Tagger
from recipes.verbs import tag as verb
from recipes.verbs.tag import Shown, Wanted
from synth.measures import SHIPPED
from synth.published.files import AS_IT_IS
from tests import small_recipe
from tests.scripted_server import ScriptedServer, completion

ROWS = {
    "uuid": list("abcde"),
    "instruction": [
        "Write a short poem about the sea.",
        "Write a short poem about the sea.",
        "Please write to bob@gmail.com about the meeting of tomorrow.",
        "Bonjour à tous, comment allez-vous ?",
        "What is the highest mountain of Europe?",
    ],
    "response": ["A poem.", "Another.", "No.", None, "y"],
    "difficulty": ["easy", "hard", None, "odd", "easy"],
    "mine": [1, 2, 3, 4, 5],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pl.DataFrame(ROWS).write_ndjson(tmp_path / "rows.jsonl")
    return tmp_path / "rows.jsonl"


def tag(data: Path, columns: str, out: str = "out.parquet", **given: Any) -> pl.DataFrame:
    """What `magpie tag` writes."""
    path = data.with_name(out)
    wanted = Wanted(path, given.pop("store", None), given.pop("form", "same"))
    shown = Shown(given.pop("limit", None), True)
    verb.verb(str(data), columns, Tagger(**given), wanted, AS_IT_IS, shown)
    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)


def test_the_sources_columns_are_kept_and_ours_stand_behind(data: Path, capsys: Any) -> None:
    made = tag(data, "pii,minhash,repetition,response_pii")
    assert made.columns[:5] == list(ROWS) and made["mine"].to_list() == [1, 2, 3, 4, 5]
    assert made["minhash_duplicate"].to_list() == [False, True, False, False, False]
    assert made["pii"].to_list()[2] == "email" and made["repetition"].dtype.is_numeric()
    assert made["response_pii"].null_count() == 1, "a row without a response has none to measure"
    shown = json.loads(capsys.readouterr().out)
    assert shown["measures"]["response_pii"] == {"measured": 4, "failed": {}, "without": 1}


def test_a_column_of_a_source_that_has_our_name_is_kept_as_the_sources(data: Path) -> None:
    pl.read_ndjson(data).with_columns(pii=pl.lit("theirs")).write_ndjson(data)
    made = tag(data, "pii", "out.jsonl")
    assert made["source_pii"].to_list() == ["theirs"] * 5 and made["pii"][2] == "email"


def test_published_forms_are_written_as_well(data: Path) -> None:
    made = tag(data, "pii", form="25")
    assert made["pii"][2] == "email" and "conversations" in made.columns


def test_columns_are_named_by_measure_or_by_themselves() -> None:
    assert Asked.of("quality", SHIPPED).columns[0] == "input_quality"
    assert Asked.of("difficulty_rank,pii", SHIPPED).measures == ["difficulty", "pii"]
    assert Asked.of("repetition", SHIPPED) == Asked([], ["repetition"])
    for given, problem in (
        ("qualty", "did you mean 'quality'"),
        ("response", "`magpie answer`"),
        ("turns", "synth.turns"),
        ("temperature", "no tag"),
        (" ,", "names nothing"),
    ):
        with pytest.raises(UserError, match=problem):
            Asked.of(given, SHIPPED)


@pytest.mark.parametrize(
    ("columns", "given", "problem"),
    [
        ("quality", {}, "name it with --model"),
        ("ifd", {}, "name it with --model"),
        ("reward", {}, "synth.tags.reward"),
        ("overlap", {}, "synth.tags.decontaminate"),
        ("quality", {"urls": ["http://x"]}, "name the model too"),
        ("quality", {"model": "m", "chats": True}, "its address"),
        ("quality", {"model": "m", "mode": "words"}, "label or explain"),
        ("pii", {"form": "sharegpt"}, "no such form"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(
    data: Path, columns: str, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        tag(data, columns, **given)
    with pytest.raises(UserError, match="would replace the source"):
        tag(data, "pii", data.name)


# -- with a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as made:
        yield made


def test_a_file_is_tagged_by_a_model_and_nothing_is_asked_twice(
    data: Path, llama: Path, server: ScriptedServer
) -> None:
    tagger = {"model": str(llama), "urls": [server.url]}
    assert len(tag(data, "quality", limit=2, **tagger)) == 2 and len(server.requests) == 2
    made = tag(data, "quality,difficulty", **tagger)
    assert made["input_quality"].null_count() == 0 and made["quality_mass"].min() > 0.5
    assert made["source_difficulty"].to_list() == ROWS["difficulty"]
    assert made["difficulty"].null_count() == 0, "what the file brought is measured anew"
    assert "quality_explanation" not in made.columns, "a column without a value is left out"
    assert len(server.requests) == 10
    more = tag(data, "quality,difficulty,category", **tagger)
    assert len(server.requests) == 15 and more["input_quality"].equals(made["input_quality"])
    explained = tag(data, "quality", mode="explain", **tagger)
    assert explained["quality_explanation"].null_count() == 0


def test_failures_are_counted_by_reason(data: Path, llama: Path, capsys: Any) -> None:
    top = {"token_id:20": math.log(0.01), "token_id:99": math.log(0.99)}
    little = completion("?", logprobs={"top_logprobs": [top]})
    with ScriptedServer(lambda _, body: little) as server:
        made = tag(data, "quality", model=str(llama), urls=[server.url])
    shown = json.loads(capsys.readouterr().out)["measures"]["quality"]
    reason = "the codes carry less than 0.05 of the probability"
    assert shown == {"measured": 0, "failed": {reason: 5}, "without": 0}
    assert "input_quality" not in made.columns


def test_a_recipes_tags_measure_and_its_own_columns_are_written(
    data: Path, llama: Path, server: ScriptedServer
) -> None:
    (data.parent / "clarity.jinja").write_text("{{ instruction }}")
    block = {"prompt": str(data.parent / "clarity.jinja"), "labels": ["low", "high"]}
    path = small_recipe.recipe(data.parent, llama, server.url, synth__tags__own={"clarity": block})
    made = tag(data, "clarity", recipe=str(path))
    assert set(made["clarity"]) <= {"low", "high"} and "clarity_rank" in made.columns
    assert yaml.safe_load(path.read_text())["synth"]["rows"] == 100


def test_a_tagger_is_compared_with_the_labels_of_a_file(
    tmp_path: Path, llama: Path, capsys: Any
) -> None:
    labels = ["poor", "good", "good", "excellent", None] * 20
    rows = {"id": [f"r{n}" for n in range(100)], "instruction": [f"do {n}" for n in range(100)]}
    data = pl.DataFrame({**rows, "response": ["x"] * 100, "input_quality": labels})
    data.write_parquet(tmp_path / "labelled.parquet")
    top = {"token_id:23": math.log(0.9)}  # the code 4: good
    always = completion("4", logprobs={"top_logprobs": [top]})
    with ScriptedServer(lambda _, body: always) as server:
        tagger = Tagger(model=str(llama), urls=[server.url])
        source, store = str(tmp_path / "labelled.parquet"), tmp_path / "store"
        wanted = Wanted(store=store, check=source, sample=40)
        verb.verb(None, "quality", tagger, wanted, AS_IT_IS, Shown(as_json=True))
        found = json.loads(capsys.readouterr().out)["input_quality"]
        assert found["n"] == 40 and len(server.requests) == 40
        met = np.array(found["confusion"])
        assert met[:, 3].sum() == met.sum() == 40
        theirs, ours = found["share_at_least"]["good"]
        assert ours == 1.0 and theirs == pytest.approx(1 - found["confusion"][1][3] / 40)
        assert found["exact"] == pytest.approx(found["confusion"][3][3] / 40)
        wanted = Wanted(store=store, check=source, sample=60)
        verb.verb(None, "quality", tagger, wanted, AS_IT_IS, Shown())
        assert len(server.requests) == 60, "the sample grows by what is new"
        told = capsys.readouterr().out
        assert ">= good" in told and "the file and the tagger give the same label on" in told


def test_what_holds_no_labels_is_not_compared(tmp_path: Path) -> None:
    pl.DataFrame({"instruction": ["a"], "response": ["b"], "language": ["EN"]}).write_parquet(
        tmp_path / "rows.parquet"
    )
    for columns, problem in (("language", "compares labels"), ("quality", "no column")):
        wanted = Wanted(store=tmp_path / "s", check=str(tmp_path / "rows.parquet"))
        with pytest.raises(UserError, match=problem):
            verb.verb(None, columns, Tagger(model="m"), wanted, AS_IT_IS, Shown())
