"""A judge against people: how often it agrees with human labels, how consistent it is under a swap,
and whether it likes length.

`pairs` reads human-labelled pairs from a folder of the user's (PandaLM, LLMBar, MT-Bench, FairEval,
LLMEval^2, or a file of the user's own); `agreement` compares verdicts with them. What a judge's
figures mean depends on the ceiling: how well people agree with people.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError, nearest
from eval import stats
from eval.prompt_sets.prompts import is_folder
from eval.prompt_sets.records import records

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

VOTES = {"human", "annotators"}
_NO_LABELS = re.compile("result|statistics|judge")
"""What the names of files have that hold a judge's verdicts instead."""


def pairs(dataset: str, folder: Path) -> pl.DataFrame:
    """Human-labelled pairs with the columns of `PAIRS`: a known set by its name, from its file in
    `folder`, or any file by its path.

    Understood forms of a record: PandaLM's (instruction, input, response1, response2, annotator1
    …), LLMBar's (input, output_1, output_2, label), and ours (prompt, answer_1, answer_2, human or
    annotators). Raises UserError for an unknown set, a missing file, or a record that is none of
    them.
    """
    is_folder(folder)
    path = _file(dataset, folder)
    rows = [_pair(record, f"{path}, record {number}", number) for number, record in records(path)]
    if not rows:
        raise UserError(f"{path} holds no labelled pair.")
    return pl.DataFrame(rows, schema=PAIRS)


def _file(dataset: str, folder: Path) -> Path:
    """The file of a known set, the first by name, or the file of this name."""
    word = DATASETS.get(dataset)
    if word is None:
        path = folder / dataset
        if path.is_file():
            return path
        other = nearest(dataset, DATASETS)
        raise UserError(f"'{dataset}' is neither a known set of human labels nor a file{other}")
    for path in sorted(folder.rglob("*.json*")):
        inside = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        if word in inside and not _NO_LABELS.search(path.name):
            return path
    raise UserError(
        f"{folder} holds no JSON file of {dataset} (with '{word}' in its path); "
        "download it from its project."
    )


def _pair(record: dict[str, Any], where: str, number: int) -> dict[str, Any]:
    """A row of `PAIRS` from the record of this number, in any of the known forms."""
    labels: Sequence[Any]
    match record:
        case {"instruction": prompt, "response1": first, "response2": second, "annotator1": _}:
            prompt = f"{prompt}\n\n{record['input']}" if record.get("input") else prompt
            labels = [record[name] for name in sorted(record) if name.startswith("annotator")]
        case {"input": prompt, "output_1": first, "output_2": second, "label": label}:
            labels = [label]
        case {"prompt": prompt, "answer_1": first, "answer_2": second} if record.keys() & VOTES:
            labels = record.get("annotators") or [record["human"]]
        case _:
            raise UserError(
                f"{where}: no labelled pair; it needs prompt, answer_1, answer_2 and "
                "human (0, 1 or 2) or annotators."
            )
    texts = (prompt, first, second)
    if not all(isinstance(text, str | bool | int | float) for text in texts):
        raise UserError(f"{where}: the prompt and both answers must be texts.")
    try:
        votes = [int(label) for label in labels]
    except (TypeError, ValueError, OverflowError):
        votes = [-1]
    if not set(votes) <= {0, 1, 2}:
        raise UserError(f"{where}: the human labels {labels!r} are not all 0 (tie), 1 or 2.")
    name = str(record.get("id", record.get("idx", number - 1)))
    # PandaLM's True is a JSON true.
    return dict(zip(PAIRS, (name, *map(str, texts), majority(votes), votes), strict=True))


def majority(votes: Sequence[int]) -> int | None:
    """The label that more than half of the votes name; None when there is none."""
    best = _most_common(votes)
    return best if 2 * votes.count(best) > len(votes) else None


def _most_common(values: Sequence[int]) -> int:
    return max(set(values), key=values.count)


def human_ceiling(labelled: pl.DataFrame) -> dict[str, Any] | None:
    """How well people agree with each other on these pairs, or None with one annotator a pair.

    `pairwise`: two annotators give the same label, over all pairs of annotators. `with_majority`:
    one annotator gives the majority of all (its own vote included), over pairs that have one.
    """
    votes = [v for v in labelled["annotators"].to_list() if len(v) > 1]
    if not votes:
        return None
    same = [a == b for v in votes for a, b in combinations(v, 2)]
    majorities = [(v, majority(v)) for v in votes]
    right = [label == m for v, m in majorities if m is not None for label in v]
    return {
        "pairwise": float(np.mean(same)),
        "with_majority": float(np.mean(right)),
        "n": len(votes),
        "kappa": _fleiss(votes),
    }


