"""Arms that go on from another arm's checkpoint with preference pairs: what a recipe says of them,
the plan, and pairs that exist already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.errors import UserError
from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from train.config import DpoConfig
from train.settings.arguments import check

DPO = {
    "num_processes": 1,
    "max_truncated_share": 1.0,
    "trainer": {"max_length": 256, "beta": 0.1, "max_steps": 2},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


def recipe(folder: Path, llama: Path, arm: dict[str, Any], **more: Any) -> Path:
    """The small recipe, trained, with an arm `aligned`."""
    path = small_recipe.recipe(folder, llama, "http://127.0.0.1:9", train=True)
    given = yaml.safe_load(path.read_text())
    given["arms"]["aligned"] = arm
    given = {**given, "dpo": DPO, **more}
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def pairs(path: Path, rows: int = 6) -> Path:
    """A file of preference pairs as people publish them; the last row has one answer twice."""
    told = [
        {"prompt": f"why {n}", "chosen": "a river", "rejected": "red" if n < rows else "a river"}
        for n in range(1, rows + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


@pytest.mark.parametrize(
    ("arm", "more", "sentence"),
    [
        ({"dpo": "goood"}, {}, "arms.aligned.dpo: no other arm is called 'goood'; did you mean"),
        ({"dpo": "good"}, {}, "arms.aligned.dpo: there are no pairs for it"),
        ({"dpo": "untuned"}, {}, "arms.aligned.dpo: there are no pairs for it"),
        ({"dpo": "good", "data": "p.jsonl"}, {"dpo": None}, "has no block `dpo`"),
        ({"dpo": "good", "data": "p.jsonl", "where": "turns > 1"}, {}, "takes nothing but `data`"),
        ({"dpo": "good", "budget": {"rows": 3}}, {}, "takes nothing but `data`"),
        ({"choose": "all"}, {}, "dpo: no arm goes on"),
        ({"dpo": "good", "data": "p.jsonl"}, {"train": None, "eval": None}, "is not trained here"),
        ({"mix": {"good": 0.5, "also": 0.5}, "budget": {"rows": 3}}, {}, "is a DPO of another arm"),
    ],
)
def test_an_arm_that_cannot_go_on_is_refused(
    llama: Path, tmp_path: Path, arm: dict[str, Any], more: dict[str, Any], sentence: str
) -> None:
    path = recipe(tmp_path, llama, arm, **more)
    overrides = ["arms.also={dpo: good, data: p.jsonl}"] if "mix" in arm else []
    with pytest.raises(UserError, match=sentence):
        schema.load(path, overrides)


def test_an_arm_does_not_go_on_twice(llama: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, llama, {"dpo": "good", "data": "p.jsonl"})
    with pytest.raises(UserError, match="'aligned' went on by `dpo` itself"):
        schema.load(path, ["arms.again={dpo: aligned, data: p.jsonl}"])


def test_a_plan_trains_the_arm_before_it_goes_on_and_compares_both(
    llama: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, llama, {"dpo": "good", "data": str(pairs(tmp_path / "p.jsonl"))})
    steps = {step.name: step for step in graph.plan(schema.load(path)).steps}
    assert steps["preferences/aligned"].state == "run"
    assert "train/good/0" in steps["train/aligned/0"].why or "base" in steps["train/aligned/0"].why
    assert "score/aligned/0" in steps and "score/good/0" in steps
    assert "select/aligned" not in steps


def test_pairs_that_exist_are_read_once_in_our_form_and_failed_rows_counted(
    llama: Path, tmp_path: Path
) -> None:
    path = recipe(
        tmp_path,
        llama,
        {"dpo": "untuned", "data": str(pairs(tmp_path / "p.jsonl"))},
        train=None,
        eval=None,
        random_arm=False,
    )
    overrides = ["arms.good=null", "arms.random=null", "arms.same=null", "synth.heldout=0"]
    loaded = schema.load(path, overrides)
    made = graph.run(loaded, "preferences").results["preferences/aligned"]
    rows = pl.read_parquet(made.path / "train.parquet")
    assert rows.columns == ["id", "prompt", "chosen", "rejected"]
    assert rows["prompt"][0].to_list() == [{"role": "user", "content": "why 1"}]
    assert len(rows) == 5 and rows["id"].n_unique() == 5
    assert made.manifest["counts"]["failed"] == {"both answers are the same, or one is missing": 1}
    assert [step.state for step in graph.plan(loaded).steps] == ["reuse", *["run"] * 3]


def test_rated_answers_are_no_pairs(llama: Path, tmp_path: Path) -> None:
    rated = tmp_path / "rated.jsonl"
    rated.write_text(json.dumps({"prompt": "why", "completion": "red", "label": True}) + "\n")
    path = recipe(tmp_path, llama, {"dpo": "untuned", "data": str(rated)}, train=None, eval=None)
    overrides = ["arms.good=null", "arms.random=null", "arms.same=null", "random_arm=false"]
    with pytest.raises(UserError, match="holds rated answers, not pairs"):
        graph.run(schema.load(path, [*overrides, "synth.heldout=0"]), "preferences")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer": {"bta": 0.1}}, r"dpo.trainer: TRL knows no argument 'bta'; .*'beta'"),
        ({"trainer": {"seed": 1}}, "dpo.trainer.seed is set by the harness"),
        ({"trainer": {"save_strategy": "now"}}, "dpo.trainer.save_strategy: there is no 'now'"),
        ({"lora": {"rank": 8}}, "dpo.lora: peft knows no argument 'rank'"),
    ],
)
def test_settings_that_trl_does_not_know_are_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check(DpoConfig.model_validate(changes))


def test_of_the_paper_the_settings_are_taken() -> None:
    check(DpoConfig.model_validate({"trainer": {"beta": 0.01, "loss_type": "sigmoid"}}))


@pytest.mark.stack
@pytest.mark.slow
def test_a_recipe_trains_makes_pairs_goes_on_and_compares_both(llama: Path, tmp_path: Path) -> None:
    with ScriptedServer(small_recipe.answer) as server:
        path = recipe(tmp_path, llama, {"dpo": "good"})
        where = {"model": str(llama), "server": {"urls": [server.url], "max_in_flight": 16}}
        made = {"k": 3, "sampling": {"temperature": 0.8, "max_tokens": 40}, "reward": where}
        given = yaml.safe_load(path.read_text().replace("http://127.0.0.1:9", server.url))
        given["synth"]["preferences"] = {**made, "test_share": 0.0, "arms": ["good"]}
        given["arms"] = {name: given["arms"][name] for name in ("good", "random", "aligned")}
        path.write_text(yaml.safe_dump(given))
        outcome = graph.run(schema.load(path))
    log = (outcome.results["train/aligned/0"].path / "log.jsonl").read_text().splitlines()
    assert "rewards/margins" in json.loads(log[-1])
    comparison = json.loads((outcome.results["compare"].path / "comparison.json").read_text())
    assert {"good", "aligned"} <= {arm["name"] for arm in comparison["arms"]}
    from recipes.verbs import why

    told = "\n".join(why.explain(schema.load(path), "aligned/0"))
    assert "<- pairs" in told and "<- train/good/0" in told
