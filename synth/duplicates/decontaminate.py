"""Overlap of instructions with the prompts that the models will be evaluated on: shared word
n-grams, and distance in embedding space.

A row that repeats an evaluation prompt would make its arm look better than it is. The measures are
columns like any other: the filter says what is too much (Tulu 3 drops rows that share 8-grams
covering more than half of a test prompt's words, arXiv 2411.15124).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import file_digest, read_json_lines
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.duplicates import embeddings, services
from synth.duplicates.blocks import Vectors, slices
from synth.duplicates.ngrams import grams, words

VERSION = 2
"""Part of the column's key, with the digest of the prompts."""

SHORT = 5
"""A prompt of fewer words than this ("Hi", "Make it shorter.") is found only where it is the whole
instruction."""
SLICE = 20_000

HITS = pl.Schema({"row": pl.Int64(), "prompt": pl.Int64(), "share": pl.Float64()})
PROMPTS = {"id": pl.String, "prompt": pl.String}


def read_prompts(path: Path) -> pl.DataFrame:
    """[id, prompt] of a JSONL file: one object a line with `prompt` (or `instruction`), and `id`
    where it has one (else the line's number).

    Raises UserError for a file that holds no prompt, and for a line that is no such object.
    """
    prompts: list[tuple[str, str]] = []
    for number, record in read_json_lines(path, "write one object a line"):
        fields = record if isinstance(record, dict) else {}
        prompt = fields.get("prompt", fields.get("instruction"))
        if not isinstance(prompt, str):
            raise UserError(
                f"{path}, line {number}: no `prompt` (text); write one object a line: "
                '{"id": ..., "prompt": ...}.'
            )
        prompts.append((str(fields.get("id", number)), prompt))
    if not prompts:
        raise UserError(f"{path} holds no prompts.")
    return pl.DataFrame(prompts, schema=PROMPTS, orient="row")


def overlap(rows: pl.DataFrame, prompts: pl.DataFrame, n: int = 8) -> pl.DataFrame:
    """How much of some evaluation prompt an instruction repeats.

    `rows`: id, instruction. `prompts`: id, prompt. Words are compared without case and punctuation;
    a prompt of fewer than `n` words counts as one n-gram of its length (and see SHORT). Returns, in
    the order of `rows`, [id, eval_overlap (the largest share of one prompt's words that lies in
    n-grams shared with the instruction, 0 to 1), eval_overlap_prompt (that prompt's id; null for
    none)].
    """
    index = _index(prompts, n)
    best = [HITS.to_frame()]
    for part in slices(len(rows), SLICE):
        texts = rows["instruction"][part]
        best.append(_best(texts, index).with_columns(pl.col("row") + part.start))
    prompt_ids = prompts.select(
        pl.int_range(pl.len()).alias("prompt"), pl.col("id").alias("eval_overlap_prompt")
    )
    numbered = rows.select("id", pl.int_range(pl.len()).alias("row"))
    repeated = pl.concat(best).join(prompt_ids, on="prompt", how="left")
    overlaps = numbered.join(repeated, on="row", how="left", maintain_order="left")
    return overlaps.select(
        "id", pl.col("share").fill_null(0.0).alias("eval_overlap"), "eval_overlap_prompt"
    )


def distance(ids: Sequence[str], vectors: Vectors, prompts: Vectors) -> pl.DataFrame:
    """Squared L2 distance of each instruction to the nearest evaluation prompt, both as unit
    vectors of one model (synth/duplicates/embeddings.py).

    `vectors` [n, d] and `prompts` [m, d], float32. Returns [id, eval_distance (0 to 4; null without
    prompts)].
    """
    nearest = np.full(len(vectors), np.nan)
    if len(prompts):
        for part in slices(len(vectors), SLICE):
            cosines = (vectors[part] @ prompts.T).max(axis=1).astype(np.float64)
            nearest[part] = np.clip(2 - 2 * cosines, 0, 4)
    return pl.DataFrame({"id": list(ids), "eval_distance": pl.Series(nearest).fill_nan(None)})


