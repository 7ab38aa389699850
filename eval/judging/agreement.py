"""A judge against people: how often it agrees with human labels, how consistent it is under a swap,
and whether it likes length.

`pairs` reads human-labelled pairs from a folder of the user's (PandaLM, LLMBar, MT-Bench, FairEval,
LLMEval^2, or a file of the user's own); `agreement` compares verdicts with them. What a judge's
figures mean depends on the ceiling: how well people agree with people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError, nearest
from eval import stats
from eval.prompt_sets.prompts import records

PAIRS: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "prompt": pl.String,
    "answer_1": pl.String,
    "answer_2": pl.String,
    "human": pl.Int64,
    "annotators": pl.List(pl.Int64),
}
"""Columns of `pairs`: `human` is 1 or 2 (the better answer) or 0 (as good as each other), the
majority of `annotators`; null where the annotators' votes have no majority."""

DATASETS = {
    "pandalm": "testset",
    "llmbar-natural": "Natural",
    "llmbar-gptinst": "GPTInst",
    "llmbar-gptout": "GPTOut",
    "llmbar-manual": "Manual",
    "llmbar-neighbor": "Neighbor",
    "mt-bench": "MT-Bench",
    "faireval": "FairEval",
    "llmeval2": "LLMEval",
}
"""The known sets, and the word that their file's path has in the projects' own repositories
(testset-v1.json, LLMBar/Natural/dataset.json)."""

_NO_LABELS = ("result", "statistics", "judge")
"""Words in the names of files that hold a judge's verdicts instead."""


def pairs(dataset: str, folder: Path) -> pl.DataFrame:
    """Human-labelled pairs with the columns of `PAIRS`: a known set by its name, from its file in
    `folder`, or any file by its path.

    Understood forms of a record: PandaLM's (instruction, input, response1, response2, annotator1
    …), LLMBar's (input, output_1, output_2, label), and ours (prompt, answer_1, answer_2, human or
    annotators). Raises UserError for an unknown set, a missing file, or a record that is none of
    them.
    """
    if dataset in DATASETS:
        found = [
            p
            for p in sorted(folder.rglob("*.json*"))
            if not any(word in p.name for word in _NO_LABELS)
        ]
        found = [
            p
            for p in found
            if DATASETS[dataset] in f"{folder.name}/{p.relative_to(folder).as_posix()}"
        ]
        if not found:
            raise UserError(
                f"{folder} holds no JSON file of {dataset} (with '{DATASETS[dataset]}' in its path); download it from its project."
            )
        path = found[0]
    else:
        path = folder / dataset
        if not path.is_file():
            raise UserError(
                f"'{dataset}' is neither a known set of human labels nor a file{nearest(dataset, DATASETS)}"
            )
    return pl.DataFrame(
        [_pair(record, number, path) for number, record in records(path)], schema=PAIRS
    )


