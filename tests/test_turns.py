"""Multi-turn: exact token ids of further turns, chains without a barrier, what ends or fails a
conversation, and resuming at the half-turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from core.columns import Column
from core.errors import UserError
from core.models import resolve
from core.models import tokenizer as tokenizer_of
from core.servers import Servers
from core.wire import ServerSpec
from recipes import schema
from recipes.stages import graph
from synth.chat.encoding import pair
from synth.config.synthesis import SynthConfig
from synth.generate import turns
from synth.generate.first_token import first_token
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.test_kill import assert_columns_whole, start
from tests.test_templates import family
from tests.waiting import exit_code, last_words

Ask = Callable[[str, dict[str, Any]], dict[str, Any] | Fault]
ROWS = [("a", "What is a river?", "Water that flows."), ("b", "Name a bird.", "A robin.")]


@dataclass
class Room:
    """A server, its endpoint for a tokenizer, and a journal."""

    server: ScriptedServer
    servers: Servers
    journal: Column

    def served(self, tokenizer: Any, **spec: Any) -> Any:
        made = ServerSpec(model="m", urls=(self.server.url,), **spec)
        return SimpleNamespace(tokenizer=tokenizer, spec=made, endpoint=self.servers.serve(made))

    def talk(
        self,
        tokenizer: Any,
        length: int = 4,
        system: str | None = None,
        rows: Any = ROWS,
        **spec: Any,
    ) -> dict[str, dict[str, Any]]:
        """Continue `rows` on the server; the finished rows by id."""
        user = turns.user_side(
            self.served(tokenizer, **spec), {"temperature": 1.0, "max_tokens": 50}, system
        )
        assistant = turns.assistant_side(
            self.served(tokenizer, **spec), {"temperature": 0.0, "max_tokens": 60}
        )
        talks = [turns.Talk(i, pair(question, answer)) for i, question, answer in rows]
        return {
            row["id"]: row for row in turns.continued(talks, length, user, assistant, self.journal)
        }


@pytest.fixture
def room(tmp_path: Path, servers: Servers) -> Iterator[Callable[[Ask], Room]]:
    open_servers: list[ScriptedServer] = []

    def make(answer: Ask) -> Room:
        open_servers.append(ScriptedServer(answer).__enter__())
        return Room(open_servers[-1], servers, Column(tmp_path / "half_turns", turns._HALF))

    yield make
    for server in open_servers:
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def smollm() -> Any:
    return tokenizer_of(resolve("embedded/SmolLM2-135M-Instruct").path)


def counting(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return completion(
        f"user {len(body['prompt'])}" if body["temperature"] else f"answer {len(body['prompt'])}"
    )


def test_a_further_user_message_of_a_plain_family_ends_at_its_headers(room: Any) -> None:
    here = room(counting)
    _, vicuna = family("vicuna-7b-v1.5")
    here.talk(vicuna, rows=ROWS[:1])
    asks, answers = (request.body for request in here.server.requests)
    assert asks["stop"] == ["ASSISTANT:", "USER:"] and "stop" not in answers
    assert vicuna.decode(asks["prompt"]).endswith("Water that flows.</s> USER: ")


LLAMA, END = "<|start_header_id|>", "<|end_header_id|>\n\n"
SYSTEM = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


def test_requests_of_further_turns_have_these_token_ids_on_smollm2(room: Any, smollm: Any) -> None:
    here = room(counting)
    done = here.talk(smollm, rows=ROWS[:1])
    first, second = (request.body for request in here.server.requests)
    said = (
        SYSTEM
        + "<|im_start|>user\nWhat is a river?<|im_end|>\n"
        + "<|im_start|>assistant\nWater that flows.<|im_end|>\n<|im_start|>user\n"
    )
    assert first["prompt"] == smollm(said, add_special_tokens=False)["input_ids"]
    header = [1, 4093, 198]
    asked = [1780, 314, 253, 4626, 47, 2, 198]
    answered = [1, 520, 9531, 198, 12615, 338, 8634, 30, 2, 198]
    assert first["prompt"][20:] == [198, *header, *asked, *answered, *header]
    assert set(first["stop_token_ids"]) == {0, 1, 2}
    question = done["a"]["messages"][2]["content"]
    assert (
        second["prompt"]
        == smollm(
            said + question + "<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        )["input_ids"]
    )
    assert "stop_token_ids" not in second and (first["max_tokens"], second["max_tokens"]) == (
        50,
        60,
    )
    assert [m["role"] for m in done["a"]["messages"]] == ["user", "assistant", "user", "assistant"]
    assert done["a"]["turns"] == 2 and done["a"]["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "before", "header", "answer"),
    [
        (
            "Llama-3",
            f"<|begin_of_text|>{LLAMA}user{END}What is a river?<|eot_id|>"
            f"{LLAMA}assistant{END}Water that flows.<|eot_id|>",
            f"{LLAMA}user{END}",
            f"<|eot_id|>{LLAMA}assistant{END}",
        ),
        (
            "Gemma-2",
            "<bos><start_of_turn>user\nWhat is a river?<end_of_turn>\n"
            "<start_of_turn>model\nWater that flows.<end_of_turn>\n",
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)
def test_llama3_and_gemma_have_one_bos_and_no_empty_assistant_header(
    room: Any, name: str, before: str, header: str, answer: str
) -> None:
    _, tokenizer = family(name)
    here = room(counting)
    question = here.talk(tokenizer, rows=ROWS[:1])["a"]["messages"][2]["content"]
    first, second = (request.body["prompt"] for request in here.server.requests)
    assert first == tokenizer(before + header, add_special_tokens=False)["input_ids"]
    assert (
        second
        == tokenizer(before + header + question + answer, add_special_tokens=False)["input_ids"]
    )
    assert second.count(tokenizer.bos_token_id) == 1


def test_system_prompt_is_shown_for_the_users_message_and_never_for_the_answer(
    room: Any, smollm: Any
) -> None:
    here = room(counting)
    prompt = turns.system_prompt(
        SynthConfig.model_validate(
            {"teacher": {"model": "m"}, "turns": 2, "turns_system_prompt": "paper"}
        )
    )
    assert prompt and "several rounds" in prompt
    here.talk(smollm, system=prompt)
    texts = [(r.body["temperature"], smollm.decode(r.body["prompt"])) for r in here.server.requests]
    assert all((prompt in text) == (temperature > 0) for temperature, text in texts)
    _, gemma = family("Gemma-2")
    with pytest.raises(UserError, match=r"refuses|ignores"):
        here.talk(gemma, system=prompt)


def test_each_row_goes_on_at_its_own_pace_and_its_seeds_are_fixed(room: Any, smollm: Any) -> None:
    here = room(counting)
    rows = [(f"r{n}", f"Question {n}", f"Answer {n}") for n in range(40)]
    done = here.talk(smollm, length=6, rows=rows, max_in_flight=4)
    assert len(done) == 40 and all(
        len(r["messages"]) == 6 and r["turns"] == 3 for r in done.values()
    )
    order = [len(r.body["prompt"]) for r in here.server.requests]
    assert order != sorted(order) and here.server.high_water <= 4, (
        "later turns are asked while first ones still wait: no barrier"
    )
    seeds = {r.body["seed"] for r in here.server.requests if r.body["temperature"]}
    assert len(seeds) == 80, "a seed of its own for each row and turn"


def test_the_rule_for_the_first_token_holds_for_further_users_messages_too(
    room: Any, smollm: Any
) -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return (
            completion("Wh", "length", token_ids=[1780])
            if body["max_tokens"] == 1
            else completion("y so?", token_ids=[105, 2])
        )

    here = room(answer)
    rule = first_token(smollm, "markdown", None)
    user = turns.user_side(here.served(smollm), {"temperature": 1.0, "max_tokens": 50}, None, rule)
    assistant = turns.assistant_side(here.served(smollm), {"temperature": 0.0, "max_tokens": 60})
    talk = turns.Talk("a", pair("Hi", "Hello"))
    (done,) = turns.continued([talk], 6, user, assistant, here.journal)
    assert [m["content"] for m in done["messages"][2:]] == ["Why so?", "y so?", "Why so?", "y so?"]
    bodies = [r.body for r in here.server.requests]
    assert [b["max_tokens"] for b in bodies] == [1, 49, 60, 1, 49, 60]
    assert bodies[1]["prompt"] == [*bodies[0]["prompt"], 1780] and set(bodies[0]["logit_bias"]) == {
        str(i) for i in rule.banned
    }
    assert "logit_bias" not in bodies[1] and "logit_bias" not in bodies[2]


def test_a_conversation_may_end_with_the_user(room: Any, smollm: Any) -> None:
    here = room(counting)
    done = here.talk(smollm, length=3)
    assert [m["role"] for m in done["a"]["messages"]] == ["user", "assistant", "user"] and done[
        "a"
    ]["turns"] == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda b: completion("  "), "turn 2, user: empty text"),
        (lambda b: completion("half a", "length"), "turn 2, user: cut off before its end"),
        (
            lambda b: completion("Q?") if b["temperature"] else completion("half", "length"),
            "turn 2, assistant: cut off before its end",
        ),
        (lambda b: Fault("status", 400), "turn 2, user: request failed"),
    ],
)
def test_empty_cut_off_or_failed_turn_fails_the_row_with_turn_and_side(
    room: Any, smollm: Any, answer: Any, reason: str
) -> None:
    here = room(lambda path, body: answer(body))
    done = here.talk(smollm)
    assert [r["status"] for r in done.values()] == ["failed"] * 2 and all(
        r["reason"].startswith(reason) for r in done.values()
    )


def test_a_conversation_that_outgrows_the_model_fails_and_is_never_sent(
    room: Any, smollm: Any
) -> None:
    here = room(lambda path, body: completion("word " * 30))
    done = here.talk(smollm, length=8, args={"max_model_len": 90})
    assert all(
        r["status"] == "failed" and "leaves no room in max_model_len 90" in r["reason"]
        for r in done.values()
    )
    assert all(len(r.body["prompt"]) + r.body["max_tokens"] <= 90 for r in here.server.requests)


def test_thinking_is_cut_from_both_sides(room: Any) -> None:
    _, tokenizer = family("Qwen3")
    here = room(
        lambda path, body: completion(
            "<think>\nhmm\n</think>\n\nsaid" if not body["temperature"] else "Why?"
        )
    )
    done = here.talk(tokenizer)
    assert [m["content"] for m in done["a"]["messages"][2:]] == ["Why?", "said"]
    here = room(lambda path, body: completion("<think>\nfor ever"))
    assert (
        "the thinking is not closed"
        in here.talk(tokenizer, rows=[("c", "Hi", "Hello")])["c"]["reason"]
    )


def test_two_models_speak_in_turn(room: Any, smollm: Any) -> None:
    here, other = room(counting), room(lambda path, body: completion("from the other"))
    user = turns.user_side(here.served(smollm), {"temperature": 1.0}, None)
    assistant = turns.assistant_side(other.served(smollm), {"temperature": 0.0})
    talks = [turns.Talk(i, pair(question, answer)) for i, question, answer in ROWS]
    done = list(turns.continued(talks, 6, user, assistant, here.journal))
    assert [r["status"] for r in done] == ["ok"] * 2
    assert all([m["content"] for m in r["messages"][3::2]] == ["from the other"] * 2 for r in done)
    assert len(here.server.requests) == len(other.server.requests) == 4


def test_what_was_said_before_a_stop_is_not_asked_again_and_more_turns_go_on_from_there(
    room: Any, smollm: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("synth.generate.ask.BATCH_ROWS", 1)
    here = room(counting)
    rows = [(f"r{n}", f"Question {n}", f"Answer {n}") for n in range(10)]
    user = turns.user_side(here.served(smollm), {"temperature": 1.0}, None)
    assistant = turns.assistant_side(here.served(smollm), {"temperature": 0.0})
    stopped = turns.continued(
        [turns.Talk(i, pair(question, answer)) for i, question, answer in rows],
        6,
        user,
        assistant,
        here.journal,
    )
    next(stopped)
    stopped.close()
    journaled, asked = len(here.journal.read()), len(here.server.requests)
    assert 4 <= journaled <= asked
    whole = here.talk(smollm, length=6, rows=rows)
    assert len(here.server.requests) == asked + 40 - journaled, "only what no journal holds"
    longer = here.talk(smollm, length=8, rows=rows)
    assert all(longer[i]["messages"][:6] == whole[i]["messages"] for i in whole)
    assert len(here.server.requests) == asked + 40 - journaled + 20
    changed = here.talk(smollm, length=4, rows=[("r0", "Question 0", "Another answer")])
    assert changed["r0"]["messages"][1]["content"] == "Another answer"
    assert len(here.server.requests) == asked + 40 - journaled + 22, (
        "another first answer is another conversation"
    )


@pytest.mark.parametrize(
    "block", [{"end_with": "user"}, {"turns_system_prompt": "paper"}, {"turns": 0}]
)
def test_settings_of_several_turns_without_several_turns_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"turns"):
        SynthConfig.model_validate({"teacher": {"model": "m"}, **block})


def further(body: dict[str, Any]) -> bool:
    """Whether a request is for a user's message after the first one: those are drawn hot, like the
    first, but after a conversation."""
    return body.get("temperature") == 1.0 and len(body["prompt"]) > 30


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.mark.process
def test_a_killed_recipe_goes_on_at_the_half_turn_and_selects_whole_conversations(
    tmp_path: Path, llama: Path
) -> None:
    state: dict[str, Any] = {"pid": 0, "seen": []}

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if further(body):
            state["seen"].append(body["seed"])
            if state["pid"] and len(state["seen"]) == 50:
                os.kill(state["pid"], signal.SIGKILL)
        return small_recipe.answer(path, body)

    sampling = {"temperature": 1.0, "max_tokens": 80}
    with ScriptedServer(answer, delay=0.02) as server:
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            synth__turns=3,
            synth__instruction=sampling,
            synth__response={"temperature": 0.0, "max_tokens": 80},
            arms={"all-of-it": {"choose": "all"}},
            random_arm=False,
            synth__teacher__server__max_in_flight=4,
        )
        harness = start(path, "select")
        state["pid"] = harness.pid
        assert exit_code(harness) == -signal.SIGKILL
        state["pid"], before = 0, list(state["seen"])
        again = start(path, "select")
        assert exit_code(again) == 0, last_words(again)
    assert_columns_whole(tmp_path / "store")
    lost = len(set(state["seen"][len(before) :]) & set(before))
    assert len(before) >= 50 and lost <= 4 + 32, (
        "what was in flight, and what was not yet in a part"
    )
    selected = pl.read_parquet(
        tmp_path / "store" / "recipes" / "small" / "select" / "all-of-it" / "selection.parquet"
    )
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    assert set(selected["messages"].list.len()) == {6} and len(selected) == int(
        (pool["status:turns"] == "ok").sum()
    )
    assert set(pool.filter("reserved")["status:turns"]) == {None}, "held-out rows stay single turns"


def test_imported_conversations_of_several_turns_reach_the_selection_whole(
    tmp_path: Path, llama: Path
) -> None:
    talks = [
        [
            ("human", f"q{n}"),
            ("gpt", f"a{n}"),
            *([("human", f"r{n}"), ("gpt", f"b{n}")] if n % 2 else []),
        ]
        for n in range(10)
    ]
    source = tmp_path / "talks.jsonl"
    rows = [
        {"id": str(n), "conversations": [{"from": w, "value": v} for w, v in talk]}
        for n, talk in enumerate(talks)
    ]
    pl.DataFrame(rows).write_ndjson(source)
    with ScriptedServer(small_recipe.answer) as server:
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            synth__rows={"import": str(source)},
            synth__heldout=0,
            arms={"all": {"choose": "all"}},
            random_arm=False,
        )
        graph.run(schema.load(path), "select")
        assert server.requests == []
        selected = pl.read_parquet(
            tmp_path / "store" / "recipes" / "small" / "select" / "all" / "selection.parquet"
        ).sort("id")
        words = [[m["content"] for m in row] for row in selected["messages"].to_list()]
        assert words == [[v for _, v in talk] for talk in talks]
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            synth__rows={"import": str(source)},
            synth__heldout=0,
            synth__turns=2,
            synth__instruction={"temperature": 1.0},
            synth__response={"temperature": 0.0},
            arms={"all": {"choose": "all"}},
            random_arm=False,
        )
        graph.run(schema.load(path), "select")
        assert len(server.requests) == 10, (
            "five conversations have two turns already; "
            "five were continued by a question and an answer"
        )
    longer = pl.read_parquet(
        tmp_path / "store" / "recipes" / "small" / "select" / "all" / "selection.parquet"
    )
    assert set(longer["messages"].list.len()) == {4}
