"""Arms -> one comparison: every score with its interval, every difference with a verdict, and
"cannot tell" where it cannot.

Items are paired by prompt and clustered by question. One joint bootstrap over all arms gives the
matrix of differences simultaneous (max |t|) intervals; verdicts come from them, with Holm p-values
beside. Seeds of one arm enter through their pooled variance (eval/comparing/errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.files import finite, write_atomic
from core.store import Counts
from eval.comparing import controls, metrics, sequential
from eval.comparing.arms import Family
from eval.comparing.differences import Row, score
from eval.comparing.differences import differences as differences_of
from eval.comparing.estimates import estimates
from eval.comparing.metrics import Declared
from eval.comparing.planning.components import shown
from eval.comparing.scores import arm as arm_of
from eval.comparing.scores import read
from eval.comparing.sequential import Look
from eval.comparing.shown.notes import notes, of_primary

VERSION = 7
"""Part of the key of a comparison; raised when the same scores would give another one."""


def run(
    inputs: dict[str, Path],
    out: Path,
    declared: Declared,
    *,
    unscored: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 10_000,
) -> Counts:
    """Compare scores folders and write `comparison.json` and `comparison.parquet` into `out`.

    `inputs`: folder of scores by "ARM/SEED", or by "ARM" alone for a finished model that no seed
    varies. `unscored`: such names without a folder, of an arm that others were judged against and
    that nothing else was measured of. The rest as in `of_items`. Raises UserError for a missing or
    malformed scores folder, an unknown baseline or primary.
    """
    items, arms = _read(inputs, unscored)
    return of_items(items, arms, out, declared, seed=seed, resamples=resamples)


def look(
    inputs: Mapping[str, Path],
    declared: Declared,
    *,
    unscored: Sequence[str] = (),
    seed: int = 0,
) -> Look:
    """All differences of the metric that decides, between arms that are in question, after the
    first of the prompts that are planned. Arguments and errors as of `run`."""
    items, arms = _read(inputs, unscored)
    names = items.select("benchmark", "metric").unique(maintain_order=True).rows()
    deciding = metrics.deciding(declared.primary, names)
    rows = items.filter(pl.col("benchmark") == deciding[0], pl.col("metric") == deciding[1])
    asked, _ = controls.families(
        _family(rows, deciding, arms, declared, primary=True), declared.controls
    )
    return sequential.look(
        asked,
        declared.baseline,
        lower_is_better=metrics.lower_is_better(deciding[1], _said(rows)),
        equivalent=declared.equivalent,
        seed=seed,
    )


def _read(
    inputs: Mapping[str, Path], unscored: Sequence[str]
) -> tuple[pl.DataFrame, dict[str, list[str]]]:
    """The items of all scores folders, and the training seeds of each arm."""
    arms: dict[str, list[str]] = {}
    for key in [*inputs, *unscored]:
        name, _, training_seed = key.partition("/")
        arms.setdefault(name, []).extend([training_seed] if training_seed else ())
    return pl.concat([read(key, folder) for key, folder in inputs.items()]), arms


def _family(
    rows: pl.DataFrame,
    names: tuple[str, str],
    arms: Mapping[str, Sequence[str]],
    declared: Declared,
    *,
    primary: bool,
) -> Family:
    """The arms' items of one metric (`names`: benchmark and metric)."""
    benchmark, metric = names
    rival = declared.rival(benchmark)
    members = [arm_of(arm, metric, rows, arm == rival) for arm in arms]
    return Family(
        benchmark=benchmark,
        metric=metric,
        members=[arm for arm in members if arm is not None],
        primary=primary,
        trained_baseline=metrics.trained_baseline(metric, arms.get(rival or "", [])),
        planned=declared.planned.get(benchmark, 0),
        beside=declared.beside,
    )


def of_items(
    items: pl.DataFrame,
    arms: Mapping[str, Sequence[str]],
    out: Path,
    declared: Declared,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Counts:
    """Compare arms by their items and write `comparison.json` and `comparison.parquet` into `out`.

    `items`: a row for each item of a metric under each seed of an arm, with the columns arm, seed
    ("" for a finished model), benchmark, metric, item, cluster, value (null where there is none),
    and, where the scores say so, higher_is_better.
    `arms`: the training seeds of each arm, none for a finished model. `seed` is that of the
    bootstrap. Raises UserError for an unknown baseline or primary.
    """
    baseline = declared.baseline
    if baseline is not None and baseline not in arms:
        hint = nearest(baseline, arms)
        raise UserError(f"baseline arm '{baseline}' is not among the compared arms{hint}.")
    names = items.select("benchmark", "metric").unique(maintain_order=True).rows()
    deciding = metrics.deciding(declared.primary, names)
    scores: list[Row] = []
    differences: list[Row] = []
    controlled: list[Row] = []
    components: list[Row] = []
    families: list[Family] = []
    for benchmark, metric in names:
        rows = items.filter((pl.col("benchmark") == benchmark) & (pl.col("metric") == metric))
        own_names = (benchmark, metric)
        family = _family(rows, own_names, arms, declared, primary=own_names == deciding)
        lower = metrics.lower_is_better(metric, _said(rows))
        direction = {"lower_is_better": lower}
        scores += [score(arm, family) | direction for arm in family.members]
        components.append(shown(family, estimates(family, baseline)))
        asked, beside = controls.families(family, declared.controls)
        families += [one for one in (asked, beside) if one is not None]
        find = partial(
            differences_of,
            lower_is_better=lower,
            equivalent=declared.equivalent if family.primary else None,
            resamples=resamples,
            seed=seed,
        )
        own = [difference | direction for difference in find(asked, baseline)]
        if beside is not None:
            # a control ties or not, whatever difference would matter between arms
            shown_by = find(beside, baseline, equivalent=None)
            controlled.append(controls.shown(family, shown_by, declared.controls))
        differences = own + differences if family.primary else differences + own
    comparison = {
        "baseline": baseline,
        "primary": declared.primary,
        "arms": [{"name": name, "seeds": list(seeds)} for name, seeds in arms.items()],
        "scores": scores,
        "differences": differences,
        "components": components,
        "controls": sorted(controlled, key=lambda one: not one["primary"]),
        "notes": [
            of_primary(deciding, beforehand=declared.beforehand),
            *notes(arms, scores, differences, families),
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    kept = items.select("benchmark", "metric", "arm", "seed", "item", "value")
    kept.write_parquet(out / "comparison.parquet")
    text = json.dumps(finite(comparison), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(out / "comparison.json", text)
    verdicts = [d["verdict"] for d in differences]
    return {
        "arms": len(arms),
        "scores": len(scores),
        "differences": len(verdicts),
        "cannot_tell": verdicts.count("cannot tell"),
    }


def _said(rows: pl.DataFrame) -> bool | None:
    """What the scores of a metric say of its direction; None where they do not."""
    if "higher_is_better" not in rows.columns:
        return None
    said = rows["higher_is_better"].drop_nulls()
    return bool(said[0]) if len(said) else None
