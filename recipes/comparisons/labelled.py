"""What people's labels say: how far the recipe's judge agrees with them on its own task, and the
difference between arms that people see, sharpened by the judge (`magpie label --read`)."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from core.cells.seals import seal_of
from core.errors import UserError
from core.files import finite as as_json
from core.files import read_json, write_atomic
from core.store import digest
from eval import stats
from eval.comparing.metrics import AGAINST_BASELINE
from eval.judging import settle
from eval.judging.people import agreement
from eval.judging.people.labelled import FILE
from eval.judging.people.prediction_powered import FEWEST, powered
from eval.prompt_sets.samples import MARK
from eval.protocols import PAIRWISE, PairwiseProtocol
from eval.scoring import of_checkpoint
from eval.stats import Interval
from recipes.comparisons.labels import Pair, Results, pairs, read
from recipes.schema import Loaded, Recipe
from recipes.stages import graph
from recipes.stages.evaluating.judging import rival, same_seed
from recipes.stages.walk import Arms

NAMED = {1: 1, -1: 2, 0: 0}
"""A vote for `a`, for `b`, for neither, as the better of two answers."""


def _is_pair(pair: Any) -> bool:
    """Whether a pair of a key has all that labels are read by."""
    kinds = {"id": str, "item": str, "a": str, "b": str, "a_first": bool, "seeds": list}
    if not isinstance(pair, dict) or len(pair.get("seeds") or ()) != 2:
        return False
    return all(isinstance(pair.get(name), kind) for name, kind in kinds.items())


def _key(path: Path) -> dict[str, Any]:
    """The key of labels, who is who in each pair. Raises UserError where there is none, and for one
    that was damaged: what labels mean is never guessed."""
    remedy = (
        "restore it from a copy, or write the same pairs to a new folder (`magpie label` with the "
        "same arms and count, --out) and take its key"
    )
    try:
        known = read_json(path, remedy)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; labels are read beside their key.") from error
    whole = (
        isinstance(known, dict)
        and all(isinstance(known.get(name), str) for name in ("recipe", "benchmark"))
        and isinstance(known.get("pairs"), list)
        and all(map(_is_pair, known["pairs"]))
    )
    if not whole or known.get("seal", seal_of(known)) != seal_of(known):
        raise UserError(f"{path} was changed after it was made; {remedy}.")
    return dict(known)


def write(loaded: Loaded, files: Sequence[Path], key: Path) -> dict[str, Any]:
    """Read labels beside their key, write what they say to STORE/recipes/NAME/people.json and the
    judge's agreement to where every score finds it, and return it.

    `agreement` is as eval.judging.people.agreement has it (None where the benchmark has no single
    judge), `differences` has an entry a pair of arms: see `difference`. Raises UserError for labels
    of answers that are not the recipe's any more.
    """
    recipe, results = loaded.recipe, graph.plan(loaded).results
    known = _key(key)
    if known["recipe"] != recipe.name:
        raise UserError(f"{key} is of the recipe {known['recipe']}, not of {recipe.name}.")
    benchmark = known["benchmark"]
    labels = read(files, known)
    judge = _judge(recipe, results, benchmark)
    asked: dict[tuple[str, str], dict[str, Pair]] = {}
    judged: dict[tuple[str, str], dict[str, float | None]] = {}
    for arms in labels.select("a", "b").unique(maintain_order=True).iter_rows():
        every = pairs(recipe, results, benchmark, arms)
        asked[arms] = {pair.id: pair for pair in every}
        judged[arms] = {pair.id: judge_says(judge, pair) for pair in every}
    shown = labels.select("id", "a", "b").iter_rows()
    gone = [name for name, a, b in shown if name not in asked[a, b]]
    if gone:
        raise UserError(
            f"{len(gone)} of {labels.height} labelled pairs show answers that recipe "
            f"{recipe.name} no longer has; label its answers of today."
        )
    people = people_table(labels, asked)
    said = {
        "recipe": recipe.name,
        "benchmark": benchmark,
        "labels": int(labels["votes"].list.len().sum()),
        "pairs": labels.height,
        "agreement": of_judge(recipe, benchmark, people, judged),
        "people": agreement.human_ceiling(people),
        "differences": [difference(labels, arms, judged[arms]) for arms in asked],
    }
    finite = as_json(said)
    write_atomic(recipe.folder / FILE, json.dumps(finite, indent=2, allow_nan=False))
    known_said: dict[str, Any] = finite
    return known_said


@dataclass(frozen=True)
class Judge:
    """Where the scores of single answers are."""

    results: Results
    benchmark: str
    arms: Arms
    rival: str | None
    """The arm whose answers a pairwise benchmark judges all others against."""


def _judge(recipe: Recipe, results: Results, benchmark: str) -> Judge:
    """The judge of a benchmark, and whom it judges all others against."""
    arms = Arms.of(recipe)
    against = None
    if recipe.eval is not None and benchmark in PAIRWISE:
        against = rival(recipe.eval, arms, "alpaca" if benchmark == "alpaca" else "arena")
    return Judge(results, benchmark, arms, against)


def judge_says(judge: Judge, pair: Pair) -> float | None:
    """The difference between the two answers of a pair by the benchmark's first metric, in its
    unit; None where either has no score."""
    runs = zip((pair.a, pair.b), pair.seeds, strict=True)
    a, b = (f"{arm}/{seed}" if seed else arm for arm, seed in runs)
    mine, other = (_value(judge, run, opponent, pair.item) for run, opponent in ((a, b), (b, a)))
    return None if mine is None or other is None else mine - other


def _value(judge: Judge, run: str, other: str, item: str) -> float | None:
    """The score of the answer of `run` that people saw beside that of `other`; what it scores by
    definition where `other` was judged against it."""
    scored = judge.results.get(f"score/{run}")
    known = _scores(scored.path, judge.benchmark) if scored is not None else None
    if known is None:
        return AGAINST_BASELINE["win_rate"] if _met(judge, other) == run else None
    if not known.of_several:
        return known.values.get(item)
    judgments = judge.results.get(f"judge/{judge.benchmark}/{run}")
    if judgments is None:
        return None
    return _of_first_answers(judgments.path, judge.benchmark).values.get(item)


def _met(judge: Judge, run: str) -> str | None:
    """The run that another was judged against."""
    if judge.rival is None:
        return None
    return same_seed(judge.rival, run, dict.fromkeys(judge.arms.finished), judge.arms)


@dataclass(frozen=True)
class Scores:
    """A run's values by item, and whether they are means over several answers to a prompt."""

    values: dict[str, float | None]
    of_several: bool


