"""`magpie compare FILES`: from the command line to table, JSON and page."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from core.errors import UserError
from core.models import resolve
from eval.checkpoint.lm_eval_tasks import SHIPPED
from recipes.cli import app
from recipes.comparisons.asked import recipes_of
from recipes.comparisons.of_files import paired_gains
from tests.test_alpaca import MODELS, SHARED, needs_data
from tests.test_arena import judgment
from tests.test_result_files import annotation, lines


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def as_json(*arguments: object) -> dict[str, Any]:
    done = compare(*arguments, "--json")
    assert done.exception is None, done.output
    found: dict[str, Any] = json.loads(
        done.stdout,
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """An arm that is better on nearly every item, and one that is not."""
    better = lines(tmp_path / "b.jsonl", [{"item": i, "value": 1 + i % 3} for i in range(60)])
    worse = lines(tmp_path / "a.jsonl", [{"item": i, "value": i % 2} for i in range(60)])
    return [f"better={better}", f"worse={worse}"]


def test_the_table_says_who_is_better_and_the_notes_what_decided(files: list[str]) -> None:
    done = compare(*files)
    assert done.exit_code == 0
    assert "better is better\tthese two models" in done.stdout
    assert "values value is the only figure here" in done.stdout


def test_json_holds_each_difference_with_its_verdict(files: list[str]) -> None:
    (found,) = as_json(*files)["differences"]
    assert (found["a"], found["b"], found["verdict"]) == ("better", "worse", "better is better")
    assert found["difference"] == pytest.approx(1.5)


def test_losses_are_better_when_smaller(files: list[str]) -> None:
    comparison = as_json(*files, "--lower-is-better")
    assert comparison["differences"][0]["verdict"] == "worse is better"
    assert comparison["scores"][0]["lower_is_better"] is True


def test_the_page_and_its_files_are_written_where_they_are_wanted(
    files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert compare(*files, "--out", out).exit_code == 0
    names = {path.name for path in out.iterdir()}
    assert {"comparison.json", "comparison.parquet", "report.html"} <= names
    assert pl.read_parquet(out / "comparison.parquet").height == 120
    assert "better is better" in (out / "report.html").read_text()


def test_seeds_of_two_arms_speak_of_the_filters(tmp_path: Path) -> None:
    given = []
    for arm, shift in (("a", 2), ("b", 0)):
        for seed in range(3):
            rows = [{"item": i, "value": shift + (i * (seed + 3)) % 7} for i in range(60)]
            given.append(f"{arm}/{seed}={lines(tmp_path / f'{arm}{seed}.jsonl', rows)}")
    comparison = as_json(*given)
    assert comparison["arms"] == [{"name": a, "seeds": ["0", "1", "2"]} for a in "ab"]
    assert comparison["differences"][0]["scope"] == "these filters"


def test_a_model_that_all_were_judged_against_can_be_the_baseline(tmp_path: Path) -> None:
    rows = [annotation(i, 1.9 - i % 2 / 10) for i in range(50)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    comparison = as_json(path, "--baseline", "base", "--no-length-control")
    (found,) = comparison["differences"]
    assert (found["a"], found["b"], found["difference"]) == ("mine", "base", pytest.approx(35.0))


def test_a_file_of_games_without_a_verdict_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", [judgment("q0", "none", "none", baseline="o3")])
    error = compare(f"a={path}", f"b={path}").exception
    assert isinstance(error, UserError)
    assert "m.jsonl: no item in it has a value" in str(error)
    assert "none of its games has a verdict" in str(error)


def test_a_model_none_of_whose_games_has_a_verdict_is_left_out_with_a_note(tmp_path: Path) -> None:
    rows = [judgment("q0", "A>B", "A>B", baseline="o3")]
    given = [f"{name}={lines(tmp_path / f'{name}.jsonl', rows)}" for name in "ab"]
    rows = [judgment("q0", "none", "none", baseline="o3", model="silent")]
    (tmp_path / "all").mkdir()
    lines(tmp_path / "all" / "m.jsonl", [judgment("q0", "A>B", "A>B", baseline="o3"), *rows])
    comparison = as_json(*given, tmp_path / "all")
    assert any(note.startswith("silent is left out") for note in comparison["notes"])


def test_a_model_scores_by_definition_only_where_the_others_were_judged_against_it(
    tmp_path: Path,
) -> None:
    hard = [judgment(f"h{i}", "B>A", "A>B", baseline="o3") for i in range(6)]
    creative = {"category": "creative_writing", "baseline": "gemini"}
    rows = [*hard, *(judgment(f"c{i}", "A>B", "A>B", **creative) for i in range(6))]
    path = lines(tmp_path / "m.jsonl", rows)
    comparison = as_json(path, "--baseline", "o3")
    scored = {(s["arm"], s["benchmark"]): s["value"] for s in comparison["scores"]}
    assert scored == {
        ("m", "arena"): 100,
        ("o3", "arena"): 50,
        ("m", "arena-creative_writing"): 50,
    }
    assert {d["benchmark"] for d in comparison["differences"]} == {"arena"}


def test_an_arm_that_was_judged_itself_is_no_trained_baseline(tmp_path: Path) -> None:
    """Both arms were judged against a third model, so neither's luck falls out of a difference."""
    given = []
    for arm in ("a", "b"):
        for seed in range(2):
            rows = [
                annotation(i, 1 + ((i * 7 + seed * 31 + (arm == "a") * 3) % 10) / 10)
                for i in range(60)
            ]
            path = tmp_path / f"{arm}{seed}.json"
            path.write_text(json.dumps(rows))
            given.append(f"{arm}/{seed}={path}")
    named = as_json(*given, "--no-length-control", "--baseline", "b")["differences"][0]
    plain = as_json(*given, "--no-length-control")["differences"][0]
    assert named["standard_error"] == pytest.approx(plain["standard_error"], rel=1e-12)


