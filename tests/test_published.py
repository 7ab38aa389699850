"""Published sets in and out: both namings, both conversation forms, round trips, and everything
that can be wrong with a row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.published.rows import read, write

COMMON: dict[str, Any] = {
    "task_category": "Math",
    "difficulty": "hard",
    "intent": "to count",
    "knowledge": "numbers",
    "input_quality": "excellent",
    "quality_explanation": "has a } brace",
    "llama_guard_2": "unsafe\nS6",
    "reward_model": "sfairXC/FsfairX-LLaMA3-RM-v0.1",
    "instruct_reward": -4.5,
    "min_neighbor_distance": 0.25,
    "repeat_count": 3,
    "min_similar_uuid": "u1",
}


def row23(i: int, **values: Any) -> dict[str, Any]:
    """A row of the 23-column form of the Llama-3 v0.1 sets."""
    question, answer = f"What is {i}?\nTwo lines, {{braces}}.", f"It is {i}."
    return {
        "uuid": f"u{i}",
        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
        "gen_input_config": {"temperature": 1.1, "top_p": 0.995},
        "input": question,
        "output": answer,
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **COMMON,
        "base_output": "?",
        "base_reward": -9.25,
        "reward_difference": 4.75,
        "input_length": len(question),
        "output_length": len(answer),
        **values,
    }


def row25(i: int, **values: Any) -> dict[str, Any]:
    """A row of the 25-column form of the later sets."""
    config = {
        "temperature": 1.0,
        "top_p": 1.0,
        "input_generator": "Qwen2-72B-Instruct",
        "seed": None,
        "pre_query_template": "<|im_start|>user\n",
    }
    old = row23(i)
    gone = {
        "input",
        "output",
        "gen_input_config",
        "base_output",
        "base_reward",
        "reward_difference",
        "input_length",
        "output_length",
    }
    kept = {k: v for k, v in old.items() if k not in gone}
    tagger = {
        f"{name}_generator": "meta-llama/Meta-Llama-3-8B-Instruct"
        for name in ("task_category", "difficulty", "quality")
    }
    return (
        kept
        | tagger
        | {
            "gen_input_configs": {**config, "extract_input": None},
            "instruction": old["input"],
            "response": old["output"],
            "language": "EN",
            "other_task_category": ["Reasoning", "Others"],
            "instruction_length": old["input_length"],
            "response_length": old["output_length"],
            **values,
        }
    )


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pl.from_dicts(rows, infer_schema_length=None).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def loaded(path: Path) -> list[dict[str, Any]]:
    return (
        pl.read_parquet(path).to_dicts()
        if path.suffix == ".parquet"
        else [json.loads(line) for line in path.read_text().splitlines()]
    )


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize(("form", "row", "columns"), [("23", row23, 23), ("25", row25, 25)])
def test_published_form_round_trips_losslessly(
    tmp_path: Path, ending: str, form: Any, row: Any, columns: int
) -> None:
    rows = [row(i) for i in range(5)] + [
        row(9, task_category=None, repeat_count=0, min_similar_uuid=None, instruct_reward=None)
    ]
    assert len(rows[0]) == columns
    again = tmp_path / f"again{ending}"
    assert write(read(saved(tmp_path / f"set{ending}", rows), batch=4), again, form) == 6
    assert loaded(again) == rows
    assert len(loaded(again)[0]) == columns


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".json", ".jsonl.gz"])
def test_both_namings_give_the_same_rows_of_ours(tmp_path: Path, ending: str) -> None:
    old = pl.concat(read(saved(tmp_path / f"a{ending}", [row23(i) for i in range(3)])))
    new = pl.concat(read(saved(tmp_path / f"b{ending}", [row25(i) for i in range(3)])))
    shared = [
        c
        for c in old.columns
        if c in new.columns and c not in ("gen_input_config", "source_columns")
    ]
    assert {
        "id",
        "instruction",
        "response",
        "min_similar_id",
        "repeat_count",
        "input_quality",
        "llama_guard_2",
        "status",
    } <= set(shared)
    assert old.select(shared).equals(new.select(shared))
    assert old["status"].to_list() == ["ok"] * 3 and old["messages"].null_count() == 3


@pytest.mark.parametrize(
    "turn", [("from", "value", "human", "gpt"), ("role", "content", "user", "assistant")]
)
@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_conversations_alone_are_enough_in_either_form(
    tmp_path: Path, turn: tuple[str, str, str, str], column: str
) -> None:
    who, what, user, assistant = turn
    path = saved(
        tmp_path / "c.jsonl",
        [
            {
                "conversation_id": "x",
                column: [{who: user, what: "hi"}, {who: assistant, what: "hello"}],
            }
        ],
    )
    found = pl.concat(read(path)).to_dicts()[0]
    assert (found["id"], found["instruction"], found["response"], found["messages"]) == (
        "x",
        "hi",
        "hello",
        None,
    )


def test_system_prompts_and_further_turns_are_kept_whole(tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief."),
        ("human", "hi"),
        ("gpt", "hello"),
        ("human", "and?"),
        ("gpt", "no"),
    ]
    path = saved(
        tmp_path / "c.jsonl",
        [{"id": "x", "conversations": [{"from": w, "value": v} for w, v in turns]}],
    )
    found = pl.concat(read(path))
    assert found["instruction"].to_list() == ["hi"] and found["response"].to_list() == ["hello"]
    write(found, tmp_path / "out.jsonl", "sharegpt")
    assert loaded(tmp_path / "out.jsonl") == [
        {"conversation_id": "x", "conversations": [{"from": w, "value": v} for w, v in turns]}
    ]
    write(found, tmp_path / "out.parquet", "messages")
    assert [m["role"] for m in loaded(tmp_path / "out.parquet")[0]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_unknown_label_is_that_rows_failed_tag_and_not_a_guess(tmp_path: Path) -> None:
    rows = [
        row23(0),
        row23(1, input_quality="Good"),
        row23(2, task_category="Other", difficulty="hardest"),
    ]
    found = pl.concat(read(saved(tmp_path / "a.jsonl", rows)))
    assert found["input_quality"].to_list() == ["excellent", None, "excellent"]
    assert found["status"].to_list() == ["ok"] * 3
    trouble = found["failed_tags"].to_list()
    assert trouble[1] == [
        {"column": "input_quality", "reason": "unknown label 'Good'", "value": "Good"}
    ]
    assert [t["column"] for t in trouble[2]] == ["difficulty", "task_category"]


def test_others_is_a_category(tmp_path: Path) -> None:
    assert pl.concat(read(saved(tmp_path / "a.jsonl", [row23(0, task_category="Others")])))[
        "task_category"
    ].to_list() == ["Others"]


def test_row_without_instruction_or_response_is_a_failed_row_with_its_place(tmp_path: Path) -> None:
    rows = [row23(0), row23(1, output="", conversations=[]), row23(2, input=None, conversations=[])]
    found = pl.concat(read(saved(tmp_path / "a.jsonl", rows)))
    assert found["status"].to_list() == ["ok", "failed", "failed"]
    assert found["reason"].to_list()[1:] == [
        "no response (a.jsonl line 2)",
        "no instruction (a.jsonl line 3)",
    ]
    assert write(found, tmp_path / "out.jsonl", "23") == 1


def test_id_that_occurs_twice_loses_no_row(tmp_path: Path) -> None:
    found = pl.concat(read(saved(tmp_path / "a.jsonl", [row23(0), row23(1, uuid="u0")])))
    assert found["id"].n_unique() == 2 and found["status"].to_list() == ["ok", "failed"]
    assert "u0 occurs twice" in found["reason"].to_list()[1]


def test_row_without_an_id_gets_one_from_its_content(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "response": "b"}, {"instruction": "a", "response": "c"}]
    first, again = (
        pl.concat(read(saved(tmp_path / name, rows)))["id"].to_list()
        for name in ("a.jsonl", "b.jsonl")
    )
    assert first == again and len(set(first)) == 2


def test_absent_columns_stay_absent_and_present_nulls_stay_null(tmp_path: Path) -> None:
    found = next(
        read(
            saved(
                tmp_path / "a.jsonl",
                [{"uuid": "x", "input": "a", "output": "b", "difficulty": None}],
            )
        )
    )
    assert "input_quality" not in found.columns and found["difficulty"].to_list() == [None]


def test_lowest_similar_id_is_filled_on_reading_and_null_again_on_writing(tmp_path: Path) -> None:
    found = pl.concat(
        read(saved(tmp_path / "a.jsonl", [row23(7, repeat_count=0, min_similar_uuid=None)]))
    )
    assert found["min_similar_id"].to_list() == ["u7"]
    write(found, tmp_path / "b.jsonl", "23")
    assert loaded(tmp_path / "b.jsonl")[0]["min_similar_uuid"] is None


def test_rows_come_in_batches_up_to_a_limit_over_several_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    saved(folder / "1.parquet", [row23(i) for i in range(5)])
    saved(folder / "2.jsonl", [row25(i) for i in range(5, 10)])
    parts = list(read(folder, limit=7, batch=3))
    assert [len(part) for part in parts] == [3, 2, 2]
    assert [i for part in parts for i in part["id"].to_list()] == [f"u{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"input": "x", "output": "y"}\n{oops', "a.jsonl is not valid JSON Lines"),
        ("a.json", "{oops", "a.json is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1 is JSON but no object"),
        ("a.jsonl", '{"headline": "x"}\n', "no instruction is to be found in the columns headline"),
        ("a.parquet", "not parquet", "cannot be read as Parquet"),
    ],
)
def test_unreadable_file_is_one_sentence(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        list(read(tmp_path / name))


def test_missing_file_or_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read(tmp_path / "nope.jsonl"))
    with pytest.raises(UserError, match=r"holds no \.parquet"):
        list(read(tmp_path))
    with pytest.raises(UserError, match=r"must end in \.parquet or \.jsonl"):
        write(pl.DataFrame(), tmp_path / "x.csv", "messages")


def test_no_half_written_file_is_left_under_the_final_name(tmp_path: Path) -> None:
    def broken() -> Any:
        yield pl.concat(read(saved(tmp_path / "a.jsonl", [row23(0)])))
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write(broken(), tmp_path / "out.parquet", "messages")
    assert not (tmp_path / "out.parquet").exists()


def test_real_published_rows_are_read(shared: Path) -> None:
    found = pl.concat(read(shared / "magpie_samples" / "example_instructions.jsonl"))
    assert len(found) == 5 and found["instruction"].null_count() == 0
    assert found["failed_tags"].list.len().sum() == 0 and found["input_quality"].null_count() == 0
    assert set(found["reason"]) == {
        f"no response (example_instructions.jsonl line {n})" for n in range(1, 6)
    }  # these files hold no responses


def test_values_of_another_kind_are_failed_tags_and_not_the_end_of_the_import(
    tmp_path: Path,
) -> None:
    rows = pl.from_dicts([row25(i) for i in range(3)], infer_schema_length=None)
    odd = [
        pl.Series("instruct_reward", ["1.5", "high", None]),
        pl.Series("task_category", [["Math"], None, None]),
    ]
    rows.with_columns(odd).write_parquet(tmp_path / "odd.parquet")
    read_back = pl.concat(list(read(tmp_path / "odd.parquet")))
    assert (
        read_back["instruct_reward"].to_list() == [1.5, None, None]
        and read_back["status"].to_list() == ["ok"] * 3
    )
    told = [[(t["column"], t["value"]) for t in row] for row in read_back["failed_tags"].to_list()]
    assert told == [[("task_category", "a list or object")], [("instruct_reward", "high")], []]


LISTED = ("a list or object", "is not of the column's kind")


@pytest.mark.parametrize(
    ("column", "given", "value", "odd"),
    [
        ("other_task_category", ["Math", "Others"], ["Math", "Others"], None),
        ("other_task_category", [1, 2], ["1", "2"], None),
        ("other_task_category", [{"a": 1}], None, LISTED),
        ("other_task_category", "Math", None, ("Math", "is not of the column's kind")),
        ("intent", 5, "5", None),
        ("intent", ["x"], None, LISTED),
        ("instruct_reward", "1.5", 1.5, None),
        ("instruct_reward", True, None, ("true", "no number")),
        ("instruct_reward", [1.0], None, ("a list or object", "no number")),
        ("repeat_count", "2", 2, None),
        ("repeat_count", 2.0, 2, None),
        ("repeat_count", True, None, ("true", "no whole number")),
    ],
)
def test_a_value_is_had_in_the_columns_kind_or_is_that_rows_failed_tag(
    tmp_path: Path, column: str, given: Any, value: Any, odd: tuple[str, str] | None
) -> None:
    found = pl.concat(read(saved(tmp_path / "a.jsonl", [row25(0, **{column: given})])))
    assert found[column].to_list() == [value] and found["status"].to_list() == ["ok"]
    (tags,) = found["failed_tags"].to_list()
    assert [(tag["column"], tag["value"]) for tag in tags] == ([(column, odd[0])] if odd else [])
    assert odd is None or odd[1] in tags[0]["reason"]


@pytest.mark.parametrize("form", ["23", "25"])
def test_a_label_that_is_none_is_written_as_it_was_read(tmp_path: Path, form: Any) -> None:
    row = {"23": row23, "25": row25}[form]
    rows = [row(0), row(1, input_quality="Good"), row(2, difficulty=None, language=None)]
    if form == "23":
        del rows[2]["language"]
    write(read(saved(tmp_path / "a.jsonl", rows)), tmp_path / "b.jsonl", form)
    assert loaded(tmp_path / "b.jsonl") == rows


def test_rows_that_were_read_from_no_file_are_written_in_the_order_of_the_cards(
    tmp_path: Path,
) -> None:
    ours = {"id": ["a"], "instruction": ["Why?"], "response": ["So."], "input_quality": ["good"],
            "own": [1]}  # fmt: skip
    for form, first, last in (("23", "uuid", "output_length"), ("25", "uuid", "language")):
        write(pl.DataFrame(ours), tmp_path / f"{form}.jsonl", form)  # type: ignore[arg-type]
        (row,) = loaded(tmp_path / f"{form}.jsonl")
        names = list(row)
        assert (names[0], names[int(form) - 1], names[int(form) :]) == (first, last, ["own"])
        assert row["input_quality"] == "good" and row["reward_model"] is None
        turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
        assert row["conversations"] == turns
    write(pl.DataFrame(ours), tmp_path / "m.jsonl", "messages")
    assert loaded(tmp_path / "m.jsonl") == [
        {"id": "a", "messages": [{"role": "user", "content": "Why?"},
                                 {"role": "assistant", "content": "So."}]}
    ]  # fmt: skip


def test_a_file_without_its_sampling_keeps_its_names_and_their_order(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        row = {name: row23(number)[name] for name in reversed(list(row23(number)))}
        del row["gen_input_config"]
        rows.append(row)
    write(read(saved(tmp_path / "a.jsonl", rows)), tmp_path / "b.jsonl", "23")
    again = loaded(tmp_path / "b.jsonl")
    assert [list(row)[: len(rows[0])] for row in again] == [list(row) for row in rows]
    assert [{name: row[name] for name in rows[0]} for row in again] == rows


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.9, "seed": 4},
    ],
)
def test_a_sampling_that_says_less_is_written_as_it_was_read(
    tmp_path: Path, sampling: dict[str, Any]
) -> None:
    rows = [row25(number, gen_input_configs=sampling) for number in range(2)]
    write(read(saved(tmp_path / "a.jsonl", rows)), tmp_path / "b.jsonl", "25")
    assert loaded(tmp_path / "b.jsonl") == rows


def test_the_lowest_similar_id_is_null_only_for_a_row_that_is_like_no_other(tmp_path: Path) -> None:
    rows = [
        row23(0, repeat_count=2, min_similar_uuid="u0"),
        row23(1, repeat_count=0, min_similar_uuid=None),
        row23(2, repeat_count=None, min_similar_uuid="u2"),
        row23(3, repeat_count=1, min_similar_uuid="u0"),
    ]
    write(read(saved(tmp_path / "a.jsonl", rows)), tmp_path / "b.jsonl", "23")
    assert loaded(tmp_path / "b.jsonl") == rows


def test_a_conversation_of_the_rows_own_texts_is_told_from_any_other(tmp_path: Path) -> None:
    def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
        return [{"from": who, "value": text} for who, text in turns]

    plain = row23(0)
    question, answer = plain["input"], plain["output"]
    others = [
        talk(("human", question), ("gpt", "another answer")),
        talk(("human", "another question"), ("gpt", answer)),
        talk(("gpt", question), ("human", answer)),
        talk(("human", question), ("gpt", answer), ("human", "more?"), ("gpt", "no")),
        talk(("system", "be brief"), ("human", question), ("gpt", answer)),
    ]
    rows = [plain, *(row23(0, uuid=f"v{n}", conversations=each) for n, each in enumerate(others))]
    found = pl.concat(read(saved(tmp_path / "a.jsonl", rows)))
    assert found["id"].to_list() == ["u0", "v0", "v1", "v2", "v3", "v4"]
    kept = found["status"] == "ok"
    assert kept.to_list()[:2] == [True, True]
    assert found["messages"].is_null().to_list()[:3] == [True, True, True]
    assert [len(m) for m in found["messages"].to_list()[4:]] == [4, 3]
    write(found, tmp_path / "b.jsonl", "23")
    expected = [row for row, ok in zip(rows, kept, strict=True) if ok]
    assert loaded(tmp_path / "b.jsonl") == expected
