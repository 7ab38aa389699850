"""Values that are no texts where a row's texts should be: that row fails, whatever stands in the
rows beside it, in every verb and every kind of file; nothing of it becomes a text to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from recipes.exchange import import_data
from recipes.verbs import filter as filtering
from synth.config.rows import Reading
from synth.published import files, pairs, rows, tagged

NO_TEXTS: dict[str, Any] = {
    "number": 5,
    "fraction": 2.5,
    "true": True,
    "list": ["d", "e"],
    "object": {"a": 1},
    "empty object": {},
}
KINDS = {"fraction": "number", "true": "true or false", "empty object": "object"}
GOOD = {"instruction": "c", "response": "[5] is a list, {} an object, 5 a number"}
ALIKE = {"instruction": "5", "response": '["d", "e"]'}
"""Texts that look like other values."""


def saved(path: Path, *held: Any) -> Path:
    lines = [json.dumps(each) for each in held]
    path.write_text(f"[{','.join(lines)}]" if path.suffix == ".json" else "\n".join(lines))
    return path


def imported(path: Path, **how: Any) -> tuple[pl.DataFrame, rows.Counted]:
    counted = rows.Counted()
    frames = list(counted.watch(rows.read(path, prompts=None, how=Reading(**how))))
    return pl.concat(frames, how="diagonal_relaxed"), counted


def out(path: Path, where: str = "response_length > 0") -> dict[str, int]:
    rules = filtering.rules_of([filtering.UNNAMED], {"where": where, "choose": "all"})
    return tagged.read(path, rules).out


@pytest.mark.parametrize("beside", [(), (GOOD, ALIKE)], ids=["alone", "mixed"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("column", ["instruction", "response"])
@pytest.mark.parametrize("value", NO_TEXTS)
def test_a_text_that_is_none_makes_a_failed_row(
    tmp_path: Path, value: str, column: str, name: str, beside: tuple[dict[str, str], ...]
) -> None:
    odd = {"instruction": "a", "response": "b", column: NO_TEXTS[value]}
    path = saved(tmp_path / name, odd, *beside)
    frame, counted = imported(path)
    assert counted.failed == {f"no text in `{column}`: {KINDS.get(value, value)}": 1}
    assert frame["status"].to_list() == ["failed", *["ok"] * len(beside)]
    assert frame["response"].to_list()[1:] == [each["response"] for each in beside]
    assert out(path) == counted.failed


@pytest.mark.parametrize("beside", [0, 1, 2], ids=["alone", "mixed", "parts"])
@pytest.mark.parametrize("value", NO_TEXTS)
def test_a_turn_whose_text_is_none_makes_a_failed_row(
    tmp_path: Path, value: str, beside: int
) -> None:
    kind = {"list": "list of texts"}.get(value, KINDS.get(value, value))
    ask, say = {"from": "human", "value": "q"}, {"from": "gpt", "value": NO_TEXTS[value]}
    parts = {"from": "gpt", "value": [{"type": "text", "text": "r"}]}
    fine = [[ask, {"from": "gpt", "value": '["a"]'}], [ask, parts]][:beside]
    path = saved(tmp_path / "a.jsonl", *({"conversations": t} for t in ([ask, say], *fine)))
    frame, counted = imported(path)
    assert counted.failed == {f"a part of kind '{kind}' in a turn": 1}
    assert frame["status"].to_list() == ["failed", *["ok"] * beside]
    assert frame["response"].to_list()[1:] == ['["a"]', "r"][:beside]
    assert frame["instruction"].to_list()[1:] == ["q"] * beside


def test_a_turn_of_plain_texts_fails_beside_parts_too(tmp_path: Path) -> None:
    """Whose kind polars takes for the whole column's, whichever comes first."""
    plain = [{"from": "human", "value": "q"}, {"from": "gpt", "value": ["a", "b"]}]
    parts = [[{"type": "text", "text": text}] for text in ("q", "r")]
    fine = [{"from": who, "value": part} for who, part in zip(("human", "gpt"), parts, strict=True)]
    for held in ([plain, fine], [fine, plain], [plain[1:], fine], [[fine[0], plain[1]], fine]):
        path = saved(tmp_path / "a.jsonl", *({"conversations": turns} for turns in held))
        frame, _ = imported(path)
        good = frame.filter(pl.col("status") == "ok").select("instruction", "response").rows()
        assert good == [("q", "r")]


@pytest.mark.parametrize("value", NO_TEXTS)
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_preferences_that_are_no_texts_are_failed_rows(
    tmp_path: Path, column: str, value: str
) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = saved(tmp_path / "a.jsonl", {**good, column: NO_TEXTS[value]}, good)
    (frame,) = pairs.read(str(path), None, files.AS_IT_IS, files.Notes())
    kind = KINDS.get(value, value)
    assert frame["reason"].to_list() == [f"no text in `{column}`: {kind} (a.jsonl line 1)", None]


