"""Data files that nobody here wrote: what is damaged in a row is that row's failed tag or makes it
a failed row, counted alike by `import` and `filter`; a damaged file is one sentence with its
name."""

from __future__ import annotations

import datetime
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from core.errors import UserError
from core.files import read_json_lines
from eval.prompt_sets.records import records
from recipes.verbs import filter as filtering
from synth.filters.choosing import listed
from synth.published import files, json_rows, pairs, rows, tagged
from synth.published.cells.failed import HALF, NUL
from synth.published.cells.repeated import repeated

ROWS = 4
NEVER = "instruct_reward > -100"
IN_TEXT = f"{HALF} in a text", f"{NUL} in a text"


def row(at: int, **other: Any) -> dict[str, Any]:
    return {
        "uuid": f"u{at}",
        "instruction": f"ask {at}",
        "response": f"say {at}",
        "input_quality": "good",
        "instruct_reward": 1.5,
        "note": "x",
        **other,
    }


def saved(path: Path, *odd: Mapping[str, Any]) -> Path:
    """ROWS good rows after the odd ones, as JSON Lines, JSON, CSV or Parquet by the name."""
    held = [row(at, **each) for at, each in enumerate(odd)]
    held += [row(at) for at in range(len(odd), len(odd) + ROWS)]
    if path.suffix == ".parquet":
        pl.DataFrame(held).write_parquet(path)
    elif path.suffix == ".csv":
        pl.DataFrame(held).write_csv(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(held))
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in held))
    return path


def imported(path: Path) -> tuple[pl.DataFrame, rows.Counted]:
    counted = rows.Counted()
    frames = list(counted.watch(rows.read(path, prompts=None)))
    return pl.concat(frames, how="diagonal_relaxed"), counted


def filtered(path: Path, where: str = NEVER) -> tagged.Tagged:
    rules = filtering.rules_of([filtering.UNNAMED], {"where": where, "choose": "all"})
    return tagged.read(path, rules)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_a_reward_that_is_no_finite_number_is_a_failed_tag_of_both_verbs(
    tmp_path: Path, name: str
) -> None:
    odd = [{"instruct_reward": float(word)} for word in ("nan", "inf", "-inf", "inf")]
    path = saved(tmp_path / name, *odd)
    frame, counted = imported(path)
    said = {"no number: 'inf'": 2, "no number: 'NaN'": 1, "no number: '-inf'": 1}
    assert {reason: n for (_, reason), n in counted.tags.items()} == said
    assert frame["instruct_reward"].to_list() == [None] * 4 + [1.5] * ROWS
    assert filtered(path).failed == {"instruct_reward": said}


def test_the_file_that_import_writes_is_filtered_like_the_one_that_it_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"instruct_reward": float("inf")}, {"instruction": "a\0"})
    rows.write(rows.read(path), tmp_path / "ours.parquet", "magpie")
    before, after = filtered(path), filtered(tmp_path / "ours.parquet")
    assert before.failed == after.failed and before.out == after.out == {IN_TEXT[1]: 1}


def test_a_score_of_a_file_of_ours_is_looked_at_too(tmp_path: Path) -> None:
    ours = tmp_path / "ours.parquet"
    rows.write(rows.read(saved(tmp_path / "a.jsonl")), ours, "magpie")
    reward = pl.Series([float("inf"), float("nan"), 1.0, 1.0])
    texts = pl.Series(["a\0", "b", "c", "d"])
    altered = pl.read_parquet(ours).with_columns(instruct_reward=reward, response=texts)
    altered.write_parquet(ours)
    frame, counted = imported(ours)
    assert counted.tags.total() == 2 and frame["instruct_reward"].null_count() == 2
    assert counted.failed == {IN_TEXT[1]: 1} and frame["response"][0] == "a\0"


SCORED = [(n, o) for n in ("a.jsonl", "a.json", "a.csv") for o in (1.5, None)]


