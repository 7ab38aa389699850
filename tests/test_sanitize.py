"""What is taken off an instruction, what stays, and the original's defects that are not
repeated."""

from __future__ import annotations

import re
from collections.abc import Callable

import polars as pl
import pytest

from synth.config.synthesis import SynthConfig
from synth.tags.sanitize import EMPTY, Rules, compute, sanitized, with_raw


def clean(text: str | None, rules: Rules = "llama-3") -> tuple[str | None, str]:
    found = sanitized(pl.Series([text], dtype=pl.String), rules).row(0)
    return found[0], found[1]


# The original's rules that do the damage, as its code has them (str_utils.py 173, 263 to 270, 347
# to 354, 207).
def number_off(text: str) -> str:
    return re.sub(r"^\d+\.", "", text).strip()


def to_first_question_mark(text: str) -> str:
    return text[: text.index("?") + 1]


def first_line(text: str) -> str:
    return text.split("\n")[0]


def to_hash(text: str) -> str:
    return text[: text.index("#")].strip()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (number_off, "3.14 is pi"),
        (to_first_question_mark, "Can you help? Here is my code:\n\nprint(1)"),
        (to_first_question_mark, "What is rain? And what is snow? Compare both."),
        (first_line, "Solve the system\nx+y=2\nx-y=0"),
        (first_line, '"To be or not to be"\n\nName the author.'),
        (to_hash, "Fix this function:\ndef f():\n    # add\n    return 1"),
    ],
)
def test_what_the_original_destroys_stays(rule: Callable[[str], str], text: str) -> None:
    assert rule(text) != text
    assert clean(text) == clean(text, "gemma") == (text, "")


def test_a_label_at_the_end_is_cut_where_nothing_was_shown_under_it_before() -> None:
    assert clean("What is 2 + 2?\nAnswer:") == ("What is 2 + 2?", "answer")
    shown = "Text: good\nAnswer: positive\nText: bad\nAnswer:"
    assert clean(shown) == (shown, "")


def test_original_never_finds_a_label_that_ends_in_a_colon() -> None:
    text = "What is 2 + 2?\nAnswer: 4"
    assert re.search("Answer:" + "s?:", text) is None
    assert clean(text) == ("What is 2 + 2?", "answer")


@pytest.mark.parametrize(
    "label",
    [
        "Answer:",
        "Solution:",
        "Explanation:",
        "**Answer:** ",
        "### Solution",
        "Correct Answer:",
        "answer :",
        "assistant\n",
        "**Assistant**:",
    ],
)
def test_answer_after_a_label_is_cut_even_where_the_label_ends_in_a_colon(label: str) -> None:
    assert clean(f"What is 2 + 2?\nThink.\n{label}\nIt is 4.") == (
        "What is 2 + 2?\nThink.",
        "answer",
    )


@pytest.mark.parametrize(
    "text", ["Answer: 42", "Question:", "**Solution:** it is 4", "", "  \n", None, "## Step 1: add"]
)
def test_what_would_become_empty_is_marked_and_not_kept(text: str | None) -> None:
    assert clean(text) == (None, "empty")


@pytest.mark.parametrize(
    "text",
    [
        "Task: write a poem.",
        "**Prompt:** write a poem.",
        "**Prompt**: write a poem.",
        "## Instruction\nwrite a poem.",
        "**Request**\n\nwrite a poem.",
        "Question 3: write a poem.",
        "1. write a poem.",
        "a) write a poem.",
        "Q7. write a poem.",
        "1. **Task:** write a poem.",
        "ORIGINAL PROMPT: write a poem.",
    ],
)
def test_label_or_number_at_the_beginning_is_taken_off(text: str) -> None:
    assert clean(text) == ("write a poem.", "prefix")


@pytest.mark.parametrize(
    "text",
    [
        "1. What is rain?\n2. What is snow?",
        "A) foo B) bar",
        "1. A) foo B) bar",
        "(a) What is rain? (b) What is snow?",
        "1. What is rain? 2. What is snow?",
        "9) What is rain? 10) What is snow?",
        "Question 1: a?\nQuestion 2: b?",
        "a) one\nb) two",
        "Request a refund.",
        "Task management is what?",
        "Problems arise: why?",
        "1984. Who wrote it?",
        "10.5 apples cost how much?",
    ],
)
def test_numbers_and_words_of_the_text_itself_stay(text: str) -> None:
    assert clean(text) == (text, "")


@pytest.mark.parametrize("text", ["A) foo B) bar", "1. What is rain?\n2. And snow?"])
def test_a_label_before_a_list_goes_and_the_list_stays(text: str) -> None:
    assert clean(f"Task: {text}") == (text, "prefix")


