"""What a report reads: the folders of finished stages, each of which may be absent.

A folder or file that is not there reads as None or empty and the page says what is missing; a file
that is there and cannot be read is a `UserError`, because half a report that looks whole would be
worse than none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import file_digest
from core.store import MANIFEST


@dataclass(frozen=True)
class Run:
    """One (arm, seed): a checkpoint that answered, was trained or was scored. `seed` is "" where
    the stage knows none."""

    arm: str
    seed: str

    @property
    def name(self) -> str:
        """For people: the arm, and the seed where there is one."""
        return f"{self.arm} · seed {self.seed}" if self.seed else self.arm


def one(inputs: Mapping[str, Path], stage: str) -> Path | None:
    """The folder of a stage that there is one of ("comparison", "measure")."""
    return inputs.get(stage)


def runs(inputs: Mapping[str, Path], stage: str) -> dict[Run, Path]:
    """Folders of a stage that there is one of for each arm or (arm, seed), in the order given."""
    found: dict[Run, Path] = {}
    for key, folder in inputs.items():
        head, *rest = key.split("/")
        if head == stage and rest:
            found[Run(rest[0], "/".join(rest[1:]))] = folder
    return found


def answers(inputs: Mapping[str, Path]) -> dict[tuple[Run, str], Path]:
    """Folders of answers by (run, benchmark): "answers/RUN" are those that benchmarks share
    (benchmark ""), "answers/RUN/BENCHMARK" are its own.

    RUN is ARM/SEED, or ARM alone for a finished model. A benchmark is known by its
    "prompts/BENCHMARK" or "judge/BENCHMARK/..." inputs.
    """
    benchmarks = {key.split("/")[1] for key in inputs if key.startswith(("prompts/", "judge/"))}
    found: dict[tuple[Run, str], Path] = {}
    for run, folder in runs(inputs, "answers").items():
        seed, _, last = run.seed.rpartition("/")
        found[(Run(run.arm, seed), last) if last in benchmarks else (run, "")] = folder
    return found


def judgments(inputs: Mapping[str, Path]) -> dict[tuple[str, Run], Path]:
    """Folders of "judge/BENCHMARK/ARM/SEED" by (benchmark, run)."""
    found: dict[tuple[str, Run], Path] = {}
    for key, folder in inputs.items():
        head, *rest = key.split("/")
        if head == "judge" and len(rest) >= 2:
            found[rest[0], Run(rest[1], "/".join(rest[2:]))] = folder
    return found


def arms(inputs: Mapping[str, Path], comparison: Mapping[str, Any] | None) -> list[str]:
    """Every arm's name: in the comparison's order, then those that only appear in a stage's
    inputs."""
    names: dict[str, None] = {str(a["name"]): None for a in (comparison or {}).get("arms", [])}
    for stage in ("select", "train", "answers", "scores"):
        names.update({run.arm: None for run in runs(inputs, stage)})
    return list(names)


def read_json(path: Path) -> Any:
    """The file's value, or None when there is no such file. Raises UserError when it is not
    JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); remove that result's folder and run again."
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a file that holds one object; {} when there is no such file."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise UserError(
            f"{path} should hold one JSON object, and holds a {type(value).__name__}; remove that result's folder and run again."
        )
    return value or {}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; [] when there is no such file. Raises UserError
    naming the line."""
    if not path.exists():
        return []
    rows = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {place} is not valid JSON ({error}); remove that result's folder and run again."
            ) from error
    return rows


def read_table(path: Path, columns: list[str] | None = None) -> pl.DataFrame | None:
    """A Parquet file (of `columns`, those it has), or None when there is no such file."""
    if not path.exists():
        return None
    try:
        lazy = pl.scan_parquet(path)
        held = lazy.collect_schema().names()
        return lazy.select([c for c in held if columns is None or c in columns]).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet ({error}); remove that result's folder and run again."
        ) from error


def provenance(inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One entry an input: its name, whether its folder is there, and what its manifest says (key,
    digest, seconds, counts, the rest)."""
    entries = []
    for name, folder in inputs.items():
        manifest = read_object(folder / MANIFEST)
        known = ("stage", "key", "digest", "seconds", "spec", "started", "counts")
        entries.append(
            {
                "name": name,
                "there": folder.exists(),
                "key": str(manifest.get("key", ""))[:16],
                "digest": (
                    file_digest(folder) if folder.is_file() else str(manifest.get("digest", ""))
                )[:16],
                "seconds": manifest.get("seconds"),
                "started": manifest.get("started"),
                "counts": manifest.get("counts") or {},
                "facts": {k: v for k, v in manifest.items() if k not in known},
                "spec": manifest.get("spec"),
            }
        )
    return entries
