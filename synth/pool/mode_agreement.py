"""How far the two ways of asking a tagger agree: a sample of the rows that were tagged in one mode
is asked in the other as well.

The other answers are ordinary cells of the column that the other mode would fill (same key), so
that nothing is bought twice: a larger sample, and a recipe that uses the other mode, find them
there. The sample is the rows with the smallest hash of their ids, so a larger one contains a
smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from core.columns import OK, Column
from core.servers import Servers
from core.store import Counts
from core.tracking import Log
from synth.filters.orders import hash_rank
from synth.measures import MEASURES
from synth.pool.computed import COMPUTED, compute_tag, tag_cell
from synth.pool.pool import Pool
from synth.pool.short_columns import Lean
from synth.tags.llm import MODES, TAGS


def missing(pool: Pool, frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of the pool's frame that are still to be asked in the other mode, by tag; tags that lack
    none are left out."""
    found = {}
    for name in _checked(pool):
        rows = sample(pool, frame, name).join(
            _cells(_other(pool, name), name),
            on=["id", _of(name)],
            how="anti",
            maintain_order="left",
        )
        if len(rows):
            found[name] = rows
    return found


def ask(pool: Pool, frame: pl.DataFrame, servers: Servers, log: Log) -> Counts:
    """Ask what is missing and append it to the other mode's columns as it arrives. Returns cells by
    tag."""
    context = pool.context.serving(servers)
    counts: Counts = {}
    for name, rows in missing(pool, frame).items():
        other = _other_mode(pool, name)
        log.say(f"{name}: {len(rows)} rows in {other} mode too, to see how far both modes agree")
        column, of, done = _other(pool, name), _of(name), 0
        texts = (
            ("instruction", "response") if MEASURES[name].reads == "response" else ("instruction",)
        )
        known = rows.select("id", pl.col(of).alias("of"))
        for part in compute_tag(name, pool.with_texts(rows, texts), pool.config, context, other):
            column.append(part.join(known, on="id", how="left", maintain_order="left"))
            done += len(part)
            log.progress(done, len(rows))
        counts[name] = done
    return counts


def report(pool: Pool, frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The agreement of both modes by tag, from the cells that are there: what `agreement` returns,
    and of the answers in the other mode how many there are (asked), how many could not be read
    (failed) and the tokens that they cost."""
    found = {}
    for name in _checked(pool):
        rows = sample(pool, frame, name).select("id", _of(name))
        on = ["id", _of(name)]
        own = rows.join(_cells(pool.columns[name], name), on=on, how="left", maintain_order="left")
        both = own.join(
            _cells(_other(pool, name), name),
            on=on,
            how="inner",
            maintain_order="left",
            suffix="_other",
        )
        good = both.filter(pl.col("status_other") == OK)
        label, explain = ("", "_other") if _other_mode(pool, name) == "explain" else ("_other", "")
        tag = TAGS[name]
        levels = [
            [tag.labels.index(value) for value in good[f"{tag.label}{side}"].to_list()]
            for side in (label, explain)
        ]
        ranks = good[f"{tag.rank}{label}"].to_list() if tag.rank else None
        cost = {n: int(both[f"{n}_other"].sum() or 0) for n in ("tokens", "prompt_tokens")}
        found[name] = {
            "asked": len(both),
            "failed": len(both) - len(good),
            **cost,
            **agreement(levels[0], levels[1], len(tag.labels), ranks),
        }
    return found


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
    found: dict[str, Any] = {
        "n": len(a),
        "exact": float((a == b).mean()),
        "kappa": _kappa(a, b, labels, ordered=ranks is not None),
    }
    if ranks is None:
        return found
    frame = pl.DataFrame({"rank": list(ranks), "explain": b})
    spearman = (
        frame.select(pl.corr("rank", "explain", method="spearman")).item() if len(a) > 1 else None
    )
    found |= {"within_one": float((abs(a - b) <= 1).mean()), "shift": float((b - a).mean())}
    return found | {
        "spearman": spearman if spearman is not None and np.isfinite(spearman) else None
    }


def sentence(name: str, found: dict[str, Any]) -> str:
    """One tag's agreement in words."""
    if not found["n"]:
        return f"{name}: no row was tagged in both modes yet."
    failed = (
        f" ({found['failed']} more could not be read in the other mode)"
        if found.get("failed")
        else ""
    )
    kind = "weighted kappa" if "within_one" in found else "kappa"
    parts = [f"the same label on {found['exact']:.0%}", f"{kind} {_said(found['kappa'])}"]
    if "within_one" in found:
        parts.insert(1, f"within one level on {found['within_one']:.0%}")
        parts.append(f"rank correlation {_said(found['spearman'])}")
    return (
        f"{name}: label mode and explain mode give {', '.join(parts)} of {found['n']} rows{failed}."
    )


def _said(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _kappa(a: Any, b: Any, labels: int, *, ordered: bool) -> float | None:
    """Cohen's kappa, with squared distances as weights where the labels are ordered; None where
    both use one and the same label only."""
    observed = np.zeros((labels, labels))
    np.add.at(observed, (a, b), 1 / len(a))
    places = np.arange(labels)
    weights = (places[:, None] - places) ** 2 if ordered else places[:, None] != places
    chance = float((weights * np.outer(observed.sum(1), observed.sum(0))).sum())
    return 1 - float((weights * observed).sum()) / chance if chance > 0 else None


def sample(pool: Pool, frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of the frame that are to be asked in both modes: those tagged by this recipe's own
    tagger, the first `check` by hash of id."""
    own = _cells(pool.columns[name], name).filter(pl.col("status") == OK)
    rows = frame.join(own, on=["id", _of(name)], how="semi", maintain_order="left")
    return (
        rows.with_columns(hash_rank(rows["id"], "check").alias("_hash"))
        .sort("_hash")
        .head(getattr(pool.config.tags, name).check)
        .drop("_hash")
    )


def _checked(pool: Pool) -> list[str]:
    return [name for name in TAGS if getattr(pool.config.tags, name).check]


def _other_mode(pool: Pool, name: str) -> str:
    return next(mode for mode in MODES if mode != getattr(pool.config.tags, name).mode)


def _other(pool: Pool, name: str) -> Column:
    cell = tag_cell(name, pool.config, pool.context, _other_mode(pool, name))
    return Column.open(pool.root, name, cell, {"of": pl.String, **COMPUTED[name].fields})


def _of(name: str) -> str:
    return "of_pair" if MEASURES[name].reads == "response" else "of"


def _cells(column: Column, name: str) -> pl.DataFrame:
    """[id, of or of_pair, status, tokens, prompt_tokens, label, rank] of a tag's column."""
    tag = TAGS[name]
    kept = [
        "id",
        "of",
        "status",
        "tokens",
        "prompt_tokens",
        tag.label,
        *([tag.rank] if tag.rank else []),
    ]
    return Lean(column, lambda part: part.select(kept)).read().rename({"of": _of(name)})
