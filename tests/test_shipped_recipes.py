"""The paper's recipe, end to end at toy scale: only models, rows and prompts are overridden,
everything else runs as shipped."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.tiny import WORDS


def published(path: Path, rows: int) -> Path:
    """A file in the 23-column form of Magpie-Pro-1M (input/output, uuid), with tags."""
    draw = random.Random(1)

    def text(n: int) -> str:
        return " ".join(draw.choices(WORDS, k=n))

    with path.open("w") as out:
        for i in range(rows):
            out.write(
                json.dumps(
                    {
                        "uuid": f"row-{i:04d}",
                        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
                        "gen_input_config": {"temperature": 1.0, "top_p": 1.0},
                        "input": text(6),
                        "output": text(draw.randint(4, 20)),
                        "task_category": "Math",
                        "difficulty": draw.choice(["easy", "hard"]),
                        "input_quality": draw.choice(["poor", "average", "good"]),
                        "instruct_reward": draw.uniform(-15, 0),
                        "reward_model": "x",
                        "min_neighbor_distance": draw.choice([0.0, 0.2, 0.4]),
                        "repeat_count": 0,
                        "min_similar_uuid": None,
                    }
                )
                + "\n"
            )
    return path


@pytest.mark.stack
@pytest.mark.slow
def test_the_llama3_recipe_runs_to_its_comparison(tmp_path: Path) -> None:
    llama = small_recipe.model(tmp_path / "llama", family="llama3")
    with ScriptedServer(small_recipe.answer) as server:
        urls = f"{{urls: [{server.url}]}}"
        models = [
            f"synth.teacher={{model: {llama}, server: {urls}}}",
            f"train.base={llama}",
            f"arms.instruct.model={llama}",
            "train.model_init={}",
            f"eval.judge={{model: {llama}, api: completions, server: {urls}}}",
            f"eval.answers.server={urls}",
            f"eval.arena.answers.server={urls}",
        ]
        rows = [
            f"synth.rows.import={published(tmp_path / 'rows.jsonl', 80)}",
            "synth.heldout=0.1",
            "arms.magpie-pro.budget.rows=12",
            "arms.random.budget.rows=12",
        ]
        prompts = [
            "eval.prompts=magpie-48",
            "eval.limit=3",
            "eval.alpaca.baseline=null",
            "eval.alpaca.codes=['1', '2']",
            "eval.arena.prompts=null",
            "eval.arena.baseline=null",
            "eval.tasks=null",
        ]
        place = [f"store={tmp_path / 'store'}", "track=none"]
        loaded = schema.load("llama3-8b-magpie-pro-300k", [*models, *rows, *prompts, *place])
        outcome = graph.run(loaded)
    trained = [name for name in outcome.results if name.startswith("train/")]
    assert len(trained) == 6, "two arms, three seeds"
    comparison = json.loads((outcome.results["compare"].path / "comparison.json").read_text())
    assert {a["name"]: len(a["seeds"]) for a in comparison["arms"]}["magpie-pro"] == 3
    settings = json.loads((outcome.results[trained[0]].path / "train.json").read_text())["config"]
    assert (
        settings["tokens_per_step"] == 262_144
        and settings["zero_stage"] == 3
        and settings["trainer"]["learning_rate"] == 2e-5
    )
