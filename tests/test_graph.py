"""The graph on a scripted server: what is reused, what runs, what is never paid for twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.cells.seals import with_seal
from core.errors import UserError
from recipes import schema
from recipes.stages import graph
from recipes.stages.graph import Outcome
from tests import small_recipe, wandb_file
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def run(path: Path, *overrides: str, until: str = "select") -> Outcome:
    return graph.run(schema.load(path, overrides), until)


def plan(path: Path, *overrides: str) -> dict[str, str]:
    return {s.name: s.state for s in graph.plan(schema.load(path, overrides)).steps}


def why(path: Path, *overrides: str) -> dict[str, str]:
    return {s.name: s.why for s in graph.plan(schema.load(path, overrides)).steps}


def asked(server: ScriptedServer, what: Any) -> int:
    """How many requests the server got while `what` ran."""
    before = len(server.requests)
    what()
    return len(server.requests) - before


def texts(path: Path, column: str) -> pl.DataFrame:
    store = Path(schema.load(path).recipe.store)
    return pl.concat(
        [
            pl.read_parquet(p, columns=["id"])
            for p in sorted((store / "columns" / column).glob("*/part-*.parquet"))
        ]
    )


def test_a_second_run_asks_nothing(tmp_path: Path, llama: Path, server: ScriptedServer) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    assert asked(server, lambda: run(path)) > 100
    assert asked(server, lambda: run(path)) == 0
    assert {
        name: state
        for name, state in plan(path).items()
        if name.partition("/")[0] in ("instructions", "measure", "select")
    } == {
        "instructions": "reuse",
        "measure": "reuse",
        "select/good": "reuse",
        "select/random/0": "reuse",
        "select/heldout": "reuse",
    }


def test_a_pool_of_100_grows_to_300_and_draws_only_200(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path, until="instructions")
    assert asked(server, lambda: run(path, "synth.rows=300", until="instructions")) == 200
    assert texts(path, "instruction")["id"].n_unique() == len(texts(path, "instruction")) == 300


def test_a_pool_that_shrinks_reads_only_its_own_rows(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path)
    outcome = run(path, "synth.rows=60")
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    assert len(pool) == 60 and "select/good" in outcome.results


def test_another_arm_draws_nothing_and_pays_for_its_own_cells_only(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path)
    added = (
        "arms.hard.where=\"difficulty >= 'hard'\"",
        "arms.hard.choose=hash_order",
        "arms.hard.budget.rows=3",
    )
    assert plan(path, *added)["instructions"] == "reuse"
    instructions = len(texts(path, "instruction"))
    run(path, *added)
    assert len(texts(path, "instruction")) == instructions
    assert len(texts(path, "difficulty")) > 0


def test_a_looser_threshold_answers_only_the_rows_newly_wanted(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path)
    looser = "arms.good.where=\"input_quality >= 'average'\""
    before, tags = set(texts(path, "response")["id"]), len(texts(path, "quality"))
    said = why(path, looser)["measure"]
    before_run = len(server.requests)
    steps = {s.name: s.why for s in run(path, looser).steps}
    new = len(server.requests) - before_run
    assert "where: input_quality >= 'good' -> input_quality >= 'average'" in steps["select/good"]
    after = texts(path, "response")["id"]
    assert f"{new} of 100 response" in said, "the plan says beforehand how many rows are answered"
    assert len(set(after) - before) == new > 0
    assert len(after) == after.n_unique() and len(texts(path, "quality")) == tags


def test_two_recipes_share_one_pool(tmp_path: Path, llama: Path, server: ScriptedServer) -> None:
    run(small_recipe.recipe(tmp_path, llama, server.url))
    other = small_recipe.recipe(
        tmp_path / "other", llama, server.url, name="other", store=str(tmp_path / "store")
    )
    assert asked(server, lambda: run(other)) == 0


def test_every_row_carries_where_it_came_from(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path, until="instructions")
    rows = pl.concat(
        [
            pl.read_parquet(p)
            for p in (tmp_path / "store" / "columns" / "instruction").glob("*/part-*.parquet")
        ]
    )
    assert rows["model"].unique().to_list() == [str(llama)]
    for column in ("revision", "template", "sampling", "seed", "finish_reason"):
        assert rows[column].null_count() == 0, column
    assert rows["seed"].n_unique() == 100


def test_a_tag_of_an_instruction_that_was_made_anew_is_measured_again(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    run(path)
    parts = (tmp_path / "store" / "columns" / "instruction").glob("*/part-*.parquet")
    for number, part in enumerate([*parts]):
        frame = pl.read_parquet(part).with_columns(
            (pl.col("instruction") + "?").alias("instruction")
        )
        frame.write_parquet(part.with_name(f"part-t{number}.parquet"))
        part.unlink()
    assert "100 of 100" in why(path)["measure"] or "of 100 quality" in why(path)["measure"]


def test_a_filter_that_cannot_fill_its_budget_names_the_arm_and_the_predicates(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from core.errors import UserError

    path = small_recipe.recipe(tmp_path, llama, server.url)
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: arms.good: the budget asks for 95 rows"):
        run(path, "arms.good.budget.rows=95", "random_arm=false")


# -- a whole run, trained for real -----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path, server: ScriptedServer) -> Path:
    """A recipe run to its report, with W&B offline; tests that change something copy it first."""
    path = small_recipe.recipe(
        tmp_path_factory.mktemp("whole"), llama, server.url, train=True, track="wandb"
    )
    outcome = graph.run(schema.load(path))
    assert not outcome.stopped
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run to break."""
    shutil.copytree(finished.parent, tmp_path / "copy", dirs_exist_ok=True)
    path = tmp_path / "copy" / "recipe.yaml"
    path.write_text(
        path.read_text().replace(str(finished.parent / "store"), str(tmp_path / "copy" / "store"))
    )
    return path