@functools.cache
def _scores(folder: Path, benchmark: str) -> Scores | None:
    """A run's scores by the first metric of a benchmark; None without that benchmark."""
    rows = pl.read_parquet(folder / "scores.parquet", glob=False).filter(
        pl.col("benchmark") == benchmark
    )
    if rows.is_empty():
        return None
    first = rows.filter(pl.col("metric") == rows["metric"].first())
    values = dict(first.select("item", "value").iter_rows())
    return Scores(values, "answers" in first.columns and first["answers"].count() > 0)


@functools.cache
def _of_first_answers(folder: Path, benchmark: str) -> Scores:
    """The scores that a run would have if it had answered each prompt once: people see its first
    answer alone."""
    kind = "judgments" if benchmark in PAIRWISE else "ratings"
    with TemporaryDirectory() as scratch:
        first, out = Path(scratch) / "first", Path(scratch) / "scores"
        first.mkdir()
        for path in folder.glob("*.parquet"):
            rows = pl.read_parquet(path, glob=False)
            later = pl.col("item").str.contains(MARK, literal=True)
            rows.filter(~later).write_parquet(first / path.name)
        if (protocol := folder / "protocol.json").is_file():
            shutil.copy(protocol, first)
        of_checkpoint.run({f"{kind}-{benchmark}": first}, out)
        return _scores(out, benchmark) or Scores({}, of_several=False)


