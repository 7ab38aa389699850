"""What a stage tells the world while it works: progress, metrics, tables and lines, to the terminal and to W&B.

A stage gets a `Log` and never imports wandb itself. `Log` alone writes nothing but lines; `core.tracking.track` (see below) adds the
progress bar and the W&B run: one group a recipe, one run a stage, the same run id after a resume.
"""

from __future__ import annotations

import sys
from typing import Any

import polars as pl


class Log:
    """Where a stage reports. This base form prints lines to stderr and keeps the rest in memory (tests read it)."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line for the person watching."""
        print(text, file=sys.stderr, flush=True)

    def progress(self, done: int, total: int | None, unit: str = "rows") -> None:
        """`done` of `total` units of this stage are finished (total None: unknown)."""

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Figures of this moment (loss, rates, counts)."""
        self.seen.update(values)

    def table(self, name: str, rows: pl.DataFrame) -> None:
        """A table worth looking at (rows kept and dropped, judgments)."""

    def trainer_env(self) -> dict[str, str]:
        """Environment for a child process whose HF Trainer reports to the same W&B run (empty: tracking is off)."""
        return {}

    def finish(self, facts: dict[str, Any]) -> None:
        """The stage is done: its counts, its input and output digests."""
