"""The first token's own rule: what the two requests hold, how they are seeded and joined, and which
tokens count as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import Model
from core.models import tokenizer as tokenizer_of
from core.servers import Endpoint, Servers
from core.wire import ServerSpec
from synth.chat.pre_query import PreQuery, pre_query
from synth.generate.first_token import first_token, markdown_openers
from synth.generate.single_turn import instructions
from tests.scripted_server import Fault, ScriptedServer, completion

SAMPLING = {
    "temperature": 0.6,
    "top_p": 0.9,
    "max_tokens": 50,
    "min_tokens": 3,
    "logit_bias": {"7": 1.5},
}


@pytest.fixture
def tokenizer(teacher: Model) -> Any:
    return tokenizer_of(teacher.path)


@pytest.fixture
def ask(servers: Servers, tokenizer: Any) -> Iterator[Any]:
    """Draw one instruction; (its row, the bodies that were sent)."""
    opened: list[ScriptedServer] = []

    def start(
        answer: Any, sampling: dict[str, Any] = SAMPLING, **rule: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        server = ScriptedServer(answer).__enter__()
        opened.append(server)
        endpoint: Endpoint = servers.serve(ServerSpec(model="scripted", urls=(server.url,)))
        given = first_token(tokenizer, rule.get("suppress", ()), rule.get("temperature"))
        row = pl.DataFrame({"id": ["a"], "seed": [11]})
        made = pl.concat(
            instructions(row, [pre_query(tokenizer, "default")], [sampling], endpoint, first=given)
        ).to_dicts()
        assert len(made) == 1
        return made[0], [r.body for r in server.requests]

    yield start
    for server in opened:
        server.__exit__()


def two_steps(tokenizer: Any, first: str, rest: str) -> Any:
    """Answers the one-token request with the first token, the other with the rest, as vLLM does:
    ids beside the texts."""

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["max_tokens"] == 1:
            return completion(
                first,
                "length",
                token_ids=tokenizer(first, add_special_tokens=False)["input_ids"][:1],
            )
        return completion(
            rest, "stop", token_ids=[*tokenizer(rest, add_special_tokens=False)["input_ids"], 2]
        )

    return answer


def test_the_rest_is_continued_from_pre_query_template_and_first_token_with_one_bos(
    ask: Any, tokenizer: Any
) -> None:
    made, (one, two) = ask(
        two_steps(tokenizer, "What", " is the boiling point of lead?"), temperature=1.2
    )
    assert made["instruction"] == "What is the boiling point of lead?"
    assert made["status"] == "ok" and made["tokens"] == 1 + 6
    prompt = list(pre_query(tokenizer, "default").token_ids)
    assert one["prompt"] == prompt
    assert two["prompt"] == [*prompt, tokenizer("What")["input_ids"][0]]
    assert tokenizer.decode(two["prompt"]).endswith("<|im_start|>user\nWhat")


def test_only_the_first_token_has_the_other_temperature(ask: Any, tokenizer: Any) -> None:
    _, (one, two) = ask(two_steps(tokenizer, "What", " is it?"), temperature=0.72)
    assert (one["temperature"], two["temperature"]) == (0.72, 0.6)
    assert (one["max_tokens"], two["max_tokens"]) == (1, 49)
    assert (one["min_tokens"], two["min_tokens"]) == (1, 2)
    assert one["stop_token_ids"] == two["stop_token_ids"] == [0, 1, 2]


def test_both_requests_have_seeds_of_their_own_which_follow_from_the_rows(
    ask: Any, tokenizer: Any
) -> None:
    _, (one, two) = ask(two_steps(tokenizer, "What", " is it?"), temperature=1.2)
    _, (again, other) = ask(two_steps(tokenizer, "Why", " is it?"), temperature=1.2)
    assert one["seed"] == again["seed"] == 11
    assert two["seed"] == other["seed"] != 11


def test_markdown_openers_are_suppressed_in_the_first_position_only(
    ask: Any, tokenizer: Any
) -> None:
    _, (one, two) = ask(two_steps(tokenizer, "What", " is it?"), suppress="markdown")
    openers = markdown_openers(tokenizer)
    assert one["logit_bias"] == {"7": 1.5, **{str(i): -100.0 for i in openers}}
    assert two["logit_bias"] == {"7": 1.5}
    assert one["temperature"] == two["temperature"] == 0.6


def test_markdown_openers_are_found_in_the_vocabulary_and_hold_no_words(tokenizer: Any) -> None:
    texts = {tokenizer.decode([i]).strip() for i in markdown_openers(tokenizer)}
    assert {"#", "##", "###", "####", "**"} <= texts
    assert not any(c.isalnum() for text in texts for c in text)
    spelled = {
        tokenizer(f" {text}", add_special_tokens=False)["input_ids"][0]
        for text in ("#", "##", "**")
    }
    assert spelled <= set(markdown_openers(tokenizer)), "with a space before it as well"


def test_named_tokens_are_suppressed_and_others_refused(tokenizer: Any) -> None:
    assert first_token(tokenizer, ["#", "Write"], None).banned == tuple(
        tokenizer(t)["input_ids"][0] for t in ("#", "Write")
    )
    with pytest.raises(UserError, match=r"'Write a poem' is \d tokens .* only single tokens"):
        first_token(tokenizer, ["Write a poem"], None)


def test_a_stop_string_that_begins_in_the_first_token_ends_the_joined_text(
    servers: Servers, tokenizer: Any
) -> None:
    template = PreQuery("USER:", (1, 2), (0,), ("SISTER:", "USER:"))
    rule = first_token(tokenizer, (), 1.2)
    row = pl.DataFrame({"id": ["a"], "seed": [11]})
    with ScriptedServer(two_steps(tokenizer, "W", "ho is it? SISTER: me")) as server:
        endpoint = servers.serve(ServerSpec(model="scripted", urls=(server.url,)))
        (made,) = pl.concat(
            instructions(row, [template], [SAMPLING], endpoint, first=rule)
        ).to_dicts()
        assert [r.body["stop"] for r in server.requests] == [["SISTER:", "USER:"]] * 2
    assert made["instruction"] == "Who is it?" and made["finish_reason"] == "stop"


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_text_that_ends_at_once_is_an_empty_instruction_and_nothing_is_continued(
    ask: Any, finish: str
) -> None:
    made, bodies = ask(lambda _, body: completion("", finish, token_ids=[2]), suppress="markdown")
    assert (made["status"], made["reason"]) == ("failed", "empty instruction") and len(bodies) == 1


def test_an_instruction_of_one_token_at_most_is_not_continued(ask: Any, tokenizer: Any) -> None:
    made, bodies = ask(two_steps(tokenizer, "What", "never"), {"max_tokens": 1}, temperature=1.0)
    assert (made["instruction"], made["finish_reason"], len(bodies)) == ("What", "length", 1)


@pytest.mark.parametrize("step", [1, 2])
def test_a_refused_request_in_either_step_is_a_failed_cell(
    ask: Any, tokenizer: Any, step: int
) -> None:
    good = two_steps(tokenizer, "What", " is it?")
    made, bodies = ask(
        lambda p, body: (
            Fault("status", 400) if (body["max_tokens"] == 1) == (step == 1) else good(p, body)
        ),
        temperature=1.2,
    )
    assert (
        made["status"] == "failed" and "scripted failure" in made["reason"] and len(bodies) == step
    )


def test_half_a_character_as_first_token_is_joined_by_its_bytes(ask: Any, tokenizer: Any) -> None:
    ids = tokenizer("你好吗?", add_special_tokens=False)["input_ids"]
    assert "�" in tokenizer.decode(ids[:1]), "the premise: its first token is part of a character"

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["max_tokens"] == 1:
            return completion("", "length", token_ids=ids[:1])
        return completion("��好吗?", "stop", token_ids=[*ids[1:], 2])

    made, _ = ask(answer, temperature=1.2)
    assert made["instruction"] == "你好吗?"


def test_a_server_without_token_ids_is_named_as_the_reason(ask: Any) -> None:
    made, _ = ask(lambda _, body: completion("What", "length"), temperature=1.2)
    assert made["status"] == "failed" and "return_token_ids" in made["reason"]


@pytest.mark.stack
def test_a_real_server_begins_with_the_only_tokens_that_are_left(
    teacher_endpoint: Endpoint, tokenizer: Any
) -> None:
    likely = [
        "What",
        "Write",
        "I",
        "Can",
        "Describe",
        "Create",
        "How",
        "Given",
        "As",
        "Imagine",
        "You",
        "Please",
    ]
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(24)], "seed": list(range(24))})
    sampling = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 12}
    prompt = pre_query(tokenizer, "default")
    plain = pl.concat(instructions(rows, [prompt], [sampling], teacher_endpoint))
    ruled = pl.concat(
        instructions(
            rows,
            [prompt],
            [sampling],
            teacher_endpoint,
            first=first_token(tokenizer, [*likely, "#"], None),
        )
    )
    assert any(text.startswith(tuple(likely)) for text in plain["instruction"])
    begins = [
        tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for text in ruled["instruction"].drop_nulls()
    ]
    assert len(begins) > 12 and not set(begins) & set(first_token(tokenizer, likely, None).banned)
    assert ruled.filter(pl.col("status") == "ok")["tokens"].max() <= 12


@pytest.mark.stack
def test_a_real_server_ends_an_instruction_before_a_stop_string_also_behind_a_first_token(
    teacher_endpoint: Endpoint, tokenizer: Any
) -> None:
    rows = pl.DataFrame({"id": [f"r{i}" for i in range(16)], "seed": list(range(16))})
    sampling = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 24}
    free = pre_query(tokenizer, "default")
    ended = replace(free, stop_strings=(" the", " a"))

    def drawn(template: PreQuery, rule: Any = None) -> list[str]:
        made = instructions(rows, [template], [sampling], teacher_endpoint, first=rule)
        return pl.concat(made)["instruction"].drop_nulls().to_list()

    rule = first_token(tokenizer, (), 0.7)
    assert sum(" the" in text or " a" in text for text in drawn(free)) > 8
    for texts in (drawn(ended), drawn(ended, rule)):
        assert texts and not any(" the" in text or " a" in text for text in texts)
