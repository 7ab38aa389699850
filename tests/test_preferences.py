"""Preference pairs: best against worst, what makes no pair, exact resuming, the split by hash of
id, and a form that TRL takes."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.columns import Column
from core.errors import UserError
from core.models import resolve
from core.servers import Servers
from core.store import digest
from core.tracking import Log
from recipes import schema
from recipes.stages import graph
from synth import preferences
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.orders import hash_rank
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.test_kill import assert_columns_whole, start
from tests.waiting import exit_code, last_words


def test_best_answer_stands_against_worst_with_all_answers_beside() -> None:
    found, _ = preferences.pair(["a", "b", "c", "d"], [0.5, 2.0, None, -1.0], 0)
    assert found is not None
    assert (found["chosen"], found["rejected"]) == (
        [{"role": "assistant", "content": "b"}],
        [{"role": "assistant", "content": "d"}],
    )
    assert (found["margin"], found["chosen_index"], found["rejected_index"]) == (3.0, 1, 3)
    assert found["responses"] == ["a", "b", "c", "d"] and found["rewards"] == [0.5, 2.0, None, -1.0]


@pytest.mark.parametrize(
    ("responses", "rewards", "margin", "reason"),
    [
        (["a", "b"], [1.0, None], 0.0, "fewer than two answers with a reward"),
        (["a", None, "b"], [1.0, None, None], 0.0, "fewer than two answers with a reward"),
        (["a", "a", "a"], [1.0, 1.0, 1.0], 0.0, "all answers are the same"),
        (["a", "b"], [1.0, 1.0], 0.0, "all rewards are equal"),
        (["a", "b"], [1.0, 1.5], 0.5, "the rewards differ by no more than 0.5"),
    ],
)
def test_no_pair_without_a_difference(
    responses: Any, rewards: Any, margin: float, reason: str
) -> None:
    assert preferences.pair(responses, rewards, margin) == (None, reason)


def test_of_equal_rewards_the_answer_drawn_first_counts() -> None:
    found, _ = preferences.pair(["a", "b", "c", "d"], [1.0, 3.0, 3.0, 1.0], 0)
    assert found is not None and (found["chosen_index"], found["rejected_index"]) == (1, 0)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"k": 1}, "greater than or equal to 2"),
        ({"sampling": {"temperature": 0}}, "all k answers would be the same"),
        ({}, "needs a reward model"),
    ],
)
def test_settings_that_cannot_make_pairs_are_refused(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SynthConfig.model_validate({"teacher": {"model": "m"}, "preferences": block})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


class Room:
    """A scripted teacher and reward model, and 30 rows that an arm chose."""

    def __init__(self, root: Path, llama: Path, servers: Servers) -> None:
        self.root, self.llama, self.servers = root, llama, servers
        self.rows = pl.DataFrame(
            {
                "id": [f"r{n}" for n in range(30)],
                "messages": [
                    [
                        {"role": "user", "content": f"Question {n}"},
                        {"role": "assistant", "content": "first answer"},
                    ]
                    for n in range(30)
                ],
            }
        )
        self.server = ScriptedServer(self.answer).__enter__()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        return small_recipe.answer(path, body)

    def asked(self, path: str) -> int:
        return sum(r.path.endswith(path) for r in self.server.requests)

    def build(self, out: str, **block: Any) -> tuple[dict[str, Any], pl.DataFrame, pl.DataFrame]:
        model = {"model": str(self.llama), "server": {"urls": [self.server.url]}}
        block = {
            "k": 3,
            "sampling": {"temperature": 0.8, "max_tokens": 80},
            "reward": model,
            **block,
        }
        config = SynthConfig.model_validate({"teacher": model, "preferences": block})
        context = Context(self.root / "store", resolve).serving(self.servers)
        counts = preferences.build(self.rows, config, context, self.root / out, Log())
        return (
            counts,
            pl.read_parquet(self.root / out / "train.parquet"),
            pl.read_parquet(self.root / out / "test.parquet"),
        )


@pytest.fixture
def room(tmp_path: Path, llama: Path, servers: Servers) -> Iterator[Room]:
    made = Room(tmp_path, llama, servers)
    yield made
    made.server.__exit__(None, None, None)


def test_k_answers_with_seeds_of_their_own_are_scored_and_paired(room: Room) -> None:
    counts, train, test = room.build("set", test_share=0.2)
    both = pl.concat([train, test])
    assert (counts["rows"], counts["pairs"], counts["answers"]) == (30, 30, 90) and len(both) == 30
    bodies = [r.body for r in room.server.requests if r.path == "/v1/completions"]
    assert len(bodies) == 90 and len({b["seed"] for b in bodies}) == 90
    assert {b["temperature"] for b in bodies} == {0.8} and {b["max_tokens"] for b in bodies} == {80}
    assert len({digest(b["prompt"]) for b in bodies}) == 30, "k answers of one prompt"
    for row in both.iter_rows(named=True):
        assert row["score_chosen"] == max(row["rewards"]) and row["score_rejected"] == min(
            row["rewards"]
        )
        assert row["chosen"] == [
            {"role": "assistant", "content": row["responses"][row["chosen_index"]]}
        ]
        assert row["prompt"] == [{"role": "user", "content": row["instruction"]}]
    ranks = hash_rank(both["id"], "preferences")
    assert (
        set(test["id"]) == set(both["id"].filter(ranks < int(0.2 * 2**64))) and 0 < len(test) < 15
    )


@pytest.mark.stack
def test_trls_dpo_trainer_trains_on_the_set_as_it_is(room: Room) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    room.build("set")
    words = AutoTokenizer.from_pretrained(room.llama)
    words.pad_token = words.eos_token
    settings = DPOConfig(
        output_dir=str(room.root / "dpo"),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    rows = Dataset.from_parquet(str(room.root / "set" / "train.parquet"))
    trained = DPOTrainer(
        model=str(room.llama), args=settings, train_dataset=rows, processing_class=words
    ).train()
    assert abs(trained.training_loss - math.log(2)) < 0.01, (
        "before the first step no answer is preferred"
    )


def test_a_second_run_asks_nothing_and_a_larger_k_only_the_further_answers(room: Room) -> None:
    _, first, _ = room.build("a", test_share=0)
    before = len(room.server.requests)
    _, again, _ = room.build("b", test_share=0)
    assert len(room.server.requests) == before and again.equals(first)
    _, more, _ = room.build("c", test_share=0, k=5)
    assert room.asked("/v1/completions") == 150 and room.asked("/classify") == 150
    assert [r[:3] for r in more["responses"].to_list()] == first["responses"].to_list()
    _, fewer, _ = room.build("d", test_share=0)
    assert fewer.equals(first) and len(room.server.requests) == 300


def test_cut_off_answers_are_never_chosen_and_ties_and_failures_are_counted(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if path.endswith("/classify"):
            return {
                "data": [{"index": 0, "probs": [float(len(body["input"]) % 7)], "num_classes": 1}],
                "usage": {"prompt_tokens": 1},
            }
        number = body["seed"] % 4
        return [
            completion("same words"),
            completion("cut", "length"),
            Fault("status", 400),
            completion(f"{body['seed']}"),
        ][number]  # type: ignore[return-value]

    monkeypatch.setattr(room.server, "answer", answer)
    counts, train, test = room.build("set", k=4)
    both = pl.concat([train, test])
    assert (
        sum(counts["dropped"].values()) == 30 - counts["pairs"] > 0 and len(both) == counts["pairs"]
    )
    assert counts["failed"]["cut off at max_tokens"] > 5 and any(
        "request failed" in reason for reason in counts["failed"]
    )
    texts = [
        row[side][0]["content"]
        for row in both.iter_rows(named=True)
        for side in ("chosen", "rejected")
    ]
    assert "cut" not in texts and all(margin > 0 for margin in both["margin"])
    dropped = pl.read_parquet(room.root / "set" / "dropped.parquet")
    assert len(dropped) == 30 - len(both) and not set(dropped["id"]) & set(both["id"])
    monkeypatch.setattr(
        room.server,
        "answer",
        lambda path, body: (
            answer(path, body) if path.endswith("/classify") else completion("always this")
        ),
    )
    with pytest.raises(UserError, match="none of 30 rows gives a pair"):
        room.build("none", sampling={"temperature": 0.7})


@pytest.mark.process
def test_a_killed_recipe_buys_no_answer_and_no_score_twice(tmp_path: Path, llama: Path) -> None:
    state: dict[str, Any] = {"pid": 0, "kill": "", "seen": []}

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        kind = (
            "reward"
            if path.endswith("/classify")
            else "answer"
            if body.get("temperature") == 0.8
            else ""
        )
        if kind:
            state["seen"].append((kind, digest(body)))
            if (
                state["pid"]
                and kind == state["kill"]
                and sum(k == kind for k, _ in state["seen"]) == 45
            ):
                os.kill(state["pid"], signal.SIGKILL)
                state["pid"] = 0
        return small_recipe.answer(path, body)

    with ScriptedServer(answer, delay=0.02) as server:
        model = {"model": str(llama), "server": {"urls": [server.url], "max_in_flight": 4}}
        block = {
            "k": 4,
            "sampling": {"temperature": 0.8, "max_tokens": 70},
            "reward": model,
            "arms": ["good"],
        }
        good = {"where": "input_quality >= 'good'", "choose": "longest", "budget": {"rows": 20}}
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            synth__preferences=block,
            synth__teacher__server__max_in_flight=4,
            arms={"good": good},
            random_arm=False,
        )
        for kind in ("answer", "reward"):
            harness = start(path, "preferences")
            state["pid"], state["kill"] = harness.pid, kind
            assert exit_code(harness) == -signal.SIGKILL
        again = start(path, "preferences")
        assert exit_code(again) == 0, last_words(again)
        twice = len(state["seen"]) - len(set(state["seen"]))
        assert len({s for s in state["seen"] if s[0] == "answer"}) == 80 and twice <= 2 * (
            4 + 32
        ), "what was in flight or not yet in a part"
        plan = {s.name: s for s in graph.plan(schema.load(path)).steps}
    assert_columns_whole(tmp_path / "store")
    assert plan["preferences/good"].state == "reuse" and "preferences/random/0" not in plan
    assert plan["preferences/good"].path is not None
    rows = pl.concat(
        [
            pl.read_parquet(plan["preferences/good"].path / f"{name}.parquet")
            for name in ("train", "test")
        ]
    )
    assert len(rows) == 20 and rows["id"].n_unique() == 20
    column = next((tmp_path / "store" / "columns" / "preference_answer").iterdir())
    assert len(Column(column, {}).read()) == 80


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arms": ["goood"]}, "no arm with rows is called 'goood'; did you mean"),
        (
            {"reward": {"model": "embedded/nothing"}},
            "synth.preferences.reward.model: there is no embedded model 'nothing'",
        ),
        ({"reward": {"model": "RLHFlow/ArmoRM-Llama3-8B-v0.1"}}, "vLLM cannot serve"),
    ],
)
def test_a_wrong_arm_or_reward_model_is_found_before_anything_is_spent(
    tmp_path: Path, llama: Path, change: Any, sentence: str
) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        block = {"reward": {"model": str(llama), "server": {"urls": [server.url]}}, **change}
        path = small_recipe.recipe(tmp_path, llama, server.url, synth__preferences=block)
        with pytest.raises(UserError, match=sentence):
            graph.run(schema.load(path), "preferences")
        assert server.requests == []
