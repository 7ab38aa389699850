"""The shipped recipes at toy scale: only models, rows and prompts are overridden, everything else
runs as shipped. Bases are tiny, with the real tokenizer of their family where there is one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.files import read_json
from recipes import schema
from recipes.stages import graph
from recipes.stages.walk import Arms
from tests import small_recipe
from tests.archives import unpack
from tests.scripted_server import ScriptedServer
from tests.tiny import WORDS
from train.chat import read
from train.settings.arguments import check

PAPER = "llama3-8b-magpie-pro-300k"
FILTERS = {"magpie-pro", *(f"magpie-pro-{number}" for number in range(2, 7))}
COMPARED = FILTERS | {"random", "random-again", "shuffled-10", "shuffled-30", "shuffled-100"}
TRAINED = {
    PAPER: {"magpie-pro", "random"},
    "llama3-8b-magpie-air-300k": {"magpie-air", "random"},
    "llama3-8b-magpie-air-100k": {"air-100k"},
    "llama3-8b-magpie-pro-mt-300k": {"magpie-pro-2", "magpie-pro-mt", "random"},
    "llama3-8b-magpie-pro-dpo": {"magpie-pro", "magpie-pro-dpo", "random"},
    f"{PAPER}-lora": {"magpie-pro", "random"},
    f"{PAPER}-qlora": {"magpie-pro", "random"},
    f"{PAPER}-one-gpu": {"magpie-pro", "random"},
    f"{PAPER}-two-nodes": {"magpie-pro", "random"},
    "qwen2.5-7b-magpie-pro-300k": {"magpie-pro", "random"},
    "llama3-8b-filter-comparison": COMPARED,
    "llama3-8b-filter-comparison-100k": COMPARED,
}
"""Recipe -> the arms that it trains."""
ROWS = 12
ON_THIS_MACHINE = {
    f"{PAPER}-qlora": "bitsandbytes is not here: the base is not in 4 bits",
    f"{PAPER}-two-nodes": "one machine",
    "llama3-8b-filter-comparison": "33 trainings of which the paper's recipe has every kind",
    "llama3-8b-filter-comparison-100k": "as many",
}
"""What a toy of a recipe cannot have, by recipe."""
CONTROLS = {"random-again", "shuffled-10", "shuffled-30", "shuffled-100"}
ON_TWO_CORES = {
    "demo": {"magpie", "random", "untuned"},
    "smollm2-filter-comparison": {"longest", "ifd-top", "random", *CONTROLS},
    "gemma3-270m-filter-comparison": {"longest", "random", "shuffled-100"},
}
"""Recipes that run as shipped on a small machine, with models that pip delivers, and their arms."""


def test_every_training_recipe_is_tried_here() -> None:
    shipped = {path.stem for path in schema.shipped()}
    assert shipped == {*TRAINED, *ON_TWO_CORES}


@pytest.mark.parametrize("name", ON_TWO_CORES)
def test_a_recipe_for_two_cores_has_its_arms_and_asks_no_key(name: str) -> None:
    recipe = schema.load(name).recipe
    assert set(schema.with_random(recipe)) == ON_TWO_CORES[name]
    assert recipe.train is not None and recipe.train.base.startswith("embedded/")
    judge = recipe.eval and recipe.eval.judge
    assert judge is None or "urls" not in judge.server


def published(path: Path, rows: int = 80) -> Path:
    """A file in the 23-column form of Magpie-Pro-1M and Magpie-Air-3M (input/output, uuid), with
    tags."""
    draw = random.Random(1)

    def text(n: int) -> str:
        return " ".join(draw.choices(WORDS, k=n))

    lines = []
    for i in range(rows):
        row = {
            "uuid": f"row-{i:04d}",
            "model": "meta-llama/Meta-Llama-3-70B-Instruct",
            "gen_input_config": {"temperature": 1.0, "top_p": 1.0},
            "input": text(6),
            "output": text(draw.randint(4, 20)),
            "task_category": "Math",
            "difficulty": draw.choice(["easy", "medium", "hard"]),
            "input_quality": draw.choice(["poor", "average", "good", "good", "excellent"]),
            "instruct_reward": draw.uniform(-11, 0),
            "reward_model": "x",
            "base_output": "?",
            "base_reward": -9.0,
            "reward_difference": draw.uniform(-1, 4),
            "min_neighbor_distance": draw.choice([0.0, 0.2, 0.3, 0.4]),
            "repeat_count": 0,
            "min_similar_uuid": None,
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def two_turns(path: Path, rows: int = 20) -> Path:
    """A file as Magpie-Pro-MT-300K has its conversations."""
    draw = random.Random(2)
    told = []
    for i in range(rows):
        turns = [
            {"from": speaker, "value": " ".join(draw.choices(WORDS, k=6))}
            for speaker in ("human", "gpt", "human", "gpt")
        ]
        told.append(json.dumps({"uuid": f"mt-{i}", "conversations": turns}))
    path.write_text("\n".join(told) + "\n")
    return path


def preferences(path: Path, rows: int = 140) -> Path:
    """A file as Magpie-Pro-DPO-100K has its pairs."""
    draw = random.Random(3)
    told = []
    for i in range(rows):
        asked = {"role": "user", "content": " ".join(draw.choices(WORDS, k=6))}
        answers = [
            {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=n))} for n in (5, 7)
        ]
        pair = {"chosen": [asked, answers[0]], "rejected": [asked, answers[1]]}
        told.append(json.dumps({"uuid": f"p-{i}", "instruction": asked["content"], **pair}))
    path.write_text("\n".join(told) + "\n")
    return path


def base(folder: Path, family: str, tokenizers: Path) -> Path:
    """A tiny base with the real tokenizer of its family, and the family's chat template so that it
    may also stand for the chat model."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    unpack(tokenizers / f"{family}.tar.xz", folder)
    made = folder / family
    words = AutoTokenizer.from_pretrained(made)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=words.convert_tokens_to_ids(
            "<|end_of_text|>" if family == "llama3" else "<|endoftext|>"
        ),
    )
    LlamaForCausalLM(config).save_pretrained(made)
    name = "llama3" if family == "llama3" else "chatml"
    (made / "chat_template.jinja").write_text(read(name, training=False))
    return made


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, Path]:
    """The bases, by what a recipe's name begins with."""
    folder = tmp_path_factory.mktemp("bases")
    made = partial(base, folder, tokenizers=shared / "tokenizers")
    return {"llama3": made("llama3"), "qwen2.5": made("qwen3")}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def toy(name: str, bases: dict[str, Path], url: str, folder: Path) -> schema.Loaded:
    """A shipped recipe with models, rows and prompts of this machine."""
    llama = str(bases[name.partition("-")[0]])
    urls = f"{{urls: [{url}]}}"
    models = [
        f"synth.teacher={{model: {llama}, server: {urls}}}",
        f"train.base={llama}",
        f"arms.instruct.model={llama}",
        "train.model_init={}",  # kernels and number formats of a GPU
        f"eval.judge={{model: {llama}, api: completions, server: {urls}}}",
        f"eval.answers.server={urls}",
        f"eval.arena.answers.server={urls}",
    ]
    recipe = schema.load(name).recipe
    rows = [f"synth.rows.import={published(folder / 'rows.jsonl')}", "synth.heldout=0.05"]
    for arm, config in schema.with_random(recipe).items():
        if arm in recipe.arms and config.kind in ("pool", "data"):
            rows.append(f"arms.{arm}.budget.rows={ROWS}")
        if config.kind == "data":
            rows.append(f"arms.{arm}.data={two_turns(folder / 'turns.jsonl')}")
        if config.kind == "dpo":
            rows.append(f"arms.{arm}.data={preferences(folder / 'pairs.jsonl')}")
            models.append("dpo.model_init={}")
    prompts = [
        "eval.prompts=magpie-48",
        "eval.limit=3",
        "eval.alpaca.baseline=null",
        "eval.alpaca.codes=['1', '2']",
        "eval.arena.prompts=null",
        "eval.arena.baseline=null",
        "eval.tasks=null",
        "eval.heldout={foreign: null}",
    ]
    place = [f"store={folder / 'store'}", "track=none"]
    return schema.load(name, [*models, *rows, *prompts, *place])


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_chooses_rows_and_plans_its_trainings(
    name: str, bases: dict[str, Path], server: ScriptedServer, tmp_path: Path
) -> None:
    loaded = toy(name, bases, server.url, tmp_path)
    made = graph.run(loaded, "preferences").results
    seeds = Arms.of(loaded.recipe).seeds
    for arm in Arms.of(loaded.recipe).with_rows:
        chosen = made.get(f"select/{arm}") or made[f"select/{arm}/{seeds[0]}"]
        assert len(pl.read_parquet(chosen.path / "selection.parquet")) == ROWS
    steps = {step.name for step in graph.plan(loaded).steps}
    trainings = {step for step in steps if step.startswith("train/")}
    assert trainings == {f"train/{arm}/{seed}" for arm in TRAINED[name] for seed in seeds}
    assert {f"score/{step.removeprefix('train/')}" for step in trainings} < steps


