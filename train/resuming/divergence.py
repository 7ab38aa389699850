"""Whether a training is still one: its loss and gradient norm against what they were lately.

A figure that is not finite ends a training, whatever the settings; so do ten steps in a row with
more than twice the loss that the training began with (weights may be garbage and finite). A single
figure far above its running median is a spike, and `train.spikes` says what becomes of it. Far is
`train.spike_threshold` median absolute deviations (MAD): unlike mean and standard deviation,
neither moves with the spikes themselves. Arithmetic only; torch is never imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from core.errors import UserError
from core.files import write_atomic

WINDOW = 100
"""Steps that a median looks back over."""

LEAST = 20
"""Steps before any is judged: the first ones, under warm-up, are far apart by nature."""

FLOOR = 0.01
"""Smallest deviation that counts, as a share of the median: figures that hardly vary would make
any step a spike."""

IN_A_ROW = 10
"""Steps of high loss, or of dropped ones, in a row that end a training."""

FILE = "diverged.json"
NAMED = 5  # rows that the sentence names; the file has all

Policy = Literal["warn", "skip", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a step (`do`), and why."""

    do: Literal["go", "warn", "skip", "stop"]
    why: str = ""


GO = Verdict("go")


class Watch:
    """The recent losses and gradient norms of one training, and what they say of the next."""

    def __init__(
        self, policy: Policy, threshold: float, earlier: dict[str, Any] | None = None
    ) -> None:
        """Judge by `train.spikes` and `train.spike_threshold`; `earlier` is the `state()` of the
        training that this one continues."""
        self._policy, self._threshold = policy, threshold
        earlier = earlier or {}
        self._first: float | None = earlier.get("first")
        self._losses: list[float] = list(earlier.get("losses", []))
        self._norms: list[float] = list(earlier.get("norms", []))
        self._high: int = earlier.get("high", 0)
        self._dropped: int = earlier.get("dropped", 0)
        self.skipped: int = earlier.get("skipped", 0)
        """Steps dropped since the training began."""

    def state(self) -> dict[str, Any]:
        """All of it as JSON, for a checkpoint: a resumed training judges as an unbroken one."""
        return {
            "first": self._first,
            "losses": self._losses,
            "norms": self._norms,
            "high": self._high,
            "dropped": self._dropped,
            "skipped": self.skipped,
        }

    def loss(self, value: float) -> Verdict:
        """Judge one step's loss, before it changes the weights."""
        if not math.isfinite(value):
            return Verdict("stop", f"its loss is {value}")
        if not value:
            return GO  # no token of it bears loss
        if self._first is None:
            self._first = value
        self._high = self._high + 1 if value > 2 * self._first else 0
        if self._high >= IN_A_ROW:
            return Verdict("stop", f"{self._too_high()} for {IN_A_ROW} steps in a row")
        if (why := self._spike("loss", value, self._losses)) is None:
            self._dropped = 0
            _remember(self._losses, value)
            return GO
        if self._policy != "skip":
            _remember(self._losses, value)
            return Verdict(self._policy, why)
        self._dropped += 1
        if self._dropped > IN_A_ROW:
            return Verdict("stop", f"{why}, after {IN_A_ROW} steps in a row that were dropped")
        self.skipped += 1
        return Verdict("skip", why)

    def norm(self, value: float) -> Verdict:
        """Judge one step's gradient norm (before clipping). It is known only once the step is
        taken, so it is never dropped."""
        if not math.isfinite(value):
            return Verdict("stop", f"its gradient norm is {value}")
        why = self._spike("gradient norm", value, self._norms)
        _remember(self._norms, value)
        if why is None:
            return GO
        return Verdict("stop" if self._policy == "stop" else "warn", why)

    def end(self) -> Verdict:
        """Judge the training as a whole once its last step is taken: nothing is exported of one
        that ended far worse than it began."""
        enough = min(IN_A_ROW, max(1, len(self._losses) // 3))
        return Verdict("stop", f"{self._too_high()} at its end") if self._high >= enough else GO

    def _too_high(self) -> str:
        return f"its loss is more than twice the {self._first:.4g} that the training began with"

    def _spike(self, name: str, value: float, before: Sequence[float]) -> str | None:
        if len(before) < LEAST or (far := deviations(value, before)) <= self._threshold:
            return None
        return (
            f"its {name} {value:.4g} is {far:.0f} median absolute deviations above the running "
            f"median {median(before):.4g}"
        )


def deviations(value: float, before: Sequence[float]) -> float:
    """How many median absolute deviations `value` lies above the median of `before` (negative:
    below)."""
    middle = median(before)
    spread = median(abs(one - middle) for one in before)
    return (value - middle) / max(spread, FLOOR * abs(middle), 1e-12)


def diverged(out: Path, step: int, why: str, rows: Sequence[str]) -> UserError:
    """The error that ends the training in `out` at `step`; FILE there names every row of that step
    (none where they are not known)."""
    write_atomic(out / FILE, json.dumps({"step": step, "why": why, "rows": list(rows)}, indent=2))
    named = ", ".join(rows[:NAMED])
    if more := len(rows) - NAMED:
        named += f" and {more} more" if more > 0 else ""
    which = f" (rows {named}, all in {out / FILE})" if rows else ""
    return UserError(
        f"training diverged at step {step}{which}: {why}. Nothing was exported, and the last "
        "complete checkpoint is kept. Lower trainer.learning_rate, or look at the rows of this "
        "step; train.spikes: skip drops steps whose loss is finite and far too high."
    )


def _remember(values: list[float], value: float) -> None:
    values.append(value)
    del values[:-WINDOW]
