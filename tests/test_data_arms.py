"""Arms over other people's data: filtered, measured, decontaminated and chosen like the pool's, and
read once by content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.errors import UserError
from core.store import digest
from recipes import schema
from recipes.stages import graph
from recipes.stages.graph import Outcome
from synth.filters.orders import hash_rank
from synth.published import rows as published
from tests import small_recipe
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def theirs(path: Path, rows: int, *, topic: str = "river", **values: Any) -> Path:
    """A plain file of instructions and responses, the longest last."""
    lines = [
        {
            "id": f"{number}",
            "instruction": f"Tell me fact {number} about the {topic}.",
            "response": f"Fact {number} of the {topic}: " + "it flows. " * (number + 1),
            **{name: value(number) for name, value in values.items()},
        }
        for number in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recipe(folder: Path, llama: Path, server: ScriptedServer, **changes: Any) -> Path:
    """A recipe with arms over data alone: nothing is drawn."""
    given = {"synth__heldout": 0, "random_arm": False, **changes}
    return small_recipe.recipe(folder, llama, server.url, **given)


def run(path: Path, until: str = "select") -> Outcome:
    return graph.run(schema.load(path), until)


def ids(outcome: Outcome, arm: str) -> list[str]:
    return pl.read_parquet(outcome.results[f"select/{arm}"].path / "selection.parquet")[
        "id"
    ].to_list()


def seeded(folder: Path, path: Path, *seeds: int) -> Path:
    """The recipe with a `train:` block of these seeds (nothing is trained)."""
    block = yaml.safe_load(path.read_text())
    base = block["synth"]["teacher"]["model"]
    block["train"] = {"base": base, "chat_template_path": "chatml", "seeds": list(seeds)}
    path.write_text(yaml.safe_dump(block, sort_keys=False))
    return path


def test_data_without_a_filter_is_taken_in_hash_order_under_the_key_it_always_had(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = theirs(tmp_path / "set.jsonl", 30)
    arms = {"theirs": {"data": str(data), "budget": {"rows": 7}}}
    made = run(recipe(tmp_path, llama, server, arms=arms))
    rows = pl.concat(published.read(data))
    expected = rows.sort(hash_rank(rows["id"], 0)).head(7)
    assert ids(made, "theirs/0") == expected["id"].to_list()
    turns = [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
        for ask, say in expected.select("instruction", "response").iter_rows()
    ]
    content = digest(
        [[name, digest(each)] for name, each in zip(expected["id"], turns, strict=True)]
    )
    spec = {"rows": content, "file": "selection.parquet"}
    key = digest({"stage": "select", "spec": spec, "inputs": {}})
    assert made.results["select/theirs/0"].path.name == key[:16]


def test_three_seeds_read_their_data_once_and_a_plan_reads_nothing(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = theirs(tmp_path / "set.jsonl", 30)
    arms = {
        "theirs": {"data": str(data), "budget": {"rows": 7}},
        "long": {"data": str(data), "where": "response_length > 100", "budget": {"rows": 7}},
    }
    path = seeded(tmp_path, recipe(tmp_path, llama, server, arms=arms), 0, 1, 2)
    opened: list[str] = []
    parts = published.files.parts_of

    def watched(source: Any, *rest: Any, **named: Any) -> Any:
        opened.append(str(source))
        return parts(source, *rest, **named)

    monkeypatch.setattr(published.files, "parts_of", watched)
    made = run(path)
    assert opened == [str(data)]
    assert len({tuple(ids(made, f"theirs/{seed}")) for seed in (0, 1, 2)}) == 3
    states = {s.name: s.state for s in graph.plan(schema.load(path)).steps}
    run(path)
    assert opened == [str(data)], "neither a plan nor a second run reads it again"
    assert {state for name, state in states.items() if name.startswith(("select", "measure"))} == {
        "reuse"
    }


def test_where_choose_and_what_they_read_are_measured_on_data(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = theirs(tmp_path / "set.jsonl", 30)
    where = "input_quality >= 'average' AND NOT minhash_duplicate"
    arms = {"best": {"data": str(data), "where": where, "choose": "longest", "budget": {"rows": 4}}}
    path = recipe(tmp_path, llama, server, arms=arms)
    made = run(path)
    chosen = pl.read_parquet(tmp_path / "store/recipes/small/select/best/rows.parquet")
    assert set(chosen["input_quality"]) <= {"average", "good", "excellent"}
    lengths = chosen["response_length"].to_list()
    assert lengths == sorted(lengths, reverse=True) and len(ids(made, "best")) == 4
    funnel = json.loads((tmp_path / "store/recipes/small/select/best/funnel.json").read_text())
    assert funnel["pool"] == 30 and funnel["steps"][0]["stopped"] > 0
    better = pl.read_parquet(tmp_path / "store/recipes/small/select/best/dropped.parquet")
    assert len(better) == 26, "every row that is not chosen has its reason"


def test_tags_that_a_file_brings_are_not_asked_for_again(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    quality = ["poor", "good", "excellent"]
    data = theirs(tmp_path / "set.jsonl", 30, input_quality=lambda n: quality[n % 3])
    arms = {"good": {"data": str(data), "where": "input_quality >= 'good'"}}
    before = len(server.requests)
    made = run(recipe(tmp_path, llama, server, arms=arms))
    assert len(server.requests) == before
    assert ids(made, "good") == [str(n) for n in range(30) if n % 3], "all, in the file's order"


def test_a_strategy_with_its_thresholds_works_on_data(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    rewards = theirs(tmp_path / "set.jsonl", 30, instruct_reward=lambda n: float(n % 10))
    arms = {"top": {"data": str(rewards), "strategy": "reward-top", "budget": {"rows": 6}}}
    made = run(recipe(tmp_path, llama, server, arms=arms))
    assert {int(name) % 10 for name in ids(made, "top")} == {8, 9}


def test_a_budget_in_tokens_is_counted_by_the_students_template(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from core.models import resolve
    from recipes.stages.tokens import count_tokens

    data = theirs(tmp_path / "set.jsonl", 30)
    arms = {"theirs": {"data": str(data), "budget": {"tokens": 900}}}
    path = seeded(tmp_path, recipe(tmp_path, llama, server, arms=arms), 0)
    made = run(path)
    loaded = schema.load(path).recipe
    assert loaded.train is not None
    rows = pl.read_parquet(made.results["select/theirs/0"].path / "selection.parquet")
    taken = sum(count_tokens(loaded.train, resolve(str(llama)), rows).values())
    whole = pl.concat(published.read(data))
    next_id = whole.sort(hash_rank(whole["id"], 0))["id"][len(rows)]
    assert next_id not in rows["id"].to_list()
    one_more = whole.filter(pl.col("id") == next_id)
    from recipes.stages.tokens import as_messages

    following = sum(count_tokens(loaded.train, resolve(str(llama)), as_messages(one_more)).values())
    assert taken <= 900 < taken + following


def test_rows_that_repeat_a_prompt_of_the_evaluation_are_kept_out_of_data(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = theirs(tmp_path / "set.jsonl", 12)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "p", "prompt": "Tell me fact 7 about the river."}) + "\n")
    arms = {"clean": {"data": str(data), "where": "eval_overlap < 1"}}
    decontaminate = {"file": str(prompts)}
    path = recipe(tmp_path, llama, server, arms=arms, synth__tags={"decontaminate": decontaminate})
    assert sorted(ids(run(path), "clean"), key=int) == [str(n) for n in range(12) if n != 7]


def test_rows_that_the_recipe_holds_out_are_no_data_of_a_filtered_arm(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = theirs(tmp_path / "set.jsonl", 60)
    arms = {"long": {"data": str(data), "where": "response_length > 0"}}
    imported = {"import": str(data)}
    path = recipe(tmp_path, llama, server, arms=arms, synth__heldout=0.3, synth__rows=imported)
    made = run(path)
    held = pl.read_parquet(made.results["select/heldout"].path / "heldout.parquet")["id"].to_list()
    assert held and sorted([*ids(made, "long"), *held], key=int) == [str(n) for n in range(60)]


def test_failed_rows_are_left_out_counted_and_named(
    tmp_path: Path, llama: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = theirs(tmp_path / "set.jsonl", 5)
    with data.open("a") as handle:
        handle.write(json.dumps({"id": "x", "instruction": "", "response": "An answer."}) + "\n")
        handle.write(json.dumps({"id": "1", "instruction": "Again?", "response": "Yes."}) + "\n")
    arms = {"theirs": {"data": str(data)}}
    made = run(recipe(tmp_path, llama, server, arms=arms))
    assert len(ids(made, "theirs/0")) == 5
    said = capsys.readouterr()
    assert "2 of 7 rows" in said.out + said.err
    funnel = json.loads((tmp_path / "store/recipes/small/select/theirs/0/funnel.json").read_text())
    assert sorted(funnel["unusable"]) == ["an id occurs twice", "no instruction"]


def test_a_budget_that_data_cannot_fill_names_the_arm(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = theirs(tmp_path / "set.jsonl", 5)
    arms = {"theirs": {"data": str(data), "budget": {"rows": 6}}}
    path = recipe(tmp_path, llama, server, arms=arms)
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: arms.theirs: .* 6 rows but only 5"):
        run(path)
    arms["theirs"]["allow_short"] = True
    assert len(ids(run(recipe(tmp_path, llama, server, arms=arms)), "theirs/0")) == 5


def test_a_filtered_arm_of_data_gets_a_random_one_of_the_same_data_and_size(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = str(theirs(tmp_path / "set.jsonl", 30))
    arms = {
        "long": {"data": data, "choose": "longest", "budget": {"rows": 5}},
        "long2": {"data": data, "where": "response_length > 5", "budget": {"rows": 5}},
    }
    path = recipe(tmp_path, llama, server, arms=arms, random_arm=True)
    made = schema.with_random(schema.load(path).recipe)
    assert list(made) == ["long", "long2", "random-of-long"]
    assert len(ids(run(path), "random-of-long/0")) == 5
    from recipes.stages.walk import Arms

    assert Arms.of(schema.load(path).recipe).baseline == "random-of-long"


def test_data_is_read_as_the_arm_says(tmp_path: Path, llama: Path, server: ScriptedServer) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(json.dumps({"question": "What flows?", "answer": "The river."}) + "\n")
    how = {"map": {"instruction": "question", "response": "answer"}}
    arms = {"theirs": {"data": str(file), **how}}
    made = run(recipe(tmp_path, llama, server, arms=arms))
    (row,) = pl.read_parquet(made.results["select/theirs/0"].path / "selection.parquet").to_dicts()
    assert [turn["content"] for turn in row["messages"]] == ["What flows?", "The river."]


def test_tool_turns_that_the_students_template_does_not_know_fail_with_the_reason(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    call = {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'}
    talks = [
        [{"from": "human", "value": "What time is it?"}, {"from": "gpt", "value": "Noon."}],
        [
            {"from": "human", "value": "And now?"},
            call,
            {"from": "observation", "value": "12:01"},
            {"from": "gpt", "value": "A minute later."},
        ],
    ]
    file = tmp_path / "set.json"
    file.write_text(json.dumps([{"id": str(n), "conversations": t} for n, t in enumerate(talks)]))
    arms = {"theirs": {"data": str(file)}}
    path = recipe(tmp_path, llama, server, arms=arms)
    assert sorted(ids(run(path), "theirs/0")) == ["0", "1"], (
        "nothing says what cannot be trained on"
    )
    assert ids(run(seeded(tmp_path, path, 0)), "theirs/0") == ["0"]
    funnel = json.loads((tmp_path / "store/recipes/small/select/theirs/0/funnel.json").read_text())
    assert funnel["unusable"] == {"tool turns that the chat template does not know": 1}


def test_new_answers_for_old_prompts_are_an_arm(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = str(theirs(tmp_path / "set.jsonl", 12))
    arms = {
        "old": {"data": data, "choose": "all"},
        "new": {"data": data, "choose": "all", "answers": "all"},
    }
    path = recipe(tmp_path, llama, server, arms=arms)
    before = len(server.requests)
    made = run(path)
    assert len(server.requests) - before == 12
    old, new = (
        pl.read_parquet(made.results[f"select/{arm}"].path / "selection.parquet")
        for arm in ("old", "new")
    )
    assert old["id"].to_list() == new["id"].to_list()
    for first, again in zip(old["messages"].to_list(), new["messages"].to_list(), strict=True):
        assert first[0] == again[0] and first[1]["content"] != again[1]["content"]


def test_a_file_that_is_not_there_is_named_with_its_arm_before_anything_is_asked(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = recipe(tmp_path, llama, server, arms={"theirs": {"data": str(tmp_path / "no.jsonl")}})
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: arms.theirs.data: .*does not exist"):
        graph.plan(schema.load(path))


def test_until_measure_a_recipe_over_data_trains_nothing(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    data = str(theirs(tmp_path / "set.jsonl", 12))
    arms = {"best": {"data": data, "where": "input_quality >= 'average'"}}
    path = seeded(tmp_path, recipe(tmp_path, llama, server, arms=arms), 0)
    made = run(path, "instructions")
    assert made.stopped and [s.name for s in made.steps] == ["instructions/best"]
    assert run(path, "measure").stopped