@pytest.mark.parametrize("name", TRAINED)
def test_trl_and_deepspeed_take_a_recipe_s_settings(
    name: str, bases: dict[str, Path], server: ScriptedServer, tmp_path: Path
) -> None:
    recipe = toy(name, bases, server.url, tmp_path).recipe
    assert recipe.train is not None
    check(recipe.train)
    if recipe.dpo is not None:
        check(recipe.dpo)


def test_the_paper_s_hyperparameters_are_those_of_its_table_8() -> None:
    train = schema.load(PAPER).recipe.train
    assert train is not None and train.tokens_per_step == 32 * 8192 and train.lora is None
    said = train.trainer
    assert (said["learning_rate"], said["num_train_epochs"], said["warmup_steps"]) == (2e-5, 2, 100)
    assert (said["max_length"], said["lr_scheduler_type"]) == (8192, "cosine")


def test_the_paper_s_dpo_is_that_of_its_table_9() -> None:
    dpo = schema.load("llama3-8b-magpie-pro-dpo").recipe.dpo
    assert dpo is not None and dpo.pairs_per_step == 128
    said: dict[str, Any] = dpo.trainer
    assert (said["learning_rate"], said["num_train_epochs"], said["warmup_steps"]) == (5e-7, 1, 0.1)


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ON_THIS_MACHINE])
def test_a_recipe_runs_to_its_comparison(
    name: str, bases: dict[str, Path], server: ScriptedServer, tmp_path: Path
) -> None:
    loaded = toy(name, bases, server.url, tmp_path)
    outcome = graph.run(loaded)
    seeds = Arms.of(loaded.recipe).seeds
    trained = {run for run in outcome.results if run.startswith("train/")}
    assert trained == {f"train/{arm}/{seed}" for arm in TRAINED[name] for seed in seeds}
    comparison = read_json(outcome.results["compare"].path / "comparison.json")
    assert TRAINED[name] <= {arm["name"] for arm in comparison["arms"]}
    for run in trained:
        result = outcome.results[run]
        said = read_json(result.path / "train.json")["config"]
        block = loaded.recipe.dpo if said.get("method") == "dpo" else loaded.recipe.train
        assert block is not None and said["trainer"] == dict(block.trainer)
        assert result.manifest["counts"]["steps"] >= 1
        assert (result.path / "checkpoint" / "adapter").is_dir() == (block.lora is not None)
