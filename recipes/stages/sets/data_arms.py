"""Arms that are someone else's data."""

from __future__ import annotations

import polars as pl

from core.columns import OK
from core.errors import UserError
from recipes.stages.session import Session
from recipes.stages.synthesis import selection_of
from recipes.stages.tokens import as_messages
from recipes.stages.walk import Arms, Selections
from synth.filters.arm import ArmConfig
from synth.filters.orders import hash_rank
from synth.published import rows as published

ROWS = ("id", "instruction", "response", "messages", "status")


def from_data(session: Session, arms: Arms) -> Selections:
    """A selection for every arm that is someone else's data and every seed: its rows in hash order
    up to the budget."""
    selections: Selections = {}
    for arm, source in arms.with_data.items():
        for seed in arms.seeds:
            name = f"select/{arm}/{seed}"
            rows = pl.concat([part.select(ROWS) for part in published.read(source)])
            usable = rows.filter(pl.col("status") == OK)
            failed = len(rows) - len(usable)
            if failed and not session.planning:
                session.log.say(
                    f"{name.removesuffix(f'/{seed}')}: {failed} of {len(rows)} rows of {source} "
                    "are failed rows and left out (`magpie import` says why)"
                )
            ranked = usable.sort(hash_rank(usable["id"], seed))
            taken = _within_budget(ranked, arm, source, arms.configs[arm])
            selections[(arm, seed)] = selection_of(session, name, as_messages(taken))
    return selections


def _within_budget(rows: pl.DataFrame, arm: str, source: str, config: ArmConfig) -> pl.DataFrame:
    budget = config.budget
    if budget is None:
        return rows
    if budget.rows is None:
        raise UserError(f"arms.{arm}.budget: an arm with `data` takes a budget in rows.")
    if len(rows) < budget.rows and not config.allow_short:
        raise UserError(
            f"arms.{arm}.data: {source} has {len(rows)} usable rows of {budget.rows}; "
            "say `allow_short: true`."
        )
    return rows.head(budget.rows)
