"""The input campaign in small: what is sound is taken, what is malformed is refused in a sentence
or every row of it accounted for, and the campaign would notice anything else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from synth.published.rows import read
from tests.campaigns import inputs, malformed, sound
from tests.campaigns.malformed import File
from tests.campaigns.trials import TRIALS


def jsonl(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> File:
    return File(
        name, b"".join(malformed.as_json(row, ascii_only=True) + b"\n" for row in rows), len(rows)
    )


SOUND = {
    "recipe": [json.dumps(sound.own()).encode()],
    "override": [["train.trainer.learning_rate=0.5"]],
    "where": sound.PREDICATES[:1],
    "choose": sound.CHOICES[:1],
    "import": map(jsonl, sound.layouts()),
    "filter": map(jsonl, sound.tagged()),
    "preferences": map(jsonl, sound.preferences()[:1]),
    "alpaca_eval annotations": map(jsonl, sound.alpaca()),
    "Arena-Hard judgments": map(jsonl, sound.arena()),
    "WildBench judgments": map(jsonl, sound.wildbench()),
    "values": map(jsonl, sound.values()),
    "lm-eval samples": [jsonl(rows, "samples_task.jsonl") for rows in sound.samples()],
    "compared files": map(jsonl, sound.alpaca()),
    "prompts": map(jsonl, sound.prompts()),
    "baseline answers": map(jsonl, sound.answers()),
    "WildBench tasks": map(jsonl, sound.wild_tasks()),
    "MT-Bench questions": map(jsonl, sound.mtbench()),
    "listed ids": map(jsonl, sound.listed()),
    "queries": map(jsonl, sound.queries()),
    "prompts of overlap": map(jsonl, sound.prompts()[:1]),
}


@pytest.mark.parametrize("name", TRIALS)
def test_what_is_sound_is_taken(name: str) -> None:
    """Otherwise the campaign would try nothing beyond the first check."""
    for given in SOUND[name]:
        assert inputs.outcome(TRIALS[name], given) == ("taken", "")


@pytest.mark.parametrize("name", TRIALS)
def test_what_is_malformed_is_a_sentence_or_accounted_for(name: str) -> None:
    trial = TRIALS[name]
    if name == "recipe":  # the shipped ones take seconds to spoil
        trial = replace(trial, draw=malformed.recipes([sound.own()]))
    found = inputs.tried(trial, 6, 7, inputs.outcome)
    assert found.counts["tried"] >= 5
    assert not found.troubles


def spoiled(rows: list[dict[str, Any]], name: str = "rows.jsonl", **values: Any) -> File:
    """A file whose first row has other values."""
    return jsonl([{**rows[0], **values}, *rows[1:]], name)


@pytest.mark.parametrize(
    ("name", "given", "word"),
    [
        ("Arena-Hard judgments", spoiled(sound.arena()[0], games=["A>B", "B>A"]), "a text"),
        ("Arena-Hard judgments", spoiled(sound.arena()[0], games=None), "`games` is null"),
        ("Arena-Hard judgments", spoiled(sound.arena()[2], winner=[]), "winner []"),
        ("Arena-Hard judgments", jsonl([{"winner": "tie"}]), "model_a and model_b"),
        ("WildBench judgments", spoiled(sound.wildbench()[1], winner=["m"]), "are texts"),
        ("WildBench judgments", spoiled(sound.wildbench()[1], extent=[]), "extent []"),
        ("WildBench judgments", spoiled(sound.wildbench()[1], model_A=3), "are texts"),
        ("WildBench judgments", spoiled(sound.wildbench()[1], model_outputs=[]), "is a list"),
        ("lm-eval samples", spoiled(sound.samples()[0], "s.jsonl", metrics=[[]]), "list of names"),
        ("lm-eval samples", spoiled(sound.samples()[0], "s.jsonl", doc_hash=3), "`doc_hash`"),
        ("WildBench tasks", spoiled(sound.wild_tasks()[0], secondary_tags=6.0), "secondary_tags"),
        ("WildBench tasks", spoiled(sound.wild_tasks()[0], tags=6), "list of texts"),
        ("WildBench tasks", jsonl([{"id": 1, "prompt": "a", "history": 7}]), "list of messages"),
        ("preferences", jsonl([{"prompt": "a", "completion": [[1]], "label": True}]), "response="),
        ("import", spoiled(sound.layouts()[2], **{"a\x00b": 1}), "NUL"),
        ("recipe", b"", "it is empty"),
    ],
)
def test_what_the_campaign_found_is_refused_by_its_place(
    tmp_path: Path, name: str, given: Any, word: str
) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        TRIALS[name].read(given, tmp_path)


def test_a_list_that_a_csv_spells_is_a_failed_tag(tmp_path: Path) -> None:
    rows = [{**row, "other_task_category": "['Math']"} for row in sound.layouts()[2]]
    data = malformed.written(rows, ".csv", ascii_only=True)
    assert data is not None
    (tmp_path / "rows.csv").write_bytes(data)
    (frame,) = read(tmp_path / "rows.csv")
    assert frame["other_task_category"].to_list() == [None] * 4
    assert [each[0]["value"] for each in frame["failed_tags"]] == ["['Math']"] * 4


def test_a_list_where_an_id_belongs_leaves_the_ids_that_are_texts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"uuid": f"u{at}", "instruction": f"Ask {at}.", "response": "Yes."} for at in range(3)
    ]
    rows[1]["id"] = []
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows).data)
    (frame,) = read(tmp_path / "rows.jsonl")
    assert frame["id"].to_list() == ["u0", "u1", "u2"]
    assert frame["status"].to_list() == ["ok"] * 3


def test_a_list_in_the_first_of_two_ids_is_told_beside_the_other(tmp_path: Path) -> None:
    row = {"uuid": ["z"], "id": "a", "instruction": "Ask.", "response": "Yes."}
    (tmp_path / "rows.jsonl").write_bytes(jsonl([row]).data)
    (frame,) = read(tmp_path / "rows.jsonl")
    assert frame["id"].to_list() == ["a"]
    assert [each["column"] for each in frame["failed_tags"].to_list()[0]] == ["id"]


@pytest.mark.parametrize("odd", [{"a": 1}, [["Math"]], [{"a": 1}]])
def test_what_is_no_list_of_texts_is_a_failed_tag(tmp_path: Path, odd: Any) -> None:
    rows = [{"id": "a", "instruction": "Ask.", "response": "Yes.", "other_task_category": odd}]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows).data)
    (frame,) = read(tmp_path / "rows.jsonl")
    assert frame["other_task_category"].to_list() == [None]
    assert frame["failed_tags"].to_list()[0][0]["value"] == "a list or object"


@pytest.mark.parametrize(("who", "what"), [("from", "value"), ("role", "content")])
def test_turns_that_led_are_kept_whatever_the_order_of_their_fields(
    tmp_path: Path, who: str, what: str
) -> None:
    said = [("gpt", "Hello."), ("human", "Ask."), ("gpt", "Yes.")]
    talk = [{what: text, who: speaker} for speaker, text in said]
    (tmp_path / "rows.jsonl").write_bytes(jsonl([{"id": "a", "conversations": talk}]).data)
    (frame,) = read(tmp_path / "rows.jsonl")
    assert frame["source_conversations"].to_list() == [
        [{"from": speaker, "value": text} for speaker, text in said]
    ]
    assert frame["response"].to_list() == ["Yes."]


@pytest.mark.parametrize(
    ("ending", "reads", "is_now"),
    [
        ("a lost row", lambda *_: "4 rows in, 3 rows", "silent loss"),
        ("a type's name", UserError("it is of type NoneType"), "poor sentence"),
        ("a library's words", UserError('bad\n in "<unicode string>"'), "poor sentence"),
        ("a defect", KeyError("x"), "traceback"),
        ("a sentence", UserError("rows.jsonl: no such column; write it anew."), "refused"),
    ],
)
def test_the_campaign_tells_what_an_input_came_to(ending: str, reads: Any, is_now: str) -> None:
    def read(given: Any, folder: Path) -> str:
        if isinstance(reads, Exception):
            raise reads
        return str(reads(given, folder))

    trial = replace(TRIALS["values"], read=read)
    assert inputs.outcome(trial, File("rows.jsonl", b""))[0] == is_now


def test_a_reader_that_hangs_is_stopped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LONGEST", 0.05)

    def read(given: Any, folder: Path) -> str:
        while True:
            pass

    assert inputs.outcome(replace(TRIALS["values"], read=read), None)[0] == "hang"


def test_rows_are_counted_by_the_plainest_reading() -> None:
    from tests.campaigns.trials import all_there

    damaged = File("rows.jsonl", b'{"a": 1}\n\n{"a": 2}\n', None)
    assert all_there(damaged, 2) == ""
    assert all_there(damaged, 1) == "2 rows in, 1 rows"
