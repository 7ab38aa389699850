"""What a comparison says of two arms that were judged directly against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval import compare, stats
from eval.comparing.metrics import Declared
from eval.scoring import of_checkpoint
from recipes.stages.evaluating import duels
from tests.test_compare import scores
from tests.test_scores import _judgments as judgments

HARD = {f"q{i}": 60.0 + i % 7 for i in range(30)}
CREATIVE = {f"c{i}": 20.0 + i % 5 for i in range(30)}


def shown(folder: Path, inputs: Path, benchmark: str) -> tuple[dict[str, Any] | None, str]:
    declared = Declared(benchmark, "one", judged_against={benchmark: "one"})
    compare.run({"two/0": inputs}, folder / "compared", declared, unscored=["one/0"])
    return duels.shown(f"{duels.DIRECT}/{benchmark}/two/one", folder / "compared")


def test_a_pair_that_also_wrote_creatively_is_decided_by_the_hard_prompts(tmp_path: Path) -> None:
    for name, values in (("arena-creative_writing", CREATIVE), ("arena", HARD)):
        inputs = scores(tmp_path / "two", values, benchmark=name, metric="arena_score")
    row, words = shown(tmp_path, inputs, "arena")
    assert row is not None and row["difference"] == pytest.approx(sum(HARD.values()) / 30 - 50)
    assert row["verdict"] == "two is better"
    assert words.startswith("head to head (arena arena_score): two against one 62.")


def test_pairs_of_one_benchmark_hold_at_once(tmp_path: Path) -> None:
    values = {f"q{i}": 50.0 + (i * 7 % 23) - 8 for i in range(30)}
    inputs = {"two/0": scores(tmp_path / "two", values, benchmark="arena", metric="arena_score")}
    rows = {}
    for beside in (1, 4):
        declared = Declared("arena", "one", judged_against={"arena": "one"}, beside=beside)
        compare.run(inputs, tmp_path / "compared", declared, unscored=["one/0"])
        row, words = duels.shown(f"{duels.DIRECT}/arena/two/one", tmp_path / "compared")
        assert row is not None and "(exploratory; these two checkpoints)" in words
        assert row["scope"] == "these two checkpoints; exploratory"
        rows[beside] = row
    alone, one = rows[1], rows[4]
    half = {n: row["simultaneous_upper"] - row["difference"] for n, row in rows.items()}
    wider = stats.t_critical(29, 1 - 0.05 / 4) / stats.t_critical(29)
    assert half[4] == pytest.approx(half[1] * wider)
    assert (one["p"], one["p_holm"]) == (alone["p"], pytest.approx(min(1, 4 * alone["p"])))
    assert (alone["verdict"], one["verdict"]) == ("two is better", "cannot tell")


def test_what_has_no_p_value_has_none_among_several_pairs(tmp_path: Path) -> None:
    values = {"q0": 60.0}
    for arm, own in (("two/0", values), ("two/1", values)):
        scores(tmp_path / arm, own, benchmark="arena", metric="arena_score")
    inputs = {arm: tmp_path / arm for arm in ("two/0", "two/1")}
    declared = Declared("arena", "one", judged_against={"arena": "one"}, beside=3)
    compare.run(inputs, tmp_path / "compared", declared, unscored=["one/0", "one/1"])
    row, _ = duels.shown(f"{duels.DIRECT}/arena/two/one", tmp_path / "compared")
    assert row is not None and (row["p"], row["p_holm"]) == (None, None)


def test_a_benchmarks_duels_know_how_many_they_are(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    class Kept:
        def result(self, stage: Any) -> None:
            asked.append(stage.spec)

    for beside in (1, 3):
        duels._compared(Kept(), "head-to-head/alpaca/a/b", {}, ["b"], beside)  # type: ignore[arg-type]
    assert "beside" not in asked[0] and asked[1]["beside"] == 3


def test_a_pair_of_which_no_game_was_judged_is_a_sentence(tmp_path: Path) -> None:
    unread = {"preference": None, "reason": "neither m nor M"}
    folder = judgments(tmp_path / "j", [{"item": f"p{i}", **unread} for i in range(5)])
    of_checkpoint.run({"judgments-alpaca": folder}, tmp_path / "two")
    row, words = shown(tmp_path, tmp_path / "two", "alpaca")
    assert row is None and "two against one: no game was judged" in words
