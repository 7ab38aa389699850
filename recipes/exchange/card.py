"""The dataset card of an export: what the rows look like in figures, and where they come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from core.columns import FAILED
from synth.published.forms import Form

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
_LLAMA = "lets outputs improve other models, whose names must then begin with `Llama`, with `Built with Llama` shown"
_OLD_LLAMA = "forbids the use of outputs to improve any other large language model"
LICENCES = {
    "llama-3.1": f"the Llama 3.1 Community License {_LLAMA}",
    "llama-3.2": f"the Llama 3.2 Community License {_LLAMA}",
    "llama-3.3": f"the Llama 3.3 Community License {_LLAMA}",
    "llama-3": f"the Llama 3 Community License {_OLD_LLAMA}",
    "llama-2": f"the Llama 2 Community License {_OLD_LLAMA}",
    "gemma": "the Gemma Terms of Use count a model trained on outputs as a derivative, which their use restrictions bind",
    "gpt-oss": "gpt-oss is under Apache-2.0",
    "smollm": "SmolLM is under Apache-2.0",
}
"""What a teacher's licence says about its outputs, by a part of the model's name, the first that
fits; a reminder, no legal advice."""


class Figures:
    """Counts that build up while rows pass: `rows`, labels, numbers [n, sum, lowest, highest], and
    the models that the rows name."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed = 0
        self.columns: list[str] = []
        self.labels: dict[str, Counter[str]] = {}
        self.numbers: dict[str, list[float]] = {}
        self.models: dict[str, Counter[str]] = {}

    def watch(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The same frames in our form, counted as they pass; failed rows are counted only as
        such."""
        for frame in frames:
            kept = frame.filter(pl.col("status") != FAILED) if "status" in frame.columns else frame
            self.rows += len(kept)
            self.failed += len(frame) - len(kept)
            self.columns += [c for c in kept.columns if c not in self.columns]
            for name in ("instruction_length", "response_length"):
                if name not in kept.columns:
                    kept = kept.with_columns(
                        pl.col(name.removesuffix("_length")).str.len_chars().alias(name)
                    )
            if "messages" in kept.columns:
                kept = kept.with_columns(pl.col("messages").list.len().fill_null(2).alias("turns"))
            self._count(kept)
            yield frame

    def _count(self, kept: pl.DataFrame) -> None:
        for name in LABELS:
            if name in kept.columns:
                text = kept[name].cast(pl.String).str.split("\n").list.first().fill_null("(none)")
                self.labels.setdefault(name, Counter()).update(
                    dict(text.value_counts().iter_rows())
                )
        for name in NUMBERS:
            if name in kept.columns and kept[name].dtype.is_numeric():
                values = kept[name].cast(pl.Float64).drop_nulls().drop_nans()
                if len(values):
                    n, total, low, high = self.numbers.get(
                        name, [0, 0.0, float("inf"), float("-inf")]
                    )
                    extremes = values.min(), values.max()
                    assert isinstance(extremes[0], float) and isinstance(extremes[1], float)
                    self.numbers[name] = [
                        n + len(values),
                        total + float(values.sum()),
                        min(low, extremes[0]),
                        max(high, extremes[1]),
                    ]
        for name in (
            "model",
            "reward_model",
            "quality_generator",
            "difficulty_generator",
            "task_category_generator",
        ):
            if name in kept.columns:
                self.models.setdefault(name, Counter()).update(
                    dict(kept[name].drop_nulls().value_counts().iter_rows())
                )


def render(
    figures: Figures,
    provenance: Mapping[str, Any],
    *,
    name: str,
    form: Form,
    data: str,
    columns: Iterable[str],
    licence: str | None,
) -> str:
    """The card as Markdown. `provenance`: facts by name (strings, or mappings shown as JSON),
    `funnel` and `recipe` (text) among them.

    `data`: the pattern of the data files, `columns`: theirs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    front: dict[str, Any] = {
        "pretty_name": name,
        "license": licence,
        "size_categories": [
            next((label for limit, label in SIZES if figures.rows < limit), "n>100M")
        ],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "magpie", "sft"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data}]}],
    }
    loader = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    facts = {
        k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
        for k, v in provenance.items()
        if k not in ("funnel", "recipe") and v
    }
    return loader.get_template("dataset_card.md.jinja").render(
        front=yaml.safe_dump(
            {k: v for k, v in front.items() if v is not None}, sort_keys=False
        ).strip(),
        name=name,
        form=form,
        rows=figures.rows,
        failed=figures.failed,
        licence=licence,
        warnings=licences(writers(figures, provenance)),
        labels=[
            (LABELS[k], counts.most_common(30), sum(counts.values()))
            for k, counts in figures.labels.items()
        ],
        numbers=[
            (NUMBERS[k], int(n), total / n, low, high, total)
            for k, (n, total, low, high) in figures.numbers.items()
        ],
        models={k: dict(v.most_common(5)) for k, v in figures.models.items() if v},
        columns=list(columns),
        drawn=bool(provenance.get("teacher")),
        facts=facts,
        funnel=provenance.get("funnel"),
        recipe=provenance.get("recipe"),
    )


def writers(figures: Figures, provenance: Mapping[str, Any]) -> list[str]:
    """The models whose texts the rows hold."""
    facts = ("teacher", "responder", "model of the further turns")
    return sorted(
        {
            *figures.models.get("model", {}),
            *(str(provenance[k]) for k in facts if provenance.get(k)),
        }
    )


def licences(models: Iterable[str]) -> list[str]:
    """What is to be known of each model's licence before its outputs are published."""
    said = []
    for model in models:
        plain = model.lower().replace("meta-", "").replace("_", "-").replace("llama3", "llama-3")
        known = next(
            (text for part, text in LICENCES.items() if part in plain),
            "read its licence: some forbid training other models on outputs",
        )
        said.append(f"`{model}`: {known}.")
    return said
