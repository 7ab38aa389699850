"""log.jsonl: what a training logs, one line a logging step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.files import write_atomic

VALIDATION = "validation.jsonl"
"""Beside it: the losses on rows that are held out, one line a measurement."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The finished lines of log.jsonl, one a logging step (a line that is still being written is
    left out)."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def keep_until(log: Path, step: int) -> None:
    """Drop lines of steps that will be trained again."""
    kept = [line for line in read_log(log) if line["step"] <= step]
    if log.exists():
        write_atomic(log, "".join(json.dumps(line) + "\n" for line in kept))
