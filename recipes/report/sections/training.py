"""How each run trained: loss by step, and the ledger of what it was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median_high
from typing import Any

from core.store import MANIFEST
from recipes.report import sources
from recipes.report.drawing import figures, marks
from recipes.report.sources import Colours, Inputs, Record

VALIDATION = "validation.jsonl"
"""Beside the log: the loss of the rows that a training kept back, a line an evaluation."""


def training(inputs: Inputs, colours: Colours) -> Record:
    """Loss curves of all runs on one figure, and the ledger of each; `ledger_keys` are what some
    ledger counts, `ledger_zeros` what none met."""
    lines: list[figures.Curve] = []
    rows: list[Record] = []
    seeds = Counter[str]()
    for run, folder in sources.runs(inputs, "train").items():
        log = sources.read_log(folder / "log.jsonl")
        points = [(float(step), float(loss)) for step, loss in _filled(log, "step", "loss")]
        kept_out = list(_kept_out(inputs, run, folder, points))
        lines.append(figures.Curve(run.name, colours[run.arm], points, seeds[run.arm], kept_out))
        seeds[run.arm] += 1
        speeds = [float(speed) for (speed,) in _filled(log, "tokens_per_second")]
        step, loss = (int(points[-1][0]), points[-1][1]) if points else (None, None)
        rows.append(
            {
                "name": run.name,
                "css": colours[run.arm],
                "dash": lines[-1].dash % figures.DASHES,
                "ledger": _counts(sources.read_object(folder / "ledger.json")),
                "steps": step,
                "loss": loss,
                "heldout": heldout(inputs, run),
                "speed": median_high(speeds) if speeds else None,
            }
        )
    ledgers = [row["ledger"] for row in rows]
    keys = dict.fromkeys(key for ledger in ledgers for key in ledger)
    zeros = list(keys)
    for ledger in ledgers:
        zeros = [key for key in zeros if ledger.get(key) == 0]
    return {
        "trainings": rows,
        "ledger_keys": [key for key in keys if key not in zeros],
        "ledger_zeros": zeros,
        "rings": any(line.rings for line in lines),
        "curves": figures.curves(lines, "Training loss by step, all runs") if lines else "",
    }


def heldout(inputs: Inputs, run: sources.Run) -> float | None:
    """The mean loss of a token of the held-out conversations, as training counts its own; None
    where it was not measured."""
    folder = inputs.get(f"heldout/{run.arm}/{run.seed}" if run.seed else f"heldout/{run.arm}")
    if folder is None:
        return None
    loss = (sources.read_object(folder / MANIFEST).get("counts") or {}).get("token_loss")
    return float(loss) if marks.finite(loss) else None


def _kept_out(
    inputs: Inputs, run: sources.Run, folder: Path, points: figures.Points
) -> Iterator[tuple[float, float]]:
    """(step, loss) of the rows that the training kept back, and of the held-out conversations after
    its last step."""
    for step, loss in _filled(sources.read_log(folder / VALIDATION), "step", "eval_loss"):
        if marks.finite(loss):
            yield float(step), float(loss)
    last = heldout(inputs, run)
    if last is not None and points:
        yield points[-1][0], last


def _filled(log: list[Record], *names: str) -> Iterator[tuple[Any, ...]]:
    """These fields of every entry of a log that has all of them."""
    for entry in log:
        values = tuple(map(entry.get, names))
        if None not in values:
            yield values


def _counts(ledger: Mapping[str, Any]) -> dict[str, float]:
    """The ledger's numbers, those by reason ("dropped": {reason: rows}) as "dropped: reason"."""
    flat: dict[str, float] = {}
    for name, value in ledger.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for reason, count in parts.items():
            if isinstance(count, (int, float)) and not isinstance(count, bool):
                flat[f"{name}: {reason}" if reason else name] = count
    return flat
