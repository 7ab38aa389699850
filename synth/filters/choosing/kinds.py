"""The orders of every kind of `choose`: of the candidates, their places in batches, best first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import file_digest
from synth.filters import orders
from synth.filters.choosing.candidates import Candidates
from synth.filters.choosing.facility import qdit
from synth.filters.choosing.label_gain import GAINS, labels_of, mig
from synth.filters.choosing.listed import read_listed
from synth.filters.choosing.near_queries import in_turns
from synth.filters.orders import (
    Positions,
    by_hash,
    by_nearness,
    by_rank,
    farthest_first,
    matched,
    round_robin,
    unlike,
)


def every_row(candidates: Candidates) -> Iterable[Positions]:
    return [np.arange(len(candidates.rows))]


def hash_order(candidates: Candidates) -> Iterable[Positions]:
    seed = " ".join(map(str, (candidates.seed, *candidates.arguments)))
    return [by_hash(candidates.ids, seed)]


def highest(candidates: Candidates) -> Iterable[Positions]:
    (column,) = candidates.columns
    return [by_rank(candidates.rows[column], candidates.ids, candidates.limit)]


def balanced(candidates: Candidates) -> Iterable[Positions]:
    rows, ids = candidates.rows, candidates.ids
    column, *by = candidates.columns
    ranked = by_rank(rows[by[0]], ids) if by else by_hash(ids, "ties")
    return [ranked[round_robin(_groups(rows[column])[ranked])]]


def random_balanced(candidates: Candidates) -> Iterable[Positions]:
    (column,) = candidates.columns
    drawn = by_hash(candidates.ids, candidates.seed)
    return [drawn[round_robin(_groups(candidates.rows[column])[drawn])]]


def _groups(labels: pl.Series) -> Positions:
    """A number for each label, in their order; -1 for none."""
    return _positions(labels.to_physical().rank("dense").fill_null(-1))


def random_length_matched(candidates: Candidates) -> Iterable[Positions]:
    lengths = candidates.rows["response_length"].cast(pl.Float64)
    if candidates.like is None:
        raise ValueError("a control without the arm that it controls")
    like = candidates.like.cast(pl.Float64).to_numpy()
    drawn = by_hash(candidates.ids, candidates.seed)
    return [drawn[matched(lengths.fill_null(np.nan).to_numpy()[drawn], like)]]


def part_of(candidates: Candidates) -> Iterable[Positions]:
    values, ids = candidates.rows[candidates.columns[0]].to_physical(), candidates.ids
    part = candidates.arguments[1]
    if part == "middle":
        return [by_nearness(values, ids)]
    sign = -1 if part == "low" else 1
    return [by_rank(sign * values.cast(pl.Float64), ids, candidates.limit)]


def difficulty_mix(candidates: Candidates) -> Iterable[Positions]:
    """Filter6: half "easy" (<= easy), half above; the longest within each half (paper Table 5).
    Interleaved, so any prefix is half and half; a row without a difficulty is in neither."""
    rows = candidates.rows
    ranked = by_rank(rows["response_length"], candidates.ids)
    above = rows["difficulty"] > candidates.arguments[0]
    halves = above.cast(pl.Int64).fill_null(-1).to_numpy()[ranked]
    return [ranked[round_robin(halves, even=2)]]


def diverse(candidates: Candidates) -> Iterable[Positions]:
    vectors = candidates.vectors
    start = by_hash(candidates.ids, "ties")
    ids = candidates.ids.gather(start)
    batches = vectors.order(["diverse", ids.to_list()], lambda: farthest_first(vectors.embed(ids)))
    return (start[batch] for batch in batches)


def deita(candidates: Candidates) -> Iterable[Positions]:
    """Score first, diversity aware (DEITA): by falling score, each unlike all taken before it."""
    vectors = candidates.vectors
    (cosine,) = candidates.arguments
    difficulty = pl.coalesce("difficulty_rank", pl.col("difficulty").to_physical() + 1)
    pair_score = pl.coalesce("pair_score_rank", "pair_score")
    score = candidates.rows.select((difficulty * pair_score).alias("score"))["score"]
    scored = len(score) - score.null_count()  # a row without a score is never taken
    best = by_rank(score, candidates.ids)[:scored]
    ids = candidates.ids.gather(best)

    def embed(top: int, end: int) -> orders.Vectors:
        return vectors.embed(ids[top:end])

    batches = vectors.order(
        ["deita", cosine, ids.to_list()], lambda: unlike(embed, len(ids), float(cosine))
    )
    return (best[batch] for batch in batches)


def quality_and_diversity(candidates: Candidates) -> Iterable[Positions]:
    """A row without a quality is never taken and counts for nothing."""
    quality, alpha = candidates.rows[candidates.columns[0]].to_physical(), candidates.arguments[1]
    places = _sound(candidates, quality.is_not_null())
    ids, scores = candidates.ids.gather(places), quality.gather(places)
    ranks = (scores.rank().to_numpy() - 1) / max(len(scores) - 1, 1)
    vectors = candidates.vectors
    key = ["qdit", alpha, ids.to_list(), ranks.tolist()]
    batches = vectors.order(key, lambda: qdit(vectors.embed(ids), ranks, float(alpha)))
    return (places[batch] for batch in batches)


def information_gain(candidates: Candidates) -> Iterable[Positions]:
    """A row without a score is never taken; of an ordered label the score is its rank from 1."""
    column, by = candidates.columns
    gain = next(each for each in GAINS if each == candidates.arguments[2])
    cosine = candidates.arguments[3]
    scores = _ranked_from_one(candidates.rows[by])
    places = _sound(candidates, scores.is_not_null())
    labels, given = labels_of(candidates.rows[column].gather(places)), scores.gather(places)
    if (given < 0).any():
        raise UserError(
            f"mig multiplies labels by `{by}`, which must not be negative (it is {_least(given):g} "
            "somewhere); name a score such as pair_score or input_quality."
        )
    vectors = candidates.vectors
    key = ["mig", gain, cosine, labels.to_list(), given.to_list()]
    batches = vectors.order(
        key, lambda: mig(labels, given.to_numpy(), vectors.texts, float(cosine), gain)
    )
    return (places[batch] for batch in batches)


def _ranked_from_one(values: pl.Series) -> pl.Series:
    numbers = values.to_physical().cast(pl.Float64)
    return numbers + 1 if isinstance(values.dtype, pl.Enum) else numbers


def near_queries(candidates: Candidates) -> Iterable[Positions]:
    (file,) = candidates.arguments
    queries = Path(file).expanduser()
    start = by_hash(candidates.ids, "ties")
    ids, vectors = candidates.ids.gather(start), candidates.vectors
    key = ["rds", file_digest(queries), candidates.limit, ids.to_list()]
    batches = vectors.order(key, lambda: in_turns(*vectors.compare(ids, queries), candidates.limit))
    return (start[batch] for batch in batches)


def survivors(candidates: Candidates) -> Iterable[Positions]:
    """Rejecting instruction preferences: rows whose worst answer has a high reward and is long, and
    whose rewards lie close together, each by a quantile over the candidates; in hash order."""
    rows = candidates.rows
    high, long, gap = map(float, candidates.arguments)
    bounds = [("worst_reward", high, 1), ("worst_length", long, 1), ("reward_gap", gap, -1)]
    sound = pl.Series([True] * len(rows))
    for name, quantile, sign in bounds:
        edge = rows[name].quantile(quantile, "linear")
        sound &= (sign * (rows[name] - edge) >= 0).fill_null(False)
    return [_sound(candidates, sound)]


def listed(candidates: Candidates) -> Iterable[Positions]:
    """By falling score; without scores, and where those are equal, in the order of the file."""
    listed = read_listed(Path(candidates.arguments[0]).expanduser())
    places = candidates.rows.select("id").with_row_index("place")
    ranked = listed.sort("score", descending=True, nulls_last=True, maintain_order=True)
    return [_positions(ranked.join(places, on="id", how="inner", maintain_order="left")["place"])]


def _sound(candidates: Candidates, usable: pl.Series) -> Positions:
    """The places of usable rows, in hash order."""
    start = by_hash(candidates.ids, "ties")
    places: Positions = start[usable.to_numpy()[start]]
    return places


def _positions(places: pl.Series) -> Positions:
    taken: Positions = places.cast(pl.Int64).to_numpy()
    return taken


def _least(values: pl.Series) -> float:
    return float(values.to_numpy().min())
