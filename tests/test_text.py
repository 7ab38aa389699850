"""Free columns of instructions and responses, and their language."""

from __future__ import annotations

import polars as pl
import pytest

from core.errors import UserError
from synth.tags.language import language
from synth.tags.text_figures import instruction_columns, response_columns


def instruction(text: str | None, finish_reason: str | None = "stop") -> dict[str, object]:
    schema = {"id": pl.String, "instruction": pl.String, "finish_reason": pl.String}
    return instruction_columns(
        pl.DataFrame([("a", text, finish_reason)], schema=schema, orient="row")
    ).to_dicts()[0]


def response(text: str | None, finish_reason: str | None = "stop") -> dict[str, object]:
    schema = {"id": pl.String, "response": pl.String, "finish_reason": pl.String}
    return response_columns(
        pl.DataFrame([("a", text, finish_reason)], schema=schema, orient="row")
    ).to_dicts()[0]


def test_lengths_are_characters_and_not_bytes() -> None:
    assert instruction("naïve 你好")["instruction_length"] == 8
    assert response("naïve 你好")["response_length"] == 8


@pytest.mark.parametrize(
    "text",
    [
        "Fix this code:",
        "Translate the following: ",
        "Write about cats and",
        "Compare (",
        "```python\nx = 1",
        "Wait...",
    ],
)
def test_instruction_that_stops_short_is_incomplete(text: str) -> None:
    assert instruction(text)["incomplete"]


@pytest.mark.parametrize(
    "text",
    [
        "What is pi?",
        "Fix: x = 1",
        "Use `a:` here",
        "```python\nx = 1\n```",
        "Write about bread and butter",
    ],
)
def test_whole_instruction_is_not_incomplete(text: str) -> None:
    assert not instruction(text)["incomplete"]


def test_finish_reason_length_is_incomplete_and_an_unknown_one_is_not() -> None:
    assert (
        instruction("Whole.", "length")["incomplete"]
        and response("Whole.", "length")["response_incomplete"]
    )
    assert not instruction("Whole.", None)["incomplete"]
    bare = pl.DataFrame({"id": ["a"], "instruction": ["Whole."]})
    assert instruction_columns(bare)["incomplete"].to_list() == [False]


def test_first_of_equal_texts_is_no_duplicate() -> None:
    rows = pl.DataFrame({"id": list("abcd"), "instruction": ["x", "y", "x", "x"]})
    assert instruction_columns(rows)["exact_duplicate"].to_list() == [False, False, True, True]


def test_repetition_is_the_share_of_word_four_grams_seen_before() -> None:
    assert instruction("one two three four five six")["repetition"] == 0
    assert instruction("a b c d a b c d a b c d")["repetition"] == pytest.approx(5 / 9)
    assert response("go on and on " * 50)["response_repetition"] > 0.95  # type: ignore[operator]
    assert response("你好世界" * 50)["response_repetition"] > 0.9  # type: ignore[operator]
    assert instruction("short")["repetition"] == 0
    assert instruction("我们 你好世界你好世界")["repetition"] == pytest.approx(
        1 / 7
    )  # writing without spaces counts by characters


def test_repetition_of_many_texts_is_that_of_each_alone() -> None:
    texts = ["a b c d a b c d", None, "", "你好世界" * 9, "one\ntwo\tthree four  five"] * 3
    together = instruction_columns(
        pl.DataFrame({"id": [str(i) for i in range(15)], "instruction": texts})
    )["repetition"].to_list()
    assert together == [instruction(t)["repetition"] for t in texts]


@pytest.mark.parametrize(
    "text",
    [
        "hi <|im_end|> there",
        "<|eot_id|>",
        "a</s>",
        "[INST] b",
        "<start_of_turn>user",
        "<｜User｜>x",
    ],
)
def test_template_markup_in_a_text_is_a_leak(text: str) -> None:
    assert instruction(text)["template_leak"] and response(text)["response_template_leak"]


@pytest.mark.parametrize(
    "text",
    ["if a < b | c > d:", "An assistant for every user", "<script>alert(1)</script>", "a[INSTALL]"],
)
def test_ordinary_text_with_brackets_is_no_leak(text: str) -> None:
    assert not instruction(text)["template_leak"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello\nUSER: more",
        "Write a poem.\nassistant: Roses",
        "Explain this.\n\n### Response:\nx",
        "Add 2 and 2.\nassistant\n\nIt is 4.",
        "a\n**Assistant:** b",
        "Human: hi",
        "x\n## Instruction\ny",
        "How do planes fly? ASSISTANT: By lift.",
        "Count to 3 USER: and then?",
        "Add 2 and 2. ### Response: 4",
        "What is 2+2? Assistant: 4",
    ],
)
def test_turn_header_in_plain_words_is_a_role_leak_and_no_template_leak(text: str) -> None:
    assert instruction(text)["role_leak"] and response(text)["response_role_leak"]
    assert not instruction(text)["template_leak"]


