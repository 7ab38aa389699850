"""Overlap with evaluation prompts: shared n-grams and embedding distance."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from synth.decontaminate import distance, overlap

PROMPTS = ["one two three four five six seven eight nine ten", "What is love?", "unrelated words that nobody here repeats in any single place"]


def share(text: str, n: int = 8) -> tuple[float, int | None]:
    found = overlap(pl.DataFrame({"id": ["a"], "instruction": [text]}), PROMPTS, n).to_dicts()[0]
    return found["eval_overlap"], found["eval_overlap_prompt"]


def test_a_copied_prompt_overlaps_wholly_whatever_its_case_and_punctuation() -> None:
    assert share("Please: ONE, two three - four five six (seven) eight nine ten!") == (1.0, 0)


def test_a_part_overlaps_by_the_share_of_the_prompts_words() -> None:
    assert share("one two three four five six seven eight and more") == (pytest.approx(0.8), 0)


def test_fewer_than_n_words_in_common_are_no_overlap() -> None:
    assert share("one two three four five six seven and so on") == (0.0, None)
    assert share("one two three four five six seven and so on", n=4)[0] == pytest.approx(0.7)


def test_a_prompt_shorter_than_n_is_found_whole() -> None:
    assert share("Tell me, what is love? I wonder.") == (1.0, 1)
    assert share("what is it") == (0.0, None)


def test_order_and_number_of_rows_are_kept_and_no_prompts_mean_no_overlap() -> None:
    rows = pl.DataFrame({"id": ["b", "a"], "instruction": ["x", None]})
    assert overlap(rows, PROMPTS)["id"].to_list() == ["b", "a"]
    assert overlap(rows, [])["eval_overlap"].to_list() == [0.0, 0.0]


def test_distance_is_that_of_the_nearest_prompt() -> None:
    eye = np.eye(3, dtype=np.float32)
    found = distance(["a", "b"], eye[:2], eye[1:])
    assert found["eval_distance"].to_list() == [2.0, 0.0]
    assert distance(["a"], eye[:1], eye[:0])["eval_distance"].to_list() == [None]