def people_table(
    labels: pl.DataFrame, asked: Mapping[tuple[str, str], Mapping[str, Pair]]
) -> pl.DataFrame:
    """The labelled pairs in the form of a labelled set: answer_1 is that of `a`."""
    rows = []
    for name, a, b, votes in labels.select("id", "a", "b", "votes").iter_rows():
        pair = asked[a, b][name]
        own = [NAMED[vote] for vote in votes]
        texts = (pair.prompt, *pair.answers)
        rows.append((name, *texts, agreement.majority(own), own))
    return pl.DataFrame(rows, schema=agreement.PAIRS, orient="row")


def of_judge(
    recipe: Recipe,
    benchmark: str,
    people: pl.DataFrame,
    judged: Mapping[tuple[str, str], Mapping[str, float | None]],
) -> dict[str, Any] | None:
    """How the judge's own preference between the two answers agrees with people; kept with the
    judge where there is one, so that every score by it says so."""
    says = {name: value for own in judged.values() for name, value in own.items()}
    ids = people["id"].to_list()
    verdicts = pl.DataFrame(
        {
            "id": ids,
            "order": [1] * len(ids),
            "verdict": [_verdict(says[name]) for name in ids],
        },
        schema={"id": pl.String, "order": pl.Int64, "verdict": pl.Int64},
    )
    if verdicts["verdict"].null_count() == len(ids) or people["human"].null_count() == len(ids):
        return None
    found = agreement.agreement(verdicts, people)
    for protocol in _protocols(recipe, benchmark):
        keep(protocol, f"{recipe.name}-own-answers", found, Path(recipe.store))
    return found


def _verdict(difference: float | None) -> int | None:
    """Which answer is the better one (1 or 2, 0 for neither) by a difference."""
    if difference is None or difference == 0:
        return None if difference is None else 0
    return 1 if difference > 0 else 2


def _protocols(recipe: Recipe, benchmark: str) -> Sequence[PairwiseProtocol]:
    """The judge of a pairwise benchmark, where there is one and not several."""
    if recipe.eval is None or benchmark not in ("alpaca", "arena"):
        return ()
    several = recipe.eval.protocols("alpaca" if benchmark == "alpaca" else "arena")
    return several if len(several) == 1 else ()


def keep(protocol: PairwiseProtocol, dataset: str, found: Mapping[str, Any], root: Path) -> None:
    """Store an agreement with people as `magpie agreement` does."""
    judge = settle.determines(protocol.judge, protocol)
    known = {"dataset": dataset, "judge": judge, **found}
    place = root / "agreement" / digest(judge)[:16] / f"{dataset}.json"
    write_atomic(place, json.dumps(as_json(known), indent=2, allow_nan=False))


def difference(
    labels: pl.DataFrame, arms: tuple[str, str], judged: Mapping[str, float | None]
) -> dict[str, Any]:
    """What people see between two arms, in points (100: they always prefer `a`, -100: `b`, 0:
    neither): `difference` sharpened by the judge and `labels_alone` without it (None below `FEWEST`
    labels), `judge`'s own mean over all prompts in its own unit, the `weight` it got, and how many
    labels alone would be `worth` as much."""
    a, b = arms
    own = labels.filter((pl.col("a") == a) & (pl.col("b") == b))
    votes = {name: float(np.mean(each)) for name, each in own.select("id", "votes").iter_rows()}
    known = {name: value for name, value in judged.items() if value is not None}
    labelled = [name for name in votes if name in known]
    row = {
        "a": a,
        "b": b,
        "labelled": len(labelled),
        "prompts": len(known),
        "without_judge": len(votes) - len(labelled),
        "judge": _interval(stats.mean_interval(list(known.values()))) if known else None,
    }
    if len(labelled) < FEWEST:
        return row | {"difference": None, "labels_alone": None, "weight": None, "worth": None}
    found = powered(
        100 * np.array([votes[name] for name in labelled]),
        np.array([known[name] for name in labelled]),
        np.array([value for name, value in known.items() if name not in votes]),
    )
    return row | {
        "difference": _interval(found.estimate),
        "labels_alone": _interval(found.labels_alone),
        "weight": found.weight,
        "worth": found.worth,
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, **found.bounds()}
