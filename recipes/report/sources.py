"""What a report reads: the folders of finished stages, each of which may be absent.

A file that is not there reads as None or empty and the page says what is missing; a file that is
there and cannot be read is a `UserError`, because half a report that looks whole would be worse
than none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core import files
from core.errors import UserError, json_kind
from core.store import MANIFEST

Inputs = Mapping[str, Path]
"""Stage and run -> the folder that was made of it."""
Colours = Mapping[str, str]
"""Arm -> its colour class."""
Record = dict[str, Any]
"""A JSON object, or a row."""

REMEDY = "remove that result's folder and run again"
MADE = "made/"
"""Begins the names of inputs that only say what they cost and where they come from."""
NAMED = ("stage", "key", "digest", "seconds", "spec", "started", "counts")
"""Fields of a manifest that have a place of their own on the page; the others are its facts."""


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


def runs(inputs: Inputs, stage: str) -> dict[Run, Path]:
    """Folders of a stage that there is one of for each arm or (arm, seed), in the order given."""
    return {Run(*_split(rest)): folder for rest, folder in _of(inputs, stage)}


def answers(inputs: Inputs) -> dict[tuple[Run, str], Path]:
    """Folders of answers by (run, benchmark): "answers/RUN" are those that benchmarks share
    (benchmark ""), "answers/RUN/BENCHMARK" are its own.

    RUN is ARM/SEED, or ARM alone for a finished model. A benchmark is known by its
    "prompts/BENCHMARK" or "judge/BENCHMARK/..." inputs.
    """
    named = [*_of(inputs, "prompts"), *_of(inputs, "judge")]
    benchmarks = {_split(rest)[0] for rest, _ in named}
    folders: dict[tuple[Run, str], Path] = {}
    for run, folder in runs(inputs, "answers").items():
        seed, _, last = run.seed.rpartition("/")
        own = last in benchmarks
        folders[(Run(run.arm, seed), last) if own else (run, "")] = folder
    return folders


def judgments(inputs: Inputs) -> dict[tuple[str, Run], Path]:
    """Folders of "judge/BENCHMARK/ARM/SEED" by (benchmark, run)."""
    folders: dict[tuple[str, Run], Path] = {}
    for rest, folder in _of(inputs, "judge"):
        benchmark, run = _split(rest)
        if run:
            folders[benchmark, Run(*_split(run))] = folder
    return folders


def arms(inputs: Inputs, comparison: Mapping[str, Any]) -> list[str]:
    """Every arm's name: in the comparison's order, then those that only appear in a stage's
    inputs."""
    names = [str(arm["name"]) for arm in comparison.get("arms", [])]
    for stage in ("select", "train", "answers", "scores"):
        names += [run.arm for run in runs(inputs, stage)]
    return list(dict.fromkeys(names))


def _of(inputs: Inputs, stage: str) -> Iterator[tuple[str, Path]]:
    """(what follows the stage's name, folder) of each input of a stage."""
    for key, folder in inputs.items():
        head, rest = _split(key)
        if head == stage and rest:
            yield rest, folder


def _split(key: str) -> tuple[str, str]:
    head, _, rest = key.partition("/")
    return head, rest


def read_object(path: Path) -> Record:
    """The object that a JSON file holds; {} when there is no such file. Raises UserError when it
    holds anything else."""
    value = files.read_json(path, REMEDY) if path.is_file() else {}
    if not isinstance(value, dict):
        kind = json_kind(value)
        raise UserError(f"{path} should hold one JSON object, and holds {kind}; {REMEDY}.")
    return value


def of_stage(inputs: Inputs, stage: str, name: str) -> Record:
    """The object in a file of a stage that there is one of; {} where the stage is absent."""
    return read_object(inputs[stage] / name) if stage in inputs else {}


def read_log(path: Path) -> list[Record]:
    """The objects of a JSON-lines file, in order; [] when there is no such file. Raises UserError
    naming the line."""
    lines = files.read_json_lines(path, REMEDY) if path.exists() else ()
    return [entry for _, entry in lines]


def read_table(path: Path, columns: list[str] | None = None) -> pl.DataFrame | None:
    """A Parquet file, or these of its columns; None when there is no such file."""
    return files.read_parquet(path, columns, REMEDY) if path.exists() else None


def read_pool(path: Path, long: Collection[str]) -> pl.DataFrame | None:
    """The figures and labels of a pool's snapshot; None when there is no such file.

    Of `long` texts there are only the columns in which no row has one: words have no figure, and
    those of a million rows do not fit in memory. Raises UserError where the file cannot be read.
    """
    if not path.exists():
        return None
    values = _values(path)
    rows = files.read_parquet(path, [name for name in values if name not in long], REMEDY)
    return rows.with_columns(
        pl.lit(None, pl.String).alias(name) for name in values if name in long and not values[name]
    )


def _values(path: Path) -> dict[str, bool]:
    """The columns of a Parquet file, and whether any row of it has a value, as far as its own
    statistics say."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            values = dict.fromkeys(file.schema_arrow.names, False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}); {REMEDY}.") from error
    for column in [group.column(at) for group in groups for at in range(group.num_columns)]:
        known = column.statistics
        if known is None or not known.has_null_count or known.null_count < column.num_values:
            values[column.path_in_schema.partition(".")[0]] = True
    return values


def provenance(inputs: Inputs) -> list[Record]:
    """One entry an input: its name, whether its folder is there, and what its manifest says (key,
    digest, seconds, counts, the rest)."""
    return [_provenance(name, path) for name, path in inputs.items()]


def _provenance(name: str, path: Path) -> Record:
    manifest = read_object(path / MANIFEST)
    digest = files.file_digest(path) if path.is_file() else str(manifest.get("digest", ""))
    return {
        "name": name.removeprefix(MADE),
        "there": path.exists(),
        "key": str(manifest.get("key", ""))[:16],
        "digest": digest[:16],
        "seconds": manifest.get("seconds"),
        "started": manifest.get("started"),
        "counts": manifest.get("counts") or {},
        "facts": {field: value for field, value in manifest.items() if field not in NAMED},
        "spec": manifest.get("spec"),
    }
