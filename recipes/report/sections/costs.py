"""What the run cost, stage by stage: time, tokens, calls and money, from the manifests, the pool's
own account and the ledger of hosted models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.sending.purse import Ledger
from core.store import MANIFEST
from recipes.report import sources
from recipes.report.drawing.marks import number
from recipes.report.sources import Inputs, Record

STAGES = {
    "select": "selections",
    "preferences": "preferences",
    "tokens": "tokens",
    "prompts": "prompt sets",
    "train": "training",
    "tasks": "lm-eval",
    "answers": "answers",
    "heldout": "held-out loss",
    "judge": "judging",
    "verdicts": "judging",
    "looks": "judging",
    "head-to-head": "head to head",
    "checks": "checks",
    "score": "scores",
    "scores": "scores",
    "overlap": "overlap",
    "compare": "comparison",
    "comparison": "comparison",
}
"""Stages whose manifests are counted, and what a page calls them."""


TOTALS = ("seconds", "prompt_tokens", "tokens", "calls", "money")


def costs(inputs: Inputs) -> Record:
    """`rows`: one entry a stage that anything is known of: name, results, seconds, prompt_tokens,
    tokens, calls and money (None where nothing counts them); `bills`: what hosted models were paid
    (model, calls, prompt_tokens, tokens, money); `total`: seconds, prompt_tokens, tokens and calls
    of all of it, money as the ledger has it (else as the results count it), and `training_hours`:
    of every device that trained; `lacks`: which seconds the total lacks, as the end of a sentence,
    "" where it lacks none."""
    rows: dict[str, Record] = {}
    untimed: list[str] = []
    for column in _columns(inputs):
        made = {unit: column.get(unit) for unit in ("prompt_tokens", "tokens")}
        made["calls"] = column["cells"] if any(made.values()) else None
        name = f"pool: {column['name']}"
        row = {"name": name, "results": 1, "seconds": column.get("seconds")}
        rows[name] = row | {unit: amount for unit, amount in made.items() if amount}
        untimed += _untimed(column)
    for name, seconds, counts in _results(inputs):
        row = rows.setdefault(name, {"name": name, "results": 0, "seconds": 0.0})
        row["results"] += 1
        row["seconds"] += seconds
        for unit, amount in counts.items():
            if amount:
                row[unit] = row.get(unit, 0) + amount
    spent = inputs.get("spent")
    bills = Ledger(spent).bills() if spent is not None and spent.is_dir() else {}
    every = list(rows.values())
    total = {name: _sum(every, name) for name in TOTALS}
    if bills:
        total["money"] = sum(bill.money for bill in bills.values())
    return {
        "rows": every,
        "bills": [{"model": model, **bill._asdict()} for model, bill in sorted(bills.items())],
        "total": total | {"training_hours": sum(_device_hours(inputs))},
        "lacks": _left_out(untimed),
    }


def _sum(rows: Sequence[Record], name: str) -> float:
    return sum(row.get(name) or 0 for row in rows)


def _device_hours(inputs: Inputs) -> Iterator[float]:
    """Hours of each training, times the devices that it ran on."""
    for name, folder in inputs.items():
        if name.startswith("train/") and folder.is_dir():
            manifest = sources.read_object(folder / MANIFEST)
            counts = manifest.get("counts") or {}
            # a training that was continued has run longer than its last attempt
            took = max(counts.get("training_seconds") or 0, manifest.get("seconds") or 0)
            yield took * (counts.get("devices") or _devices(folder)) / 3600


def _devices(folder: Path) -> int:
    """How many processes an older training was asked to have, one a device; 1 where it was not."""
    try:
        config = sources.read_object(folder / "train.json").get("config") or {}
    except UserError:
        return 1
    return int(config.get("num_processes") or 1)


def _columns(inputs: Inputs) -> Iterator[Record]:
    """What each column of the pool cost, and the tags that were asked for once more to see how far
    both ways of asking agree."""
    yield from sources.of_stage(inputs, "measure", "cost.json").get("columns", [])
    for name, asked in sources.of_stage(inputs, "measure", "tag_agreement.json").items():
        if asked.get("asked"):
            yield {**asked, "name": f"{name} asked the other way", "cells": asked["asked"]}


def _untimed(column: Record) -> Iterator[str]:
    """What the seconds of a column lack, where they do."""
    if column.get("seconds") is None:
        yield f"{column['name']} (not kept)"
    elif column.get("untimed"):
        yield f"{column['name']} ({number(100 * column['untimed'], 2)} % of its cells)"


def _results(inputs: Inputs) -> Iterator[tuple[str, float, Mapping[str, Any]]]:
    """The results of every stage that is counted here."""
    for name, folder in inputs.items():
        stage, _, rest = name.removeprefix(sources.MADE).partition("/")
        if stage not in STAGES or not folder.is_dir():
            continue
        manifest = sources.read_object(folder / MANIFEST)
        counts = manifest.get("counts") or {}
        units = {"prompt_tokens": counts.get("prompt_tokens"), "money": counts.get("money")}
        units["calls"] = counts.get("asked")
        units["tokens"] = counts.get("tokens")
        if stage == "train":
            units["tokens"] = counts.get("trained_tokens_total")
        if stage == "looks":  # judging in steps: its tokens count where it stopped
            units = {"calls": counts.get("asked")}
            rest = rest.partition("/")[2]
        # a judging of one benchmark is asked of one judge or several; other stages are one line
        apart = stage in ("judge", "looks")
        what = f"{STAGES[stage]}: {rest.partition('/')[0]}" if apart else STAGES[stage]
        yield what, float(manifest.get("seconds") or 0), units


def _left_out(untimed: Sequence[str]) -> str:
    """What the total of the seconds lacks, as the end of a sentence."""
    if not untimed:
        return ""
    return (
        f"without the hours of the pool's {', '.join(untimed)}: made before seconds were kept, or "
        "just before a kill"
    )