def overlap_cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell of `overlap`: the prompts by content; None where there are none to
    compare with."""
    files = _files(config, context)
    if not files:
        return None
    prompts = list(map(file_digest, files))
    return {"prompts": prompts, "ngram": config.tags.decontaminate.ngram, "VERSION": VERSION}


def compute_overlap(
    rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    """The measure `overlap` of rows [id, instruction]."""
    yield overlap(rows, _prompts(config, context), config.tags.decontaminate.ngram)


def distance_cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell of `eval_distance`: the prompts by content, and the embedding model,
    which is that of the neighbours."""
    files = _files(config, context)
    model = services.model_of(config.tags.neighbors, context).revision
    if not files:
        return None
    prompts = list(map(file_digest, files))
    return {"prompts": prompts, "model": model, "VERSION": [VERSION, embeddings.VERSION]}


def compute_distance(
    rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    """The measure `eval_distance` of rows [id, instruction]."""
    near = config.tags.neighbors
    model, service = services.model_of(near, context), services.service_of(near, context)
    prompts = _prompts(config, context)
    ids, prompt_ids = rows["id"].to_list(), prompts["id"].to_list()
    of_prompts = embeddings.vectors(
        context.root, prompt_ids, prompts["prompt"], model, service=service
    )
    of_rows = embeddings.vectors(context.root, ids, rows["instruction"], model, service=service)
    yield distance(ids, of_rows, of_prompts)


def _files(config: SynthConfig, context: Context) -> list[Path]:
    """The evaluation's prompts, then the recipe's own file."""
    own = config.tags.decontaminate.file
    named = [context.eval_prompts, Path(own).expanduser() if own else None]
    files = [file for file in named if file]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"the file of prompts {file} does not exist; check `synth.tags.decontaminate.file`."
            )
    return files


def _prompts(config: SynthConfig, context: Context) -> pl.DataFrame:
    return pl.concat(map(read_prompts, _files(config, context)))


def _index(prompts: pl.DataFrame, n: int) -> dict[int, pl.DataFrame]:
    """By size of n-gram: where it stands, [hash, prompt (number), place (first word), size, length
    (the prompt's words)]."""
    found = words(prompts["prompt"], plain=True)
    length = found.lengths(len(prompts))
    sizes = np.where(length < SHORT, length, np.minimum(length, n))
    index = {}
    for size in sorted(set(sizes.tolist()) - {0}):
        runs = grams(found, size)
        # a text's n-grams come in reading order, so each stands one word behind the last
        frame = pl.DataFrame({"hash": runs.hash, "prompt": runs.row}).with_columns(
            pl.int_range(pl.len()).over("prompt").alias("place"),
            pl.lit(size, pl.Int64).alias("size"),
            pl.Series("length", length[runs.row]),
        )
        index[size] = frame.filter(pl.Series(sizes[runs.row] == size))
    return index


def _best(texts: pl.Series, index: dict[int, pl.DataFrame]) -> pl.DataFrame:
    """[row, prompt, share]: for each text that shares an n-gram with a prompt, the prompt it
    repeats most of (ties: the first)."""
    found = words(texts, plain=True)
    length = pl.Series(found.lengths(len(texts)))
    hits = []
    for size, places in index.items():
        runs = grams(found, size)
        shared = pl.DataFrame({"row": runs.row, "hash": runs.hash}).join(places, on="hash")
        whole = length.gather(shared["row"]) == shared["length"]
        hits.append(shared.drop("hash").filter((shared["length"] >= SHORT) | whole))
    if not hits:
        return HITS.to_frame()
    # n-grams of one prompt overlap: each covers what lies before the next one's first word
    pair = ["row", "prompt"]
    ordered = pl.concat(hits).unique([*pair, "place"]).sort(*pair, "place")
    step = pl.col("place").shift(-1).over(pair) - pl.col("place")
    covered = pl.min_horizontal(step.fill_null(pl.col("size")), "size")
    shares = (
        ordered.with_columns(covered.alias("covered"))
        .group_by(pair)
        .agg((pl.col("covered").sum() / pl.col("length").first()).alias("share"))
    )
    best_first = shares.sort("row", "share", "prompt", descending=[False, True, False])
    return best_first.unique("row", keep="first", maintain_order=True)
