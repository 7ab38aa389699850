"""Prompt sets and baseline answers."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from core.errors import UserError
from eval.prompt_sets import prompts
from eval.prompt_sets.prompts import Prompt
from synth.measures import CATEGORY

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[1] / ".." / "shared"))
    / "data"
    / "eval"
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the published benchmark files are not at {SHARED}"
)


def _write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_the_shipped_set_has_four_different_prompts_in_each_of_the_twelve_categories() -> None:
    wanted = prompts.prompts("magpie-48")
    assert Counter(p.category for p in wanted) == dict.fromkeys(CATEGORY, 4)
    assert len({p.prompt for p in wanted}) == len({p.id for p in wanted}) == 48


def test_a_limit_spreads_evenly_over_the_set() -> None:
    assert set(Counter(p.category for p in prompts.prompts("magpie-48", 24)).values()) == {2}
    assert len(prompts.prompts("magpie-48", 7)) == 7
    assert (
        prompts.prompts("magpie-48", 48)
        == prompts.prompts("magpie-48", 1000)
        == prompts.prompts("magpie-48")
    )


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    wanted = [
        Prompt("a", "two\nlines \u2028 and a line separator", "Math"),
        Prompt("b", '{"json": true}'),
    ]
    prompts.write_prompts(wanted, tmp_path / "p.jsonl")
    assert prompts.prompts(str(tmp_path / "p.jsonl")) == wanted


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}',
            "record 2: the id 'a' was used in record 1",
        ),
        (
            '{"id": "a", "prompt": "x"}\n\n{"id": "b", "prompt": "  "}',
            "record 3: the prompt 'b' is empty",
        ),
        ('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt"', "line 2: not valid JSON"),
        ('{"id": "a", "text": "x"}', "record 1: no prompt"),
        ('["a"]', "record 1: it is a list; a record is an object"),
        ("", "holds no prompts"),
    ],
)
def test_a_broken_prompt_file_is_one_sentence_with_file_and_line(
    tmp_path: Path, lines: str, said: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(lines)
    with pytest.raises(UserError) as error:
        prompts.prompts(str(path))
    assert said in str(error.value) and str(path) in str(error.value)


def test_an_unknown_prompt_set_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'magpie-48'"):
        prompts.prompts("magpie-84")


def test_a_prompt_without_a_baseline_answer_stays_and_is_counted(tmp_path: Path) -> None:
    answers = _write(tmp_path / "answers.jsonl", {"id": "b", "answer": "yes"})
    counts = prompts.baseline(str(answers), [Prompt("a", "?"), Prompt("b", "!")], tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "answers.parquet")
    assert counts == {"rows": 2, "failed": 1}
    assert frame.select("id", "answer", "status").rows() == [
        ("a", None, "failed"),
        ("b", "yes", "ok"),
    ]


def test_a_baseline_that_answers_none_of_the_prompts_is_refused(tmp_path: Path) -> None:
    answers = _write(tmp_path / "answers.jsonl", {"id": "other", "answer": "yes"})
    with pytest.raises(UserError, match="no answer to any of the 1 prompts"):
        prompts.baseline(str(answers), [Prompt("a", "?")], tmp_path / "out")


def test_two_baseline_answers_to_one_prompt_are_refused(tmp_path: Path) -> None:
    answers = _write(
        tmp_path / "answers.jsonl", {"id": "a", "answer": "yes"}, {"id": "a", "answer": "no"}
    )
    with pytest.raises(UserError, match=r"answers.jsonl, record 2: a second answer to 'a'"):
        prompts.baseline(str(answers), [Prompt("a", "?")], tmp_path / "out")


def test_each_category_has_its_own_baseline(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "?"}
    hard = _write(
        tmp_path / "o3.jsonl",
        {"uid": "a", "messages": [asked, {"role": "assistant", "content": {"answer": "hard"}}]},
    )
    creative = _write(
        tmp_path / "gemini.jsonl",
        {"uid": "b", "messages": [asked, {"role": "assistant", "content": "soft"}]},
    )
    wanted = [Prompt("a", "?", "hard_prompt"), Prompt("b", "!", "creative_writing")]
    prompts.baseline(
        {"hard_prompt": str(hard), "creative_writing": str(creative)}, wanted, tmp_path / "out"
    )
    assert pl.read_parquet(tmp_path / "out" / "answers.parquet")["answer"].to_list() == [
        "hard",
        "soft",
    ]
    with pytest.raises(UserError, match="names no file for category 'creative_writing'"):
        prompts.baseline({"hard_prompt": str(hard)}, wanted, tmp_path / "again")


@needs_shared
def test_the_published_sets_are_read_whole_and_their_baselines_answer_every_prompt(
    tmp_path: Path,
) -> None:
    arena = prompts.prompts(str(SHARED / "arena_hard" / "question_v0.1.jsonl"))
    assert len(arena) == 500
    assert prompts.baseline(
        str(SHARED / "arena_hard" / "model_answer_gpt-4-0314.jsonl.gz"), arena, tmp_path / "a"
    ) == {"rows": 500, "failed": 0}
    newer = prompts.prompts(str(SHARED / "arena_hard" / "question_v2.0.jsonl"))
    assert Counter(p.category for p in newer) == {"hard_prompt": 500, "creative_writing": 250}
    outputs = str(SHARED / "alpaca_eval" / "gpt4_1106_preview_model_outputs.json.gz")
    alpaca = prompts.prompts(outputs)
    assert len(alpaca) == 805
    assert prompts.baseline(outputs, alpaca, tmp_path / "b") == {"rows": 805, "failed": 0}
