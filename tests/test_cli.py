"""The command line: every verb answers, errors are one sentence, exit codes are 0, 1 and 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.errors import UserError
from recipes import schema
from recipes.cli import app
from recipes.verbs.readiness import doctor
from tests import small_recipe
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def call(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, [str(a) for a in arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_help_names_every_verb() -> None:
    shown = call("--help")
    for verb in (
        "run",
        "plan",
        "report",
        "compare",
        "why",
        "score",
        "agreement",
        "schema",
        "filters",
        "filter",
        "template",
        "doctor",
        "launch",
    ):
        assert f" {verb} " in shown


def test_schema_is_json() -> None:
    assert json.loads(call("schema"))["title"] == "Recipe"


def test_filters_lists_the_papers_strategies_with_their_source() -> None:
    listed = json.loads(call("filters", "--json"))
    assert listed["magpie-pro"]["source"] == "paper Table 5, Pro Filter"
    assert listed["magpie-pro"]["params"] == {"quality": "average", "distance": 0.0, "tau1": -12.0}
    assert "magpie-pro-6" in call("filters")


def test_template_shows_ids_and_stops_of_the_embedded_teacher() -> None:
    shown = json.loads(
        call("template", "embedded/SmolLM2-135M-Instruct", "--system-prompt", "default")
    )
    assert (
        shown["text"].endswith("<|im_start|>user\n")
        and shown["token_ids"][0] == 1
        and 2 in shown["stop_token_ids"]
    )


def test_launch_of_an_unknown_arm_names_the_nearest(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url, train=True)
    with pytest.raises(UserError, match="did you mean 'good'"):
        call("launch", path, "--dry-run", "--arm", "goood")


def test_plan_as_json_says_state_and_reason(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    planned = json.loads(call("plan", small_recipe.recipe(tmp_path, llama, server.url), "--json"))
    first = planned["steps"][0]
    assert (first["stage"], first["state"], first["why"]) == (
        "instructions",
        "run",
        "100 of 100 rows missing",
    )


def test_plan_estimates_what_a_priced_judge_costs_at_most(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = small_recipe.recipe(tmp_path, llama, server.url, train=True)
    steps = json.loads(call("plan", path, "eval.judge.prices={input: 10, output: 30}", "--json"))[
        "steps"
    ]
    said = next(s["why"] for s in steps if s["stage"] == "judge/alpaca/good/0")
    assert "at most 12 calls" in said and "in money" in said


def test_plan_works_on_the_papers_recipe_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    steps = json.loads(call("plan", "llama3-8b-magpie-pro-300k", f"store={tmp_path}", "--json"))[
        "steps"
    ]
    assert {"train/magpie-pro/2", "judge/arena/random/0", "compare"} <= {s["stage"] for s in steps}


def test_doctor_checks_the_machine_and_the_recipe(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["doctor", str(small_recipe.recipe(tmp_path, llama, server.url, train=True))]
    )
    for needed in ("Python 3", "torch", "W&B mode", "store", "disk:", "train.base", "memory:"):
        assert needed in result.output
    assert result.exit_code == 0, result.output


def test_doctor_says_what_to_do_about_a_missing_judge_key(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    os.environ.pop("JUDGE_KEY", None)
    path = small_recipe.recipe(tmp_path, llama, server.url, train=True)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["doctor", str(path), "eval.judge.server.api_key_env=JUDGE_KEY"]
    )
    assert result.exit_code == 1 and "export JUDGE_KEY=" in result.output


def test_report_before_a_run_is_one_sentence(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    with pytest.raises(UserError, match="does not exist yet; make it with `magpie run"):
        call("report", small_recipe.recipe(tmp_path, llama, server.url))


def test_why_of_a_row_leads_to_its_seed_its_tags_and_its_arms(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from recipes.stages import graph
    from recipes.verbs.why import explain

    loaded = schema.load(small_recipe.recipe(tmp_path, llama, server.url))
    graph.run(loaded, "select")
    import polars as pl

    rows = pl.read_parquet(
        tmp_path / "store" / "recipes" / "small" / "select" / "good" / "selection.parquet"
    )
    lines = list(explain(loaded, rows["id"][0]))
    assert "arm good: chosen" in lines
    assert any(line.startswith("seed: ") for line in lines) and any(
        line.startswith("input_quality: ") for line in lines
    )


def test_agreement_is_measured_stored_and_found_again(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from eval.judging.people import against_people

    path = small_recipe.recipe(tmp_path, llama, server.url, train=True)
    labelled = tmp_path / "people.jsonl"
    pair = {"answer_1": "because of this", "answer_2": "no"}
    labelled.write_text(
        "".join(
            json.dumps({"id": str(i), "prompt": f"why {i}", **pair, "annotators": [1, 1, i % 3]})
            + "\n"
            for i in range(20)
        )
    )
    found = json.loads(call("agreement", path, "--on", labelled, "--json"))
    assert (
        found["n"] > 0 and 0 <= found["accuracy"] <= 1 and found["position_consistency"] is not None
    )
    recipe = schema.load(path).recipe
    assert recipe.eval is not None
    known = against_people.find(recipe.eval.protocol("alpaca"), Path(recipe.store))
    assert len(known) == 1 and "agrees with people on people in" in against_people.sentence(
        known[0]
    )


def test_overrides_of_a_judge_are_read_like_those_of_a_recipe() -> None:
    form = r"has no form key\.path=value \(for example server\.args\.max_model_len=4096\)"
    with pytest.raises(UserError, match=f"override 'limit' {form}"):
        call("agreement", "some/judge", "limit")


def test_score_prints_the_official_names_as_json(shared: Path) -> None:
    data = shared / "eval" / "alpaca_eval"
    rows = json.loads(
        call(
            "score",
            "alpaca-eval",
            data / "annotations" / "alpaca-7b.json.gz",
            "--data",
            data,
            "--json",
        )
    )
    assert {
        "model",
        "win_rate",
        "standard_error",
        "n_total",
        "discrete_win_rate",
        "length_controlled_winrate",
        "lc_standard_error",
    } <= set(rows[0])


@pytest.mark.process
def test_debug_is_not_needed_to_see_what_is_wrong(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "run", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("magpie: recipe ")
        and done.stderr.count("\n") == 1
    )


def test_doctor_misses_faiss_where_an_arm_reads_neighbours_of_more_rows_than_are_compared(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_recipe.recipe(
        tmp_path,
        llama,
        "http://127.0.0.1:9",
        arms={"far": {"where": "min_neighbor_distance > 0", "choose": "all"}},
        random_arm=False,
        synth__tags={"neighbors": {"exact_up_to": 50}},
    )

    def found(*overrides: str) -> list[str]:
        recipe = schema.load(path, list(overrides)).recipe
        return [check.state for check in doctor.neighbor_search(recipe)]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert found() == ["fail"]
    assert found("synth.tags.neighbors.exact_up_to=100") == []
    assert found("arms.far.where=instruction_length > 1") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert found() == [], "a GPU compares every pair"
