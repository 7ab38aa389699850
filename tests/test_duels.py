"""What a comparison says of two arms that were judged directly against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval import compare
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


def test_a_pair_of_which_no_game_was_judged_is_a_sentence(tmp_path: Path) -> None:
    unread = {"preference": None, "reason": "neither m nor M"}
    folder = judgments(tmp_path / "j", [{"item": f"p{i}", **unread} for i in range(5)])
    of_checkpoint.run({"judgments-alpaca": folder}, tmp_path / "two")
    row, words = shown(tmp_path, tmp_path / "two", "alpaca")
    assert row is None and "two against one: no game was judged" in words