@pytest.mark.parametrize(("name", "others"), [*SCORED, ("a.parquet", None)])
def test_true_and_false_are_no_reward(tmp_path: Path, name: str, others: float | None) -> None:
    """Also where no other row has a number, and whatever stands in a later batch."""
    held = [row(0, instruct_reward=True), row(1, instruct_reward=False)]
    held += [row(at, instruct_reward=others) for at in range(2, 5)]
    path = tmp_path / name
    if name == "a.parquet":
        pl.DataFrame(held).write_parquet(path)
    elif name == "a.csv":
        lines = [
            ",".join("" if v is None else json.dumps(v) for v in each.values()) for each in held
        ]
        path.write_text("\n".join([",".join(held[0]), *lines]))
    else:
        lines = [json.dumps(each) for each in held]
        path.write_text(f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines))
    said = {"no number: 'true'": 1, "no number: 'false'": 1}
    for batch in (1, 2, 100):
        counted = rows.Counted()
        frame = pl.concat(list(counted.watch(rows.read(path, batch=batch))), how="diagonal_relaxed")
        assert {reason: n for (_, reason), n in counted.tags.items() if "no" in reason} == said
        assert frame["instruct_reward"].to_list() == [None, None, *[others] * 3]
    failed = filtered(path).failed["instruct_reward"]
    assert {reason: n for reason, n in failed.items() if reason != "null"} == said


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_a_count_that_is_not_whole_is_a_failed_tag_of_both_verbs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pl.DataFrame([row(at, repeat_count=at / 2) for at in range(4)]).write_parquet(path)
    if name == "a.csv":
        pl.read_parquet(path).write_csv(path)
    elif name != "a.parquet":
        held = pl.read_parquet(path).to_dicts()
        lines = "".join(json.dumps(each) + "\n" for each in held)
        path.write_text(json.dumps(held) if name == "a.json" else lines)
    frame, counted = imported(path)
    said = {"no whole number: '0.5'": 1, "no whole number: '1.5'": 1}
    assert frame["repeat_count"].to_list() == [0, None, 1, None]
    assert {reason: n for (_, reason), n in counted.tags.items()} == said
    assert filtered(path, "repeat_count >= 0").failed == {"repeat_count": said}


DAY = datetime.datetime(2020, 1, 2)
NO_NUMBERS: dict[str, tuple[list[Any], str]] = {
    "date": ([DAY.date(), None], "2020-01-02"),
    "time": ([DAY, None], "2020-01-02 00:00:00.000000"),
    "duration": ([datetime.timedelta(1), None], "a duration"),
    "list": ([[1.0], None], "a list or object"),
    "object": ([{"a": 1}, None], "a list or object"),
    "bytes": ([b"x", None], "x"),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_a_value_of_another_kind_is_no_reward_of_either_verb(tmp_path: Path, kind: str) -> None:
    values, told = NO_NUMBERS[kind]
    texts = {"uuid": ["a", "b"], "instruction": ["x", "y"], "response": ["x", "y"]}
    pl.DataFrame({**texts, "instruct_reward": values}).write_parquet(tmp_path / "a.parquet")
    said = {f"no number: '{told}'": 1, "null": 1}
    _, counted = imported(tmp_path / "a.parquet")
    assert {reason: n for (_, reason), n in counted.tags.items()} == said
    assert filtered(tmp_path / "a.parquet").failed == {"instruct_reward": said}


@pytest.mark.parametrize("number", [10**25, 10**60])
def test_a_whole_number_of_any_size_is_kept_by_its_digits(tmp_path: Path, number: int) -> None:
    path = saved(tmp_path / "a.jsonl", {"note": number}, {"note": 1})
    rows.write(rows.read(path), tmp_path / "ours.parquet", "magpie")
    assert pl.read_parquet(tmp_path / "ours.parquet")["note"].to_list()[:2] == [str(number), "1"]


@pytest.mark.parametrize(
    ("column", "value"), [("messages", "x"), ("failed_tags", [{"column": 5}]), ("reason", [1])]
)
def test_a_file_that_only_looks_like_ours_is_one_sentence(
    tmp_path: Path, column: str, value: object
) -> None:
    ours = {"id": "1", "instruction": "a", "response": "b", "status": "ok", "reason": None}
    held = {**ours, "messages": None, "failed_tags": [], column: value}
    (tmp_path / "a.jsonl").write_text(json.dumps(held) + "\n")
    with pytest.raises(
        UserError, match=rf"a.jsonl has the columns of our form, and its `{column}`"
    ):
        list(rows.read(tmp_path / "a.jsonl"))


def test_true_in_a_file_of_ours_is_no_reward(tmp_path: Path) -> None:
    ours = tmp_path / "ours.parquet"
    rows.write(rows.read(saved(tmp_path / "a.jsonl")), ours, "magpie")
    altered = pl.read_parquet(ours).with_columns(instruct_reward=pl.lit(True))
    altered.write_parquet(ours)
    frame, counted = imported(ours)
    assert counted.tags == {("instruct_reward", "no number: 'true'"): ROWS}
    assert frame["instruct_reward"].null_count() == ROWS
    assert filtered(ours).failed == {"instruct_reward": {"no number: 'true'": ROWS}}


def test_a_reward_under_either_of_two_names_is_found_beside_a_truth(tmp_path: Path) -> None:
    """True under the first name of a column hides the number under the second as any value does."""
    path = saved(tmp_path / "a.jsonl", {"instruct_reward": True, "reward": 2.5})
    frame, counted = imported(path)
    assert counted.tags[("instruct_reward", "no number: 'true'")] == 1
    assert frame["instruct_reward"].to_list()[1:] == [1.5] * ROWS


def test_a_column_of_truths_and_numbers_that_is_no_score_keeps_both(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"note": True}, {"note": 1.5}, {"note": None})
    frame, counted = imported(path)
    assert frame["note"].to_list()[:3] == ["true", "1.5", None] and not counted.tags


