"""Everybody's layouts: each of those that the paper's sets and users' files have comes in right, or
is refused in a sentence. The texts are those of real files, read where they lie."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from synth.config.rows import Reading
from synth.published.files import AS_IT_IS, Notes
from synth.published.rows import Counted, read

Row = dict[str, Any]
Texts = tuple[str, str]
SFT = Reading.model_validate({"as": "sft"})


def real(shared: Path, name: str) -> list[Row]:
    """A real file, read plainly."""
    text = (shared / "layouts" / name).read_text()
    if name.endswith(".json"):
        rows: list[Row] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines()]


def taken(
    source: Path, how: Reading = AS_IT_IS, prompts: bool | None = False
) -> tuple[pl.DataFrame, Counted, Notes]:
    """All rows of a source, the counts and the notes."""
    counted, notes = Counted(), Notes()
    frames = read(source, how=how, prompts=prompts, notes=notes)
    return pl.concat(list(counted.watch(frames)), how="diagonal"), counted, notes


def saved(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(turn: Row) -> str:
    """The texts of a turn's content parts."""
    return "".join(part["value"] for part in turn["content"] if part["type"] == "text")


@dataclass(frozen=True)
class Real:
    """A real file: what `magpie import` says of it, and the first row by a plain look."""

    name: str
    line: str
    first: Callable[[Row], Texts]
    failed: dict[str, int] = field(default_factory=dict)
    how: Reading = AS_IT_IS


def joined(row: Row) -> str:
    return "\n\n".join(filter(None, (row["instruction"], row["input"])))


def talk(row: Row) -> Texts:
    return row["conversations"][0]["value"], row["conversations"][1]["value"]


TALK = "conversations[from, value] -> instruction, response, messages"
ALPACA = "Alpaca: instruction + input -> instruction, output -> response"
REAL = (
    Real("fastchat_dummy_conversation.json", f"ShareGPT: {TALK}", talk),
    Real("lf_glaive_toolcall_en_demo.json", f"ShareGPT: {TALK}", talk),
    Real("lf_alpaca_en_demo.json", ALPACA, lambda row: (joined(row), row["output"])),
    Real("lf_identity.json", ALPACA, lambda row: (row["instruction"], row["output"])),
    Real(
        "lf_v1_sft_demo.jsonl",
        "messages: messages[role, content] -> instruction, response, messages",
        lambda row: (parts(row["messages"][0]), parts(row["messages"][1])),
    ),
    Real(
        "lf_reason_tool_use_demo_50.jsonl",
        "messages: messages[role, content] -> instruction, response, messages",
        lambda row: (parts(row["messages"][1]), parts(row["messages"][2])),
    ),
    Real(
        "lf_dpo_en_demo.json",
        "preference pairs: conversations[from, value] + chosen -> instruction, response, messages, "
        "rejected left out",
        lambda row: (row["conversations"][0]["value"], row["chosen"]["value"]),
        how=SFT,
    ),
    Real(
        "lf_v1_dpo_demo.jsonl",
        "preference pairs: chosen_messages[role, content] -> instruction, response, messages, "
        "rejected_messages left out",
        lambda row: (parts(row["chosen_messages"][1]), parts(row["chosen_messages"][2])),
        how=SFT,
    ),
    Real(
        "lf_kto_en_demo.json",
        "rated answers (messages): messages[role, content] -> instruction, "
        "response, messages, only where label is true",
        lambda row: (row["messages"][0]["content"], row["messages"][1]["content"]),
        failed={"a rejected answer": 15},
        how=SFT,
    ),
)


@pytest.mark.parametrize("case", REAL, ids=lambda case: case.name)
def test_real_files_come_in_as_a_plain_look_at_them_says(shared: Path, case: Real) -> None:
    rows = real(shared, case.name)
    found, counted, notes = taken(shared / "layouts" / case.name, case.how)
    assert counted.rows == len(rows) and dict(counted.failed) == case.failed
    assert (found["instruction"][0], found["response"][0]) == case.first(rows[0])
    assert list(notes.layouts) == [case.line]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lf_dpo_en_demo.json", "preference data \\(chosen, rejected\\)"),
        ("lf_v1_dpo_demo.jsonl", "preference data \\(chosen_messages, rejected_messages\\)"),
        ("lf_kto_en_demo.json", "rated answers \\(label: true or false\\)"),
    ],
)
def test_preference_data_is_refused_until_one_says_as_what_it_is_taken(
    shared: Path, name: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"{words}.*--as sft takes .*--as preferences writes"):
        taken(shared / "layouts" / name)


