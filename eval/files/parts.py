"""What every reader of result files gives: one metric of one model, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.errors import UserError

COLUMNS = {
    "item": pl.String,
    "cluster": pl.String,
    "value": pl.Float64,
    "document": pl.String,
    "prompt": pl.String,
}
"""Of `Part.items`; `document` and `prompt` are digests of what was asked and of how, null where a
file does not say."""


@dataclass(frozen=True)
class Named:
    """One argument: `arm` "" where the files say whose they are, `seed` "" where no seed varies."""

    arm: str
    seed: str
    path: Path


@dataclass(frozen=True)
class Part:
    """One metric of one model from one place. `items` has the columns COLUMNS; a null value is an
    item without one."""

    model: str
    benchmark: str
    metric: str
    items: pl.DataFrame
    origin: Path
    """The file, or the folder of one run, that it is from."""
    higher_is_better: bool | None = None
    """None where the metric's name has to say."""
    against: str = ""
    """The model that it was judged against, where it is a comparison."""
    judges: tuple[str, ...] = ()
    """Who judged it, as far as a file says."""


def frame(
    items: Sequence[str],
    values: Sequence[float | None],
    *,
    clusters: Sequence[str] | None = None,
    documents: Sequence[str | None] | None = None,
    prompts: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """`Part.items` of columns; every item is a cluster of its own where no clusters are given."""
    nothing = [None] * len(items)
    columns = {
        "item": items,
        "cluster": clusters or items,
        "value": values,
        "document": documents or nothing,
        "prompt": prompts or nothing,
    }
    return pl.DataFrame(columns, schema=COLUMNS).with_columns(pl.col("value").fill_nan(None))


NO_NAMES = ("", ".", "..")
"""What no arm is called: nothing, and folders."""


def named(argument: str) -> Named:
    """An argument of the form PATH, NAME=PATH or NAME/SEED=PATH. Raises UserError for a path that
    does not exist and a name of another form."""
    name, sign, path = argument.partition("=")
    if sign and not path:
        raise UserError(f"{argument}: no path stands behind the sign; write NAME=PATH.")
    if not sign or Path(argument).exists():
        name, path = "", argument
    arm, slash, seed = name.partition("/")
    if sign and name != "" and (arm in NO_NAMES or "/" in seed or bool(slash) != bool(seed)):
        raise UserError(f"{argument}: `{name}` is no name; write NAME=PATH or NAME/SEED=PATH.")
    if not path or not Path(path).exists():  # an empty name is no name of this folder
        raise UserError(
            f"{path} is neither a file nor a folder, nor the name of a shipped recipe; give result "
            "files (NAME=PATH to name them) or a recipe."
        )
    return Named(arm, seed, Path(path))


def files_of(path: Path) -> Iterator[Path]:
    """A file, or every file below a folder that could hold results, in the order of their paths."""
    if path.is_file():
        yield path
        return
    for below in sorted(path.rglob("*")):
        bare = below.name.removesuffix(".gz")
        hidden = any(part.startswith(".") for part in below.relative_to(path).parts)
        if below.is_file() and not hidden and bare.endswith((".json", ".jsonl", ".parquet")):
            yield below
