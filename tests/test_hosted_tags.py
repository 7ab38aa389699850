"""Tags and verdicts by a model that only chats: structured outputs, log-probabilities, or one
word."""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl
import pytest

from synth.tags import llm
from synth.tags.asking import hosted
from synth.tags.asking.tag import TAGS
from synth.tags.llm import Asking
from synth.tags.safety import chat_safety
from tests.scripted_server import Fault, chat

ROWS = pl.DataFrame({"id": list("abc"), "instruction": ["x", "y", "z"], "response": ["1"] * 3})
LABEL, EXPLAIN = Asking("label"), Asking("explain")


def tagged(serve: Any, answer: Any, how: Asking = LABEL, name: str = "quality") -> Any:
    """(cells, what was asked): the tag of three rows by a service that answers so."""
    endpoint, server = serve(answer)
    cells = pl.concat(llm.chat_tag(TAGS[name], ROWS, how, endpoint))
    return cells.sort("id"), [request.body for request in server.requests]


def in_codes(**probability: float) -> dict[str, Any]:
    """A chat whose first token is white space and whose second shows these codes."""
    tops = [{"token": c[1:], "logprob": math.log(p)} for c, p in probability.items()]
    space = {"token": "\n", "logprob": 0.0, "top_logprobs": [{"token": "\n", "logprob": 0.0}]}
    said = [space, {"token": "4", "logprob": -0.1, "top_logprobs": tops}]
    return chat("4", logprobs={"content": said})


def test_a_label_is_read_off_the_first_word_where_log_probabilities_are_shown(serve: Any) -> None:
    cells, asked = tagged(serve, lambda _, body: in_codes(c4=0.6, c5=0.2, cOh=0.2))
    assert cells["input_quality"].to_list() == ["good"] * 3
    assert cells["input_quality_rank"][0] == pytest.approx((4 * 0.6 + 5 * 0.2) / 0.8)
    assert cells["quality_mass"][0] == pytest.approx(0.8)
    assert asked[0]["logprobs"] is True and asked[0]["top_logprobs"] == 20
    assert asked[0]["messages"][0]["content"].endswith("one digit from 1 to 5.")


def test_a_service_that_shows_none_is_asked_for_the_word_alone_and_only_once_refuses(
    serve: Any,
) -> None:
    def strict(_: str, body: dict[str, Any]) -> Any:
        if "logprobs" in body or "top_logprobs" in body:
            return Fault("status", 400, words="logprobs are not supported with this model")
        return chat("**Good**")

    cells, asked = tagged(serve, strict)
    assert cells["input_quality"].to_list() == ["good"] * 3
    assert cells["input_quality_rank"].to_list() == [4.0] * 3
    assert cells["quality_mass"].null_count() == 3
    assert 3 < len(asked) <= 6 and "top_logprobs" not in asked[-1]


def test_a_word_that_is_no_label_and_little_mass_are_failed_cells(serve: Any) -> None:
    cells, _ = tagged(serve, lambda _, body: chat("It depends."))
    assert set(cells["reason"]) == {"the answer names no code and no label"}
    cells, _ = tagged(serve, lambda _, body: in_codes(c4=0.01, cOh=0.99))
    assert set(cells["status"]) == {"failed"} and cells["quality_mass"][0] == pytest.approx(0.01)


@pytest.mark.parametrize("text", ["4", "4.", "Good", "good.", "`4`", "4 = good"])
def test_codes_and_labels_are_told_however_they_are_dressed(text: str) -> None:
    assert hosted.word(TAGS["quality"], text)["input_quality"] == "good"


def test_explanations_come_as_structured_outputs_without_bounds(serve: Any) -> None:
    said = json.dumps({"explanation": "Clear {x}.", "input_quality": "good"})
    cells, asked = tagged(serve, lambda _, body: chat(said), EXPLAIN)
    assert cells["quality_explanation"].to_list() == ["Clear {x}."] * 3
    schema = asked[0]["response_format"]["json_schema"]["schema"]
    assert "maxLength" not in json.dumps(schema) and schema["additionalProperties"] is False
    assert schema["properties"]["input_quality"]["enum"][-1] == "excellent"


def test_json_in_words_or_a_fence_is_read_where_no_schema_is_taken(serve: Any) -> None:
    said = 'Sure:\n```json\n{"explanation": "a } b", "input_quality": "poor"}\n```'

    def strict(_: str, body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return Fault("status", 400, words="response_format is not supported")
        return chat(said)

    cells, _ = tagged(serve, strict, EXPLAIN)
    assert cells["input_quality"].to_list() == ["poor"] * 3


def test_parameters_go_out_as_they_are_and_null_takes_one_out(serve: Any) -> None:
    how = Asking("label", {"temperature": None, "max_completion_tokens": 500})
    _, asked = tagged(serve, lambda _, body: in_codes(c4=0.9), how)
    assert "temperature" not in asked[0] and "max_tokens" not in asked[0]
    assert asked[0]["max_completion_tokens"] == 500


def test_a_hosted_guard_judges_the_conversation(serve: Any) -> None:
    endpoint, server = serve(lambda _, body: chat("unsafe\nS1"))
    cells = pl.concat(chat_safety(ROWS, "llama-guard-3", {}, endpoint))
    assert cells["safety"].to_list() == ["unsafe"] * 3
    assert cells["safety_categories"][0] == "Violent Crimes"
    roles = [turn["role"] for turn in server.requests[0].body["messages"]]
    assert roles == ["user", "assistant"]
