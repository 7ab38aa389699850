"""Overlap of instructions with the prompts that the models will be evaluated on: shared word
n-grams, and distance in embedding space.

A row that repeats an evaluation prompt would make its arm look better than it is. The measures are
columns like any other: the filter says what is too much (Tulu 3 drops rows that share 8-grams
covering more than half of a test prompt's words, arXiv 2411.15124).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import UserError
from core.files import file_digest
from synth.config import SynthConfig
from synth.context import Context
from synth.duplicates import embeddings
from synth.duplicates.ngrams import grams, words

VERSION = 2
"""Part of the column's key, with the digest of the prompts."""

SHORT = 5
"""A prompt of fewer words than this ("Hi", "Make it shorter.") is found only where it is the whole
instruction."""
SLICE = 20_000

PROMPTS = {"id": pl.String, "prompt": pl.String}


def read_prompts(path: Path) -> pl.DataFrame:
    """[id, prompt] of a JSONL file: one object a line with `prompt` (or `instruction`), and `id`
    where it has one (else the line's number).

    Raises UserError for a file that holds no prompt, and for a line that is no such object.
    """
    found: list[tuple[str, str]] = []
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON; write one object a line."
                ) from error
            prompt = (
                record.get("prompt", record.get("instruction"))
                if isinstance(record, dict)
                else None
            )
            if not isinstance(prompt, str):
                raise UserError(
                    f'{path}, line {number}: no `prompt` (text); write one object a line: {{"id": ..., "prompt": ...}}.'
                )
            found.append((str(record.get("id", number)), prompt))
    if not found:
        raise UserError(f"{path} holds no prompts.")
    return pl.DataFrame(found, schema=PROMPTS, orient="row")


def overlap(rows: pl.DataFrame, prompts: pl.DataFrame, n: int = 8) -> pl.DataFrame:
    """How much of some evaluation prompt an instruction repeats.

    `rows`: id, instruction. `prompts`: id, prompt. Words are compared without case and punctuation;
    a prompt of fewer than `n` words counts as one n-gram of its length (and see SHORT). Returns, in
    the order of `rows`, [id, eval_overlap (the largest share of one prompt's words that lies in
    n-grams shared with the instruction, 0 to 1), eval_overlap_prompt (that prompt's id; null for
    none)].
    """
    index = _index(prompts, n)
    parts = [
        _best(rows["instruction"].slice(at, SLICE), index).with_columns(pl.col("row") + at)
        for at in range(0, len(rows), SLICE)
    ]
    best = (
        pl.concat(parts)
        if parts
        else pl.DataFrame(schema={"row": pl.Int64, "prompt": pl.Int64, "share": pl.Float64})
    )
    numbered = rows.select("id").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    named = prompts.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("prompt"),
        pl.col("id").alias("eval_overlap_prompt"),
    )
    found = numbered.join(best, on="row", how="left", maintain_order="left").join(
        named, on="prompt", how="left", maintain_order="left"
    )
    return found.select(
        "id", pl.col("share").fill_null(0.0).alias("eval_overlap"), "eval_overlap_prompt"
    )


def distance(
    ids: Sequence[str], vectors: NDArray[np.float32], prompts: NDArray[np.float32]
) -> pl.DataFrame:
    """Squared L2 distance of each instruction to the nearest evaluation prompt, both as unit
    vectors of one model (synth/duplicates/embeddings.py).

    `vectors` [n, d] and `prompts` [m, d], float32. Returns [id, eval_distance (0 to 4; null without
    prompts)].
    """
    nearest = np.full(len(vectors), np.nan)
    for top in range(0, len(vectors) if len(prompts) else 0, SLICE):
        nearest[top : top + SLICE] = np.clip(
            2 - 2 * (vectors[top : top + SLICE] @ prompts.T).max(axis=1).astype(np.float64), 0, 4
        )
    return pl.DataFrame({"id": list(ids), "eval_distance": pl.Series(nearest).fill_nan(None)})