@pytest.mark.parametrize("batch", [1, 100])
def test_truths_and_numbers_within_an_object_are_refused(tmp_path: Path, batch: int) -> None:
    path = saved(tmp_path / "a.jsonl", {"note": [{"deep": True}]}, {"note": [{"deep": 2}]})
    lines = path.read_text().splitlines()[:2]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"`note\[\]\.deep` is true or false in one row and a num"):
        list(rows.read(path, batch=batch))


TURNS = '[{"from": "human", "value": "a"}, {"from": "gpt", "from": "gpt", "value": "b"}]'
TWICE = {
    "instruct_reward": '"response": "b", "instruct_reward": 1, "instruct_reward": 9',
    "response": '"response": "b", "response": "b"',
    "note": '"response": "b", "note": null, "note": null',
    "deep": '"response": "b", "x": {"deep": 1, "d\\u0065ep": 2}',
    "from": f'"conversations": {TURNS}',
}


@pytest.mark.parametrize("key", TWICE)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_names_a_key_twice_is_a_failed_row(tmp_path: Path, name: str, key: str) -> None:
    path = tmp_path / name
    line = f'{{"instruction": "a", {TWICE[key]}}}'
    good = line.replace(f'"{key}"', f'"{key}_", "{key}"', 1).replace(f'_", "{key}"', '_"', 1)
    lines = [good, line, json.dumps({"instruction": "c", "response": "d"})]
    path.write_text(f"[{', '.join(lines)}]" if name == "a.json" else "\n".join(lines))
    frame, counted = imported(path)
    why = f"the key `{key}` stands twice"
    assert counted.failed[why] == 1 and len(frame) == 3
    assert counted.examples[why] == f"{name} {'row' if name == 'a.json' else 'line'} 2"
    rules = filtering.rules_of(
        [filtering.UNNAMED], {"where": "response_length > 0", "choose": "all"}
    )
    assert tagged.read(path, rules).out[why] == 1


def test_whatever_arrow_cannot_read_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = '{"instruction": "a", "response": "\\ud800", "note": 1e999, "note": "x"}'
    path.write_text(content + "\n" + json.dumps(row(1)) + "\n")
    assert imported(path)[1].failed.total() == 1
    assert repeated([(1, content.encode()), (2, b"{}")]) == {1: "note"}
    long = b'{"a": "' + b"x" * 5_000_000 + b'", "b": 1, "b": 2}'
    assert repeated([(7, long), (8, b'{"a": "y"}')]) == {7: "b"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_record_that_names_a_key_twice_is_refused(tmp_path: Path, name: str) -> None:
    """As annotations and prompts are read, of which each counts."""
    path = tmp_path / name
    lines = ['{"id": "a", "prompt": "b"}', '{"id": "a", "id": "b"}']
    path.write_text("\n".join(lines) if name == "a.jsonl" else f"[{lines[0]},\n{lines[1]}]")
    place = "a.jsonl, line 2" if name == "a.jsonl" else "a.json, record 2"
    with pytest.raises(UserError, match=f"{place}: the key 'id' stands twice .* keep one of its"):
        list(records(path))
    if name == "a.jsonl":
        with pytest.raises(UserError, match=r"line 2 .*the key 'id' stands twice"):
            list(read_json_lines(path))


def test_true_is_no_score_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"id": "a", "score": true}\n')
    with pytest.raises(UserError, match="score True is no finite number"):
        listed.read_listed(tmp_path / "list.jsonl")


