"""RDS+ and RIP: the vectors and figures by plain loops, what is refused, and arms of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from core.models import resolve
from recipes import schema
from recipes.exchange.likeness import Comparer, Models
from recipes.stages import graph
from recipes.stages.tokens import student
from synth.chat.encoding import pair
from synth.filters.choosing.near_queries import in_turns
from synth.filters.orders import by_hash
from synth.tags.scores.hidden_states import compared
from synth.tags.scores.queries import read_queries, refuse_prompts
from synth.tags.scores.rip import figures
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_filter_verb import run
from tests.test_published import loaded, row23, saved
from tests.test_strategies import IDS, POOL, chosen, rule
from train.config import TrainConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("base") / "llama")


def plain_vector(base: Path, ids: list[int]) -> Any:
    """The definition, one row and one position at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    total = sum((t + 1) * out[t].double() for t in range(len(ids))) / sum(range(1, len(ids) + 1))
    return (total / total.norm()).numpy()


def test_a_conversation_is_the_position_weighted_mean_of_the_last_hidden_states(
    tmp_path: Path, base: Path
) -> None:
    trained = student(TrainConfig(base=str(base), chat_template_path="chatml"), resolve)
    talks = [pair("Name a river.", "The Elbe."), pair("Hi", "Hello, " * 60), pair("a", "b")]
    names = ["x", "y", "z"]
    rows, queries = compared(tmp_path, names, talks, talks[:1], trained, resolve)
    for row, talk in zip(rows, talks, strict=True):
        ids, _ = trained.encode([talk])[0]
        assert np.allclose(row, plain_vector(base, ids), atol=1e-5)
    assert np.array_equal(queries[0], rows[0])
    again, _ = compared(tmp_path, names[::-1], talks[::-1], talks[:1], trained, resolve)
    assert np.array_equal(again, rows[::-1])


def test_an_arm_of_a_recipe_takes_what_is_nearest_to_its_queries(
    tmp_path: Path, base: Path
) -> None:
    file = tmp_path / "queries.jsonl"
    asked = [{"instruction": "Tell me of rivers", "response": "Elbe"}, {"prompt": "Count to ten"}]
    file.write_text("\n".join(map(json.dumps, asked)))
    arms = {"near": {"strategy": "rds", "params": {"queries": str(file)}, "budget": {"rows": 7}}}
    with ScriptedServer(small_recipe.answer) as server:
        path = small_recipe.recipe(
            tmp_path,
            base,
            server.url,
            train=True,
            arms=arms,
            random_arm=False,
            eval=None,
            synth__rows=40,
            synth__heldout=0.0,
        )
        graph.run(schema.load(path, []), "select")
        folder = tmp_path / "store" / "recipes" / "small"
        made = pl.read_parquet(folder / "select" / "near" / "selection.parquet")["id"].to_list()
        steps = graph.plan(schema.load(path, [])).steps
    assert {s.state for s in steps if s.name == "select/near"} == {"reuse"}
    pool = pl.read_parquet(folder / "measure" / "pool.parquet")
    trained = student(TrainConfig(base=str(base), chat_template_path="chatml"), resolve)
    order = by_hash(pool["id"], "ties")
    rows = pool[order].select("instruction", "response").iter_rows()
    vectors = np.array([plain_vector(base, trained.encode([pair(*r)])[0][0]) for r in rows])
    targets = [plain_vector(base, trained.encode([q])[0][0]) for q in read_queries(file)]
    turns = np.concatenate(list(in_turns(vectors.astype("f4"), np.array(targets, "f4"), None)))
    assert made == pool["id"].gather(order[turns[:7]]).to_list()


@pytest.mark.parametrize(
    ("query", "prompt", "refused"),
    [
        ("What is the capital of France?", "what is the capital of FRANCE", True),
        ("Hi!", "hi", True),
        (
            "Please write a short story about a dragon who learns to code in Python today, thanks",
            "Write a short story about a dragon who learns to code in Python",
            True,
        ),
        (
            "a dragon who learns to code in Python",
            "Write a short story about a dragon who learns to code in Python, with three "
            "chapters, a map of the realm, and an epilogue in verse by the dragon's sister.",
            True,
        ),
        ("Write a short story about a knight", "Write a short story about a dragon", False),
        (
            "one two three four five six seven eight nine ten",
            "one two three four five six seven eight and so on to sixteen",
            True,
        ),
        (
            "one two three four five six seven eight, but then on to others: a b c d e f g h i",
            "one two three four five six seven eight and so on until we come to sixteen at last",
            False,
        ),
        ("Hi there, how are you", "hi", False),
    ],
)
def test_queries_that_are_evaluation_prompts_are_refused(
    tmp_path: Path, query: str, prompt: str, refused: bool
) -> None:
    file, prompts = tmp_path / "queries.jsonl", tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"instruction": "Something else entirely, of nobody's interest"}))
    with file.open("a") as handle:
        handle.write("\n" + json.dumps({"messages": [{"role": "user", "content": query}]}))
    prompts.write_text(json.dumps({"id": "p7", "prompt": prompt}))
    if not refused:
        refuse_prompts(file, [prompts], 8)
        return
    with pytest.raises(UserError) as error:
        refuse_prompts(file, [prompts], 8)
    assert "1 of 2 queries are prompts that the model will be evaluated on" in str(error.value)
    assert "the first in line 2 (prompt p7)" in str(error.value)