def _fleiss(votes: list[list[int]]) -> float:
    """Fleiss' kappa over pairs with the most common number of annotators."""
    size = _most_common([len(v) for v in votes])
    counts = np.array([np.bincount(v, minlength=3) for v in votes if len(v) == size])
    observed = ((counts**2).sum(axis=1) - size).mean() / (size * (size - 1))
    return _beyond(observed, ((counts.sum(axis=0) / counts.sum()) ** 2).sum())


def _beyond(observed: float, chance: float) -> float:
    """Agreement beyond chance; nan where chance alone agrees always."""
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
    known = verdicts.select(pl.col("id").cast(pl.String), "order", "verdict")
    table = known.join(labelled, on="id")
    if table.is_empty():
        raise UserError(
            "none of the verdicts is about a labelled pair: their ids have nothing in common."
        )
    if table.select("id", "order").is_duplicated().any():
        raise UserError(
            "a pair is judged twice in the same order; keep one verdict for each order."
        )
    asked = table.drop_nulls("human")
    judged = asked.drop_nulls("verdict")
    if judged.is_empty():
        raise UserError(
            "not one verdict is on a pair with a majority of people: there is nothing to compare."
        )
    same = pl.col("verdict") == pl.col("human")
    half = pl.when(pl.col("verdict") == 0).then(0.5).otherwise(same.cast(pl.Float64))
    both = (
        table.drop_nulls("verdict")
        .group_by("id")
        .agg(pl.col("verdict").n_unique(), pl.len())
        .filter(pl.col("len") == 2)
    )
    decided = table.filter(pl.col("verdict").is_in([1, 2]))
    return {
        **_accuracy(asked, level),
        "accuracy_of_judged": judged.select(same.mean()).item(),
        "accuracy_without_ties": judged.filter(pl.col("human") != 0).select(half.mean()).item(),
        "kappa": kappa(judged["verdict"], judged["human"]),
        "position_consistency": (both["verdict"] == 1).mean(),
        "first_preferred": (decided["verdict"] == decided["order"]).mean(),
        **_length_bias(judged),
        "n": asked["id"].n_unique(),
        "verdicts": judged.height,
        "unjudged": table["verdict"].null_count(),
        "no_majority": table.filter(pl.col("human").is_null())["id"].n_unique(),
        "human_ceiling": human_ceiling(labelled.join(table, on="id", how="semi")),
    }


def _accuracy(asked: pl.DataFrame, level: float) -> dict[str, float]:
    """Verdicts equal to people's label, an unjudged one counting as wrong, with an interval."""
    right = (asked["verdict"].fill_null(-1) == asked["human"]).to_numpy().astype(np.float64)
    mean = stats.mean_interval(right, asked["id"].to_numpy(), level)
    lower, upper = mean.lower, mean.upper
    if asked["id"].is_unique().all():
        lower, upper = stats.wilson(int(right.sum()), len(right), level)
    return {
        "accuracy": mean.value,
        "standard_error": mean.standard_error,
        "lower": max(0.0, lower),
        "upper": min(1.0, upper),
    }


def kappa(a: Sequence[int] | pl.Series, b: Sequence[int] | pl.Series) -> float:
    """Cohen's kappa of two raters' labels (n,): agreement beyond what their label frequencies alone
    would give; nan when both use one label."""
    first, second = np.asarray(a), np.asarray(b)
    labels = np.union1d(first, second)[:, None]
    chance = ((first == labels).mean(axis=1) * (second == labels).mean(axis=1)).sum()
    return _beyond((first == second).mean(), chance)


def _length_bias(judged: pl.DataFrame) -> dict[str, float | None]:
    """How often the longer answer (characters) wins, over verdicts and labels that name a winner
    between answers of different length."""
    one, two = (pl.col(side).str.len_chars() for side in ("answer_1", "answer_2"))
    winners = pl.col("verdict", "human")
    both = judged.filter(one != two, winners.is_in([1, 2]))
    longer = pl.when(one > two).then(1).otherwise(2)
    judge, people = both.select((winners == longer).mean()).row(0)
    return {
        "longer_preferred": judge,
        "human_longer_preferred": people,
        "length_bias": None if both.is_empty() else judge - people,
    }