# -- the published layouts, of real texts ----------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published set's layout: how its rows are made of a real conversation of [user, assistant,
    ...] texts, which texts the first row then has, and how many rows of each length fail."""

    build: Callable[[int, list[str]], Row]
    first: Callable[[Row], Texts]
    line: str
    failed: dict[str, int] = field(default_factory=dict)
    ids: Callable[[int], str] | None = None


def speaking(texts: list[str], names: tuple[str, str], fields: tuple[str, str]) -> list[Row]:
    who, what = fields
    return [{who: names[at % 2], what: text} for at, text in enumerate(texts)]


def sharegpt(texts: list[str]) -> list[Row]:
    return speaking(texts, ("human", "gpt"), ("from", "value"))


def messages(texts: list[str]) -> list[Row]:
    return speaking(texts, ("user", "assistant"), ("role", "content"))


def swapped(texts: list[str]) -> list[Row]:
    """Each answer before its question, so that the assistant begins."""
    turns = sharegpt(texts)
    return [turns[at ^ 1] for at in range(len(turns))]


def of_messages(row: Row, column: str = "messages") -> Texts:
    return row[column][0]["content"], row[column][1]["content"]


def wildchat(number: int, texts: list[str]) -> Row:
    more = {"language": "English", "toxic": False, "redacted": False}
    return {
        "conversation_hash": f"hash{number}",
        "model": "gpt-4-0314",
        "timestamp": "2023-04-09T00:02:53+00:00",
        "conversation": [{**turn, **more} for turn in messages(texts)],
        "turn": len(texts) // 2,
        "language": ("English", "Chinese", "Nolang")[number % 3],
    }


M = "messages: messages[role, content] -> instruction, response, messages"
PUBLISHED = {
    "ShareGPT V3": Published(
        lambda n, t: {"id": f"s{n}", "conversations": sharegpt(t)},
        talk,
        f"ShareGPT: {TALK}",
        ids=lambda n: f"s{n}",
    ),
    "ShareGPT V3, the assistant first": Published(
        lambda n, t: {"id": f"s{n}", "conversations": swapped(t)},
        lambda row: (row["conversations"][1]["value"], row["conversations"][2]["value"]),
        f"ShareGPT: {TALK}",
        failed={"no response": 20},
    ),
    "Evol-Instruct 70k": Published(
        lambda n, t: {"instruction": t[0], "output": t[1]},
        lambda row: (row["instruction"], row["output"]),
        "published set: instruction -> instruction, output -> response",
    ),
    "Evol-Instruct V2": Published(
        lambda n, t: {"idx": n, "conversations": sharegpt(t)},
        talk,
        f"ShareGPT: {TALK}",
        ids=str,
    ),
    "UltraChat": Published(
        lambda n, t: {"id": str(n), "data": t},
        lambda row: (row["data"][0], row["data"][1]),
        "turns without speakers: data -> instruction, response, messages",
        ids=str,
    ),
    "ultrachat_200k": Published(
        lambda n, t: {"prompt": t[0], "prompt_id": f"p{n}", "messages": messages(t)},
        of_messages,
        M,
        ids=lambda n: f"p{n}",
    ),
    "GenQA": Published(
        lambda n, t: {
            "prompt": "Write a random question, and its answer.",
            "text": messages(t),
            "template": "t",
            "category": "general",
            "idx": n,
        },
        lambda row: of_messages(row, "text"),
        "GenQA: text[role, content] -> instruction, response, messages",
        ids=str,
    ),
    "OpenHermes 1": Published(
        lambda n, t: {"instruction": t[0], "input": t[1][:40] if n else "", "output": t[1]},
        lambda row: (joined(row), row["output"]),
        ALPACA,
    ),
    "OpenHermes 2.5": Published(
        lambda n, t: {
            "conversations": sharegpt(t),
            "source": "airoboros2.2",
            "category": "orca",
            "language": None,
            "id": None,
            "system_prompt": None,
        },
        talk,
        f"ShareGPT: {TALK}",
    ),
    "Tulu-2-mix": Published(
        lambda n, t: {"dataset": "flan_v2", "id": f"flan_{n}", "messages": messages(t)},
        of_messages,
        M,
        ids=lambda n: f"flan_{n}",
    ),
    "WildChat-1M": Published(
        wildchat,
        lambda row: of_messages(row, "conversation"),
        "messages: conversation[role, content] -> instruction, response, messages",
        ids=lambda n: f"hash{n}",
    ),
    "no_robots": Published(
        lambda n, t: {
            "prompt": t[0],
            "prompt_id": f"p{n}",
            "messages": messages(t),
            "category": "Chat",
        },
        of_messages,
        M,
        ids=lambda n: f"p{n}",
    ),
    "Dolly 15k": Published(
        lambda n, t: {
            "instruction": t[0],
            "context": t[1][:60],
            "response": t[1],
            "category": "closed_qa",
        },
        lambda row: (f"{row['instruction']}\n\n{row['context']}", row["response"]),
        "Dolly: instruction + context -> instruction, response -> response",
    ),
}


def conversations(shared: Path) -> list[list[str]]:
    """The texts of real conversations: 20 of two turns, 20 of four, 20 of six."""
    rows = real(shared, "fastchat_dummy_conversation.json")
    return [[turn["value"] for turn in row["conversations"]] for row in rows]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_come_in_as_a_plain_look_at_them_says(
    shared: Path, tmp_path: Path, name: str, ending: str
) -> None:
    case = PUBLISHED[name]
    rows = [case.build(number, texts) for number, texts in enumerate(conversations(shared))]
    path = saved(tmp_path / f"set{ending}", rows)
    found, counted, notes = taken(path)
    plain = json.loads(path.read_text()) if ending == ".json" else rows
    assert counted.rows == len(plain) == 60 and dict(counted.failed) == case.failed
    assert (found["instruction"][0], found["response"][0]) == case.first(plain[0])
    assert list(notes.layouts) == [case.line]
    assert case.ids is None or found["id"].to_list() == [case.ids(n) for n in range(60)]
    assert found["id"].n_unique() == 60


def test_the_sharegpt_texts_are_pairs_of_a_question_and_the_answer_after_it(
    shared: Path, tmp_path: Path
) -> None:
    talks = [texts for texts in conversations(shared) if len(texts) > 2]
    rows = [{"conversations": swapped(texts)} for texts in talks]
    found, _, notes = taken(saved(tmp_path / "a.json", rows))
    # of a1 q1 a2 q2 the pair is q1 and a2, and a1 answers nothing
    assert found["instruction"].to_list() == [texts[0] for texts in talks]
    assert found["response"].to_list() == [texts[3] for texts in talks]
    assert {turns[0]["role"] for turns in found["messages"].drop_nulls().to_list()} == {"user"}
    (remark,) = notes.remarks.items()
    assert remark[1] == len(talks) and "began with the assistant" in remark[0]
    assert found["source_conversations"][0][0]["from"] == "gpt"  # as it was read


def test_a_language_by_name_is_our_code_and_none_is_not_measured(
    shared: Path, tmp_path: Path
) -> None:
    rows = [wildchat(number, texts) for number, texts in enumerate(conversations(shared))]
    rows[5]["language"] = None
    found, counted, _ = taken(saved(tmp_path / "a.jsonl", rows))
    assert found["language"].to_list()[:6] == ["EN", "ZH", None, "EN", "ZH", None]
    assert found["source_language"].to_list()[:3] == ["English", "Chinese", "Nolang"]
    assert counted.tags == Counter({("language", "'Nolang' is not of the column's kind"): 19})
