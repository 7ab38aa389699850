"""The preference sets of a recipe: one for every arm that is asked for, over its selection."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.store import Counts, Result
from core.tracking import Log
from recipes.stages.session import Session, Stage
from recipes.stages.sets.pairs import from_files
from recipes.stages.walk import HELDOUT, Arms, Selections
from synth import preferences
from synth.config.synthesis import SynthConfig
from synth.context import Context

Named = tuple[str, str, str | None]
"""Where a recipe names a model (dotted), the model, its revision."""


def models(synth: SynthConfig, arms: Arms) -> list[Named]:
    """The model that a recipe names for its preference sets. Raises UserError for an arm that has
    no rows or is none."""
    config = synth.preferences
    if config is None:
        return []
    with_rows = arms.with_rows
    for arm in config.arms:
        if arm not in with_rows:
            hint = nearest(arm, with_rows)
            raise UserError(f"synth.preferences.arms: no arm with rows is called '{arm}'{hint}.")
    scorer = preferences.reward_model(synth)
    place = "synth.preferences.reward.model" if config.reward else "synth.tags.reward.model"
    return [(place, scorer.model, scorer.revision)]


def stages(
    session: Session, synth: SynthConfig, arms: Arms, context: Context, selections: Selections
) -> Selections:
    """Make `preferences/ARM` (an arm that is sampled by seed: `preferences/ARM/SEED`) of every arm
    that `synth.preferences` names, or of all; and read the pairs that arms bring. Returns them by
    arm and seed."""
    config = synth.preferences
    made: Selections = {}
    if config is not None:
        with_rows = list(dict.fromkeys(arm for arm, _ in selections if arm != HELDOUT[0]))
        # No pairs are wanted of a control with wrong answers, unless it is named.
        wanted = config.arms or [arm for arm in with_rows if arms.configs[arm].of is None]
        for arm in with_rows:
            if arm in wanted:
                for seed, name in arms.selections(arm):
                    chosen = selections[(arm, seed)]
                    pairs = _pairs(session, synth, context, f"preferences/{name}", chosen)
                    made[(arm, seed)] = pairs
    made |= from_files(session, arms)
    session.done("preferences")
    return made


def _pairs(
    session: Session, synth: SynthConfig, context: Context, name: str, chosen: Result | None
) -> Result | None:
    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        rows = pl.read_parquet(inputs["selection"] / "selection.parquet", glob=False)
        return preferences.build(rows, synth, context.serving(session.servers), out, log)

    stage = Stage(name, preferences.spec(synth, context), {"selection": chosen}, make)
    made = session.result(stage)
    if made is not None and not session.planning:
        counts = made.manifest["counts"]
        pairs = f"{counts['train']:,} + {counts['test']:,} pairs of {counts['rows']:,} rows"
        dropped = counts["dropped"]
        session.log.say(f"{name}: {pairs} in {made.path}; without a pair: {dropped}")
    return made
