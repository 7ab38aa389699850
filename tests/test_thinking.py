"""Thinking models: the thought apart from the answer, whoever opens the think block; and what
becomes of a thought without an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from core.servers import Endpoint, Servers
from core.wire import ServerSpec
from synth.chat.pre_query import PreQuery
from synth.chat.templates import worded
from synth.chat.thinking import behind_thinking, thinking_of
from synth.generate.single_turn import instructions, responses
from tests.scripted_server import ScriptedServer, completion
from tests.test_templates import family, smollm  # noqa: F401


def split(name: str, text: str, **kwargs: Any) -> tuple[str | None, str | None]:
    found = thinking_of(worded(family(name)[1], None, kwargs))
    assert found is not None
    return found.split(text)


def test_a_model_without_think_tokens_does_not_think(smollm: Any) -> None:  # noqa: F811
    assert thinking_of(smollm) is None
    assert thinking_of(family("Qwen2.5")[1]) is None
    assert thinking_of(family("Llama-3")[1]) is None


def test_qwen3_thinks_in_a_block_of_its_own() -> None:
    assert split("Qwen3", "<think>\nTwo and two.\n</think>\n\nIt is 4.") == (
        "Two and two.",
        "It is 4.",
    )
    assert split("Qwen3", "It is 4.") == (None, "It is 4.")


def test_an_empty_thought_is_none() -> None:
    assert split("Qwen3", "<think>\n\n</think>\n\nIt is 4.") == (None, "It is 4.")


def test_think_tags_inside_an_answer_are_content() -> None:
    text = "HTML has no <think> tag, and so no </think> either."
    assert split("Qwen3", text) == (None, text)
    assert split("Qwen3", f"<think>hm</think>{text}") == ("hm", text)


def test_a_thought_that_the_prompt_opens_needs_no_opening() -> None:
    assert split("DeepSeek-R1-Distill-Qwen", "Two and two.\n</think>\n\nIt is 4.") == (
        "Two and two.",
        "It is 4.",
    )
    assert split("DeepSeek-R1-Distill-Qwen", "Two and two. And") == ("Two and two. And", None)


def test_a_thought_that_the_prompt_opens_and_closes_is_none() -> None:
    assert split("Qwen3", "It is 4.", enable_thinking=False) == (None, "It is 4.")
    assert split("SmolLM3", "It is 4.", enable_thinking=False) == (None, "It is 4.")


def test_a_thought_without_an_end_has_no_answer() -> None:
    assert split("Qwen3", "<think>\nTwo and") == ("Two and", None)


def test_what_closes_the_thinking_before_an_answer_is_the_templates_own() -> None:
    behind = {
        "Qwen3": "<think>\n\n</think>\n\n",
        "DeepSeek-R1-Distill-Qwen": "\n</think>\n\n",
        "gpt-oss": "<|channel|>final<|message|>",
        "Qwen2.5": "",
        "Llama-3": "",
    }
    assert {name: behind_thinking(family(name)[1]) for name in behind} == behind
    assert behind_thinking(worded(family("Qwen3")[1], None, {"enable_thinking": False})) == ""


def test_gpt_oss_thinks_in_channels_and_its_markers_are_asked_for() -> None:
    found = thinking_of(family("gpt-oss")[1])
    assert found is not None and found.sampling == {"skip_special_tokens": False}
    text = (
        "<|channel|>analysis<|message|>Two and two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
    )
    assert found.split(text) == ("Two and two.", "It is 4.")
    assert found.split("<|channel|>final<|message|>It is 4.") == (None, "It is 4.")
    assert found.split("<|channel|>analysis<|message|>Two and") == ("Two and", None)
    plan = "<|start|>assistant<|channel|>commentary<|message|>A plan.<|end|>"
    many = text.replace(
        "<|start|>assistant<|channel|>final", f"{plan}<|start|>assistant<|channel|>final"
    )
    assert found.split(many) == ("Two and two.\n\nA plan.", "It is 4.")


@pytest.fixture
def serve(servers: Servers) -> Iterator[Any]:
    opened: list[ScriptedServer] = []

    def start(text: str, finish: str = "stop") -> tuple[Endpoint, ScriptedServer]:
        server = ScriptedServer(lambda _, body: completion(text, finish)).__enter__()
        opened.append(server)
        return servers.serve(ServerSpec(model="scripted", urls=(server.url,))), server

    yield start
    for server in opened:
        server.__exit__()


def answered(
    serve: Any, name: str, text: str, finish: str = "stop", **kwargs: Any
) -> dict[str, Any]:
    endpoint, server = serve(text, finish)
    asked = pl.DataFrame({"id": ["a"], "instruction": ["2 + 2?"]})
    made: dict[str, Any] = pl.concat(
        responses(asked, worded(family(name)[1], None, kwargs), {"max_tokens": 9}, endpoint)
    ).to_dicts()[0]
    return {**made, "body": server.requests[0].body}


def test_the_thought_is_stored_beside_the_response(serve: Any) -> None:
    made = answered(serve, "Qwen3", "<think>Hm.</think>\n4")
    assert (made["status"], made["thinking"], made["response"]) == ("ok", "Hm.", "4")


def test_a_cut_off_thought_is_a_failed_cell_that_keeps_it(serve: Any) -> None:
    made = answered(serve, "Qwen3", "<think>Hm. But", "length")
    assert (made["status"], made["reason"]) == (
        "failed",
        "the thinking is not closed (finish_reason length)",
    )
    assert (made["thinking"], made["response"], made["tokens"]) == ("Hm. But", None, 2)


def test_a_thought_without_an_answer_is_an_empty_response(serve: Any) -> None:
    made = answered(serve, "Qwen3", "<think>Hm.</think>\n ")
    assert (made["status"], made["reason"]) == ("failed", "empty response")


def test_chat_template_kwargs_reach_the_prompt(serve: Any) -> None:
    tokenizer = family("Qwen3")[1]
    thinks = tokenizer.decode(answered(serve, "Qwen3", "4")["body"]["prompt"])
    quiet = tokenizer.decode(answered(serve, "Qwen3", "4", enable_thinking=False)["body"]["prompt"])
    assert quiet == thinks + "<think>\n\n</think>\n\n"


def test_markers_that_are_special_tokens_are_asked_for_in_the_request(serve: Any) -> None:
    assert (
        answered(serve, "gpt-oss", "<|channel|>final<|message|>4")["body"]["skip_special_tokens"]
        is False
    )
    assert "skip_special_tokens" not in answered(serve, "Qwen3", "4")["body"]


@pytest.mark.parametrize(
    ("text", "kept", "thought", "reason"),
    [
        (
            "<think>The user might ask</think>\nWhat is 2 + 2?",
            "What is 2 + 2?",
            "The user might ask",
            None,
        ),
        (
            "<think>The user might",
            None,
            "The user might",
            "the thinking is not closed (finish_reason stop)",
        ),
        ("<think>The user might</think>", None, "The user might", "empty instruction"),
        ("What does <think> do?", "What does <think> do?", None, None),
    ],
)
def test_an_instruction_that_opens_with_a_think_block(
    serve: Any, text: str, kept: str | None, thought: str | None, reason: str | None
) -> None:
    endpoint, _ = serve(text)
    for name in (
        "Qwen3",
        "DeepSeek-R1-Distill-Qwen",
    ):  # the generation prompt that opens a block is not part of a user's turn
        asked = pl.DataFrame({"id": ["a"], "seed": [1]})
        thinking = thinking_of(family(name)[1])
        made = pl.concat(
            instructions(asked, [PreQuery("<user>", (1,), (2,))], [{}], endpoint, thinking=thinking)
        ).to_dicts()[0]
        assert (made["instruction"], made["thinking"], made["reason"]) == (kept, thought, reason)
