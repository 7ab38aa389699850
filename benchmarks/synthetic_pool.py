"""A pool of any size without a model: every cell is made up and written as a column, so that what
the harness itself costs shows alone.

Texts have the lengths of the paper's (Table 4: 478 tokens a turn, standard deviation 211, about 4.6
characters a token): instructions of 300 characters in the mean, responses of 1,900, lognormal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from core.models import Model
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.measures import CATEGORY, DIFFICULTY, QUALITY
from synth.pool.pool import Pool

INSTRUCTION, RESPONSE = 300, 1900
"""Characters in the mean."""
SPREAD = 0.42
"""Standard deviation of the logarithm of a length."""
PART = 20_000
"""Rows written at once."""

_WORDS = (
    "lens why table river seven of the bright code a list explain water time write function metal "
    "number result because first example simple story small village compare energy question plan "
    "and to in that with for is are you can how what when each value data model state people"
)


def recipe(folder: Path, rows: int, **arms: Any) -> Path:
    """Write a recipe over `rows` rows and return its file: tags, rewards, and three arms, one of
    them random."""
    teacher = folder / "teacher"
    teacher.mkdir(parents=True, exist_ok=True)
    (teacher / "config.json").write_text("{}")
    (teacher / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")  # no tensor at all
    budget = {"rows": max(rows // 10, 1)}
    where = {"model": str(teacher), "server": {"urls": ["http://127.0.0.1:9"]}}
    data = {
        "name": "scale",
        "store": str(folder / "store"),
        "track": "none",
        "synth": {"teacher": where, "rows": rows, "heldout": 0.001, "tags": {"reward": where}},
        "arms": arms
        or {
            "longest": {
                "where": "input_quality >= 'good' AND difficulty >= 'medium'",
                "choose": "longest",
                "budget": budget,
            },
            "rewarded": {
                "where": "input_quality >= 'average' AND instruct_reward > 0",
                "choose": "balanced(task_category, instruct_reward)",
                "budget": budget,
            },
            "random": {"choose": "hash_order", "budget": budget},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def opened(root: Path, config: SynthConfig) -> Pool:
    """The pool of a recipe's `synth` block in the store at `root`."""
    return Pool(config, Context(root, lambda name, revision: Model(name, name, "r1")))


class Words:
    """Texts of given lengths, all different, cut out of one long text."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = np.random.default_rng(seed)
        self.text = " ".join(self.dice.choice(_WORDS.split(), 2_000_000))
        self.made = 0

    def texts(self, count: int, mean: int) -> pl.Series:
        """`count` texts of `mean` characters in the mean."""
        lengths = self.dice.lognormal(math.log(mean) - SPREAD**2 / 2, SPREAD, count).astype(int)
        starts = self.dice.integers(0, len(self.text) - lengths.max(), count)
        self.made += count
        numbers = range(self.made - count, self.made)
        whole = self.text
        return pl.Series(
            [
                f"{number} {whole[top : top + length]}"
                for number, top, length in zip(numbers, starts, lengths, strict=True)
            ]
        )


def fill(pool: Pool) -> None:
    """Every cell that the recipe above asks for, in the order of the pool."""
    words = Words()
    for part in pool.planned.iter_slices(PART):
        tokens = pl.lit(60).alias("tokens")
        texts = words.texts(len(part), INSTRUCTION).alias("instruction")
        pool.instruction.append(part.with_columns(texts, tokens, finish_reason=pl.lit("stop")))
    for measure, cells in _measured(pool, words):
        pool.columns[measure].append(cells)


def _measured(pool: Pool, words: Words) -> Iterator[tuple[str, pl.DataFrame]]:
    """(measure, cells) of all rows, part by part: first what is of the instruction, then what is of
    the conversation."""
    spent = {"tokens": pl.lit(1), "prompt_tokens": pl.lit(90)}
    for part in pool.frame().select("id", "of").iter_slices(PART):
        for measure, (name, labels) in _LABELS.items():
            ranks = words.dice.integers(0, len(labels), len(part))
            values = {name: pl.Series([labels[rank] for rank in ranks])}
            if measure != "category":
                values[f"{name}_rank"] = pl.Series(ranks + 1.0)
            yield measure, part.with_columns(**values, **spent)
        responses = words.texts(len(part), RESPONSE)
        cells = part.with_columns(response=responses, finish_reason=pl.lit("stop"), **spent)
        yield "response", cells.with_columns(tokens=pl.lit(420))
    for part in pool.frame().select("id", of="of_pair").iter_slices(PART):
        scores = pl.Series(words.dice.normal(0, 4, len(part)))
        yield "reward", part.with_columns(instruct_reward=scores, prompt_tokens=pl.lit(490))


_LABELS = {
    "quality": ("input_quality", QUALITY),
    "difficulty": ("difficulty", DIFFICULTY),
    "category": ("task_category", CATEGORY),
}
