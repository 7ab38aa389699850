"""What `choose` may be: an entry of CHOICES says how it is written, what it takes and at what cost,
and has the function that orders rows by it. A further kind is one more entry."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.errors import UserError, nearest
from core.store import digest
from synth.filters import orders
from synth.filters.orders import (
    Positions,
    by_hash,
    by_rank,
    farthest_first,
    round_robin,
    unlike,
)
from synth.measures import SHIPPED, Field_

Columns = Mapping[str, Field_]
"""What a choice may name."""
Check = Callable[[str, str, Columns], None]
"""Refuses an argument of a choice: of it, its place in the recipe, and the columns there are."""


class Vectors:
    """Unit vectors of instructions, by ids; and the greedy orders that were made of them, which the
    schedule asks for several times."""

    def __init__(self, embed: Callable[[pl.Series], orders.Vectors]) -> None:
        self.embed = embed
        """Unit vectors of the instructions of these ids, float32 [n, d]."""
        self._orders: dict[str, Iterator[Positions]] = {}

    def order(self, key: object, make: Callable[[], Iterator[Positions]]) -> Iterator[Positions]:
        """The batches of the order that `key` determines, from the first; each is made once."""
        name = digest(key)
        if name not in self._orders:
            self._orders[name] = itertools.tee(make(), 1)[0]
        return copy.copy(self._orders[name])


def _no_vectors(ids: pl.Series) -> orders.Vectors:
    raise ValueError("this choice needs the embeddings of the instructions")


NO_VECTORS = Vectors(_no_vectors)
"""Where no rule chooses by likeness."""


@dataclass(frozen=True)
class Choose:
    """What one arm chooses by: the kind, its arguments (defaults filled in), and the columns that
    it ranks by."""

    kind: str
    arguments: tuple[str, ...]
    ranks: tuple[str, ...]

    @property
    def choice(self) -> Choice:
        """What the kind is."""
        return CHOICES[self.kind]

    def __str__(self) -> str:
        """As a recipe states it."""
        return f"{self.kind}({', '.join(self.arguments)})" if self.arguments else self.kind


@dataclass(frozen=True)
class Candidates:
    """The rows to be ordered, [id] and what they are ranked by. `limit`: how many are wanted, where
    the budget is in rows; `seed` counts for `hash_order` alone."""

    rows: pl.DataFrame
    choose: Choose
    seed: int
    limit: int | None
    vectors: Vectors

    @property
    def ids(self) -> pl.Series:
        """Their ids."""
        return self.rows["id"]


@dataclass(frozen=True)
class Choice:
    """One kind of `choose`: how it is written, the order it takes rows in, and which rows it needs
    answered."""

    usage: str
    takes: str
    answers: str
    order: Callable[[Candidates], Iterable[Positions]]
    """Places of the candidates in batches, best first; a budget takes from the front."""
    ranks: tuple[str, ...] = ()
    """Columns that it ranks by; none: those that its arguments name."""
    checks: tuple[Check, ...] = ()
    """One for each argument it may have."""
    required: int = 0
    """Arguments that cannot be left out."""
    defaults: tuple[str, ...] = ()
    """Arguments where none are given."""
    greedy: bool = False
    """Whether one row decides about the next: it then waits until `where` is decided everywhere."""
    seeded: bool = False
    """Whether a training seed draws another sample."""


def read(text: str, at: str, fields: Columns = SHIPPED.fields) -> Choose:
    """Take apart what an arm states, e.g. "balanced(task_category, instruct_reward)". Raises
    UserError for a kind or an argument that there is not; `at` is its place in the recipe, `fields`
    the columns that there are."""
    written = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text.strip())
    kind, inside = written.groups(default="") if written else (text, "")
    if kind not in CHOICES:
        usages = ", ".join(choice.usage for choice in CHOICES.values())
        raise UserError(
            f"{at}: unknown choice '{text}'{nearest(kind, CHOICES)}; there are {usages}."
        )
    choice = CHOICES[kind]
    given = tuple(each.strip() for each in inside.split(",") if each.strip())
    if not choice.required <= len(given) <= len(choice.checks):
        raise UserError(f"{at}: '{text}' should read {choice.usage}.")
    arguments = given or choice.defaults
    for argument, check in zip(arguments, choice.checks, strict=False):
        check(argument, at, fields)
    return Choose(kind, arguments, choice.ranks or arguments)


def _check_known(column: str, at: str, fields: Columns) -> None:
    if column not in fields:
        raise UserError(f"{at}: unknown column `{column}`{nearest(column, fields)}.")


def _check_ordered(column: str, at: str, fields: Columns) -> None:
    _check_known(column, at, fields)
    if fields[column].kind not in ("number", "ordered"):
        raise UserError(
            f"{at}: `{column}` has no order, so there is no top of it; "
            "choose by a number or an ordered label."
        )


def _check_groups(column: str, at: str, fields: Columns) -> None:
    _check_known(column, at, fields)
    if fields[column].kind in ("number", "labels") or fields[column].long:
        raise UserError(
            f"{at}: `{column}` has no groups to balance; name a label, such as task_category."
        )


def _check_boundary(label: str, at: str, fields: Columns) -> None:
    labels = fields["difficulty"].labels[:-1]
    if label not in labels:
        raise UserError(
            f"{at}: '{label}' does not part the difficulties in two{nearest(label, labels)}."
        )


def _check_cosine(text: str, at: str, fields: Columns) -> None:
    if not re.fullmatch(r"[01]?\.?\d+", text) or not 0 < float(text) <= 1:
        raise UserError(f"{at}: '{text}' is no cosine between 0 and 1; write deita(0.9).")


def _every_row(candidates: Candidates) -> Iterable[Positions]:
    return [np.arange(len(candidates.rows))]


def _hash_order(candidates: Candidates) -> Iterable[Positions]:
    return [by_hash(candidates.ids, candidates.seed)]


def _highest(candidates: Candidates) -> Iterable[Positions]:
    (column,) = candidates.choose.ranks
    return [by_rank(candidates.rows[column], candidates.ids, candidates.limit)]


def _balanced(candidates: Candidates) -> Iterable[Positions]:
    rows, ids = candidates.rows, candidates.ids
    column, *by = candidates.choose.ranks
    ranked = by_rank(rows[by[0]], ids) if by else by_hash(ids, "ties")
    groups = rows[column].to_physical().rank("dense").cast(pl.Int64).fill_null(-1)
    return [ranked[round_robin(groups.to_numpy()[ranked])]]


def _difficulty_mix(candidates: Candidates) -> Iterable[Positions]:
    """Filter6: half "easy" (<= easy), half above; the longest within each half (paper Table 5).
    Interleaved, so any prefix is half and half; a row without a difficulty is in neither."""
    rows = candidates.rows
    ranked = by_rank(rows["response_length"], candidates.ids)
    above = rows["difficulty"] > candidates.choose.arguments[0]
    halves = above.cast(pl.Int64).fill_null(-1).to_numpy()[ranked]
    return [ranked[round_robin(halves, even=2)]]


def _diverse(candidates: Candidates) -> Iterable[Positions]:
    vectors = candidates.vectors
    start = by_hash(candidates.ids, "ties")
    ids = candidates.ids.gather(start)
    batches = vectors.order(["diverse", ids.to_list()], lambda: farthest_first(vectors.embed(ids)))
    return (start[batch] for batch in batches)


def _deita(candidates: Candidates) -> Iterable[Positions]:
    """Score first, diversity aware (DEITA): by falling score, each unlike all taken before it."""
    vectors = candidates.vectors
    (cosine,) = candidates.choose.arguments
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


_KEPT = "the chosen rows"
_ALL_LIVE = "every row that no rule on instructions refuses"
CHOICES: dict[str, Choice] = {
    "longest": Choice(
        "longest",
        "the longest responses, in characters",
        _ALL_LIVE,
        _highest,
        ranks=("response_length",),
    ),
    "top": Choice(
        "top(COLUMN)",
        "the highest values of a number or an ordered label",
        f"{_KEPT}; of a column that reads responses, {_ALL_LIVE}",
        _highest,
        checks=(_check_ordered,),
        required=1,
    ),
    "hash_order": Choice(
        "hash_order",
        "a fixed pseudo-random order",
        f"{_KEPT}, and those that a rule on responses refuses on the way",
        _hash_order,
        seeded=True,
    ),
    "difficulty_mix": Choice(
        "difficulty_mix(LABEL)",
        "half up to LABEL (easy), half above; the longest responses in each half",
        _ALL_LIVE,
        _difficulty_mix,
        ranks=("difficulty", "response_length"),
        checks=(_check_boundary,),
        defaults=("easy",),
    ),
    "balanced": Choice(
        "balanced(COLUMN, BY)",
        "equally many of each value of COLUMN, each by falling BY (by hash where absent)",
        f"{_KEPT}; with a BY that reads responses, {_ALL_LIVE}",
        _balanced,
        checks=(_check_groups, _check_ordered),
        required=1,
    ),
    "diverse": Choice(
        "diverse",
        "the instruction farthest from all taken before it (greedy k-center on embeddings)",
        f"{_KEPT}; where a rule reads responses, {_ALL_LIVE}",
        _diverse,
        greedy=True,
    ),
    "deita": Choice(
        "deita(COSINE)",
        "the highest difficulty x pair score, but none within COSINE (0.9) of one taken before",
        _ALL_LIVE,
        _deita,
        ranks=("difficulty_rank", "difficulty", "pair_score_rank", "pair_score"),
        checks=(_check_cosine,),
        defaults=("0.9",),
        greedy=True,
    ),
    "all": Choice("all", "every row", "every row", _every_row),
}
"""By the name that a recipe writes; `magpie filters` prints usage, takes and answers."""
