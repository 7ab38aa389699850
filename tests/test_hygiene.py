"""Hygiene columns in a pool and in a recipe: measured when a filter asks, keyed by what determines
them, and the raw text kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import Model
from core.servers import Servers
from core.tracking import Log
from recipes import schema
from recipes.stages import graph
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve
from synth.pool.measure import Task, measure
from synth.pool.pool import Pool
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_ratings import MT, WILD, lines

TEXTS = [
    "Task: Write a poem about the sea and the wind.",
    "What is 2 + 2?\nAnswer: 4",
    "Answer: 42",
    "Mail jane@uni-bonn.de about rain.",
    "Write a poem about the sea and the wind!",
    "Tell me how one counts from one to eight: one two three four five six seven eight",
]


def pool(root: Path, eval_prompts: Path | None = None, **changes: Any) -> Pool:
    config = SynthConfig.model_validate({"teacher": {"model": "m"}, "rows": len(TEXTS), **changes})
    made = Pool(config, Context(root, lambda name, revision: Model(name, name, "r1"), eval_prompts))
    if made.instruction.read().is_empty():
        made.instruction.append(
            made.planned.with_columns(
                pl.Series("instruction", TEXTS), pl.lit("stop").alias("finish_reason")
            )
        )
    return made


def measured(made: Pool, where: str, only: set[str]) -> pl.DataFrame:
    rule = resolve(
        "arm",
        ArmConfig.model_validate(
            {
                "where": where,
                "choose": "hash_order",
                "budget": {"rows": len(TEXTS)},
                "allow_short": True,
            }
        ),
    )
    with Servers(Log(), made.root / "logs") as servers:
        measure(made, [(rule, (0,))], servers, Log(), task=Task(only=only))
    return made.frame(["instruction", "raw_instruction", "sanitized_instruction"]).sort("index")


def test_columns_that_a_filter_names_are_measured(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps(
            {"id": "count", "prompt": "one two three four five six seven eight", "benchmark": "own"}
        )
    )
    where = "pii = '' AND NOT minhash_duplicate AND eval_overlap < 0.5 AND NOT role_leak"
    frame = measured(pool(tmp_path, prompts), where, {"pii", "minhash", "overlap"})
    assert frame["pii"].to_list() == ["", "", "", "email", "", ""]
    first = frame["id"][0]
    assert frame["minhash_group"].to_list() == [
        first,
        *frame["id"].to_list()[1:4],
        first,
        frame["id"][5],
    ]
    assert frame["minhash_duplicate"].to_list() == [False, False, False, False, True, False]
    assert frame["eval_overlap"].to_list() == [0.0, 0.0, 0.0, None, 0.0, 1.0], (
        "a row that a cheaper column refused is not compared"
    )
    assert frame["eval_overlap_prompt"][5] == "count"


def test_near_duplicates_are_found_over_slices_of_texts_that_are_never_all_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synth.duplicates import minhash
    from synth.pool import pool as pools

    monkeypatch.setattr(pools, "SLICE", 2)
    held: list[int] = []
    sketch = minhash.signatures

    def watched(count: int, texts: Any, ngram: int, permutations: int) -> Any:
        return sketch(
            count, (held.append(len(part)) or part for part in texts), ngram, permutations
        )

    monkeypatch.setattr(minhash, "signatures", watched)
    frame = measured(pool(tmp_path), "NOT minhash_duplicate", {"minhash"})
    assert held == [2, 2, 2] and frame["minhash_duplicate"].to_list() == [
        False,
        False,
        False,
        False,
        True,
        False,
    ]


def test_sanitized_instructions_take_the_place_of_the_raw_ones_which_are_kept(
    tmp_path: Path,
) -> None:
    made = pool(tmp_path, sanitize="llama-3")
    frame = measured(made, "sanitizer_rule <> ''", {"sanitized"})
    assert frame["instruction"].to_list() == [
        TEXTS[0].removeprefix("Task: "),
        "What is 2 + 2?",
        *TEXTS[3:],
    ]
    assert frame["raw_instruction"].to_list() == [t for t in TEXTS if t != "Answer: 42"]
    assert frame["sanitizer_rule"].to_list() == ["prefix", "answer", "", "", ""]
    assert frame["sanitized_instruction"].to_list() == frame["instruction"].to_list()


def test_an_instruction_of_which_nothing_is_left_has_failed_and_is_drawn_again(
    tmp_path: Path,
) -> None:
    made = pool(tmp_path, sanitize="gemma")
    failed = made.drawn().filter(pl.col("status") == "failed")
    assert failed["reason"].to_list() == ["nothing is left of the instruction after sanitizing"]
    assert made.missing_instructions()["index"].to_list() == [2]
    assert pool(tmp_path).missing_instructions().is_empty(), (
        "the raw instruction is there for a recipe that does not sanitize"
    )


def test_rules_of_the_sanitizer_change_no_instruction_of_a_recipe_without_it(
    tmp_path: Path,
) -> None:
    frame = pool(tmp_path).frame(["instruction", "raw_instruction"]).sort("index")
    assert frame["instruction"].to_list() == frame["raw_instruction"].to_list() == TEXTS


def test_overlap_is_kept_by_the_content_of_the_prompts(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for file, prompt in ((one, "What is rain?"), (two, "What is snow?")):
        file.write_text(json.dumps({"id": "p", "prompt": prompt}))
    keys = [pool(tmp_path, file).cells["overlap"] for file in (one, two)]
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(one.read_bytes())
    assert keys[0] != keys[1] and pool(tmp_path, moved).cells["overlap"] == keys[0]
    own = pool(tmp_path, one, tags={"decontaminate": {"file": str(two), "ngram": 5}}).cells[
        "overlap"
    ]
    assert own["prompts"] == [*keys[0]["prompts"], *keys[1]["prompts"]] and own["ngram"] == 5


def test_a_file_of_ones_own_serves_where_the_recipe_has_no_evaluation(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"prompt": "one two three four five six seven eight"}))
    frame = measured(
        pool(tmp_path, tags={"decontaminate": {"file": str(own)}}),
        "eval_overlap > 0.5",
        {"overlap"},
    )
    assert (
        frame["eval_overlap"].to_list() == [0.0] * 5 + [1.0]
        and frame["eval_overlap_prompt"][5] == "1"
    )


@pytest.mark.parametrize(
    ("where", "missing"),
    [
        ("eval_overlap < 0.5", "no `eval`"),
        ("eval_distance > 0.1", "no `eval`"),
        ("sanitizer_rule = ''", "synth.sanitize"),
    ],
)
def test_what_the_recipe_gives_no_way_to_measure_is_one_sentence(
    tmp_path: Path, where: str, missing: str
) -> None:
    with pytest.raises(UserError, match=missing):
        measured(pool(tmp_path), where, {"overlap", "eval_distance", "sanitized"})


def test_a_file_of_prompts_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none.jsonl does not exist; check `synth.tags.decontaminate.file`"
    ):
        pool(tmp_path, tags={"decontaminate": {"file": str(tmp_path / "none.jsonl")}})


def test_distance_to_the_evaluation_prompts_is_that_of_the_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from synth.duplicates import embeddings

    axis = {"sea": 0, "2": 1}

    def unit(root: Path, ids: list[str], texts: Any, model: Model, **_: Any) -> Any:
        return np.eye(3, dtype=np.float32)[
            [next((at for word, at in axis.items() if word in text), 2) for text in texts]
        ]

    monkeypatch.setattr(embeddings, "vectors", unit)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "p", "prompt": "the sea"}))
    frame = measured(pool(tmp_path, prompts), "eval_distance > 0.1", {"eval_distance"})
    assert frame["eval_distance"].to_list() == [0.0, 2.0, 2.0, 2.0, 0.0, 2.0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


def written(store: Path) -> list[dict[str, str]]:
    """What the graph handed over: the lines of the one file of evaluation prompts."""
    (file,) = (store / "eval-prompts").iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_recipe_hands_its_evaluation_prompts_over_whole_and_rows_that_repeat_them_are_refused(
    tmp_path: Path, llama: Path
) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        clean = {"where": "eval_overlap < 0.5", "choose": "hash_order", "budget": {"rows": 10}}
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            train=True,
            arms__good=clean,
            arms__same=clean,
            eval__limit=2,
        )
        outcome = graph.run(schema.load(path), "select")
        prompts = written(tmp_path / "store")
        assert len(prompts) == 48 and set(prompts[0]) == {"id", "prompt", "benchmark"}, (
            "all of magpie-48, though the evaluation takes two"
        )
        assert len({line["prompt"] for line in prompts}) == 48
        frame = pl.read_parquet(
            tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet"
        )
        assert (
            frame["eval_overlap"].drop_nulls().to_list()
            == [0.0] * len(frame["eval_overlap"].drop_nulls())
            != []
        )

        repeated = frame.filter(pl.col("eval_overlap").is_not_null())["instruction"][0]
        own = tmp_path / "own.jsonl"
        own.write_text(json.dumps({"id": "mine", "prompt": repeated}) + "\n")
        chosen = outcome.results["select/good/0"].path / "selection.parquet"
        assert repeated in str(pl.read_parquet(chosen)["messages"].to_list())
        again = (
            graph.run(schema.load(path, [f"synth.tags.decontaminate.file={own}"]), "select")
            .results["select/good/0"]
            .path
            / "selection.parquet"
        )
        assert repeated not in str(pl.read_parquet(again)["messages"].to_list())


def test_histories_and_second_turns_are_evaluation_prompts_too(tmp_path: Path, llama: Path) -> None:
    from recipes.stages.eval_prompts import eval_prompts
    from recipes.stages.walk import Arms

    settings = {
        "judge": {"model": str(llama)},
        "wildbench": {"prompts": str(lines(tmp_path / "wild.jsonl", WILD))},
        "mtbench": {"prompts": str(lines(tmp_path / "mt.jsonl", MT))},
    }
    arms = {
        "clean": {"where": "eval_distance > 0.1", "choose": "hash_order", "budget": {"rows": 1}}
    }
    loaded = schema.load(
        small_recipe.recipe(
            tmp_path, llama, "http://localhost:1", train=True, arms=arms, eval=settings
        )
    )
    recipe, root = loaded.recipe, tmp_path / "store"
    file = eval_prompts(recipe.eval, Arms.of(recipe), root, planning=False)
    assert file is not None and written(root) == [
        json.loads(line) for line in file.read_text().splitlines()
    ]
    found = {(line["benchmark"], line["prompt"]) for line in written(root)}
    wild = {
        ("wildbench", m["content"])
        for task in WILD
        for m in task.get("conversation_input", [])
        if m["role"] == "user"
    }
    assert wild and wild <= found
    assert {("mtbench", turn) for question in MT for turn in question["turns"]} <= found


def test_a_plan_and_a_recipe_that_asks_for_no_overlap_write_no_prompts(
    tmp_path: Path, llama: Path
) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        path = small_recipe.recipe(tmp_path, llama, server.url, train=True)
        graph.run(schema.load(path), "instructions")
        graph.plan(schema.load(path, ["arms.good.where=eval_overlap < 0.5"]))
        assert not (tmp_path / "store" / "eval-prompts").exists()