def test_a_recipe_refuses_such_queries_before_anything_is_bought(
    tmp_path: Path, base: Path
) -> None:
    file, prompts = tmp_path / "queries.jsonl", tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"instruction": "Name the longest river of Europe, please"}))
    prompts.write_text(json.dumps({"id": "a", "prompt": "name the longest river of europe please"}))
    arms = {"near": {"strategy": "rds", "params": {"queries": str(file)}, "budget": {"rows": 7}}}
    path = small_recipe.recipe(
        tmp_path,
        base,
        "http://127.0.0.1:9",
        train=True,
        arms=arms,
        eval=None,
        synth__tags={"decontaminate": {"file": str(prompts)}},
    )
    with pytest.raises(UserError, match="1 of 1 queries are prompts that the model will be"):
        graph.plan(schema.load(path, []))
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: arms.near: rds compares hidden states"):
        graph.plan(schema.load(path, ["train=null"]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no queries"),
        ('{"response": "x"}', "line 1: no query; write one object a line"),
        ('{"messages": [{"role": "user"}]}', "line 1: no query"),
        ("[1]", "line 1: no query"),
    ],
)
def test_a_file_without_queries_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        read_queries(tmp_path / "q.jsonl")
    assert says in str(error.value)


def test_any_data_set_is_filtered_by_queries(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    rows = [row23(n, input=f"question {n}", output=f"answer {n * n}") for n in range(12)]
    source = saved(tmp_path / "set.jsonl", rows)
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"instruction": "question 5", "response": "answer 25"})
    )
    given = {"params": [f"queries={tmp_path / 'q.jsonl'}"], "rows": 3}
    out = tmp_path / "out.jsonl"
    student_ = {"student": str(base), "chat_template_path": "chatml"}
    run(source, "rds", out=out, **given, **student_)
    assert loaded(out)[0] == rows[5] and len(loaded(out)) == 3
    with pytest.raises(UserError, match="rds needs --student MODEL"):
        run(source, "rds", out=out, **given)
    assert Comparer(source, pl.Series(["a"]), Models()).ids.to_list() == ["a"]


# -- rip -------------------------------------------------------------------------------------------


def test_the_figures_of_several_answers_are_those_of_the_worst_and_the_gap() -> None:
    scored = pl.DataFrame(
        {
            "id": ["a"] * 4 + ["b"] * 2 + ["c"] * 2,
            "number": [0, 1, 2, 3, 0, 1, 0, 1],
            "response": ["long", "worst one", "fine", "x", "one", "two", "cut", "also"],
            "instruct_reward": [1.0, -3.0, 2.5, None, 4.0, None, 0.5, 0.5],
            "tokens": [1] * 8,
            "prompt_tokens": [2] * 8,
        }
    )
    made = {row["id"]: row for row in figures(scored).to_dicts()}
    assert (made["a"]["worst_reward"], made["a"]["worst_length"], made["a"]["reward_gap"]) == (
        -3.0,
        9,
        5.5,
    )
    assert made["a"]["tokens"] == 4 and made["a"]["status"] == "ok"
    assert made["b"]["status"] == "failed" and made["b"]["worst_reward"] is None
    assert "fewer than two answers with a reward" in made["b"]["reason"]
    assert made["c"]["worst_length"] == 3 and made["c"]["reward_gap"] == 0


@pytest.mark.parametrize("bounds", [(0.5, 0.5, 0.5), (0.2, 0.9, 0.7), (0.0, 0.0, 1.0)])
def test_rip_keeps_what_lies_beyond_three_quantiles(bounds: tuple[float, float, float]) -> None:
    dice = np.random.default_rng(2)
    high, long, gap = bounds
    reward, length = dice.normal(size=len(IDS)), dice.integers(5, 900, len(IDS))
    apart = dice.exponential(size=len(IDS))
    frame = POOL.with_columns(
        worst_reward=reward, worst_length=pl.Series(length), reward_gap=pl.Series(apart)
    )
    params = dict(zip(("reward", "length", "gap"), bounds, strict=True))
    arm = rule(strategy="rip", params=params, budget={"rows": len(IDS)}, allow_short=True)
    made = chosen(arm, frame=frame)
    edges = np.quantile(reward, high), np.quantile(length, long), np.quantile(apart, gap)
    expected = [
        IDS[at]
        for at in by_hash(POOL["id"], "ties")
        if reward[at] >= edges[0] and length[at] >= edges[1] and apart[at] <= edges[2]
    ]
    assert made.ids == expected and (0 < len(expected) < len(IDS) or bounds == (0.0, 0.0, 1.0))


def test_rip_in_a_recipe_shares_its_answers_with_the_preference_pairs(tmp_path: Path) -> None:
    llama = small_recipe.model(tmp_path / "llama")
    arms = {"rip": {"strategy": "rip", "budget": {"rows": 3}, "allow_short": True}}
    with ScriptedServer(small_recipe.answer) as server:
        scorer = {"model": str(llama), "server": {"urls": [server.url]}}
        block = {"k": 3, "reward": scorer, "sampling": {"temperature": 0.8, "max_tokens": 40}}
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            arms=arms,
            random_arm=False,
            synth__rows=20,
            synth__heldout=0.0,
            synth__preferences=block,
        )
        graph.run(schema.load(path, []), "select")
        asked = len(server.requests)
        graph.run(schema.load(path, []), "preferences")
        assert len(server.requests) == asked, "pairs are made of what rip bought"
    folder = tmp_path / "store" / "recipes" / "small"
    pool = pl.read_parquet(folder / "measure" / "pool.parquet")
    taken = pl.read_parquet(folder / "select" / "rip" / "selection.parquet")["id"]
    known = pool.filter(pl.col("id").is_in(taken.implode()))
    assert len(taken) and known["worst_reward"].null_count() == 0
    assert (known["worst_reward"] >= pool["worst_reward"].median()).all()
