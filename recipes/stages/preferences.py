"""The preference sets of a recipe: one for every arm that is asked for, over its selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from core.errors import UserError, nearest
from core.store import Build, Result
from core.tracking import Log
from synth import preferences
from synth.context import Context

if TYPE_CHECKING:
    from recipes.stages.graph import Stages


def models(graph: Stages) -> list[tuple[tuple[str, ...], str, str | None]]:
    """Where a recipe names models for its preference sets: (place, model, revision). Raises
    UserError for an arm that has no rows or is none."""
    config = graph.recipe.synth.preferences
    if config is None:
        return []
    arms = [name for name, arm in graph.arms.items() if arm.model is None]
    for arm in config.arms:
        if arm not in arms:
            raise UserError(
                f"synth.preferences.arms: no arm with rows is called '{arm}'{nearest(arm, arms)}."
            )
    scorer = preferences.reward_model(graph.recipe.synth)
    place = (
        ("synth", "preferences", "reward", "model")
        if config.reward
        else ("synth", "tags", "reward", "model")
    )
    return [(place, scorer.model, scorer.revision)]


def stages(graph: Stages, selections: dict[tuple[str, int], Result | None]) -> None:
    """Make `preferences/ARM` (an arm that is sampled by seed: `preferences/ARM/SEED`), where the
    recipe has `synth.preferences`."""
    synth, session = graph.recipe.synth, graph.session
    if synth.preferences is not None:
        arms = {arm for arm, _ in selections if arm != "heldout"}
        context = Context(session.store.root, graph.resolve)
        spec = preferences.spec(synth, context)
        for (arm, seed), chosen in selections.items():
            seeded = arm not in graph.filters or graph.filters[arm].seeded
            if arm not in (synth.preferences.arms or arms) or (
                not seeded and seed != graph.seeds[0]
            ):
                continue

            def make(build: Build, log: Log, chosen: Result | None = chosen) -> None:
                assert chosen is not None
                rows = pl.read_parquet(chosen.path / "selection.parquet")
                build.counts.update(
                    preferences.build(
                        rows, synth, context.serving(session.servers), build.path, log
                    )
                )

            name = f"preferences/{arm}/{seed}" if seeded else f"preferences/{arm}"
            made = session.stage(name, spec, {"selection": chosen}, make)
            if made is not None and not session.planning:
                counts = made.manifest["counts"]
                pairs = f"{counts['train']:,} + {counts['test']:,} pairs of {counts['rows']:,} rows"
                session.log.say(
                    f"{name}: {pairs} in {made.path}; without a pair: {counts['dropped']}"
                )
    session.done("preferences")
