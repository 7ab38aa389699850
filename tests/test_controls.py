"""Controls: a second random sample, and arms whose answers stand at other instructions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.columns import MESSAGES
from core.errors import UserError
from core.store import Result, Store, digest
from recipes import schema
from recipes.blocks.added_arms import control_arms, negative_controls, random_arms
from recipes.stages import graph
from recipes.stages.sets.shuffled import moved
from recipes.stages.walk import Arms
from synth.filters.arm import ArmConfig
from tests import small_recipe
from tests.scripted_server import ScriptedServer


def rows(count: int, turns: int = 1) -> pl.DataFrame:
    conversations = []
    for number in range(count):
        messages = []
        for turn in range(turns if number % 2 else 1):
            messages.append({"role": "user", "content": f"question {number} {turn}"})
            messages.append({"role": "assistant", "content": f"answer {number} {turn}"})
        conversations.append({"id": f"row-{number}", "messages": messages})
    return pl.DataFrame(conversations, schema={"id": pl.String, "messages": MESSAGES})


def said(frame: pl.DataFrame, role: str) -> list[list[str]]:
    return [
        [turn["content"] for turn in messages if turn["role"] == role]
        for messages in frame["messages"].to_list()
    ]


@pytest.mark.parametrize(("share", "count"), [(0.1, 4), (0.3, 12), (1.0, 40)])
def test_a_share_of_the_answers_is_moved_and_none_is_lost(share: float, count: int) -> None:
    before = rows(40)
    after, origin = moved(before, share)
    assert int(origin["moved"].sum()) == count
    assert after["id"].to_list() == before["id"].to_list()
    assert said(after, "user") == said(before, "user")
    assert sorted(said(after, "assistant")) == sorted(said(before, "assistant"))
    other = [
        a != b for a, b in zip(said(after, "assistant"), said(before, "assistant"), strict=True)
    ]
    assert other == origin["moved"].to_list()


def test_a_row_says_whose_answer_it_has() -> None:
    before = rows(30)
    after, origin = moved(before, 0.5)
    own = dict(zip(before["id"], said(before, "assistant"), strict=True))
    assert said(after, "assistant") == [own[of] for of in origin["answer_of"]]


def test_the_rows_of_a_smaller_share_are_among_those_of_a_larger_one() -> None:
    few, many = (set(moved(rows(50), share)[1].filter("moved")["id"]) for share in (0.1, 0.3))
    assert len(few) == 5 and few < many


def test_which_answers_are_moved_follows_from_the_ids_alone() -> None:
    before = rows(20)
    turned = before.reverse()
    assert moved(turned, 0.3)[0].reverse().equals(moved(before, 0.3)[0])


def test_second_answers_go_to_second_questions() -> None:
    before = rows(20, turns=2)
    after, _ = moved(before, 1.0)
    for messages, was in zip(said(after, "assistant"), said(before, "assistant"), strict=True):
        assert [text[-1] for text in messages] == [text[-1] for text in was]
        assert all(text not in was for text in messages)


def test_answers_that_read_the_same_are_not_counted_as_moved() -> None:
    before = rows(10).with_columns(
        messages=pl.Series(
            [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]] * 10,
            dtype=MESSAGES,
        )
    )
    assert not moved(before, 1.0)[1]["moved"].any()


def test_one_row_has_nobody_to_take_an_answer_from() -> None:
    with pytest.raises(UserError, match="an arm of 1 rows has no answers to move"):
        moved(rows(1), 1.0)


def arms_of(**given: dict[str, Any]) -> dict[str, ArmConfig]:
    sized = {name: {"budget": {"rows": 10}} | said for name, said in given.items()}
    return {name: ArmConfig.model_validate(said) for name, said in sized.items()}


def test_an_arm_whose_strategy_filters_is_not_random_whatever_it_chooses_by() -> None:
    filtered = {"strategy": "magpie-pro", "choose": "hash_order"}
    arms = arms_of(pro=filtered, ten={"choose": "longest"})
    assert list(random_arms(arms)) == ["random"]
    controls = control_arms(arms | random_arms(arms), None)
    assert {arm.of for arm in controls.values() if arm.of} == {"random"}


def test_a_second_sample_of_filtered_rows_is_no_control_of_a_random_arm() -> None:
    arms = arms_of(
        random={"choose": "hash_order"},
        named={"strategy": "random", "choose": "hash_order(3)"},
        air={"strategy": "magpie-air", "choose": "hash_order(2)"},
        cut={"choose": "hash_order(2)", "allow_cut": False},
    )
    assert negative_controls(arms) == {"named": "random"}


# -- in a recipe -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory, llama: Path, server: ScriptedServer) -> Path:
    """A small recipe with controls and two seeds, run to its selections."""
    folder = tmp_path_factory.mktemp("controlled")
    path = small_recipe.recipe(folder, llama, server.url, train=True, train__seeds=[0, 1])
    graph.run(schema.load(path), "select")
    graph.run(schema.load(path, ["controls=true"]), "select")
    return path


def selection(path: Path, name: str) -> pl.DataFrame:
    loaded = schema.load(path, ["controls=true"])
    return pl.read_parquet(graph.plan(loaded).results[f"select/{name}"].path / "selection.parquet")


def test_controls_are_made_of_the_random_arm(selected: Path) -> None:
    arms = Arms.of(schema.load(selected, ["controls=true"]).recipe)
    shown = {name: (each.of, each.shuffled) for name, each in arms.controls.items()}
    assert shown == {
        "random-again": ("random", None),
        "shuffled-10": ("random", 0.1),
        "shuffled-30": ("random", 0.3),
        "shuffled-100": ("random", 1.0),
    }
    assert arms.baseline == "untuned", "a control is nobody's baseline"


def test_controls_change_no_other_arm(selected: Path) -> None:
    before = {s.name: s for s in graph.plan(schema.load(selected)).steps}
    after = {s.name: s for s in graph.plan(schema.load(selected, ["controls=true"])).steps}
    assert {name: after[name].path for name in before if name.startswith("select/")} == {
        name: step.path for name, step in before.items() if name.startswith("select/")
    }
    added = {name for name in after if name.startswith("select/")} - set(before)
    assert added == {
        f"select/{name}/{seed}"
        for name in ("random-again", "shuffled-10", "shuffled-30", "shuffled-100")
        for seed in (0, 1)
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shuffled_arm_has_the_rows_of_its_seeds_random_sample(selected: Path, seed: int) -> None:
    first, shuffled = (
        selection(selected, f"random/{seed}"),
        selection(selected, f"shuffled-100/{seed}"),
    )
    assert shuffled["id"].to_list() == first["id"].to_list()
    assert said(shuffled, "user") == said(first, "user")
    assert said(shuffled, "assistant") != said(first, "assistant")


def test_the_second_sample_is_another_one_for_each_seed(selected: Path) -> None:
    drawn = [
        set(selection(selected, f"{name}/{seed}")["id"])
        for name in ("random", "random-again")
        for seed in (0, 1)
    ]
    assert len({frozenset(ids) for ids in drawn}) == 4 and {len(ids) for ids in drawn} == {10}


def test_an_arm_that_is_added_runs_alone(selected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All results of the recipe count as made, and then a plan with further arms is looked at."""
    known: set[tuple[str, str]] = set()

    def remember(self: Store, stage: str, key: str, *_: object) -> Result:
        known.add((stage, key))
        return Result(self.folder(stage, key), {"digest": digest([stage, key]), "counts": {}})

    def recall(self: Store, stage: str, key: str, *_: object) -> Result | None:
        return remember(self, stage, key) if (stage, key) in known else None

    monkeypatch.setattr(Store, "find", remember)
    before = {s.name for s in graph.plan(schema.load(selected)).steps}
    monkeypatch.setattr(Store, "find", recall)
    steps = graph.plan(schema.load(selected, ["controls=true"])).steps
    again = {s.name for s in steps if s.name in before and s.state != "reuse"}
    assert again == {"overlap", "compare", "report"}, "what is about all arms together"
    trained = {s.name for s in steps if s.name.startswith("train/") and s.state != "reuse"}
    added = ("random-again", "shuffled-10", "shuffled-30", "shuffled-100")
    assert trained == {f"train/{arm}/{seed}" for arm in added for seed in (0, 1)}