def test_preferences_that_name_a_key_twice_are_failed_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"prompt": "q", "chosen": "a", "rejected": "b"}'
    path.write_text(f'{good}\n{good[:-1]}, "chosen": "c"}}\n')
    (frame,) = pairs.read(str(path), None, files.AS_IT_IS, files.Notes())
    assert frame["reason"].to_list() == [None, "the key `chosen` stands twice (a.jsonl line 2)"]


@pytest.mark.parametrize("column", ["instruction", "response", "uuid"])
@pytest.mark.parametrize(("text", "why"), [("a\ud800b", IN_TEXT[0]), ("a\udfff", IN_TEXT[0])])
def test_half_a_character_in_a_text_makes_a_failed_row(
    tmp_path: Path, column: str, text: str, why: str
) -> None:
    path = saved(tmp_path / "a.jsonl", {column: text})
    frame, counted = imported(path)
    assert counted.failed == {why: 1} and counted.examples[why] == "a.jsonl line 1"
    kept = frame["id" if column == "uuid" else column][0]
    assert kept == text.encode("unicode_escape").decode()
    assert filtered(path).out == {why: 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("column", ["instruction", "response", "uuid"])
def test_nul_in_a_text_makes_a_failed_row_and_stays(tmp_path: Path, name: str, column: str) -> None:
    path = saved(tmp_path / name, {column: "a\0b"})
    frame, counted = imported(path)
    assert counted.failed == filtered(path).out == {IN_TEXT[1]: 1}
    assert frame["id" if column == "uuid" else column][0] == "a\0b"


def test_half_a_character_in_a_turn_makes_a_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud83d!"}]
    later = [*turns[:1], {"role": "assistant", "content": "r"}, *turns]
    good = [*turns[:1], {"role": "assistant", "content": "\\ud83d is half a pair \U0001f600"}]
    held = ({"messages": each} for each in (turns, later, good))
    path.write_text("".join(json.dumps(each) + "\n" for each in held))
    _, counted = imported(path)
    assert counted.failed == {IN_TEXT[0]: 2}


def test_half_a_character_elsewhere_is_a_failed_tag_of_that_column(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"note": "\ud800"}, {"input_quality": "go\ud800"})
    frame, counted = imported(path)
    assert counted.failed == {}
    assert counted.tags == Counter(
        {("note", f"{HALF}: '\\ud800'"): 1, ("input_quality", "unknown label 'go\\ud800'"): 1}
    )
    assert frame["note"][0] == "\\ud800"


