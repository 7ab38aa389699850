"""A judge's agreement with people, on stored human labels and on made ones."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.judging.people import agreement

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared")) / "data/eval/human"
)
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the human labels are not at {SHARED}")


def verdicts(rows: list[tuple[str, int, int | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"id": pl.String, "order": pl.Int64, "verdict": pl.Int64}, orient="row"
    )


def labelled(humans: list[list[int]], lengths: list[tuple[int, int]] | None = None) -> pl.DataFrame:
    sizes = lengths or [(5, 9)] * len(humans)
    rows = [
        {
            "id": str(i),
            "prompt": "p",
            "answer_1": "x" * a,
            "answer_2": "x" * b,
            "human": agreement.majority(votes),
            "annotators": votes,
        }
        for i, (votes, (a, b)) in enumerate(zip(humans, sizes, strict=True))
    ]
    return pl.DataFrame(rows, schema=agreement.PAIRS)


@needs_data
def test_pandalm_people_agree_with_each_other_in_0_920() -> None:
    ceiling = agreement.human_ceiling(agreement.pairs("pandalm", SHARED))
    assert ceiling is not None and ceiling["n"] == 999
    assert ceiling["pairwise"] == pytest.approx(0.920, abs=5e-4)


@needs_data
@pytest.mark.parametrize(
    ("file", "key", "accuracy"),
    [("pandalm_gpt-3.5_judge", "gpt_result", 0.698), ("pandalm-7b_judge", "pandalm_result", 0.668)],
)
def test_pandalm_judges_have_their_known_accuracy(file: str, key: str, accuracy: float) -> None:
    names = {"1": 1, "2": 2, "0": 0, "Tie": 0}
    stored = json.loads((SHARED / f"{file}.json").read_text())
    found = agreement.agreement(
        verdicts([(str(j["idx"]), 1, names.get(str(j[key]))) for j in stored]),
        agreement.pairs("pandalm", SHARED),
    )
    assert found["accuracy"] == pytest.approx(accuracy, abs=5e-4)
    assert found["lower"] < accuracy < found["upper"]
    assert found["unjudged"] == (
        25 if "gpt" in file else 0
    )  # its garbage counts as wrong and is said


@needs_data
def test_llmbar_swap_run_has_its_published_accuracy_and_consistency() -> None:
    with gzip.open(SHARED / "llmbar_Natural_GPT-4_Swap_result.json.gz") as handle:
        stored = json.load(handle)
    rows = [
        (str(i), order, int(run["results"][-1][f"swap = {swap}"]["winner"]))
        for i, run in enumerate(stored)
        for order, swap in ((1, False), (2, True))
    ]
    found = agreement.agreement(verdicts(rows), agreement.pairs("llmbar-natural", SHARED))
    assert found["accuracy"] == pytest.approx(0.945)
    assert found["position_consistency"] == pytest.approx(0.97)
    assert found["human_ceiling"] is None


@needs_data
@pytest.mark.parametrize(
    ("dataset", "size"),
    [
        ("llmbar-natural", 100),
        ("llmbar-gptinst", 92),
        ("llmbar-gptout", 47),
        ("llmbar-manual", 46),
        ("llmbar-neighbor", 134),
        ("mt-bench", 200),
        ("faireval", 66),
        ("llmeval2", 200),
    ],
)
def test_known_sets_are_read_from_their_files(dataset: str, size: int) -> None:
    found = agreement.pairs(dataset, SHARED)
    assert (
        found.height == size and found["human"].null_count() == 0 and found["id"].n_unique() == size
    )


def test_a_set_is_found_where_its_project_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset" / "LLMBar" / "Natural"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(
        json.dumps([{"input": "p", "output_1": "a", "output_2": "b", "label": 2}])
    )
    for place in (tmp_path, folder):
        assert agreement.pairs("llmbar-natural", place)["human"].to_list() == [2]


def test_both_orders_of_a_pair_are_one_cluster_and_give_its_consistency() -> None:
    pairs = labelled([[1], [2], [1], [2]])
    rows = [
        ("0", 1, 1),
        ("0", 2, 1),
        ("1", 1, 1),
        ("1", 2, 2),
        ("2", 1, 1),
        ("2", 2, 2),
        ("3", 1, 2),
        ("3", 2, 2),
    ]
    found = agreement.agreement(verdicts(rows), pairs)
    assert (found["accuracy"], found["position_consistency"], found["n"], found["verdicts"]) == (
        0.75,
        0.5,
        4,
        8,
    )
    assert found["first_preferred"] == pytest.approx(6 / 8)


def test_a_judge_that_takes_the_longer_answer_shows_its_bias() -> None:
    sizes = [(5, 9), (9, 5), (5, 9), (9, 5), (4, 4)]
    found = agreement.agreement(
        verdicts([("0", 1, 2), ("1", 1, 1), ("2", 1, 2), ("3", 1, 1), ("4", 1, 1)]),
        labelled([[2], [2], [1], [1], [1]], sizes),
    )
    assert (found["longer_preferred"], found["human_longer_preferred"], found["length_bias"]) == (
        1.0,
        0.5,
        0.5,
    )


def test_unjudged_counts_as_wrong_and_pairs_without_a_majority_are_left_out() -> None:
    pairs = labelled([[1, 1, 2], [0, 1, 2], [2, 2, 2], [1, 1, 1]])
    found = agreement.agreement(
        verdicts([("0", 1, 1), ("1", 1, 1), ("2", 1, None), ("3", 1, 0)]), pairs
    )
    assert (found["n"], found["unjudged"], found["no_majority"]) == (3, 1, 1)
    assert found["accuracy"] == pytest.approx(1 / 3) and found["accuracy_of_judged"] == 0.5
    assert found["accuracy_without_ties"] == 0.75  # a tie where people see a winner is half right


def test_kappa_is_0_at_chance_1_when_equal_and_the_textbook_value_between() -> None:
    assert agreement.kappa([1, 1, 2, 2], [1, 2, 1, 2]) == 0.0
    assert agreement.kappa([1, 2, 0, 1], [1, 2, 0, 1]) == 1.0
    a, b = [1] * 25 + [2] * 25, [1] * 20 + [2] * 5 + [1] * 10 + [2] * 15
    assert agreement.kappa(a, b) == pytest.approx(0.4)


def test_a_users_file_of_labels_is_read_by_its_path(tmp_path: Path) -> None:
    record = {"id": "x", "prompt": "p", "answer_1": "a", "answer_2": "b"}
    (tmp_path / "mine.jsonl").write_text(
        json.dumps(record | {"human": 2}) + "\n" + json.dumps(record | {"annotators": [1, 1, 0]})
    )
    assert agreement.pairs("mine.jsonl", tmp_path)["human"].to_list() == [2, 1]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "p", "answer_1": "a", "answer_2": "b"}, "record 1: no labelled pair"),
        (
            {"prompt": "p", "answer_1": "a", "answer_2": "b", "human": 3},
            r"record 1: the human labels \[3\]",
        ),
        (
            {"prompt": None, "answer_1": "a", "answer_2": "b", "human": 1},
            "record 1: the prompt and both answers must be texts",
        ),
    ],
)
def test_malformed_labels_are_one_sentence(
    record: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=sentence):
        agreement.pairs("mine.jsonl", tmp_path)


def test_unknown_sets_and_foreign_verdicts_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pandalm'"):
        agreement.pairs("pandaml", tmp_path)
    with pytest.raises(UserError, match="holds no JSON file of pandalm"):
        agreement.pairs("pandalm", tmp_path)
    with pytest.raises(UserError, match="nothing in common"):
        agreement.agreement(verdicts([("a", 1, 1)]), labelled([[1]]))
    with pytest.raises(UserError, match="twice in the same order"):
        agreement.agreement(verdicts([("0", 1, 1), ("0", 1, 2)]), labelled([[1]]))
