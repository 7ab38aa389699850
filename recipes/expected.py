"""What a recipe states of its trainings before their rows are there, for `magpie plan` and `magpie
memory`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ExpectedRows(BaseModel):
    """Rows of an arm and their tokens, as a recipe states them before they are there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int | None = Field(None, ge=1)
    """Rows that an arm trains on."""
    tokens: int | None = Field(None, ge=1)
    """Their tokens under the training template, once over all rows."""


class Expected(ExpectedRows):
    """What a recipe states of its trainings before their rows are there; part of no key."""

    arms: dict[str, ExpectedRows] = {}
    """The same of single arms, where they differ."""
    gpus: int | None = Field(None, ge=1)
    """GPUs that the recipe is written for, over all machines."""
    gpu_memory: float | None = Field(None, gt=0)
    """Memory of each, in GiB."""