def test_half_a_character_within_an_object_makes_a_failed_row(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", {"note": {"deep": "\ud800"}})
    lines = path.read_text().splitlines()[:1] * 2
    path.write_text("\n".join([lines[0], lines[0].replace("\\ud800", "fine").replace("u0", "u9")]))
    _, counted = imported(path)
    assert counted.failed == {IN_TEXT[0]: 1}


@pytest.mark.parametrize(
    ("line", "spelled"),
    [
        (rb'"\ud83d\ude00"', None),
        (rb'"\\ud83d"', None),
        (rb'"\\\\ud83d"', None),
        (rb'"\uD83D\uDE00\ud83d\ude00"', None),
        (rb'"\u00e9"', None),
        (rb'"\ud83d"', rb'"\\ud83d"'),
        (rb'"\ude00"', rb'"\\ude00"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\\ud83d\ud83d\ude00"'),
        (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\\ude00"'),
        (rb'"\\\ud83d"', rb'"\\\\ud83d"'),
        (rb'"\ud83d\n\ude00"', rb'"\\ud83d\n\\ude00"'),
    ],
    ids=range(11),
)
def test_only_half_a_character_is_spelled_out(line: bytes, spelled: bytes | None) -> None:
    assert json_rows.spelled(line) == (spelled or line)


def test_calls_that_are_none_make_a_failed_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fine = json.dumps([{"function": {"name": "f", "arguments": "{}"}}])
    calls = ["{no json", "[5]", '[{"function": 7}]', '"text"', "[]", "", None, fine]
    held = [{"messages": [{"role": "user", "content": "q"}, _says(given)]} for given in calls]
    path.write_text("".join(json.dumps(each) + "\n" for each in held))
    frame, counted = imported(path)
    assert counted.failed == {"a part of kind 'tool_calls that are none' in a turn": 4}
    assert frame["status"].to_list() == ["failed"] * 4 + ["ok"] * 4


def _says(calls: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": "r", "tool_calls": calls}


LINES = "".join(json.dumps(row(at)) + "\n" for at in range(400)).encode()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_packed_file_that_is_cut_off_is_refused_wherever_it_is_cut(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    whole = zstandard.compress(LINES) if name.endswith(".zst") else gzip.compress(LINES)
    for at in range(1, len(whole), 97):
        path.write_bytes(whole[:at])
        with pytest.raises(UserError, match=name):
            list(rows.read(path))
    path.write_bytes(whole)
    assert sum(map(len, rows.read(path))) == 400


def test_a_zst_file_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    half = len(LINES.splitlines(keepends=True)[0]) * 3
    path.write_bytes(zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:]))
    assert sum(map(len, rows.read(path))) == 400


def _flipped(whole: bytes, seed: int) -> bytes:
    drawn = random.Random(seed)
    at = drawn.randrange(len(whole))
    return whole[:at] + bytes([whole[at] ^ (1 << drawn.randrange(8))]) + whole[at + 1 :]


@pytest.mark.parametrize("use", [imported, filtered])
def test_a_flipped_bit_never_is_a_defect(tmp_path: Path, use: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame([row(at) for at in range(50)]).write_parquet(path)
    whole = path.read_bytes()
    for seed in range(40):
        path.write_bytes(_flipped(whole, seed))
        try:
            use(path)
        except UserError as error:
            assert "a.parquet" in str(error)


def test_a_flipped_bit_in_a_file_of_ours_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "ours.parquet"
    rows.write(rows.read(saved(tmp_path / "a.jsonl")), path, "magpie")
    whole = path.read_bytes()
    begin = whole.index(b"ask 1") if b"ask 1" in whole else 200
    path.write_bytes(whole[: begin + 1] + bytes([whole[begin + 1] ^ 1]) + whole[begin + 2 :])
    with pytest.raises(UserError, match=r"ours.parquet cannot be read as Parquet"):
        list(rows.read(path))


def test_a_parquet_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    texts = pl.Series([b"good", b"\xed\xa0\x80"]).to_arrow(compat_level=pl.CompatLevel.oldest())
    strings = pa.Array.from_buffers(pa.large_string(), 2, texts.buffers())
    table = pa.Table.from_arrays([strings, strings], ["instruction", "response"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet cannot be read .* UTF8"):
        list(rows.read(tmp_path / "a.parquet"))


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", json.dumps(row(0)).encode("latin-1") + b"\n{\xe9}", "line 2: no UTF-8 text"),
        ("a.jsonl", LINES[:200].decode().encode("utf-16"), "no UTF-8 text"),
        ("a.jsonl", f'{{"instruction": {DEEP}}}'.encode(), "line 1: its values lie within"),
        ("a.json", f'[{{"instruction": {DEEP}}}]'.encode(), "row 1: its values lie within"),
        ("a.json", DEEP[:20_000].encode(), "is not valid JSON"),
        ("a.csv", "instruction,response\ncaf\xe9,b\n".encode("latin-1"), "cannot be read"),
        ("a.jsonl", b'{"a": 1}\n{"a": [1]}\n', "`a` is a number in line 1 and a list in line 2"),
        ("a.parquet", b"", "cannot be read as Parquet"),
        ("a.parquet", b"PAR1 no parquet PAR1", "cannot be read as Parquet"),
    ],
    ids=["latin", "utf16", "deep", "deep list", "open list", "csv", "kinds", "empty", "none"],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for use in (imported, filtered):
        with pytest.raises(UserError, match=name) as refused:
            use(path)
        assert says in str(refused.value) or name == "a.parquet"


@pytest.mark.parametrize("turn", ['"\\u0000": "x"', '"more": [{"\\u0000": 1}]'])
def test_a_field_whose_name_holds_nul_is_named(tmp_path: Path, turn: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": "a", "conversations": [{"from": "human", "value": "Why?", ' + turn + "}]}\n"
    )
    with pytest.raises(UserError, match=r"the name of the field of `conversations` .* holds NUL"):
        list(files.parts(path, 10))
