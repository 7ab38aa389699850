"""How far the two ways of asking a tagger agree: a sample of the rows that were tagged in one mode
is asked in the other as well.

The other answers are ordinary cells of the column that the other mode would fill (same key), so
that nothing is bought twice: a larger sample, and a recipe that uses the other mode, find them
there. The sample is the rows with the smallest hash of their ids, so a larger one contains a
smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.cells.seconds import filling
from core.columns import OK, Column
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from synth.config.tags import TagConfig
from synth.filters.orders import hash_rank
from synth.measures import Measure
from synth.pool.columns import open_column
from synth.pool.computed import compute_tag, tag_config, tag_determines
from synth.pool.measure import of_rows
from synth.pool.pool import Pool
from synth.pool.short_columns import Lean
from synth.pool.spending import seconds_of
from synth.tags.asking import own as own_columns
from synth.tags.asking.tag import MODES, Mode, Tag


@dataclass(frozen=True)
class _Check:
    """One tag that is asked in both modes: of how many rows, in which mode besides the recipe's
    own, and the columns of both."""

    name: str
    measure: Measure
    tag: Tag
    rows: int
    other_mode: Mode
    own: Column
    other: Column

    @property
    def on(self) -> list[str]:
        """What tells a cell in the pool's frame: its row, and the text it is of."""
        return ["id", self.measure.of]

    def cells(self, column: Column) -> pl.DataFrame:
        """[id, of or of_pair, status, tokens, prompt_tokens, label, rank] of one of the columns."""
        values = dict.fromkeys(name for name in (self.tag.label, self.tag.ranking) if name)
        kept = ["id", "of", "status", "tokens", "prompt_tokens", *values]
        return Lean(column, lambda part: part.select(kept)).read().rename({"of": self.on[1]})

    def sample(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of the frame that are to be asked in both modes: those tagged by this recipe's
        own tagger, the first ones by hash of id."""
        tagged = self.cells(self.own).filter(pl.col("status") == OK)
        rows = frame.join(tagged, on=self.on, how="semi", maintain_order="left")
        ranked = rows.with_columns(_hash=hash_rank(rows["id"], "check"))
        return ranked.sort("_hash").head(self.rows).drop("_hash")

    def missing(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Those of the sample that are still to be asked in the other mode."""
        asked = self.cells(self.other)
        return self.sample(frame).join(asked, on=self.on, how="anti", maintain_order="left")


def missing(pool: Pool, frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of the pool's frame that are still to be asked in the other mode, by tag; tags that lack
    none are left out."""
    rows = {check.name: check.missing(frame) for check in _checks(pool)}
    return {name: lacking for name, lacking in rows.items() if len(lacking)}


def ask(pool: Pool, frame: pl.DataFrame, servers: Servers, log: Log) -> Counts:
    """Ask what is missing and append it to the other mode's columns as it arrives. Returns cells by
    tag."""
    context = pool.context.serving(servers)
    counts: Counts = {}
    for check in _checks(pool):
        rows, name, mode = check.missing(frame), check.name, check.other_mode
        if rows.is_empty():
            continue
        log.say(f"{name}: {len(rows)} rows in {mode} mode too, to see how far both modes agree")
        counts[name] = 0
        pair = check.measure.reads == "response"
        texts = ["instruction", "response"] if pair else ["instruction"]
        asked = pool.with_texts(rows, texts)
        with filling(check.other.folder) as made:
            for cells in compute_tag(name, asked, pool.config, context, mode):
                check.other.append(of_rows(cells, rows, check.measure))
                made(len(cells))
                counts[name] += len(cells)
                log.progress(counts[name], len(rows))
        check.other.cut()
    return counts


def report(pool: Pool, frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The agreement of both modes by tag, from the cells that are there: what `agreement` returns,
    and of the answers in the other mode how many there are (asked), how many could not be read
    (failed), the tokens that they cost, and what `seconds_of` says."""
    return {check.name: _reported(check, frame) for check in _checks(pool)}


def _reported(check: _Check, frame: pl.DataFrame) -> dict[str, Any]:
    """What `report` says of one tag."""
    on, tag = check.on, check.tag
    sample = check.sample(frame).select(on)
    own = sample.join(check.cells(check.own), on=on, how="left", maintain_order="left")
    other = check.cells(check.other)
    both = own.join(other, on=on, how="inner", maintain_order="left", suffix="_other")
    good = both.filter(pl.col("status_other") == OK)
    label, explain = ("", "_other") if check.other_mode == "explain" else ("_other", "")
    cost = {name: int(both[f"{name}_other"].sum() or 0) for name in ("tokens", "prompt_tokens")}
    return {
        "asked": len(both),
        "failed": len(both) - len(good),
        **cost,
        **seconds_of(check.other, both["id"]),
        **agreement(
            [tag.place(value) for value in good[f"{tag.label}{label}"]],
            [tag.place(value) for value in good[f"{tag.label}{explain}"]],
            len(tag.labels),
            good[f"{tag.ranking}{label}"].to_list() if tag.ranking else None,
        ),
    }


def agreement(
    label: Sequence[int], explain: Sequence[int], labels: int, ranks: Sequence[float] | None
) -> dict[str, Any]:
    """How far the labels (places among `labels`) of label mode and explain mode agree, row by row.

    `ranks`: label mode's expected ranks of an ordered tag (1.0 is the lowest label), None for one
    without order. Returns n, exact (share), kappa (Cohen's; with quadratic weights where ordered,
    and then also within_one (share), spearman (expected rank against explained label) and shift
    (mean of explained label less labelled one, in levels)). What cannot be said of these rows, such
    as a correlation of constants, is None.
    """
    a, b = np.asarray(label, dtype=int), np.asarray(explain, dtype=int)
    if len(a) == 0:
        return {"n": 0}
    figures: dict[str, Any] = {
        "n": len(a),
        "exact": float((a == b).mean()),
        "kappa": _kappa(a, b, labels, ordered=ranks is not None),
    }
    if ranks is None:
        return figures
    return figures | {
        "within_one": float((abs(a - b) <= 1).mean()),
        "shift": float((b - a).mean()),
        "spearman": _spearman(ranks, b),
    }


def sentence(
    name: str, figures: dict[str, Any], one: str = "label mode", other: str = "explain mode"
) -> str:
    """One tag's agreement in words; `one` and `other` gave the labels."""
    if not figures["n"]:
        return f"{name}: no row has a label by {one} and by {other} yet."
    ordered = "within_one" in figures
    parts = [f"the same label on {figures['exact']:.0%}"]
    if ordered:
        parts.append(f"within one level on {figures['within_one']:.0%}")
    parts.append(f"{'weighted kappa' if ordered else 'kappa'} {_shown(figures['kappa'])}")
    if ordered:
        parts.append(f"rank correlation {_shown(figures['spearman'])}")
    failed = ""
    if figures.get("failed"):
        failed = f" ({figures['failed']} more could not be read in the other mode)"
    agreed = ", ".join(parts)
    return f"{name}: {one} and {other} give {agreed} of {figures['n']} rows{failed}."


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _kappa(
    a: NDArray[np.int64], b: NDArray[np.int64], labels: int, *, ordered: bool
) -> float | None:
    """Cohen's kappa, with squared distances as weights where the labels are ordered; None where
    both use one and the same label only."""
    from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

    if len({*a, *b}) == 1:
        return None
    weights = "quadratic" if ordered else None
    return float(cohen_kappa_score(a, b, labels=range(labels), weights=weights))


def _spearman(ranks: Sequence[float], labels: NDArray[np.int64]) -> float | None:
    if len(labels) < 2:
        return None
    frame = pl.DataFrame({"rank": list(ranks), "label": labels})
    correlation = frame.select(pl.corr("rank", "label", method="spearman")).item()
    return correlation if correlation is not None and np.isfinite(correlation) else None


def _checks(pool: Pool) -> list[_Check]:
    asked = own_columns.tags(pool.config.tags)
    configs = {name: tag_config(pool.config, name) for name in asked}
    checked = {name: config for name, config in configs.items() if config.check}
    return [_check(pool, name, asked[name], config) for name, config in checked.items()]


def _check(pool: Pool, name: str, tag: Tag, config: TagConfig) -> _Check:
    other_mode = next(mode for mode in MODES if mode != config.mode)
    determines = tag_determines(name, pool.config, pool.context, other_mode)
    measure = pool.measures.table[name]
    other = open_column(pool.root, name, determines, measure)
    return _Check(name, measure, tag, config.check, other_mode, pool.columns[name], other)