def recipe(path: Path, llama: Path, **changes: Any) -> schema.Recipe:
    return schema.load(small_recipe.recipe(path, llama, "http://127.0.0.1:1", **changes)).recipe


def test_controls_without_a_random_arm_are_refused(tmp_path: Path, llama: Path) -> None:
    arms = {"good": {"choose": "longest", "budget": {"rows": 5}}}
    with pytest.raises(UserError, match="controls: they are made of a random arm"):
        recipe(tmp_path, llama, arms=arms, random_arm=False, controls=True)


def test_the_baseline_is_the_random_arm_that_controls_are_made_of(
    tmp_path: Path, llama: Path
) -> None:
    arms = {f"random-{n}": {"choose": "hash_order", "budget": {"rows": n}} for n in (5, 9)}
    made = Arms.of(recipe(tmp_path, llama, arms=arms, baseline="random-9", controls=True))
    assert {each.of for each in made.controls.values()} == {"random-9"}


def test_an_arm_that_takes_every_row_has_no_second_sample(tmp_path: Path, llama: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "a", "response": "b"}\n')
    arms = {"all": {"data": str(data)}}
    made = Arms.of(recipe(tmp_path, llama, arms=arms, controls=True, synth__heldout=0))
    assert sorted(made.controls) == ["shuffled-10", "shuffled-100", "shuffled-30"]


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"of": "randm", "shuffled": 0.5}, "no other arm is called 'randm'"),
        ({"of": "random"}, "named by two keys"),
        ({"of": "random", "shuffled": 0.5, "budget": {"rows": 3}}, "`of` and `shuffled` alone"),
        ({"of": "random", "shuffled": 1.5}, "needs 1 or less"),
        (
            {"mix": {"wrong": 0.5, "random": 0.5}, "budget": {"rows": 4}},
            "control with wrong answers",
        ),
    ],
)
def test_a_shuffled_arm_that_makes_no_sense_is_a_sentence(
    tmp_path: Path, llama: Path, arm: dict[str, Any], says: str
) -> None:
    arms = {
        "random": {"choose": "hash_order", "budget": {"rows": 10}},
        "wrong": {"of": "random", "shuffled": 0.5},
        "other": arm,
    }
    with pytest.raises(UserError, match=says):
        recipe(tmp_path, llama, arms=arms)
