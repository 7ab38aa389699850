"""Which answers of imported rows count: those they came with, or the responder's.

Both are cells of columns of their own, so asking for other answers loses nothing and buys nothing
twice.
"""

from __future__ import annotations

from typing import Literal

import polars as pl

from core.columns import OK
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig

Answers = Literal["keep", "missing", "all"]
"""As `ImportConfig.answers`."""

SYSTEM_PROMPT = (
    "its conversation has a system prompt, and an answer without that would answer another question"
)
"""Why a row that waits for an answer gets none."""


def wanted(config: SynthConfig) -> Answers:
    """Which answers a recipe's rows have; of rows that are drawn there is nothing else."""
    return config.rows.answers if isinstance(config.rows, ImportConfig) else "keep"


def prompts(rows: pl.DataFrame, answers: Answers) -> pl.DataFrame:
    """Imported rows [id, status, reason, ...]: where the responder is to answer, a row that only
    lacks an answer is a good one."""
    if answers == "keep":
        return rows
    waiting = pl.col("reason").str.starts_with("no response").fill_null(False)
    return rows.with_columns(
        status=pl.when(waiting).then(pl.lit(OK)).otherwise("status"),
        reason=pl.when(~waiting).then("reason"),
    )


def there(cells: pl.DataFrame, answers: Answers) -> pl.DataFrame:
    """The imported answers that count."""
    return cells if answers == "keep" else cells.filter(pl.col("status") == OK)