@pytest.mark.parametrize(
    "text",
    [
        "Reply in this format:\nQuestion: ...\nAnswer: ...",
        "Text: good\nAnswer: positive\nText: bad\nAnswer:",
        "What does this print?\n```\nAnswer: 4\n```",
        "Sum two numbers.\nExample 1:\nInput: [1, 2]\nOutput: 3\n"
        "Explanation: 1 + 2 = 3\nWrite it in C.",
        "class Solution:\n    pass\nWhat is wrong?",
        "Answer the following: who was Ada Lovelace?",
    ],
)
def test_labels_that_belong_to_the_instruction_are_no_answer(text: str) -> None:
    assert clean(text) == (text, "")


@pytest.mark.parametrize(
    "text",
    [
        "Explanation: why is it so?",
        "**Answer:** what is 2 + 2?",
        "It rains.\nExplanation: why is it so?\nBe short.",
    ],
)
def test_a_label_followed_by_a_question_is_the_users_own(text: str) -> None:
    assert clean(text) == clean(text, "gemma") == (text, "")


def test_step_1_begins_an_answer_of_llama_3_only() -> None:
    text = "Solve x + 1 = 2.\n## Step 1: Subtract 1\nx = 1"
    assert clean(text) == ("Solve x + 1 = 2.", "step")
    assert clean(text, "gemma") == (text, "")


def test_wrappers_of_the_whole_are_opened_and_what_follows_stays() -> None:
    assert clean('"Write a poem."') == ("Write a poem.", "quote")
    assert clean("“Write a poem.”") == ("Write a poem.", "quote")
    assert clean("**What is rain?**\n\nKeep it short.") == (
        "What is rain?\n\nKeep it short.",
        "bold",
    )
    assert clean("<b>Write a poem.</b>") == ("Write a poem.", "bold")
    assert clean('"What" is a word, and so is "why"') == ('"What" is a word, and so is "why"', "")
    assert clean("* one\n* two") == ("* one\n* two", "")
    assert clean("**Write** a poem") == ("**Write** a poem", "")


def test_rules_work_together_and_are_named_in_their_order() -> None:
    assert clean('**Task:** "Write a poem."\n\n**Answer:** Roses are red.') == (
        "Write a poem.",
        "answer,prefix,quote",
    )
    assert clean("**1. Write a poem.**") == ("Write a poem.", "bold,prefix")


def test_order_and_number_of_rows_are_kept() -> None:
    found = sanitized(pl.Series(["Task: a", None, "b", "Answer: c"]), "gemma")
    assert found["sanitized_instruction"].to_list() == ["a", None, "b", None]
    assert found["sanitizer_rule"].to_list() == ["prefix", "empty", "", "empty"]
    assert sanitized(pl.Series([], dtype=pl.String), "gemma").is_empty()


def test_ordinary_markdown_code_and_braces_come_through_to_the_letter() -> None:
    text = (
        "Here is $x$ and \\frac{a}{b} and ${1} {{y}}:\n\n"
        "```python\nprint('$1')\n```\n\n| a | b |\n\n- **bold** item?"
    )
    assert clean(text) == (text, "")


def test_a_fence_that_is_open_holds_the_label_within_it() -> None:
    closed = "```\na\n```\nWhat does it print?\nAnswer: 4"
    assert clean(closed) == ("```\na\n```\nWhat does it print?", "answer")
    again = "```\na\n```\nand\n```\nb\nAnswer: 4\n```"
    assert clean(again) == (again, "")


CELLS = {
    "instruction": ["Task: a", "Answer: c", None, "b"],
    "status": ["ok", "ok", "failed", "ok"],
    "reason": [None, None, "too long", None],
}


def test_the_raw_text_is_kept_and_a_cell_of_which_nothing_is_left_has_failed() -> None:
    made = with_raw(pl.DataFrame(CELLS), "gemma")
    assert made["raw_instruction"].to_list() == CELLS["instruction"]
    assert made["instruction"].to_list() == ["a", None, None, "b"]
    assert made["status"].to_list() == ["ok", "failed", "failed", "ok"]
    assert made["reason"].to_list() == [None, EMPTY, "too long", None]
    texts = with_raw(pl.DataFrame({"instruction": ["Task: a", "Answer: c"]}), "gemma")
    assert texts.columns == ["instruction", "raw_instruction"]
    assert texts["instruction"].to_list() == ["a", None]


def test_without_rules_a_text_is_its_own_raw_text() -> None:
    made = with_raw(pl.DataFrame(CELLS), None)
    assert made["instruction"].to_list() == made["raw_instruction"].to_list()
    assert made["status"].to_list() == CELLS["status"]


def test_a_sanitized_cell_stands_beside_its_id() -> None:
    rows = pl.DataFrame({"id": ["x", "y"], "raw_instruction": ["Task: a", "b"]})
    config = SynthConfig.model_validate({"teacher": {"model": "m"}, "rows": 1, "sanitize": "gemma"})
    (cells,) = compute(rows, config, None)  # type: ignore[arg-type]
    assert cells.rows() == [("x", "a", "prefix"), ("y", "b", "")]
    assert cells.columns[0] == "id"
    plain = config.model_copy(update={"sanitize": None})
    assert list(compute(rows, plain, None)) == []  # type: ignore[arg-type]