def overlap_cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell of `overlap`: the prompts by content; None where there are none to
    compare with."""
    files = _files(config, context)
    return (
        {
            "prompts": [file_digest(f) for f in files],
            "ngram": config.tags.decontaminate.ngram,
            "VERSION": VERSION,
        }
        if files
        else None
    )


def compute_overlap(
    rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    """The measure `overlap` of rows [id, instruction]."""
    yield overlap(rows, _prompts(config, context), config.tags.decontaminate.ngram)


def distance_cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell of `eval_distance`: the prompts by content, and the embedding model,
    which is that of the neighbours."""
    files = _files(config, context)
    model = context.resolve(config.tags.neighbors.model, None).revision
    return (
        {
            "prompts": [file_digest(f) for f in files],
            "model": model,
            "VERSION": [VERSION, embeddings.VERSION],
        }
        if files
        else None
    )


def compute_distance(
    rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    """The measure `eval_distance` of rows [id, instruction]."""
    prompts, model = _prompts(config, context), context.resolve(config.tags.neighbors.model, None)
    of_prompts = embeddings.vectors(context.root, prompts["id"].to_list(), prompts["prompt"], model)
    ids = rows["id"].to_list()
    yield distance(
        ids, embeddings.vectors(context.root, ids, rows["instruction"], model), of_prompts
    )


def _files(config: SynthConfig, context: Context) -> list[Path]:
    """The evaluation's prompts, then the recipe's own file."""
    own = config.tags.decontaminate.file
    files = [context.eval_prompts, Path(own).expanduser() if own else None]
    found = [f for f in files if f is not None]
    for file in found:
        if not file.is_file():
            raise UserError(
                f"the file of prompts {file} does not exist; check `synth.tags.decontaminate.file`."
            )
    return found


def _prompts(config: SynthConfig, context: Context) -> pl.DataFrame:
    return pl.concat([read_prompts(f) for f in _files(config, context)])


def _index(prompts: pl.DataFrame, n: int) -> dict[int, pl.DataFrame]:
    """By size of n-gram: where it stands, [hash, prompt (number), place (first word), size, length
    (the prompt's words)]."""
    of = words(prompts["prompt"], plain=True)
    length = np.bincount(of.row, minlength=len(prompts))
    begins = np.cumsum(length) - length
    sizes = np.where(length < SHORT, length, np.minimum(length, n))
    index = {}
    for size in sorted({int(s) for s in sizes} - {0}):
        found = grams(of, size)
        right = sizes[found.row] == size
        at = (
            np.arange(len(of.row))[: len(of.row) - size + 1][
                of.row[: len(of.row) - size + 1] == of.row[size - 1 :]
            ]
            - begins[found.row]
        )
        frame = pl.DataFrame(
            {"hash": found.hash, "prompt": found.row, "place": at, "length": length[found.row]}
        ).filter(pl.Series(right))
        index[size] = frame.with_columns(pl.lit(size, pl.Int64).alias("size"))
    return index


def _best(texts: pl.Series, index: dict[int, pl.DataFrame]) -> pl.DataFrame:
    """[row, prompt, share]: for each text that shares an n-gram with a prompt, the prompt it
    repeats most of (ties: the first)."""
    of = words(texts, plain=True)
    length = np.bincount(of.row, minlength=len(texts))
    hits = []
    for size, places in index.items():
        found = grams(of, size)
        shared = (
            pl.DataFrame({"row": found.row, "hash": found.hash})
            .join(places, on="hash")
            .drop("hash")
        )
        hits.append(
            shared.filter(
                (pl.col("length") >= SHORT)
                | (pl.Series(length).gather(shared["row"]) == pl.col("length"))
            )
        )
    if not hits:
        return pl.DataFrame(schema={"row": pl.Int64, "prompt": pl.Int64, "share": pl.Float64})
    # n-grams of one prompt overlap: each covers what lies before the next one's first word
    ordered = pl.concat(hits).unique(["row", "prompt", "place"]).sort("row", "prompt", "place")
    step = pl.col("place").shift(-1).over("row", "prompt") - pl.col("place")
    covered = ordered.with_columns(
        pl.min_horizontal(step.fill_null(pl.col("size")), "size").alias("covered")
    )
    shares = covered.group_by("row", "prompt").agg(
        (pl.col("covered").sum() / pl.col("length").first()).alias("share")
    )
    return shares.sort(["row", "share", "prompt"], descending=[False, True, False]).unique(
        "row", keep="first", maintain_order=True
    )