def test_the_figure_that_nobody_named_is_said_to_be_exploratory(tmp_path: Path) -> None:
    rows = [annotation(i, 1 + (i * 37 % 100) / 100) for i in range(60)]
    given = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        given.append(f"{name}={tmp_path / f'{name}.json'}")
    assert as_json(*given)["notes"][0].startswith("No primary benchmark was named (--primary)")
    chosen = as_json(*given, "--primary", "alpaca/length_controlled_minimal")
    assert chosen["notes"][0].startswith("alpaca length_controlled_minimal decides")
    assert {s["metric"] for s in chosen["scores"] if s["primary"]} == {"length_controlled_minimal"}


def test_an_unknown_baseline_is_refused_with_the_arms_there_are(files: list[str]) -> None:
    with pytest.raises(UserError, match=r"--baseline bettr: no such arm; did you mean 'better'\?"):
        raise compare(*files, "--baseline", "bettr").exception or AssertionError


def test_recipes_and_data_are_told_apart(tmp_path: Path) -> None:
    asked = recipes_of(["demo", "track=none", "full.yaml"])
    assert [(one.name, one.overrides) for one in asked] == [
        ("demo", ["track=none"]),
        ("full.yaml", []),
    ]
    assert recipes_of(["a=x.jsonl", "demo.jsonl"]) == []
    settings = [f"store={tmp_path}", f"synth.taxonomy={tmp_path}"]
    assert recipes_of(["demo", *settings])[0].overrides == settings
    for data in (f"good={tmp_path}", f"Store={tmp_path}", f"train/1={tmp_path}"):
        with pytest.raises(UserError, match="is no recipe and demo is one"):
            recipes_of(["demo", data])
    with pytest.raises(UserError, match=r"x\.jsonl is no recipe and demo is one"):
        recipes_of(["x.jsonl", "demo"])


@needs_data
def test_the_stored_annotations_are_66_pairs_that_pairing_makes_surer() -> None:
    files = sorted((SHARED / "annotations").glob("*.json.gz"))
    comparison = as_json(*files, "--no-length-control")
    gains = paired_gains(comparison)
    assert (len(MODELS), len(gains)) == (12, 66)
    assert sum(gains) / len(gains) == pytest.approx(1.221, abs=0.005)


@needs_data
@pytest.mark.parametrize("rules", [[], ["--compat", "official"]])
def test_a_baseline_scored_against_itself_is_valid_json(tmp_path: Path, rules: list[str]) -> None:
    """Answers of one length have no spread to scale their differences by."""
    with gzip.open(SHARED / "annotations" / f"{MODELS[0]}.json.gz") as handle:
        rows = json.load(handle)
    for row in rows:
        own = {"output_2": row["output_1"], "generator_2": row["generator_1"], "preference": 1.5}
        row |= own
    path = tmp_path / "itself.json"
    path.write_text(json.dumps(rows))
    asked = ["score", "alpaca-eval", str(path), "--data", str(SHARED), "--json", *rules]
    done = CliRunner().invoke(app, asked)
    (row,) = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["win_rate"] == 50.0
    assert row["length_controlled_winrate"] == pytest.approx(50.0, abs=1.0)


@pytest.mark.slow
@pytest.mark.stack
def test_two_runs_of_lm_eval_compare_as_they_come(tmp_path: Path) -> None:
    """The embedded model, with and without its chat template, by lm-eval's own command."""
    model = resolve("embedded/SmolLM2-135M-Instruct").path
    data = Path(str(SHIPPED["everyday-science"])).parent
    task = (data / "everyday-science.yaml").read_text()
    questions = str(data / "everyday-science.jsonl")
    (tmp_path / "own.yaml").write_text(
        task.replace("everyday-science.jsonl", questions).replace(
            "task: everyday-science", "task: own"
        )
    )
    for name, more in (("plain", []), ("chat", ["--apply_chat_template"])):
        asked = [
            *("--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu"),
            *("--tasks", "own", "--include_path", str(tmp_path), "--limit", "12"),
            *("--log_samples", "--output_path", str(tmp_path / name), *more),
        ]
        subprocess.run([sys.executable, "-m", "lm_eval", *asked], check=True, capture_output=True)
    comparison = as_json(tmp_path / "plain", tmp_path / "chat")
    assert [arm["name"] for arm in comparison["arms"]] == ["plain", "chat"]
    (results,) = (tmp_path / "plain").rglob("results_*.json")
    own = json.loads(results.read_text())["results"]["own"]
    score = next(s for s in comparison["scores"] if (s["arm"], s["metric"]) == ("plain", "acc"))
    assert score["value"] == pytest.approx(own["acc,none"])
    assert score["standard_error"] == pytest.approx(own["acc_stderr,none"])
    assert any("100 % of the prompts differ between arms" in note for note in comparison["notes"])
