"""How many rows each part of a mixture gives, and which: shares in the budget's unit, and no row
twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import polars as pl

Unit = Literal["rows", "tokens"]


def quotas(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """What each part gives of `total`, by largest remainder (Hamilton's method): the whole part of
    each share, then one more to the largest remainders until nothing is left; of equal remainders
    to the one written first."""
    whole = sum(shares.values())
    exact = {name: share / whole * total for name, share in shares.items()}
    given = {name: int(amount) for name, amount in exact.items()}
    left = total - sum(given.values())
    by_remainder = sorted(shares, key=lambda name: given[name] - exact[name])
    return {name: given[name] + (name in by_remainder[:left]) for name in shares}


@dataclass(frozen=True)
class Taken:
    """What one part gave: `rows`, in its own order; `amount` of them in the budget's unit; `twice`,
    its rows that were passed over because their text was taken already; and by how much its share
    is `short`."""

    rows: pl.DataFrame
    amount: int
    twice: int
    short: int


def take(batches: Iterable[pl.DataFrame], quota: int, unit: Unit, taken: set[str]) -> Taken:
    """The first rows of a part up to its quota; no batch is asked for beyond that.

    `batches`: [text (digest of the instruction), ...] in the part's order, with [tokens] for a
    quota in tokens, of which rows are taken as long as the next one fits: the sum is within one row
    of the share. `taken`: the texts that earlier parts gave, added to. Short is a part that has no
    further row: in tokens, by more than its longest row has.
    """
    kept: list[pl.DataFrame] = []
    amount = twice = longest = 0
    full = quota == 0
    for batch in () if full else batches:
        before = pl.Series([text in taken for text in batch["text"]], dtype=pl.Boolean)
        fresh = batch["text"].is_first_distinct() & ~before
        one = pl.repeat(1, len(batch), dtype=pl.Int64, eager=True)
        sizes = (batch["tokens"] if unit == "tokens" else one) * fresh.cast(pl.Int64)
        sums = amount + sizes.cum_sum()
        given = fresh & (sums <= quota)
        places = given.arg_true()
        kept.append(batch[places])
        taken.update(batch["text"].gather(places))
        longest = max(longest, int(sizes.max() or 0))  # type: ignore[arg-type]
        full = bool((sums > quota).any())
        amount = int(sums.filter(sums <= quota).max() or amount)  # type: ignore[arg-type]
        seen = len(batch)
        if full or amount == quota:
            seen = int(places[-1]) + 1 if len(places) else 0
        twice += seen - int(fresh.head(seen).sum())
        if full or amount == quota:
            full = True
            break
    missing = 0 if full else quota - amount
    short = missing if unit == "rows" or missing >= longest else 0
    rows = pl.concat(kept) if kept else pl.DataFrame({"text": []}, schema={"text": pl.String})
    return Taken(rows, amount, twice, short)


def interleaved(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(part, place in it) of every row of a mixture, so that every prefix holds the parts in their
    proportions and each part in its own order."""
    parts = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([np.arange(count) for count in counts]) if counts else np.arange(0)
    at = (places + 0.5) / np.repeat(np.asarray(counts, np.float64), counts)
    order = np.lexsort((parts, at))
    return list(zip(parts[order].tolist(), places[order].tolist(), strict=True))
