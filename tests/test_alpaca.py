"""AlpacaEval 2 on real published judgments: the official figures, and where ours differ on
purpose."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserError
from eval import stats
from eval.scoring import alpaca, length_control, logistic, of_files

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared"))
    / "data/eval/alpaca_eval"
)
MODELS = sorted(p.name.removesuffix(".json.gz") for p in (SHARED / "annotations").glob("*.json.gz"))
needs_data = pytest.mark.skipif(not MODELS, reason=f"the published judgments are not at {SHARED}")


@pytest.fixture(scope="module")
def reference() -> length_control.Reference:
    return length_control.load_reference(SHARED)


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, str]]:
    with (SHARED / "leaderboard_without_heldout.csv").open() as handle:
        return {row[""]: row for row in csv.DictReader(handle)}


@pytest.fixture(scope="module")
def models() -> dict[str, alpaca.Judged]:
    return {
        m.model: m
        for name in MODELS
        for m in alpaca.read(SHARED / "annotations" / f"{name}.json.gz")
    }


@needs_data
@pytest.mark.parametrize("name", MODELS)
def test_win_rate_and_counts_equal_the_published_table(
    name: str, models: dict[str, alpaca.Judged], published: dict[str, Any]
) -> None:
    ours = alpaca.win_rate(models[name])
    for column in (
        "win_rate",
        "standard_error",
        "n_wins",
        "n_wins_base",
        "n_draws",
        "n_total",
        "discrete_win_rate",
    ):
        assert ours[column] == pytest.approx(float(published[name][column]), abs=1e-9), column


@needs_data
def test_official_rules_reproduce_the_published_length_controlled_win_rates(
    models: dict[str, alpaca.Judged], published: dict[str, Any], reference: length_control.Reference
) -> None:
    errors = [
        abs(
            length_control.official(m, reference)[0]
            - float(published[m.model]["length_controlled_winrate"])
        )
        for m in models.values()
    ]
    assert len(errors) == 12
    assert max(errors) < 0.16
    assert np.median(errors) < 0.005


@needs_data
def test_official_standard_error_is_that_of_the_fitted_probabilities(
    models: dict[str, alpaca.Judged], published: dict[str, Any], reference: length_control.Reference
) -> None:
    name = "FuseChat-Gemma-2-9B-Instruct"
    assert length_control.official(models[name], reference)[1] == pytest.approx(
        float(published[name]["lc_standard_error"]), abs=0.005
    )


@needs_data
def test_difficulty_is_joined_by_instruction_where_the_official_rules_join_by_position(
    models: dict[str, alpaca.Judged], reference: length_control.Reference
) -> None:
    ragged = models[
        "gpt35_turbo_instruct"
    ]  # 804 rows: one judgment failed, and all rows after it moved up by one
    assert length_control.official(ragged, reference)[0] == pytest.approx(17.73, abs=0.01)
    assert length_control.point(length_control.design(ragged, reference)) == pytest.approx(
        14.97, abs=0.1
    )


@needs_data
def test_default_does_not_change_when_rows_are_shuffled(
    models: dict[str, alpaca.Judged], reference: length_control.Reference
) -> None:
    model = models["FuseChat-Gemma-2-9B-Instruct"]
    mixed = list(range(805))
    random.Random(1).shuffle(mixed)
    straight = length_control.point(length_control.design(model, reference))
    assert length_control.point(
        length_control.design(model.take(mixed), reference)
    ) == pytest.approx(straight, abs=1e-9)
    assert abs(length_control.official(model.take(mixed), reference)[0] - straight) > 0.01


@needs_data
def test_a_missing_row_and_an_unjudged_one_are_the_same_and_move_no_other(
    models: dict[str, alpaca.Judged], reference: length_control.Reference
) -> None:
    model = models["claude-2"]
    keep = [i for i in range(805) if i not in (0, 7, 400)]
    unjudged = alpaca.Judged(
        model.model,
        model.baseline,
        model.instructions,
        model.preference.copy(),
        model.length,
        model.baseline_length,
    )
    unjudged.preference[[0, 7, 400]] = math.nan
    removed = length_control.point(length_control.design(model.take(keep), reference))
    assert length_control.point(length_control.design(unjudged, reference)) == pytest.approx(
        removed, abs=1e-9
    )
    assert removed == pytest.approx(
        length_control.point(length_control.design(model, reference)), abs=0.25
    )  # by position it would move by points
    joined = dict(
        zip(model.instructions, length_control.design(model, reference).difficulty, strict=True)
    )
    assert [joined[text] for text in model.take(keep).instructions] == length_control.design(
        model.take(keep), reference
    ).difficulty.tolist()


@needs_data
def test_bootstrap_error_is_more_than_twice_the_official_one(
    models: dict[str, alpaca.Judged], reference: length_control.Reference
) -> None:
    own = length_control.design(models["FuseChat-Gemma-2-9B-Instruct"], reference)
    found = length_control.interval(own, resamples=400)
    assert found.standard_error == pytest.approx(1.41, rel=0.1)
    assert found.lower < found.value < found.upper


@needs_data
def test_per_item_values_have_the_score_as_mean_and_its_bootstrap_error(
    models: dict[str, alpaca.Judged], reference: length_control.Reference
) -> None:
    own = length_control.design(models["claude-2"], reference)
    found = stats.mean_interval(length_control.items(own))
    assert found.value == pytest.approx(length_control.point(own), abs=1e-9)
    assert found.standard_error == pytest.approx(
        length_control.interval(own, resamples=1000).standard_error, rel=0.08
    )


@needs_data
def test_another_baseline_or_prompt_set_is_not_called_alpacaeval(
    reference: length_control.Reference, tmp_path: Path
) -> None:
    rows = [dict(row) for row in _annotations("claude-2")[:60]]
    for row in rows:
        row["generator_1"] = "Llama-3-8B-Instruct"
    (own,) = of_files.score_alpaca([_write(tmp_path, rows)], SHARED)
    assert own["length_controlled_winrate"] is None and own["lc_standard_error"] is None
    assert 0 < own["length_controlled_minimal"] < 100 and "not AlpacaEval's" in own["notes"][0]
    for row in rows:
        row |= {"generator_1": alpaca.BASELINE, "instruction": row["instruction"] + " please"}
    (other,) = of_files.score_alpaca([_write(tmp_path, rows)], SHARED, "official")
    assert other["length_controlled_winrate"] is None
    assert other["length_controlled_minimal"] == pytest.approx(own["length_controlled_minimal"])


@needs_data
def test_scores_come_under_the_official_tables_names(tmp_path: Path) -> None:
    (row,) = of_files.score_alpaca(
        [SHARED / "annotations" / "alpaca-7b.json.gz"], SHARED, "official"
    )
    names = {
        "model",
        "win_rate",
        "standard_error",
        "n_total",
        "discrete_win_rate",
        "length_controlled_winrate",
        "lc_standard_error",
    }
    assert names <= row.keys() and json.loads(json.dumps(row, allow_nan=False)) == row


@needs_data
def test_without_difficulties_length_control_is_null_and_says_why(tmp_path: Path) -> None:
    (row,) = of_files.score_alpaca([SHARED / "annotations" / "alpaca-7b.json.gz"], tmp_path)
    assert (
        row["length_controlled_winrate"] is None
        and "instruction_difficulty*.csv" in row["notes"][0]
    )


@needs_data
def test_unjudged_rows_are_counted_beside_the_score(tmp_path: Path) -> None:
    rows = _annotations("alpaca-7b")[:50]
    rows[3]["preference"], rows[4]["preference"], rows[5]["preference"] = None, 7.0, 0
    (row,) = of_files.score_alpaca([_write(tmp_path, rows)], SHARED)
    assert (row["n_total"], row["n_unjudged"]) == (48, 2)
    assert row["notes"][0].startswith("2 rows")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"preference": "m"}, "row 2: the preference 'm' is not a number"),
        ({"generator_2": None}, "row 2: no generator_2"),
        ({"generator_1": "other"}, "compared with base and with other"),
        ({"instruction": "q0"}, "two judgments of the instruction 'q0'"),
    ],
)
def test_malformed_annotations_are_one_sentence(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "a",
            "output_2": "b",
            "generator_1": "base",
            "generator_2": "m",
            "preference": 1.2,
        }
        for i in range(3)
    ]
    rows[1] |= change
    with pytest.raises(UserError, match=sentence):
        of_files.score_alpaca([_write(tmp_path, rows)], tmp_path)


def test_several_models_in_one_file_are_scored_apart(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "a",
            "output_2": "b",
            "generator_1": "base",
            "generator_2": m,
            "preference": p,
        }
        for m, p in (("x", 1.0), ("y", 2.0))
        for i in range(3)
    ]
    assert [
        (r["model"], r["win_rate"])
        for r in of_files.score_alpaca([_write(tmp_path, rows)], tmp_path)
    ] == [("x", 0.0), ("y", 100.0)]


def test_the_fit_solves_the_penalised_problem() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    x = tuple(rng.normal(size=(3, 200)))
    y = rng.uniform(size=200)
    for c in (0.02, 1.0, 50.0):

        def objective(
            v: Any, c: float = c
        ) -> float:  # w = v[:3] - v[3:], both parts >= 0, makes the L1 norm smooth
            eta = np.stack(x).T @ (v[:3] - v[3:])
            return float(v.sum() + c * (np.logaddexp(0, eta) - y * eta).sum())

        best = minimize(
            objective,
            np.full(6, 0.1),
            bounds=[(0, None)] * 6,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        w = logistic.fit((x[0], x[1], x[2]), y, np.ones(200), c)[0]
        assert objective(np.concatenate([np.maximum(w, 0), np.maximum(-w, 0)])) <= best.fun + 1e-7


def test_a_model_that_always_wins_or_has_equal_lengths_still_gets_a_score() -> None:
    empty = (np.empty(0), np.empty(0), np.empty(0))
    own = length_control.Design(np.zeros(50), np.zeros(50), np.ones(50), empty)
    assert 90 < length_control.point(own) < 100
    assert (
        0
        < length_control.point(
            length_control.Design(np.arange(50.0), np.zeros(50), np.zeros(50), empty)
        )
        < 10
    )


def test_too_few_instructions_have_no_bootstrap_interval(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "a" * i,
            "output_2": "b",
            "generator_1": "base",
            "generator_2": "m",
            "preference": 1 + i / 10,
        }
        for i in range(10)
    ]
    (row,) = of_files.score_alpaca([_write(tmp_path, rows)], tmp_path)
    assert row["length_controlled_minimal"] is not None and row["lc_minimal_standard_error"] is None
    assert any("too narrow" in note for note in row["notes"])


@pytest.mark.process
def test_scoring_loads_no_heavy_library() -> None:
    heavy = "torch transformers sklearn pandas scipy vllm datasets wandb"
    loaded = f"[m for m in {heavy.split()!r} if m in sys.modules]"
    code = f"import sys, eval.scoring.of_files; print({loaded})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


def _annotations(name: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / "annotations" / f"{name}.json.gz") as handle:
        rows: list[dict[str, Any]] = json.load(handle)
    return rows


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(rows))
    return path
