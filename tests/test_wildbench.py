"""WildBench and MT-Bench from stored judgments."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.judging import verdicts
from eval.scoring import mtbench, of_files, wildbench

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared"))
    / "data/eval/wildbench"
)
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the stored judgments are not at {SHARED}"
)


@needs_data
@pytest.mark.parametrize("name", ["gemma-7b-it", "reka-edge"])
def test_wb_score_equals_the_published_one(name: str) -> None:
    published = json.loads((SHARED / "score.json").read_text())[name]
    (row,) = of_files.score_wildbench([SHARED / f"score_{name}.json.gz"])
    assert row["model"] == name
    for column in ("score", "adjusted_score", "total", "avg_len"):
        assert row[column] == pytest.approx(published[column], abs=1e-9), column
    assert row["lower"] < row["adjusted_score"] < row["upper"]


@needs_data
def test_every_published_macro_score_follows_from_the_published_scores_by_group() -> None:
    published = json.loads((SHARED / "score.json").read_text())
    tag_of = {group: tag for tag, group in wildbench.GROUPS.items()}
    assert len(published) == 59
    for name, row in published.items():
        groups = row["task_categorized_scores"]
        ratings = {group: value / 2 + 5 for group, value in groups.items()}
        macro = wildbench.macro_score(ratings, {group: [tag_of[group]] for group in groups})
        assert macro == pytest.approx(row["task_macro_score"], abs=1e-9), name


@needs_data
def test_a_task_counts_once_in_a_group_and_not_at_all_where_its_answer_is_cut(
    tmp_path: Path,
) -> None:
    with gzip.open(SHARED / "score_gemma-7b-it.json.gz") as handle:
        rows = json.load(handle)
    tags = [
        {
            "id": r["session_id"],
            "primary_tag": "Math" if i % 4 else "Editing",
            "secondary_tags": ["Data Analysis"],
        }
        for i, r in enumerate(rows)
    ]
    (tmp_path / "wildbench-v2.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tags))
    cut = [r | ({"model_output": "So ... (truncated)"} if i == 4 else {}) for i, r in
           enumerate(rows)]  # fmt: skip
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    (row,) = of_files.score_wildbench([tmp_path / "cut.json"], tmp_path)
    values = [(float(r["score"]) - 5) * 2 for r in rows]
    empty = {i for i, r in enumerate(rows) if not r["model_output"].strip()} | {4}
    mathematics = [v for i, v in enumerate(values) if i not in empty]
    creative = [v for i, v in enumerate(values) if i % 4 == 0 and i not in empty]
    means = [sum(group) / len(group) for group in (mathematics, creative)]
    assert row["task_macro_score"] == pytest.approx((1.0 * means[0] + 0.5 * means[1]) / 1.5)
    # the plain score has them all
    assert row["adjusted_score"] == pytest.approx(sum(values) / len(values))


def test_the_macro_scores_items_have_its_mean_and_the_error_of_a_mean_of_means() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    names = list(wildbench.GROUPS)
    tags = {str(i): [names[i % 12], names[(i * 5) % 12]] for i in range(400)}

    def drawn() -> dict[str, float | None]:
        return {task: float(rng.integers(1, 11)) + len(own[0]) / 9 for task, own in tags.items()}

    ratings = drawn()
    values = np.array(list(wildbench.macro_items(ratings, tags).values()))
    assert len(values) == 400
    assert values.mean() == pytest.approx(wildbench.macro_score(ratings, tags))
    many = [wildbench.macro_score(drawn(), tags) or 0.0 for _ in range(400)]
    assert values.std(ddof=1) / 20 == pytest.approx(np.std(many), rel=0.12)


def test_scores_that_are_no_rating_are_counted_and_left_out() -> None:
    rows = [
        {"session_id": str(i), "model_test": "m", "score": s, "model_output": "x"}
        for i, s in enumerate(["7", 3, "N/A", "11", None])
    ]
    (row,) = wildbench.score(rows)
    assert (row["score"], row["total"], row["unjudged"]) == (5.0, 2, 3)


def reward_row(session: str, winner: str, extent: int, **more: Any) -> dict[str, Any]:
    return {
        "session_id": session,
        "model_A": "m",
        "model_B": "ref",
        "winner": winner,
        "extent": extent,
    } | more


def test_wb_reward_weighs_verdicts() -> None:
    rows = [
        reward_row("1", "m", 2),
        reward_row("2", "m", 1),
        reward_row("3", "m", 1),
        reward_row("4", "tie", 0),
        reward_row("5", "ref", 2),
    ]
    (row,) = wildbench.reward(rows, reference="ref")
    assert (row["model"], row["reward"], row["total"]) == ("m", pytest.approx(0.2), 5)


def test_empty_and_cut_outputs_count_zero_and_stay_in_the_denominator() -> None:
    outputs = [
        {"m": "fine", "ref": "fine"},
        {"m": "fine", "ref": "long ... (truncated)"},
        {"m": "[This model response is empty.]", "ref": "fine"},
        {"m": "", "ref": "fine"},
    ]
    rows = [
        reward_row(str(i), ("m", "m", "ref", "ref")[i], 2, model_outputs=own)
        for i, own in enumerate(outputs)
    ]
    (row,) = wildbench.reward(rows, reference="ref")
    assert (row["reward"], row["total"], row["empty_or_cut"]) == (0.25, 4, 3)


def test_a_margin_ties_slight_wins_of_answers_that_are_longer_by_more() -> None:
    assert verdicts.worth(1, 1, 900, 100, 500) == 0.0
    assert verdicts.worth(1, 1, 900, 400, 500) == 0.5
    assert verdicts.worth(-1, 1, 900, 100, 500) == -0.5
    assert verdicts.worth(1, 2, 900, 100, 500) == 1.0


def test_wb_reward_takes_its_reference_from_the_official_folder_name(tmp_path: Path) -> None:
    folder = tmp_path / "ref=ref"
    folder.mkdir()
    (folder / "m.json").write_text(json.dumps([reward_row("1", "m", 2), reward_row("2", "tie", 0)]))
    (row,) = of_files.score_wildbench([folder / "m.json"])
    assert (row["model"], row["reference"], row["reward"]) == ("m", "ref", 0.5)
    with pytest.raises(UserError, match="m and ref could be the reference"):
        wildbench.reward([reward_row("1", "m", 2)])


@pytest.mark.parametrize(
    ("label", "expected"),
    [("A++", (1, 2)), ("B+", (-1, 1)), ("A=B", (0, 0)), ("A", None), ("A+++", None)],
)
def test_pairwise_choices_are_read_for_the_model(
    label: str, expected: tuple[int, int] | None
) -> None:
    assert verdicts.choice(label, model_is_a=True) == expected
    mirrored = None if expected is None else (-expected[0], expected[1])
    assert verdicts.choice(label, model_is_a=False) == mirrored


def test_malformed_judgments_are_one_sentence() -> None:
    with pytest.raises(UserError, match="row 1: a WB-Score judgment needs"):
        wildbench.score([{"session_id": "1"}])
    with pytest.raises(UserError, match="row 2: the task 1 of m is scored a second time"):
        wildbench.score([{"session_id": "1", "model_test": "m", "score": 3}] * 2)
    with pytest.raises(UserError, match="no verdict on these two models"):
        wildbench.reward([reward_row("1", "someone", 1)])


# MT-Bench


def test_both_turns_of_a_question_are_one_cluster() -> None:
    rows = [(f"{q}", t, q % 10 + 0.5 + 0.1 * t) for q in range(1, 9) for t in (1, 2)]
    schema = {"item": pl.String, "turn": pl.Int64, "rating": pl.Float64}
    frame = pl.DataFrame([*rows, ("99", 1, None)], schema, orient="row")
    found = mtbench.figures(frame)
    assert (found["n"], found["unjudged"]) == (16, 1)
    assert found["turn_2"] - found["turn_1"] == pytest.approx(0.1)
    apart = mtbench.figures(frame.with_columns(pl.format("{}-{}", "item", "turn").alias("item")))
    # turns that agree are no new evidence
    assert found["standard_error"] > 1.3 * apart["standard_error"]


def test_groups_stand_in_one_order_whatever_the_process_hashes() -> None:
    tags = {"a": ["Math", "Planning", "Editing"], "b": ["Reasoning", "Advice seeking"]}
    assert wildbench.groups_of("a", tags["a"]) == [
        "Creative Tasks",
        "Planning & Reasoning",
        "Math & Data Analysis",
    ]
    assert list(wildbench.by_group({"a": 5.0, "b": 6.0}, tags)) == [
        "Information/Advice seeking",
        "Creative Tasks",
        "Planning & Reasoning",
        "Math & Data Analysis",
    ]


def test_a_judge_that_breaks_a_line_inside_a_string_is_read() -> None:
    assert verdicts.closing_score('{"score": "7", "strengths": "short\nand plain"}') == 7.0
