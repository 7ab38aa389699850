"""What selections have in common with each other, and with what arms are measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.columns import MESSAGES
from recipes.stages.sets import overlap
from recipes.stages.sets.overlap import MEASURED, common, told

LONG = "please explain in plain words how a canal lock lifts a boat from one level to the next"


def conversation(text: str, answer: str = "so") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def rows(folder: Path, name: str, texts: list[str], answer: str = "so") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    messages = [conversation(text, answer) for text in texts]
    made = {"id": [f"{k}" for k in range(len(texts))], "messages": messages}
    pl.DataFrame(made, schema={"id": pl.String, "messages": MESSAGES}).write_parquet(folder / name)
    return folder


def questions(first: int, last: int) -> list[str]:
    return [f"what is the square root of {k} and who asked first" for k in range(first, last)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("overlap")
    selections = {
        "a/0": questions(0, 10),
        "a/1": questions(0, 10),
        "b/0": questions(5, 15),
        "b/1": [*questions(10, 19), f"  {LONG}, will you?"],
        "c/0": questions(0, 10),
        "c/1": questions(0, 9),
    }
    folders = {run: rows(root / run, "selection.parquet", t) for run, t in selections.items()}
    folders[f"{MEASURED}heldout"] = rows(root / "held", "heldout.parquet", [LONG, "say hello"])
    lines = [{"id": "p1", "prompt": "who are you"}, {"id": "p2", "prompt": questions(7, 8)[0]}]
    (root / "prompts").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "prompts" / "prompts.jsonl").write_text(text)
    folders[f"{MEASURED}alpaca"] = root / "prompts"
    return common([*selections], folders)


def test_arms_are_compared_seed_by_seed(found: dict[str, Any]) -> None:
    jaccard = {(one["a"], one["b"]): one["jaccard"] for one in found["pairs"]}
    assert jaccard == {
        ("a", "b"): pytest.approx((5 / 15 + 0 / 20) / 2),
        ("a", "c"): pytest.approx((10 / 10 + 9 / 10) / 2),
        ("b", "c"): pytest.approx((5 / 15 + 0 / 19) / 2),
    }


def test_arms_that_ask_the_same_of_two_teachers_have_no_row_in_common(tmp_path: Path) -> None:
    folders = {}
    for teacher in ("first", "second"):
        asked = questions(0, 10)
        folders[f"{teacher}/0"] = rows(tmp_path / teacher, "selection.parquet", asked, teacher)
    (pair,) = (made := common([*folders], folders))["pairs"]
    assert (pair["jaccard"], pair["jaccard_instructions"]) == (0, 1)
    (said,) = overlap.sentences(made, {frozenset(("first", "second"))})
    assert "100% of their instructions in common" in said and "0% of their rows" in said


def test_a_near_duplicate_of_a_held_out_row_is_found_in_the_run_that_has_it(
    found: dict[str, Any],
) -> None:
    near = {one["run"]: one for one in found["near"] if one["measured_on"] == "heldout"}
    assert {run: one["near"] for run, one in near.items() if one["near"]} == {"b/1": 1}
    assert near["b/1"]["of"] == 2 and near["b/1"]["examples"] == ["0"]


def test_a_prompt_of_the_evaluation_is_found_in_every_run_that_has_it(
    found: dict[str, Any],
) -> None:
    near = [one for one in found["near"] if one["measured_on"] == "alpaca" and one["near"]]
    assert {one["run"] for one in near} == {"a/0", "a/1", "b/0", "c/0", "c/1"}
    assert all(one["examples"] == ["p2"] for one in near)


def test_the_overlap_stands_beside_every_difference(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / overlap.FOUND).write_text(json.dumps(found))
    comparison: dict[str, Any] = {
        "differences": [{"a": "c", "b": "a"}, {"a": "a", "b": "untuned"}],
        "notes": ["first"],
    }
    shown = told(comparison, tmp_path)
    assert [row["overlap"] for row in shown["differences"]] == [pytest.approx(0.95), None]
    asked = [row["overlap_instructions"] for row in shown["differences"]]
    assert asked == [pytest.approx(0.95), None]
    assert shown["notes"][0] == "first"
    assert any("b/1 was trained on near-duplicates of 1 of 2 texts" in n for n in shown["notes"])
    assert any("a and c have 95% of their rows in common" in note for note in shown["notes"])
    assert not any("a and b have" in note for note in shown["notes"])


def test_many_trainings_that_repeat_what_they_are_measured_on_are_one_sentence() -> None:
    near = [
        {"run": run, "measured_on": "heldout", "near": count, "of": 117}
        for run, count in (("a/0", 2), ("a/1", 1), ("b/0", 6), ("b/1", 0))
    ]
    assert overlap.sentences({"near": near, "pairs": []}, []) == [
        "3 trainings saw near-duplicates of 1 to 6 of 117 texts of heldout (b/0 the most): their "
        "figures there are better than they should be."
    ]
