"""An arm of a recipe: a filter over the pool, someone else's data, or a finished model. Imports
pydantic only."""

from __future__ import annotations

from pydantic import BaseModel, Field, model_validator

from synth.config.models import STRICT


class Budget(BaseModel):
    """How much an arm selects, in absolute terms, so that no arm depends on another."""

    model_config = STRICT
    rows: int | None = Field(default=None, ge=1)
    """Rows."""
    tokens: int | None = Field(default=None, ge=1)
    """Non-pad tokens after the student's chat template."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("a budget is either {rows: N} or {tokens: N}")
        return self


class ArmConfig(BaseModel):
    """One arm: a filter over the pool, someone else's data, or a finished model."""

    model_config = STRICT
    strategy: str | None = None
    """A named strategy (`magpie filters` lists them); `where`, `choose` and `budget` given beside
    it replace its own."""
    params: dict[str, float | str] = Field(default_factory=dict)
    """Thresholds of the named strategy."""
    where: str | None = None
    """SQL predicate over columns, decided row by row; absent: every row may be chosen."""
    choose: str | None = None
    """longest, top(COLUMN), hash_order, difficulty_mix, balanced(COLUMN), diverse, deita or all
    (`magpie filters` says what each costs)."""
    budget: Budget | None = None
    """How much to choose; required unless `choose: all`."""
    allow_short: bool = False
    """Train on fewer rows when the budget cannot be filled, instead of stopping."""
    data: str | None = None
    """Someone else's data in place of the pool: hub id, file or folder in a published, ShareGPT or
    messages form."""
    model: str | None = None
    """A finished model in place of training (`untuned` in the demo is the base model itself)."""
    revision: str | None = None
    """Hub revision of `model` or `data`."""

    @model_validator(mode="after")
    def _one_source(self) -> ArmConfig:
        if self.model and (self.data or self.where or self.choose or self.strategy or self.budget):
            raise ValueError(
                "an arm that is a finished model takes nothing but `model` and `revision`"
            )
        if self.data and (self.where or self.strategy):
            raise ValueError(
                "an arm with `data` takes no `where` or `strategy`: its rows are not in the pool"
            )
        return self
