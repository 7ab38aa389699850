"""From judgments, losses and outcomes to scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.judging.pairwise import JUDGMENTS
from eval.scoring import of_checkpoint


def _judgments(folder: Path, rows: list[dict[str, Any]], version: str | None = None) -> Path:
    filled = [
        {
            "game": 1,
            "order": "baseline",
            "judgment": f"{i}",
            "status": "ok" if r.get("preference") is not None else "unjudged",
            "model_characters": 10 + i,
            "baseline_characters": 20 - i,
        }
        | r
        for i, r in enumerate(rows)
    ]
    folder.mkdir(parents=True)
    pl.DataFrame(filled, schema=JUDGMENTS).write_parquet(folder / "judgments.parquet")
    (folder / "protocol.json").write_text(json.dumps({"version": version}))
    return folder


def _score(tmp_path: Path, **inputs: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    of_checkpoint.run(
        {name.replace("_", "-"): path for name, path in inputs.items()}, tmp_path / "out"
    )
    return pl.read_parquet(tmp_path / "out" / "scores.parquet"), json.loads(
        (tmp_path / "out" / "summary.json").read_text()
    )


def test_a_win_rate_is_the_mean_preference_with_the_standard_error_of_the_mean(
    tmp_path: Path,
) -> None:
    values = [0.9, 0.1, 0.5, 1.0, 0.7]
    folder = _judgments(
        tmp_path / "j", [{"item": f"p{i}", "preference": v} for i, v in enumerate(values)]
    )
    frame, summary = _score(tmp_path, judgments_alpaca=folder)
    mean = sum(values) / 5
    assert summary["alpaca"]["win_rate"]["value"] == pytest.approx(100 * mean)
    assert summary["alpaca"]["win_rate"]["standard_error"] == pytest.approx(
        100 * math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    )
    assert summary["alpaca"]["win_rate"]["discrete_win_rate"] == pytest.approx(70.0)
    assert frame["value"].to_list() == pytest.approx([100 * v for v in values])


def test_both_orders_are_averaged_and_one_missing_order_leaves_the_item_unjudged(
    tmp_path: Path,
) -> None:
    folder = _judgments(
        tmp_path / "j",
        [
            {"item": "a", "game": 1, "preference": 0.9},
            {"item": "a", "game": 2, "preference": 0.3},
            {"item": "b", "game": 1, "preference": 0.9},
            {"item": "b", "game": 2, "reason": "HTTP 500: no"},
            {"item": "c", "game": 1, "preference": 0.2},
            {"item": "c", "game": 2, "preference": 0.2},
        ],
    )
    frame, summary = _score(tmp_path, judgments_alpaca=folder)
    assert frame.select("item", "value", "status", "reason").rows() == [
        ("a", pytest.approx(60.0), "ok", None),
        ("b", None, "unjudged", "HTTP 500: no"),
        ("c", pytest.approx(20.0), "ok", None),
    ]
    assert (
        summary["alpaca"]["win_rate"]["unjudged"] == 1 and summary["alpaca"]["win_rate"]["n"] == 2
    )
    assert summary["alpaca"]["win_rate"]["position_consistency"] == 0.5


def test_length_control_appears_only_with_enough_items_and_under_its_own_name(
    tmp_path: Path,
) -> None:
    rows = [
        {
            "item": f"p{i}",
            "preference": (i % 5) / 4,
            "model_characters": 100 + 7 * (i % 11),
            "baseline_characters": 120,
        }
        for i in range(60)
    ]
    frame, summary = _score(tmp_path, judgments_alpaca=_judgments(tmp_path / "j", rows))
    controlled = frame.filter(pl.col("metric") == "length_controlled_minimal")
    assert controlled["value"].mean() == pytest.approx(
        summary["alpaca"]["length_controlled_minimal"]["value"]
    )
    assert controlled.height == 60 and "length_controlled_winrate" not in summary["alpaca"]
    _, few = _score(
        tmp_path / "few", judgments_alpaca=_judgments(tmp_path / "few" / "j", rows[:20])
    )
    assert list(few["alpaca"]) == ["win_rate"]


def _games(
    item: str, first: str | None, second: str | None, category: str = ""
) -> list[dict[str, Any]]:
    made = []
    for number, label in ((1, first), (2, second)):
        won = (
            None
            if label is None
            else 0.5
            if label == "A=B"
            else float(label.startswith("A") == (number == 2))
        )
        made.append(
            {
                "item": item,
                "category": category,
                "game": number,
                "order": "model" if number == 2 else "baseline",
                "label": label,
                "preference": won,
                "reason": None if label else "no verdict",
            }
        )
    return made


def test_an_arena_score_weighs_clear_verdicts_three_times(tmp_path: Path) -> None:
    rows = _games("a", "B>>A", "A>B") + _games("b", "A>B", "A=B") + _games("c", None, "B>A")
    frame, summary = _score(tmp_path, judgments_arena=_judgments(tmp_path / "j", rows, "v0.1"))
    assert summary["arena"]["arena_score"]["value"] == pytest.approx(
        100 * (3 + 1 + 0 + 0.5 + 0) / (3 + 1 + 1 + 1 + 1)
    )
    assert frame["value"].mean() == pytest.approx(summary["arena"]["arena_score"]["value"])
    assert (
        summary["arena"]["arena_score"]["unjudged_games"] == 1
        and summary["arena"]["arena_score"]["n"] == 3
    )


def test_v2_drops_a_question_with_one_game_and_scores_creative_writing_apart(
    tmp_path: Path,
) -> None:
    rows = (
        _games("a", "B>A", "A>B", "hard_prompt")
        + _games("b", None, "B>>A", "hard_prompt")
        + _games("c", "A>B", "B>A", "creative_writing")
    )
    frame, summary = _score(tmp_path, judgments_arena=_judgments(tmp_path / "j", rows, "v2.0"))
    assert summary["arena"]["arena_score"]["value"] == pytest.approx(100.0)
    assert summary["arena-creative_writing"]["arena_score"]["value"] == pytest.approx(0.0)
    assert frame.filter(pl.col("item") == "b").select("value", "status", "reason").rows() == [
        (None, "unjudged", "no verdict")
    ]


def test_held_out_loss_keeps_failed_conversations_visible(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    rows = [
        ("a", 1.0, 10, "ok", None),
        ("b", None, None, "failed", "too long"),
        ("c", 2.0, 30, "ok", None),
    ]
    pl.DataFrame(
        rows, schema=["id", "loss", "tokens", "status", "reason"], orient="row"
    ).write_parquet(tmp_path / "h" / "losses.parquet")
    frame, summary = _score(tmp_path, heldout=tmp_path / "h")
    assert (
        summary["heldout"]["loss"]["value"] == pytest.approx(1.5)
        and summary["heldout"]["loss"]["unjudged"] == 1
    )
    assert frame["reason"].to_list() == [None, "too long", None]


def test_nothing_to_score_and_a_missing_file_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to score"):
        _score(tmp_path)
    with pytest.raises(UserError, match=r"losses.parquet cannot be read"):
        _score(tmp_path, heldout=tmp_path)