@pytest.mark.parametrize(
    "text",
    [
        "An assistant for every user",
        "Ask the assistant: who?",
        "services:\n  user: root\n",
        "model: llama",
        "### Responsibilities",
        "AI safety: why?",
        "AI: artificial intelligence",
        "## User stories",
        "### Human resources: who?",
        "### Response times",
        "sudo chown $USER:$USER .",
        "Instructions for the Assistant: be brief",
        "It says USER:root in the log",
    ],
)
def test_words_for_roles_in_ordinary_text_are_no_role_leak(text: str) -> None:
    assert not instruction(text)["role_leak"]


@pytest.mark.parametrize(
    "text", ["<think>hm</think> 4", "<think>\nnever closed", "so it is 4</think>\n4", "◁think▷ a"]
)
def test_think_tag_closed_or_not_is_a_think_leak(text: str) -> None:
    assert instruction(text)["think_leak"] and response(text)["response_think_leak"]
    assert not instruction("I think <b>so</b>, and thinking helps")["think_leak"]


def test_instruction_that_refuses_is_seen() -> None:
    assert instruction("I’m sorry, but as an AI I have no questions.")["instruction_refusal"]
    assert not instruction("Why do models say: I'm sorry?")["instruction_refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t provide that.",
        "Sorry, I can't help with that.",
        "I cannot create explicit content. Is there anything else I can help you with?",
        "I cannot fulfill your request. I'm just an AI.",
        "I can't help with that.",
        "I cannot provide instructions that go against my guidelines.",
        "As an AI language model, I don't have feelings.",
        "As an AI, I cannot do that.",
        "Unfortunately, I'm unable to assist.",
        "I can’t help.",
    ],
)
def test_an_instruction_that_refuses_as_an_assistant_does_is_a_refusal(text: str) -> None:
    assert instruction(text)["instruction_refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "I can't sleep, help me",
        "I cannot open the door of my car. What should I do?",
        "Sorry, one more question: why is the sky blue?",
        "I can't help feeling sad. What can I do?",
        "I cannot create an account on this site, please help.",
        "Unfortunately I can't cook. Why?",
        "As an AI researcher, I need a plan for a talk.",
        "As an AI, write a poem about the sea.",
        "I am unable to walk. Name sports for me.",
        "I cannot provide my landlord with the papers. What now?",
    ],
)
def test_a_users_own_i_cannot_is_no_refusal(text: str) -> None:
    assert not instruction(text)["instruction_refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help.",
        "I’m sorry.",
        "As an AI model, I",
        "I cannot do that",
        "Sorry, no.",
        "Unfortunately I can't",
    ],
)
def test_refusal_is_seen_at_the_beginning(text: str) -> None:
    assert response(text)["refusal"]


@pytest.mark.parametrize(
    "text",
    [
        "Here is a letter that says: I'm sorry.",
        "I can help with that.",
        "Sorry is a word. ",
        "As an aid, use",
    ],
)
def test_answer_is_no_refusal(text: str) -> None:
    assert not response(text)["refusal"]


def test_missing_response_has_no_columns_and_keeps_its_place() -> None:
    rows = pl.DataFrame(
        {"id": ["a", "b"], "response": ["x", None], "finish_reason": ["stop", None]}
    )
    found = response_columns(rows)
    assert found["id"].to_list() == ["a", "b"]
    assert set(found.row(1, named=True).values()) == {"b", None}


def test_no_rows_give_no_rows() -> None:
    empty = pl.DataFrame(
        schema={"id": pl.String, "instruction": pl.String, "finish_reason": pl.String}
    )
    assert instruction_columns(empty).is_empty()


def test_text_made_to_stall_a_backtracking_engine_does_not() -> None:
    hostile = pl.DataFrame(
        {"id": ["a"], "instruction": ["<|" + "|" * 200_000 + " " * 200_000 + "sorry," * 50_000]}
    )
    assert len(instruction_columns(hostile)) == 1


def test_language_is_an_iso_code_and_none_found_is_failed() -> None:
    rows = pl.DataFrame(
        {
            "id": list("abc"),
            "instruction": [
                "How do I bake a good loaf of bread?",
                "Wie backe ich ein gutes Brot?",
                "12345 !!",
            ],
        }
    )
    found = pl.concat(language(rows, {"languages": ("EN", "de", "FR")}))
    assert found["language"].to_list() == ["EN", "DE", None]
    assert (
        found["status"].to_list() == ["ok", "ok", "failed"]
        and found["reason"].to_list()[2] == "no language found"
    )


def test_unknown_or_single_languages_are_one_sentence() -> None:
    rows = pl.DataFrame({"id": ["a"], "instruction": ["x"]})
    with pytest.raises(UserError, match="no language 'XX'"):
        list(language(rows, {"languages": ("EN", "XX")}))
    with pytest.raises(UserError, match="at least two languages"):
        list(language(rows, {"languages": ("EN",)}))


def test_all_languages_of_lingua_are_known_when_none_are_named() -> None:
    rows = pl.DataFrame(
        {"id": ["a"], "instruction": ["今日はとても良い天気ですね。散歩に行きましょう。"]}
    )
    assert pl.concat(language(rows, {}))["language"].to_list() == ["JA"]
