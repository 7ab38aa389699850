"""The dataset card of an export: what the rows look like in figures, and where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from synth.measures import GENERATORS
from synth.published.cells.derived import DERIVED
from synth.published.forms import Form, not_failed

DATA = "data/train-*.parquet"
"""Where the rows of an export lie."""
LABELS = {
    "input_quality": "quality of the instruction",
    "difficulty": "difficulty",
    "task_category": "category",
    "language": "language of the instruction",
    "llama_guard_2": "verdict of the guard model",
    "response_finish_reason": "how the response ended",
}
NUMBERS = {
    "instruction_length": "instruction, characters",
    "response_length": "response, characters",
    "instruction_tokens": "instruction, tokens",
    "response_tokens": "response, tokens",
    "turns": "messages a conversation",
    "instruct_reward": "reward",
    "base_reward": "reward of the base answer",
    "reward_difference": "reward difference",
    "min_neighbor_distance": "squared distance to the nearest neighbour",
}
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_LLAMA = (
    "lets outputs improve other models, whose names must then begin with `Llama`, "
    "with `Built with Llama` shown"
)
_OLD_LLAMA = "forbids the use of outputs to improve any other large language model"
_GEMMA = (
    "the Gemma Terms of Use count a model trained on outputs as a derivative, "
    "which their use restrictions bind"
)
LICENCES = {
    "llama-3.1": f"the Llama 3.1 Community License {_LLAMA}",
    "llama-3.2": f"the Llama 3.2 Community License {_LLAMA}",
    "llama-3.3": f"the Llama 3.3 Community License {_LLAMA}",
    "llama-3": f"the Llama 3 Community License {_OLD_LLAMA}",
    "llama-2": f"the Llama 2 Community License {_OLD_LLAMA}",
    "gemma": _GEMMA,
    "gpt-oss": "gpt-oss is under Apache-2.0",
    "smollm": "SmolLM is under Apache-2.0",
}
"""What a teacher's licence says about its outputs, by a part of the model's name, the first that
fits; a reminder, no legal advice."""


_MODELS = ("model", "reward_model", *(name for name in GENERATORS if name != "reward_model"))
"""Columns that name a model."""
_LENGTHS = ("instruction_length", "response_length")


@dataclass
class Spread:
    """Numbers that passed: how many, their sum, the lowest and the highest."""

    n: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: pl.Series) -> bool:
        """Count numbers, null and NaN aside; whether there is one now."""
        numbers = values.cast(pl.Float64).drop_nulls().drop_nans().to_frame("x")
        n, total, low, high = numbers.select(
            n=pl.len(), total=pl.sum("x"), low=pl.min("x"), high=pl.max("x")
        ).row(0)
        if n:
            self.n, self.total = self.n + n, self.total + total
            self.low, self.high = min(self.low, low), max(self.high, high)
        return self.n > 0


class Figures:
    """Counts that build up while rows pass: `rows`, labels, numbers, and the models that the rows
    name."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed = 0
        self.columns: list[str] = []
        self.labels: dict[str, Counter[str]] = {}
        self.numbers: dict[str, Spread] = {}
        self.models: dict[str, Counter[str]] = {}

    def watch(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The same frames in our form, counted as they pass; failed rows are counted only as
        such."""
        for frame in frames:
            kept = not_failed(frame)
            self.rows += len(kept)
            self.failed += len(frame) - len(kept)
            self.columns += [c for c in kept.columns if c not in self.columns]
            self._count(kept)
            yield frame

    def _count(self, kept: pl.DataFrame) -> None:
        """Count the labels, numbers and models of rows that did not fail."""
        lengths = [DERIVED[name].alias(name) for name in _LENGTHS if name not in kept.columns]
        kept = kept.with_columns(lengths)
        if "messages" in kept.columns:
            kept = kept.with_columns(turns=pl.col("messages").list.len().fill_null(2))
        for name in (c for c in LABELS if c in kept.columns):
            first_lines = kept[name].cast(pl.String).str.split("\n").list.first()
            counts = self.labels.setdefault(name, Counter())
            counts.update(dict(first_lines.fill_null("(none)").value_counts().iter_rows()))
        for name in (c for c in NUMBERS if c in kept.columns):
            spread = self.numbers.get(name, Spread())
            if kept[name].dtype.is_numeric() and spread.add(kept[name]):
                self.numbers[name] = spread
        for name in (c for c in _MODELS if c in kept.columns):
            counts = self.models.setdefault(name, Counter())
            counts.update(dict(kept[name].drop_nulls().value_counts().iter_rows()))


def render(
    figures: Figures,
    provenance: Mapping[str, Any],
    *,
    name: str,
    form: Form,
    columns: Iterable[str],
    licence: str | None,
) -> str:
    """The card as Markdown. `provenance`: facts by name (strings, or mappings shown as JSON),
    `funnel`, `mixture` (its parts, with `unit`) and `recipe` (text) among them; `columns`: those of
    the data files."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    facts = {
        fact: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for fact, value in provenance.items()
        if fact not in ("funnel", "recipe", "mixture", "unit") and value
    }
    return environment.get_template("dataset_card.md.jinja").render(
        front=_front(name, figures.rows, licence),
        name=name,
        form=form,
        rows=figures.rows,
        failed=figures.failed,
        licence=licence,
        warnings=licences(writers(figures, provenance)),
        labels=[
            (LABELS[name], counts.most_common(30), counts.total())
            for name, counts in figures.labels.items()
        ],
        numbers=[
            (NUMBERS[name], each.n, each.total / each.n, each.low, each.high, each.total)
            for name, each in figures.numbers.items()
        ],
        models={
            name: dict(counts.most_common(5)) for name, counts in figures.models.items() if counts
        },
        columns=list(columns),
        drawn=bool(provenance.get("teacher")),
        facts=facts,
        funnel=provenance.get("funnel"),
        mixture=provenance.get("mixture"),
        unit=provenance.get("unit"),
        recipe=provenance.get("recipe"),
    )


def _front(name: str, rows: int, licence: str | None) -> str:
    """The card's front matter, as the hub reads it."""
    front = {
        "pretty_name": name,
        "license": licence,
        "size_categories": [next((label for limit, label in SIZES if rows < limit), "n>100M")],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "magpie", "sft"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
    }
    stated = {key: value for key, value in front.items() if value is not None}
    return yaml.safe_dump(stated, sort_keys=False).strip()


def writers(figures: Figures, provenance: Mapping[str, Any]) -> list[str]:
    """The models whose texts the rows hold."""
    facts = ("teacher", "responder", "model of the further turns")
    stated = {str(provenance[fact]) for fact in facts if provenance.get(fact)}
    return sorted(stated.union(figures.models.get("model", {})))


def licences(models: Iterable[str]) -> list[str]:
    """What is to be known of each model's licence before its outputs are published."""
    return [f"`{model}`: {_licence(model)}." for model in models]


def _licence(model: str) -> str:
    plain = model.lower().replace("meta-", "").replace("_", "-").replace("llama3", "llama-3")
    unknown = "read its licence: some forbid training other models on outputs"
    return next((text for part, text in LICENCES.items() if part in plain), unknown)
