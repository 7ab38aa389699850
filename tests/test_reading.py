"""How rows are read where the layout alone does not say it: files of every kind, what users state,
ids, thoughts, tools, preference data, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from typer.testing import CliRunner

from core.errors import UserError
from core.files import remembered_digest
from recipes.cli import app
from synth.config.rows import Reading
from synth.published import files, json_rows
from synth.published.files import AS_IT_IS, Notes
from synth.published.rows import read
from tests.test_layouts import SFT, Row, conversations, messages, parts, real, saved, taken

PAIR = {"instruction": "ask", "output": "answer"}


def told(tmp_path: Path, *rows: Row, how: Reading = AS_IT_IS) -> pl.DataFrame:
    """Rows of a JSON Lines file in our form."""
    found, _, _ = taken(saved(tmp_path / "rows.jsonl", list(rows)), how)
    return found


def texts(found: pl.DataFrame) -> list[tuple[Any, Any]]:
    return found.select("instruction", "response").rows()


def refused(tmp_path: Path, row: Row, words: str, how: Reading = AS_IT_IS) -> None:
    with pytest.raises(UserError, match=words):
        told(tmp_path, row, how=how)


def command(*arguments: str | Path) -> str:
    """What `magpie import` prints."""
    done = CliRunner().invoke(app, ["import", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def written(path: Path, rows: list[Row], packed: str) -> Path:
    """Rows as a file of the kind that its name says, packed as the end of its name says."""
    text = io.StringIO()
    if ".csv" in path.name or ".tsv" in path.name:
        mark = "\t" if ".tsv" in path.name else ","
        table = csv.DictWriter(text, list(rows[0]), delimiter=mark)
        table.writeheader()
        table.writerows(rows)
    elif ".jsonl" in path.name:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        json.dump(rows, text, indent=1)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    path.write_bytes(pack(text.getvalue().encode()))
    return path


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".tsv"])
def test_files_of_every_kind_hold_the_same_rows(
    shared: Path, tmp_path: Path, kind: str, packed: str
) -> None:
    rows = real(shared, "lf_alpaca_en_demo.json")  # commas, quotes and line breaks in its texts
    found, counted, _ = taken(written(tmp_path / f"a{kind}{packed}", rows, packed))
    assert counted.rows == 60 and not counted.failed
    assert texts(found) == [
        ("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])
        for row in rows
    ]


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    line = (json.dumps(PAIR) + "\n").encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line) + zstandard.compress(line))
    assert len(pl.concat(read(tmp_path / "a.jsonl.zst"))) == 2


def test_a_json_file_is_cut_into_rows_wherever_a_chunk_ends(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = real(shared, "lf_glaive_toolcall_en_demo.json")  # JSON within its texts
    rows[0]["id"] = 'quotes " and \\" and brackets ]}'
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    for chunk in (7, 64, 1 << 22):
        monkeypatch.setattr(json_rows, "CHUNK", chunk)
        batches = list(json_rows.entries(path, 7))
        assert [json.loads(line) for batch in batches for _, line in batch] == rows
        assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1} {"a": 2}]', "unexpected .* after row 1"),
        ('[{"a": 1}, {"a": 2}', "it ends within row 3"),
        ('[{"a": 1}] x', "unexpected .* after row 1"),
        ('[{"a": 1}, {"a": }]', "row 2"),
        ('{"a": [1]}', "JSON but no list"),
        ('["a"]', "unexpected"),
    ],
)
def test_a_json_file_that_is_no_list_of_rows_is_one_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=words):
        list(read(tmp_path / "a.json"))


def test_a_json_file_of_one_object_a_line_is_read_as_that(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR) + "\n")
    assert len(pl.concat(read(tmp_path / "a.json"))) == 2


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_nan_is_a_failed_tag(tmp_path: Path, name: str) -> None:
    rows = [{**PAIR, "instruct_reward": value} for value in (1.5, float("nan"), float("nan"))]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pl.from_dicts(rows).write_parquet(path)
    else:
        saved(path, rows)
    found, counted, _ = taken(path)
    assert found["instruct_reward"].to_list() == [1.5, None, None]
    assert counted.tags == {("instruct_reward", "no number: 'NaN'"): 2}


@pytest.mark.parametrize("name", ["broken.parquet", "broken.json", "broken.jsonl.zst"])
def test_one_bad_file_does_not_end_a_folder_and_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    saved(folder / "a.jsonl", [PAIR])
    (folder / name).write_bytes(b"[{ not what it seems")
    saved(folder / "c.jsonl", [{**PAIR, "instruction": "another"}])
    output = command(folder, "--out", tmp_path / "out.jsonl")
    assert "2 rows read, 0 of them failed" in output
    assert f"not read: {folder / name}" in output
    with pytest.raises(UserError, match=name):  # who wants no notes wants every row
        list(read(folder))


def test_a_folder_of_nothing_but_bad_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=r"none of the 2 files could be read; the first: .*a\.json"):
        list(read(tmp_path, notes=Notes()))


def test_a_file_is_hashed_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.jsonl", [PAIR])
    monkeypatch.setattr("core.files.time.time", lambda: path.stat().st_ctime + 60)
    first = remembered_digest(path, tmp_path / "digests")
    hashed = []
    monkeypatch.setattr("core.files.file_digest", lambda path: hashed.append(path) or "new")
    assert remembered_digest(path, tmp_path / "digests") == first and not hashed
    os.utime(path, (1, 1))
    assert remembered_digest(path, tmp_path / "digests") == "new" and hashed == [path]


def test_a_remembered_digest_that_was_changed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.jsonl", [PAIR])
    monkeypatch.setattr("core.files.time.time", lambda: path.stat().st_ctime + 60)
    first = remembered_digest(path, tmp_path / "digests")
    [note] = (tmp_path / "digests").iterdir()
    note.write_text(note.read_text().replace(first, f"{'0' * 63}1"))
    assert remembered_digest(path, tmp_path / "digests") == first


# -- what users state ------------------------------------------------------------------------------


def test_map_says_which_columns_are_taken(tmp_path: Path) -> None:
    row = {"q": "ask", "a": "answer", "instruction": "not this", "lang": "en", "key": 7}
    mapped = {"instruction": "q", "response": "a", "language": "lang", "id": "key"}
    found = told(tmp_path, row, how=Reading(map=mapped))
    assert texts(found) == [("ask", "answer")]
    assert found["id"][0] == "7" and found["language"][0] == "EN"
    assert found["source_instruction"][0] == "not this"


def test_map_takes_texts_in_place_of_a_conversation_and_the_other_way_round(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "b", "output": "c", "talk": messages(["q", "r"])}
    by_texts = Reading(map={"instruction": "instruction", "response": "output"})
    assert texts(told(tmp_path, row, how=by_texts)) == [("a", "c")]
    assert texts(told(tmp_path, row, how=Reading(map={"messages": "talk"}))) == [("q", "r")]


def test_texts_that_are_empty_beside_a_conversation_are_its_own(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]
    empty = {"instruction": "", "response": "", "conversations": turns}
    said = empty | {"instruction": "ask", "response": "answer"}
    assert texts(told(tmp_path, empty)) == [("ask", "answer")]
    assert texts(told(tmp_path, empty, said)) == [("ask", "answer")] * 2


def test_join_puts_columns_together_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    join = Reading(join="Read: {context}\\n\\nDo: {instruction}!")  # as a shell passes it
    rows = [{"instruction": "sum", "context": c, "response": "r"} for c in ("text", "", None)]
    assert told(tmp_path, *rows, how=join)["instruction"].to_list() == [
        "Read: text\n\nDo: sum!",
        "Read: sum!",
        "Read: sum!",
    ]


def test_the_options_of_the_command_are_settings_of_a_recipe(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", [{"q": "ask", "more": "this", "a": "answer"}])
    command(path, "--out", tmp_path / "b.jsonl", "--join", r"{q}\n{more}", "--map", "response=a")
    assert json.loads((tmp_path / "b.jsonl").read_text())["instruction"] == "ask\nthis"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--map", "instruction=nope"], "has no column nope"),
        (["--map", "instructions=instruction"], "did you mean 'instruction'"),
        (["--map", "instruction"], "say it as OURS=THEIRS"),
        (["--join", "{instruction} {nope}"], "has no column nope"),
        (["--join", "all of it"], "`join` names no column"),
        (["--join", "{output}", "--map", "instruction=output"], "not both"),
        (["--as", "dpo"], "--as"),
    ],
)
def test_what_users_state_wrongly_is_one_sentence(
    tmp_path: Path, options: list[str], words: str
) -> None:
    path = saved(tmp_path / "a.jsonl", [PAIR])
    done = CliRunner().invoke(app, ["import", str(path), "--out", str(tmp_path / "o"), *options])
    assert isinstance(done.exception, UserError) and words in str(done.exception)


def test_head_shows_the_mapping_and_the_first_rows_and_reads_no_further(
    shared: Path, tmp_path: Path
) -> None:
    rows = real(shared, "lf_alpaca_en_demo.json")[:4]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "this line is never parsed"]))
    output = command(tmp_path / "a.jsonl", "--head", "2")
    first, *rest = output.splitlines()
    assert first == "Alpaca: instruction + input -> instruction, output -> response"
    assert sum(line.startswith("  instruction: ") for line in rest) == 2
    assert " ".join(rows[1]["output"].split())[:160] in output
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


# -- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ask", "completion": "answer"},
        {"Instruction": "ask", "Response": "answer"},
        {"question": "ask", "answer": "answer"},
        {"prompt": messages(["ask"]), "completion": messages(["x", "answer"])[1:]},
        {"Messages": messages(["ask", "answer"])},
        {"conversation": [{"input": "ask", "output": "answer"}]},
    ],
    ids=lambda row: "-".join(row),
)
def test_other_names_of_the_same_two_texts(tmp_path: Path, row: Row) -> None:
    found = told(tmp_path, row)
    assert texts(found) == [("ask", "answer")] and found["status"].to_list() == ["ok"]


def test_a_system_prompt_and_earlier_turns_beside_a_pair_make_a_conversation(
    tmp_path: Path,
) -> None:
    row = {**PAIR, "system": "be brief", "history": [["q1", "a1"], ["q2", "a2"]]}
    found = told(tmp_path, row, {**PAIR, "system": "", "history": []})
    assert [(t["role"], t["content"]) for t in found["messages"][0]] == [
        ("system", "be brief"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("user", "ask"),
        ("assistant", "answer"),
    ]
    assert found["messages"][1] is None and texts(found)[1] == ("ask", "answer")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": messages(["a", "b"]), "conversations": messages(["a", "b"])}, "messages or"),
        ({"question": "a", "prompt": "b", "answer": "c"}, "the instruction may be in prompt or"),
        ({"question": "a", "context": "b", "answer": "c"}, "--join '{context}"),
        ({"instruction": "a", "input": "b", "output": "c", "response": "d"}, "the response may"),
        ({"instruction": "a", "input": "b", "messages": messages(["a", "b"])}, "may be Alpaca"),
        ({"chosen": "a", "rejected": "b"}, "is preference data"),
    ],
)
def test_what_may_be_two_things_is_refused_with_both(tmp_path: Path, row: Row, words: str) -> None:
    refused(tmp_path, row, words)


def test_chosen_answers_without_prompts_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, {"chosen": "a", "rejected": "b"}, "no column holds their prompts", SFT)


def test_prompts_alone_are_rows_where_prompts_are_wanted(shared: Path, tmp_path: Path) -> None:
    path = shared / "magpie_samples" / "example_instructions.jsonl"
    assert set(taken(path, prompts=True)[0]["status"]) == {"ok"}
    assert set(taken(path, prompts=False)[0]["status"]) == {"failed"}
    assert "0 of them failed" in command(path, "--out", tmp_path / "prompts.parquet")
    answered = saved(tmp_path / "a.jsonl", [PAIR, {**PAIR, "output": ""}])
    assert "1 of them failed" in command(answered, "--out", tmp_path / "b.parquet")


# -- ids -------------------------------------------------------------------------------------------


def test_equal_contents_are_no_repeated_ids(tmp_path: Path) -> None:
    found = told(tmp_path, PAIR, {**PAIR, "output": "other"}, PAIR, PAIR)
    assert found["status"].to_list() == ["ok"] * 4 and found["id"].n_unique() == 4
    first = found["id"][0]
    assert found["id"].to_list()[2:] == [f"{first}-2", f"{first}-3"]


def test_counters_that_begin_again_and_digests_that_repeat_are_no_repeated_ids(
    tmp_path: Path,
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        saved(tmp_path / name, [{"idx": n, **PAIR, "instruction": name} for n in range(2)])
    found, counted, _ = taken(tmp_path)
    assert not counted.failed and found["id"].to_list() == ["0", "1", "0-2", "1-2"]
    same = [{"prompt_id": "p", "messages": messages(["q", a])} for a in ("a", "b")]
    assert told(tmp_path, *same)["id"].to_list() == ["p", "p-2"]


# -- turns -----------------------------------------------------------------------------------------


def test_content_parts_are_texts_thoughts_and_tool_calls(shared: Path) -> None:
    name = "lf_reason_tool_use_demo_50.jsonl"
    rows = real(shared, name)
    found, _, _ = taken(shared / "layouts" / name)
    for row, made in zip(rows, found.iter_rows(named=True), strict=True):
        turns, expected = made["messages"], []
        for turn in row["messages"]:
            calls = [p["value"] for p in turn["content"] if p["type"] == "tool_call"]
            if parts(turn) or not calls:
                expected.append((turn["role"], parts(turn)))
            expected += [("tool_call", call) for call in calls]
        assert [(turn["role"], turn["content"]) for turn in turns] == expected
        assert made["tools"] == row["tools"]
        answers = [t for t in row["messages"] if t["role"] == "assistant"]
        thoughts = [p["value"] for p in answers[0]["content"] if p["type"] == "reasoning"]
        assert made["thinking"] == "".join(thoughts)


def test_tool_turns_keep_their_roles(shared: Path) -> None:
    found, _, _ = taken(shared / "layouts" / "lf_glaive_toolcall_en_demo.json")
    rows = real(shared, "lf_glaive_toolcall_en_demo.json")
    roles = {"human": "user", "gpt": "assistant", "function_call": "tool_call"}
    number = next(
        n for n, row in enumerate(rows) if row["conversations"][1]["from"] == "function_call"
    )
    assert [turn["role"] for turn in found["messages"][number]] == [
        roles.get(turn["from"], "tool") for turn in rows[number]["conversations"]
    ]
    # the answer is what the assistant says, once the tool has answered
    assert found["response"][number] == rows[number]["conversations"][3]["value"]


def test_calls_as_chat_services_return_them_are_tool_turns(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    talk = [
        {"role": "user", "content": "ask", "tool_calls": None, "reasoning_content": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "2", "tool_calls": None, "reasoning_content": None},
        {"role": "assistant", "content": "two", "tool_calls": None, "reasoning_content": None},
    ]
    found = told(tmp_path, {"messages": talk})
    assert [(turn["role"], turn["content"]) for turn in found["messages"][0]] == [
        ("user", "ask"),
        ("tool_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("tool", "2"),
        ("assistant", "two"),
    ]
    assert texts(found) == [("ask", "two")] and found["status"].to_list() == ["ok"]


def test_texts_and_parts_may_stand_in_one_column(tmp_path: Path) -> None:
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "ask"}]}]
    rows = [{"messages": messages(["q", "r"])}, {"messages": [*in_parts, *messages(["", "r"])[1:]]}]
    assert texts(told(tmp_path, *rows)) == [("q", "r"), ("ask", "r")]


def test_a_part_that_is_no_text_fails_its_row_alone(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "what is this?"}, {"type": "image", "text": "a.png"}]
    rows = [{"messages": [{"role": "user", "content": content}, *_answered("a cat")]}]
    rows.append({"messages": [{"role": "user", "content": content[:1]}, *_answered("that")]})
    found = told(tmp_path, *rows)
    assert found["status"].to_list() == ["failed", "ok"]
    assert found["reason"][0] == "a part of kind 'image' in a turn (rows.jsonl line 1)"


def _answered(text: str) -> list[Row]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


# -- preference data -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lf_dpo_en_demo.json", "lf_v1_dpo_demo.jsonl"])
def test_pairs_are_written_in_trls_form(shared: Path, tmp_path: Path, name: str) -> None:
    rows = real(shared, name)
    out = tmp_path / "pairs.jsonl"
    assert f"{len(rows)} rows read, 0 of them failed" in command(
        shared / "layouts" / name, "--out", out, "--as", "preferences"
    )
    made = [json.loads(line) for line in out.read_text().splitlines()]
    for row, pair in zip(rows, made, strict=True):
        if "chosen" in row:
            asked, good, bad = row["conversations"][-1], row["chosen"], row["rejected"]
            expected = [turn["value"] for turn in (asked, good, bad)]
        else:
            good, bad = row["chosen_messages"], row["rejected_messages"]
            expected = [parts(good[1]), parts(good[2]), parts(bad[2])]
        assert [pair[c][-1]["content"] for c in ("prompt", "chosen", "rejected")] == expected
        assert pair["prompt"][-1]["role"] == "user"
        assert [turn["role"] for turn in pair["chosen"] + pair["rejected"]] == ["assistant"] * 2


def test_rated_answers_are_written_in_trls_form(shared: Path, tmp_path: Path) -> None:
    rows = real(shared, "lf_kto_en_demo.json")
    out = tmp_path / "rated.parquet"
    command(shared / "layouts" / "lf_kto_en_demo.json", "--out", out, "--as", "preferences")
    made = pl.read_parquet(out)
    assert made["label"].to_list() == [row["label"] for row in rows]
    for row, prompt, completion in zip(rows, made["prompt"], made["completion"], strict=True):
        assert prompt.to_list() + completion.to_list() == [
            {"role": turn["role"], "content": turn["content"]} for turn in row["messages"]
        ]


def test_pairs_that_are_none_are_counted_and_left_out(tmp_path: Path) -> None:
    row = {"prompt": "ask", "chosen": "good", "rejected": "bad", "score": 1}
    rows = [row, {**row, "rejected": "good"}, {**row, "prompt": ""}]
    path = saved(tmp_path / "a.jsonl", rows)
    output = command(path, "--out", tmp_path / "b.jsonl", "--as", "preferences")
    assert "2 of them failed" in output and "1 rows of preference data written" in output
    (kept,) = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert kept["score"] == 1 and kept["chosen"] == [{"role": "assistant", "content": "good"}]


def test_a_whole_conversation_in_chosen_is_taken_once(shared: Path, tmp_path: Path) -> None:
    texts_of = conversations(shared)[0]
    whole, other = messages(texts_of), [*messages(texts_of)[:-1], messages(["", "other"])[1]]
    row = {"prompt": texts_of[0], "chosen": whole, "rejected": other, "messages": whole}
    found = told(tmp_path, row, how=SFT)
    assert found["messages"][0].to_list() == whole
    assert files.holds_lines(tmp_path / "rows.jsonl")


def test_an_instruction_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('[{"instruction": 5, "output": null}]')
    with pytest.raises(UserError, match="neither text nor a conversation in instruction;"):
        list(read(tmp_path / "odd.json"))