@pytest.mark.stack
def test_after_a_whole_run_every_stage_is_reused(finished: Path) -> None:
    assert set(plan(finished).values()) == {"reuse"}


@pytest.mark.stack
def test_two_filters_that_choose_the_same_rows_train_once(finished: Path) -> None:
    trained = [
        p
        for p in (finished.parent / "store" / "results" / "train").iterdir()
        if (p / "manifest.json").is_file()
    ]
    assert len(trained) == 2, "good and same are one selection, random is another"


@pytest.mark.stack
def test_another_judge_judges_again_and_answers_nothing(copied: Path) -> None:
    states = plan(copied, "eval.judge.max_answer_characters=500")
    assert {states[s] for s in states if s.startswith(("train/", "answers/", "heldout/"))} == {
        "reuse"
    }
    assert {states[s] for s in states if s.startswith("judge/")} == {"run"}
    assert (
        "max_answer_characters: 100000 -> 500"
        in why(copied, "eval.judge.max_answer_characters=500")["judge/alpaca/good/0"]
    )


@pytest.mark.stack
def test_a_changed_training_field_is_named_and_retrains_only(copied: Path) -> None:
    reasons = why(copied, "train.trainer.learning_rate=0.5")
    assert reasons["train/good/0"] == "train.trainer.learning_rate: 0.001 -> 0.5"
    assert plan(copied, "train.trainer.learning_rate=0.5")["select/good"] == "reuse"


@pytest.mark.stack
def test_a_rebuilt_parent_with_other_content_leaves_its_children_stale(copied: Path) -> None:
    train = json.loads((copied.parent / "store" / "recipes" / "small" / "specs.json").read_text())[
        "answers/good/0"
    ]["inputs"]["checkpoint"]
    for manifest in (copied.parent / "store" / "results" / "train").glob("*/manifest.json"):
        data = json.loads(manifest.read_text())
        if data["digest"] == train:
            manifest.write_text(json.dumps(with_seal({**data, "digest": "f" * 64})))
    assert plan(copied)["train/good/0"] == "reuse"
    assert plan(copied)["answers/good/0"] == "run"
    assert why(copied)["answers/good/0"] == "stale: checkpoint has other content now"


@pytest.mark.stack
def test_a_lost_result_is_made_again_from_its_parents(copied: Path) -> None:
    for folder in (copied.parent / "store" / "results" / "compare").iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert why(copied)["compare"] == "its result is gone from the store"
    assert plan(copied)["score/good/0"] == "reuse"
    assert not graph.run(schema.load(copied)).stopped


@pytest.mark.stack
def test_the_comparison_has_every_arm_and_a_verdict_for_every_pair(finished: Path) -> None:
    folder = next((finished.parent / "store" / "results" / "compare").glob("*/comparison.json"))
    comparison = json.loads(folder.read_text())
    assert {a["name"] for a in comparison["arms"]} == {"good", "random", "same", "untuned"}
    judged = [
        s
        for s in comparison["scores"]
        if s["benchmark"] in ("alpaca", "arena") and s["arm"] == "good"
    ]
    assert judged and all(s["value"] is not None and not s["unjudged"] for s in judged)
    losses = [d for d in comparison["differences"] if d["benchmark"] == "heldout"]
    assert len(losses) >= 6 and all(d["verdict"] for d in losses)


@pytest.mark.stack
def test_a_manifest_records_where_and_how_but_not_in_the_key(finished: Path) -> None:
    manifest = json.loads(
        next((finished.parent / "store" / "results" / "train").glob("*/manifest.json")).read_text()
    )
    assert (
        manifest["environment"]["versions"]["trl"]
        and manifest["seconds"] > 0
        and manifest["counts"]
        and manifest["wandb"].startswith("train-")
    )
    assert "environment" not in json.dumps(manifest["spec"])


@pytest.mark.stack
def test_the_wandb_files_of_a_run_hold_group_job_types_metrics_and_digests(finished: Path) -> None:
    runs = wandb_file.read(finished.parent / "store")
    assert len({run.group for run in runs.values()}) == 1, "one group a recipe run"
    jobs = {run.job_type for run in runs.values()}
    assert {
        "instructions",
        "measure",
        "select",
        "train",
        "answers",
        "heldout",
        "judge",
        "score",
        "compare",
        "report",
    } <= jobs
    judges = [run for run in runs.values() if run.job_type == "judge"]
    assert all(run.config["inputs"]["answers"] and run.config["output"] for run in judges)
    assert any("judgments/nrows" in row for run in judges for row in run.history), (
        "the judgments are a table"
    )
    assert any(
        "loss" in row for run in runs.values() if run.job_type == "train" for row in run.history
    ), "losses while it trains"
    assert any(
        "dropped/nrows" in row
        for run in runs.values()
        if run.job_type == "select"
        for row in run.history
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("synth.instruction.temprature=1", "did you mean 'temperature'"),
        ("synth.instruction.n=4", "synth.instruction.n is not for a recipe"),
        ("arms.good.where=safety = 'safe'", "add `synth.tags.safety"),
        ("arms.good.where=reward_difference > 0", "gives no way to measure"),
        ("arms.good.where=eval_overlap < 0.5", "no `eval` with prompts"),
    ],
)
def test_what_cannot_be_sampled_or_measured_is_found_before_anything_is_asked(
    tmp_path: Path, llama: Path, server: ScriptedServer, override: str, says: str
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url)
    own = ["synth.teacher.server={}"] if "temprature" in override else []

    def planned() -> None:
        with pytest.raises(UserError, match=says):
            graph.plan(schema.load(path, [override, *own]))

    assert asked(server, planned) == 0
