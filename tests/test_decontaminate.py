"""Overlap with evaluation prompts: shared n-grams and embedding distance."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from synth.duplicates.decontaminate import distance, overlap, read_prompts

PROMPTS = pl.DataFrame(
    {
        "id": ["count", "love", "long", "shorter"],
        "prompt": [
            "one two three four five six seven eight nine ten",
            "What is love made of?",
            "unrelated words that nobody here repeats in any single place",
            "Make it shorter.",
        ],
    }
)


def share(text: str | None, n: int = 8) -> tuple[float, str | None]:
    found = overlap(
        pl.DataFrame(
            {"id": ["a"], "instruction": [text]}, schema={"id": pl.String, "instruction": pl.String}
        ),
        PROMPTS,
        n,
    ).to_dicts()[0]
    return found["eval_overlap"], found["eval_overlap_prompt"]


def test_a_copied_prompt_overlaps_wholly_whatever_its_case_and_punctuation() -> None:
    assert share("Please: ONE, two three - four five six (seven) eight nine ten!") == (1.0, "count")


def test_a_part_overlaps_by_the_share_of_the_prompts_words() -> None:
    assert share("one two three four five six seven eight and more") == (
        pytest.approx(0.8),
        "count",
    )


def test_two_parts_of_a_prompt_count_together_and_their_common_words_once() -> None:
    assert share("one two three four five and six seven eight nine ten", n=4) == (1.0, "count")
    assert share("two three four five six and four five six seven", n=4) == (
        pytest.approx(0.6),
        "count",
    )


def test_fewer_than_n_words_in_common_are_no_overlap() -> None:
    assert share("one two three four five six seven and so on") == (0.0, None)
    assert share("one two three four five six seven and so on", n=4)[0] == pytest.approx(0.7)


def test_a_prompt_shorter_than_n_is_found_whole() -> None:
    assert share("Tell me, what is love made of? I wonder.") == (1.0, "love")
    assert share("what is love made from") == (0.0, None)


def test_a_prompt_of_a_few_words_is_found_only_as_the_whole_instruction() -> None:
    assert share("make it, shorter") == (1.0, "shorter")
    assert share("Here is my essay; make it shorter, please.") == (0.0, None)
    twins = pl.DataFrame({"id": ["four"], "prompt": ["make it much shorter"]})
    assert overlap(pl.DataFrame({"id": ["r"], "instruction": ["make it much longer"]}), twins, 3)[
        "eval_overlap"
    ].to_list() == [0.0]


def test_the_prompt_repeated_most_is_named_and_the_first_of_equals() -> None:
    assert share("what is love made of, one two three four five six seven eight") == (1.0, "love")
    twins = pl.DataFrame({"id": ["x", "y"], "prompt": ["a b c d e", "a b c d e"]})
    assert overlap(pl.DataFrame({"id": ["r"], "instruction": ["a b c d e"]}), twins)[
        "eval_overlap_prompt"
    ].to_list() == ["x"]


def test_prompts_written_without_spaces_are_compared_by_characters() -> None:
    prompts = pl.DataFrame({"id": ["zh"], "prompt": ["请写一首关于春天的诗歌"]})
    found = overlap(
        pl.DataFrame(
            {"id": ["a", "b"], "instruction": ["请写一首关于春天的诗歌,谢谢", "春天的诗歌"]}
        ),
        prompts,
    )
    assert found["eval_overlap"].to_list() == [1.0, 0.0]


def test_order_and_number_of_rows_are_kept_and_no_prompts_mean_no_overlap() -> None:
    rows = pl.DataFrame({"id": ["b", "a"], "instruction": ["x", None]})
    assert overlap(rows, PROMPTS)["id"].to_list() == ["b", "a"]
    assert overlap(rows, PROMPTS.clear())["eval_overlap"].to_list() == [0.0, 0.0]
    assert overlap(rows.clear(), PROMPTS).is_empty()


def test_rows_of_many_slices_are_found_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from synth.duplicates import decontaminate

    monkeypatch.setattr(decontaminate, "SLICE", 3)
    texts = [
        "x",
        "what is love made of",
        "y",
        "z",
        "w",
        "One two three four five six seven eight nine ten",
        "v",
    ]
    found = overlap(pl.DataFrame({"id": list("abcdefg"), "instruction": texts}), PROMPTS)
    assert found.filter(pl.col("eval_overlap") > 0)["id"].to_list() == ["b", "f"]


def by_hand(text: str, prompt: str, n: int) -> float:
    """The definition, word by word."""
    mine, theirs = text.split(), prompt.split()
    size = min(n, len(theirs))
    if len(theirs) < 5:
        return float(mine == theirs)
    runs = {tuple(mine[i : i + size]) for i in range(len(mine) - size + 1)}
    covered = {
        p
        for i in range(len(theirs) - size + 1)
        if tuple(theirs[i : i + size]) in runs
        for p in range(i, i + size)
    }
    return len(covered) / len(theirs)


def test_shares_of_random_texts_are_those_of_the_definition() -> None:
    dice = random.Random(0)
    texts = [" ".join(dice.choice("abc") for _ in range(dice.randint(0, 30))) for _ in range(300)]
    prompts = pl.DataFrame({"id": texts[:20], "prompt": texts[:20]})
    for n in (3, 5, 8):
        found = overlap(pl.DataFrame({"id": texts, "instruction": texts}), prompts, n)
        wanted = [max(by_hand(t, p, n) for p in texts[:20] if p) if t else 0.0 for t in texts]
        assert found["eval_overlap"].to_list() == pytest.approx(wanted)


def test_prompts_are_read_in_either_naming_and_a_broken_line_is_one_sentence(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "p1", "prompt": "What is love?"}\n\n{"instruction": "Hello?"}\n')
    assert read_prompts(path).rows() == [("p1", "What is love?"), ("3", "Hello?")]
    path.write_text('{"id": "p1"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl, line 1: no `prompt`"):
        read_prompts(path)
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"line 1 is not valid JSON"):
        read_prompts(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(path)


def test_distance_is_that_of_the_nearest_prompt() -> None:
    eye = np.eye(3, dtype=np.float32)
    found = distance(["a", "b"], eye[:2], eye[1:])
    assert found["eval_distance"].to_list() == [2.0, 0.0]
    assert distance(["a"], eye[:1], eye[:0])["eval_distance"].to_list() == [None]
