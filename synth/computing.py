"""How each measure is computed: one entry a measure. What it costs and which columns it fills is declared in synth/measures.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from core.store import digest
from synth import generate, language, neighbors, tags, templates
from synth.config import ModelConfig, SynthConfig, TagConfig
from synth.context import Context
from synth.measures import CATEGORY, DIFFICULTY, QUALITY, SAFETY

Fields = dict[str, Any]
Cell = dict[str, Any] | None


@dataclass(frozen=True)
class Computed:
    """One measure's functions.

    `fields`: stored columns with their polars types. `cell`: what determines one cell (model revision, prompt, sampling, VERSION of the code),
    or None when the recipe gives no way to measure it. `compute`: finished cells [id, *fields, status, reason] of the rows, in batches as they
    arrive; rows hold id, instruction, and for a measure that reads responses also response and what `after` names.
    """

    fields: Fields
    cell: Callable[[SynthConfig, Context], Cell]
    compute: Callable[[pl.DataFrame, SynthConfig, Context], Iterator[pl.DataFrame]]


def _language(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    return iter(language.language(rows.select("id", "instruction"), {"languages": config.tags.languages}))


def _neighbors_cell(config: SynthConfig, context: Context) -> Cell:
    near = config.tags.neighbors
    return {"model": context.resolve(near.model, None).revision, "threshold": near.threshold, "VERSION": neighbors.VERSION}


def _neighbors(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    near = config.tags.neighbors
    vectors = neighbors.embed(rows["instruction"].to_list(), context.resolve(near.model, None).path)
    yield neighbors.neighbors(rows["id"].to_list(), vectors, near.threshold)


def _tag_cell(name: str, config: SynthConfig, context: Context) -> Cell:
    tag: TagConfig = getattr(config.tags, name)
    prompt = digest(tags.prompt_text(name, tag.mode, tag.prompt))[:16]
    tagger = context.revision(tag.model or config.teacher)
    return {"tagger": tagger, "mode": tag.mode, "prompt": prompt, "sampling": tag.sampling, "VERSION": tags.VERSION}


def _tag(name: str, rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    tag: TagConfig = getattr(config.tags, name)
    served = context.serve(tag.model or config.teacher)
    settings = {"mode": tag.mode, "sampling": tag.sampling, "prompt": tag.prompt}
    ask = {"quality": tags.quality, "difficulty": tags.difficulty, "category": tags.category}[name]
    return ask(rows.select("id", "instruction"), settings, served.tokenizer, served.endpoint)


def _response_cell(config: SynthConfig, context: Context) -> Cell:
    responder: ModelConfig = config.responder or config.teacher
    return {"responder": context.revision(responder), "sampling": config.response, "VERSION": [generate.VERSION, templates.VERSION]}


def _response(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    served = context.serve(config.responder or config.teacher)
    limit = served.spec.args.get("max_model_len")
    return generate.responses(rows.select("id", "instruction"), served.tokenizer, config.response, served.endpoint, max_model_len=limit)


def _reward_cell(config: SynthConfig, context: Context) -> Cell:
    return {"model": context.revision(config.tags.reward), "VERSION": tags.VERSION} if config.tags.reward else None


def _reward(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    assert config.tags.reward is not None
    served = context.serve(config.tags.reward)
    return tags.reward(rows.select("id", "instruction", "response"), served.tokenizer, served.endpoint)


def _imported_only(config: SynthConfig, context: Context) -> Cell:
    return None


def _never(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    raise AssertionError("a measure without a cell is never computed")


_TOKENS: Fields = {"tokens": pl.Int64, "prompt_tokens": pl.Int64}
_QUALITY: Fields = {"input_quality": pl.Enum(QUALITY), "input_quality_rank": pl.Float64, "quality_explanation": pl.String, **_TOKENS}
_DIFFICULTY: Fields = {"difficulty": pl.Enum(DIFFICULTY), "difficulty_rank": pl.Float64, "intent": pl.String, "knowledge": pl.String, **_TOKENS}
_CATEGORY: Fields = {"task_category": pl.Enum(CATEGORY), "other_task_category": pl.List(pl.String), **_TOKENS}
_NEIGHBORS: Fields = {"min_neighbor_distance": pl.Float64, "repeat_count": pl.Int64, "min_similar_id": pl.String}
_SAFETY: Fields = {"safety": pl.Enum(SAFETY), "safety_categories": pl.String, "llama_guard_2": pl.String}
_DIFFERENCE: Fields = {"base_reward": pl.Float64, "reward_difference": pl.Float64}

COMPUTED: dict[str, Computed] = {
    "language": Computed({"language": pl.String}, lambda c, _: {"languages": c.tags.languages, "VERSION": language.VERSION}, _language),
    "neighbors": Computed(_NEIGHBORS, _neighbors_cell, _neighbors),
    "quality": Computed(_QUALITY, partial(_tag_cell, "quality"), partial(_tag, "quality")),
    "difficulty": Computed(_DIFFICULTY, partial(_tag_cell, "difficulty"), partial(_tag, "difficulty")),
    "category": Computed(_CATEGORY, partial(_tag_cell, "category"), partial(_tag, "category")),
    "response": Computed({"response": pl.String, "finish_reason": pl.String, **_TOKENS}, _response_cell, _response),
    "reward": Computed({"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64}, _reward_cell, _reward),
    "base_response": Computed({"base_output": pl.String, **_TOKENS}, _imported_only, _never),
    "reward_difference": Computed(_DIFFERENCE, _imported_only, _never),
    "safety": Computed(_SAFETY, _imported_only, _never),
}
"""Every measure but `text`, which is computed while reading."""
