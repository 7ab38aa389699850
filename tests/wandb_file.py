"""What W&B's offline run files hold, run by run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.report.uploading import records
from tests.waiting import until


@dataclass
class Run:
    """What one run's files hold."""

    id: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def read(folder: Path) -> dict[str, Run]:
    """Every run below `folder` by its id; the files of a resumed run are read as one."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted(folder.rglob("*.wandb"))
    until(lambda: all(map(_ended, paths)), "the end of every file: W&B writes in the background")
    runs: dict[str, Run] = {}
    for path in paths:
        current = Run()
        for data in records(path):
            record = Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                current = runs.setdefault(record.run.run_id, Run())
                current.id, current.group, current.job_type, current.project = (
                    record.run.run_id,
                    record.run.run_group,
                    record.run.job_type,
                    record.run.project,
                )
                current.config |= _items(record.run.config.update)
            elif kind == "config":
                current.config |= _items(record.config.update)
            elif kind == "summary":
                current.summary |= _items(record.summary.update)
            elif kind == "history":
                current.history.append(_items(record.history.item))
    return runs


def _ended(path: Path) -> bool:
    from wandb.proto.wandb_internal_pb2 import Record

    *_, last = [b"", *records(path)]
    record = Record()
    record.ParseFromString(last)
    return record.WhichOneof("record_type") == "exit"


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