def _pair(record: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    name = str(record.get("id", record.get("idx", number - 1)))
    annotators: Sequence[Any]
    match record:
        case {"instruction": prompt, "response1": first, "response2": second, "annotator1": _}:
            prompt = f"{prompt}\n\n{record['input']}" if record.get("input") else prompt
            annotators = [record[k] for k in sorted(record) if k.startswith("annotator")]
        case {"input": prompt, "output_1": first, "output_2": second, "label": label}:
            annotators = [label]
        case {"prompt": prompt, "answer_1": first, "answer_2": second} if record.keys() & {
            "human",
            "annotators",
        }:
            annotators = record.get("annotators") or [record["human"]]
        case _:
            raise UserError(
                f"{path}, record {number}: no labelled pair; it needs prompt, answer_1, answer_2 and human (0, 1 or 2) or annotators."
            )
    texts = [
        str(t) if isinstance(t, (str, bool, int, float)) else None for t in (prompt, first, second)
    ]  # PandaLM's True is a JSON true
    if None in texts:
        raise UserError(f"{path}, record {number}: the prompt and both answers must be texts.")
    try:
        votes = [int(v) for v in annotators]
    except (TypeError, ValueError):
        votes = [-1]
    if not set(votes) <= {0, 1, 2}:
        raise UserError(
            f"{path}, record {number}: the human labels {list(annotators)} are not all 0 (tie), 1 or 2."
        )
    return {
        "id": name,
        "prompt": texts[0],
        "answer_1": texts[1],
        "answer_2": texts[2],
        "human": majority(votes),
        "annotators": votes,
    }


def majority(votes: Sequence[int]) -> int | None:
    """The label that more than half of the votes name; None when there is none."""
    best = max(set(votes), key=votes.count)
    return best if 2 * votes.count(best) > len(votes) else None


def human_ceiling(labelled: pl.DataFrame) -> dict[str, Any] | None:
    """How well people agree with each other on these pairs, or None with one annotator a pair.

    `pairwise`: two annotators give the same label, over all pairs of annotators. `with_majority`:
    one annotator gives the majority of all (its own vote included), over pairs that have one.
    """
    votes = [v for v in labelled["annotators"].to_list() if len(v) > 1]
    if not votes:
        return None
    same = [a == b for v in votes for a, b in combinations(v, 2)]
    majorities = [(v, m) for v in votes if (m := majority(v)) is not None]
    return {
        "pairwise": float(np.mean(same)),
        "with_majority": float(np.mean([x == m for v, m in majorities for x in v])),
        "n": len(votes),
        "kappa": _fleiss(votes),
    }


def _fleiss(votes: list[list[int]]) -> float:
    """Fleiss' kappa over pairs with the most common number of annotators."""
    size = max({len(v) for v in votes}, key=[len(v) for v in votes].count)
    counts = np.array(
        [[v.count(label) for label in (0, 1, 2)] for v in votes if len(v) == size], dtype=np.float64
    )
    observed = ((counts**2).sum(axis=1) - size).mean() / (size * (size - 1))
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else math.nan


def agreement(
    verdicts: pl.DataFrame, labelled: pl.DataFrame, *, level: float = 0.95
) -> dict[str, Any]:
    """How a judge's verdicts agree with people.

    `verdicts`: columns id, order and verdict; `order` is 1 where answer_1 was shown first and 2
    where answer_2 was; `verdict` names the better answer (1, 2, or 0 for a tie) whichever was shown
    first, null where unjudged. `labelled`: from `pairs`.

    Returned figures are fractions. accuracy: verdicts equal to the majority of people, an unjudged
    one counting as wrong, with a t interval clustered by pair; where every pair was judged once,
    Wilson's interval. accuracy_of_judged: without the unjudged. accuracy_without_ties: of judged
    verdicts on pairs with a better answer, a tie counting half. kappa: Cohen's, over judged
    verdicts. position_consistency: of the pairs judged in both orders, those with the same verdict.
    first_preferred: how often the first shown answer won (0.5 is no position bias).
    longer_preferred and human_longer_preferred: how often the longer of two answers won, for the
    judge and for people on the same pairs; length_bias is the difference. Pairs without a majority
    are counted and left out. Raises UserError when no verdict belongs to a labelled pair.
    """
    table = verdicts.select(pl.col("id").cast(pl.String), "order", "verdict").join(
        labelled, on="id", how="inner"
    )
    if table.is_empty():
        raise UserError(
            "none of the verdicts is about a labelled pair: their ids have nothing in common."
        )
    if table.select("id", "order").is_duplicated().any():
        raise UserError(
            "a pair is judged twice in the same order; keep one verdict for each order."
        )
    asked = table.filter(pl.col("human").is_not_null())
    judged = asked.filter(pl.col("verdict").is_not_null())
    if judged.is_empty():
        raise UserError(
            "not one verdict is on a pair with a majority of people: there is nothing to compare."
        )
    verdict, human = judged["verdict"].to_numpy(), judged["human"].to_numpy()
    right = (asked["verdict"].fill_null(-1) == asked["human"]).to_numpy().astype(np.float64)
    once = asked["id"].n_unique() == asked.height
    mean = stats.mean_interval(right, asked["id"].to_numpy(), level)
    lower, upper = (
        stats.wilson(int(right.sum()), len(right), level) if once else (mean.lower, mean.upper)
    )
    clear = judged.filter(pl.col("human") != 0)
    half = np.where(clear["verdict"] == 0, 0.5, clear["verdict"] == clear["human"])
    both = (
        table.filter(pl.col("verdict").is_not_null())
        .group_by("id")
        .agg(pl.col("verdict").n_unique(), pl.len())
        .filter(pl.col("len") == 2)
    )
    decided = table.filter(pl.col("verdict").is_in([1, 2]))
    return {
        "accuracy": mean.value,
        "standard_error": mean.standard_error,
        "lower": max(0.0, lower),
        "upper": min(1.0, upper),
        "accuracy_of_judged": float((verdict == human).mean()),
        "accuracy_without_ties": float(half.mean()) if len(half) else None,
        "kappa": kappa(verdict, human),
        "position_consistency": (both["verdict"] == 1).mean(),
        "first_preferred": (decided["verdict"] == decided["order"]).mean(),
        **_length_bias(judged),
        "n": asked["id"].n_unique(),
        "verdicts": judged.height,
        "unjudged": int(table["verdict"].null_count()),
        "no_majority": int(table.filter(pl.col("human").is_null())["id"].n_unique()),
        "human_ceiling": human_ceiling(labelled.filter(pl.col("id").is_in(table["id"].to_list()))),
    }


def kappa(a: Sequence[int] | Any, b: Sequence[int] | Any) -> float:
    """Cohen's kappa of two raters' labels (n,): agreement beyond what their label frequencies alone
    would give; nan when both use one label."""
    first, second = np.asarray(a), np.asarray(b)
    chance = sum(
        float((first == label).mean() * (second == label).mean())
        for label in np.union1d(first, second)
    )
    return (float((first == second).mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def _length_bias(judged: pl.DataFrame) -> dict[str, float | None]:
    """How often the longer answer (characters) wins, over verdicts and labels that name a winner
    between answers of different length."""
    longer = judged.with_columns(
        pl.when(pl.col("answer_1").str.len_chars() > pl.col("answer_2").str.len_chars())
        .then(1)
        .otherwise(2)
        .alias("longer")
    ).filter(pl.col("answer_1").str.len_chars() != pl.col("answer_2").str.len_chars())
    both = longer.filter(pl.col("verdict").is_in([1, 2]) & pl.col("human").is_in([1, 2]))
    if both.is_empty():
        return {"longer_preferred": None, "human_longer_preferred": None, "length_bias": None}
    judge = float((both["verdict"] == both["longer"]).mean())  # type: ignore[arg-type]
    people = float((both["human"] == both["longer"]).mean())  # type: ignore[arg-type]
    return {
        "longer_preferred": judge,
        "human_longer_preferred": people,
        "length_bias": judge - people,
    }