def test_preferences_that_all_are_no_texts_are_failed_rows(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"prompt": "q", "chosen": 5, "rejected": ["y"]})
    (frame,) = pairs.read(str(path), None, files.AS_IT_IS, files.Notes())
    assert frame["reason"].to_list() == ["no text in `chosen`: number (a.jsonl line 1)"]


@pytest.mark.parametrize("where", ["response_length > 0", "instruct_reward > 0"])
def test_parquet_columns_of_other_types_make_failed_rows(tmp_path: Path, where: str) -> None:
    path = tmp_path / "a.parquet"
    held = {"uuid": ["1", "2"], "instruct_reward": [1.0, 2.0]}
    bytes_ = pa.array([b"caf\xc3\xa9", b"\xff\xfe"])
    for column, other in (("instruction", "response"), ("response", "instruction")):
        pq.write_table(pa.table({**held, column: bytes_, other: ["x", "y"]}), path)
        frame, counted = imported(path)
        said = {f"no text in `{column}`: bytes that are no UTF-8 text": 1}
        assert counted.failed == out(path, where) == said
        assert frame[column].to_list() == ["caf\xe9", "\\xff\\xfe"]
        pq.write_table(pa.table({**held, column: [5, None], other: ["x", "y"]}), path)
        said = {f"no text in `{column}`: number": 1, f"no {column}": 1}
        assert imported(path)[1].failed == out(path, where) == said


def test_bytes_in_turns_and_tags_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    turns = [[("human", b"q"), ("gpt", say)] for say in (b"r", b"\xff")]
    talk = pa.list_(pa.struct([("from", pa.string()), ("value", pa.binary())]))
    held = [[{"from": who, "value": said} for who, said in each] for each in turns]
    tags = {"uuid": ["1", "2"], "input_quality": pa.array([b"good", b"\xff"])}
    pq.write_table(pa.table({"conversations": pa.array(held, talk), **tags}), path)
    frame, counted = imported(path)
    assert counted.failed == {"a part of kind 'bytes that are no UTF-8 text' in a turn": 1}
    assert counted.tags == {("input_quality", "unknown label '\\xff'"): 1}
    assert frame["response"].to_list() == ["r", "\\xff"]
    assert out(path, "input_quality = 'good'") == counted.failed


def test_a_cell_of_csv_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('instruction,response\n5,true\n{},"[""d""]"\n')
    frame, counted = imported(tmp_path / "a.csv")
    assert counted.failed == {}
    assert frame["response"].to_list() == ["true", '["d"]']


def test_a_column_by_another_name_is_looked_at_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"Ask": 5, "b": "x"}, {"Ask": "5", "b": "x"})
    for how in (
        {"map": {"instruction": "Ask", "response": "b"}},
        {"join": "{Ask}!", "map": {"response": "b"}},
    ):
        assert imported(path, **how)[1].failed == {"no text in `Ask`: number": 1}


def test_a_file_of_our_form_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "ours.jsonl"
    rows.write(rows.read(saved(tmp_path / "a.jsonl", GOOD, ALIKE)), path, "magpie")
    first, second = map(json.loads, path.read_text().splitlines())
    bare = {name: value for name, value in first.items() if name != "messages"} | {"response": 5}
    for held in ([{**first, "response": 5}, second], [{**first, "response": 5}], [bare]):
        frame, counted = imported(saved(path, *held))
        assert counted.failed == {"no text in `response`: number": 1}
        assert frame["response"][0] == "5"


@pytest.mark.parametrize("test", ["> 1e400", "> -1e400", "IN (1, 1e400)", "= 1e400"])
def test_a_condition_with_an_infinite_number_is_refused(test: str) -> None:
    stated = {"where": f"instruct_reward {test}", "choose": "all"}
    with pytest.raises(UserError, match=r"number .*beyond every float"):
        filtering.rules_of([filtering.UNNAMED], stated)


def test_more_conditions_than_can_be_read_are_refused() -> None:
    stated = {"where": " AND ".join(["instruct_reward > 0"] * 800), "choose": "all"}
    with pytest.raises(
        UserError, match=r"more conditions than can be read|cannot read .* recursion"
    ):
        filtering.rules_of([filtering.UNNAMED], stated)


@pytest.mark.parametrize("budget", [{"rows": 10**18}, {"tokens": 10**20}, {"rows": 0}])
def test_a_budget_that_no_recipe_may_have_is_one_sentence(budget: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^--(rows|tokens) \d+: give a number from 1 to [\d,]+\.$"):
        filtering.Asked(**budget).arm()


@pytest.mark.parametrize("rows", [0, -1])
def test_an_import_of_no_rows_is_refused(tmp_path: Path, rows: int) -> None:
    wanted = import_data.Wanted(limit=rows)
    with pytest.raises(UserError, match=f"--limit {rows}: give a number"):
        import_data.verb("a.jsonl", tmp_path / "b.jsonl", wanted, files.AS_IT_IS)
