"""How each measure is computed: one entry a measure. What it costs and which columns it fills is
declared in synth/measures.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from core.store import digest
from synth.chat import templates
from synth.config import ImportConfig, ModelConfig, SynthConfig, TagConfig
from synth.context import Context
from synth.duplicates import decontaminate, embeddings, minhash, neighbors
from synth.generate import single_turn, turns
from synth.measures import CATEGORY, DIFFICULTY, MEASURES, QUALITY, SAFETY
from synth.tags import base_answers, ifd, language, llm, pii, reward, safety, sanitize

Fields = dict[str, Any]
Cell = dict[str, Any] | None

_PAIR = ("id", "instruction", "response")


@dataclass(frozen=True)
class Computed:
    """One measure's functions.

    `fields`: stored columns with their polars types. `cell`: what determines one cell (model
    revision, prompt, sampling, VERSION of the code), or None when the recipe gives no way to
    measure it. `compute`: finished cells [id, *fields, status, reason] of the rows, in batches as
    they arrive; rows hold id, instruction, and for a measure that reads responses also response and
    what `after` names. Of a measure of the whole pool they are all rows, without texts:
    `context.instructions` reads those in slices.
    """

    fields: Fields
    cell: Callable[[SynthConfig, Context], Cell]
    compute: Callable[[pl.DataFrame, SynthConfig, Context], Iterator[pl.DataFrame]]


def _language(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    return iter(
        language.language(rows.select("id", "instruction"), {"languages": config.tags.languages})
    )


def _neighbors_cell(config: SynthConfig, context: Context) -> Cell:
    near = config.tags.neighbors
    search = {"exact_up_to": near.exact_up_to, "probes": near.probes}
    return {
        "model": context.resolve(near.model, None).revision,
        "threshold": near.threshold,
        **search,
        "VERSION": neighbors.VERSION,
    }


def _neighbors(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    near = config.tags.neighbors
    ids = rows["id"].to_list()
    texts = itertools.chain.from_iterable(context.instructions(rows))
    vectors = embeddings.vectors(context.root, ids, texts, context.resolve(near.model, None))
    yield neighbors.neighbors(
        ids,
        vectors,
        near.threshold,
        exact_up_to=near.exact_up_to,
        probes=near.probes,
        say=context.say,
    )


def tag_cell(
    name: str, config: SynthConfig, context: Context, mode: str | None = None
) -> dict[str, Any]:
    """What determines one cell of an LLM tag; `mode` in place of the recipe's own."""
    tag: TagConfig = getattr(config.tags, name)
    mode = mode or tag.mode
    prompt = digest(llm.prompt_text(name, mode, tag.prompt))[:16]
    tagger = context.revision(tag.model or config.teacher)
    return {
        "tagger": tagger,
        "mode": mode,
        "prompt": prompt,
        "sampling": tag.sampling,
        "VERSION": llm.VERSION,
    }


def compute_tag(
    name: str, rows: pl.DataFrame, config: SynthConfig, context: Context, mode: str | None = None
) -> Iterator[pl.DataFrame]:
    """Cells of an LLM tag; `mode` in place of the recipe's own."""
    tag: TagConfig = getattr(config.tags, name)
    served = context.serve(tag.model or config.teacher)
    settings = {"mode": mode or tag.mode, "sampling": tag.sampling, "prompt": tag.prompt}
    shown = _PAIR if MEASURES[name].reads == "response" else _PAIR[:2]
    return llm.tag(name, rows.select(shown), settings, served.tokenizer, served.endpoint)


def _response_cell(config: SynthConfig, context: Context) -> Cell:
    responder: ModelConfig = config.responder or config.teacher
    return {
        "responder": context.revision(responder),
        "sampling": config.response,
        "VERSION": [single_turn.VERSION, templates.VERSION],
    }


def _response(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    served = context.serve(config.responder or config.teacher)
    return single_turn.responses(
        rows.select("id", "instruction"),
        served.tokenizer,
        config.response,
        served.endpoint,
    )


def _reward_cell(config: SynthConfig, context: Context) -> Cell:
    model = config.tags.reward
    if model is None:
        return None
    reward.check(model.model, own_server=not model.server.get("urls"))
    return {"model": context.revision(model), "VERSION": reward.VERSION}


def _reward(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    assert config.tags.reward is not None
    served = context.serve(config.tags.reward)
    return reward.reward(rows.select(_PAIR), served.tokenizer, served.endpoint)


def _safety_cell(config: SynthConfig, context: Context) -> Cell:
    guard = config.tags.safety
    if guard is None:
        return None
    family = safety.family(guard.model, guard.family)
    return {
        "guard": context.revision(guard),
        "family": family,
        "sampling": guard.sampling,
        "VERSION": safety.VERSION,
    }


def _safety(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    guard = config.tags.safety
    assert guard is not None
    served = context.serve(guard)
    return safety.safety(
        rows.select(_PAIR),
        safety.family(guard.model, guard.family),
        guard.sampling,
        served.tokenizer,
        served.endpoint,
    )


def _base_cell(config: SynthConfig, context: Context) -> Cell:
    base = config.tags.base
    if base is None:
        return None
    prompt = digest(base_answers.PROMPT.read_text())[:16]
    return {
        "base": context.revision(base),
        "prompt": prompt,
        "sampling": base.sampling,
        "VERSION": base_answers.VERSION,
    }


def _base(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    assert config.tags.base is not None
    served = context.serve(config.tags.base)
    return base_answers.base_responses(
        rows.select(_PAIR[:2]), config.tags.base.sampling, served.tokenizer, served.endpoint
    )


def _difference_cell(config: SynthConfig, context: Context) -> Cell:
    base, scored = _base_cell(config, context), _reward_cell(config, context)
    return {"base_response": base, "reward": scored} if base and scored else None


def _difference(
    rows: pl.DataFrame, config: SynthConfig, context: Context
) -> Iterator[pl.DataFrame]:
    assert config.tags.reward is not None
    served = context.serve(config.tags.reward)
    if isinstance(config.rows, ImportConfig):  # its rewards may be another model's
        own = pl.concat([p.select("id", "instruct_reward") for p in _reward(rows, config, context)])
        rows = rows.drop("instruct_reward").join(own, on="id", how="left", maintain_order="left")
    return base_answers.reward_differences(rows, served.tokenizer, served.endpoint)


def _ifd_cell(config: SynthConfig, context: Context) -> Cell:
    return {
        "model": context.revision(config.tags.ifd or config.teacher),
        "VERSION": [ifd.VERSION, templates.VERSION],
    }


def _ifd(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    served = context.serve(config.tags.ifd or config.teacher)
    return ifd.ifd(rows.select(_PAIR), served.tokenizer, served.endpoint)


_TOKENS: Fields = {"tokens": pl.Int64, "prompt_tokens": pl.Int64}
_QUALITY: Fields = {
    "input_quality": pl.Enum(QUALITY),
    "input_quality_rank": pl.Float64,
    "quality_explanation": pl.String,
    **_TOKENS,
}
_DIFFICULTY: Fields = {
    "difficulty": pl.Enum(DIFFICULTY),
    "difficulty_rank": pl.Float64,
    "intent": pl.String,
    "knowledge": pl.String,
    **_TOKENS,
}
_CATEGORY: Fields = {
    "task_category": pl.Enum(CATEGORY),
    "other_task_category": pl.List(pl.String),
    **_TOKENS,
}
_SAFETY: Fields = {
    "safety": pl.Enum(SAFETY),
    "safety_categories": pl.String,
    "llama_guard_2": pl.String,
}
_BASE: Fields = {"base_output": pl.String, "base_finish_reason": pl.String}
_DIFFERENCE: Fields = {
    "base_reward": pl.Float64,
    "reward_difference": pl.Float64,
    "prompt_tokens": pl.Int64,
}

COMPUTED: dict[str, Computed] = {
    "language": Computed(
        {"language": pl.String},
        lambda c, _: {"languages": c.tags.languages, "VERSION": language.VERSION},
        _language,
    ),
    "neighbors": Computed(neighbors.FIELDS, _neighbors_cell, _neighbors),
    "sanitized": Computed(sanitize.FIELDS, sanitize.cell, sanitize.compute),
    "pii": Computed({"pii": pl.String}, pii.cell, partial(pii.compute, "instruction", "pii")),
    "response_pii": Computed(
        {"response_pii": pl.String}, pii.cell, partial(pii.compute, "response", "response_pii")
    ),
    "minhash": Computed(minhash.FIELDS, minhash.cell, minhash.compute),
    "overlap": Computed(
        decontaminate.FIELDS, decontaminate.overlap_cell, decontaminate.compute_overlap
    ),
    "eval_distance": Computed(
        decontaminate.DISTANCE, decontaminate.distance_cell, decontaminate.compute_distance
    ),
    "quality": Computed(_QUALITY, partial(tag_cell, "quality"), partial(compute_tag, "quality")),
    "difficulty": Computed(
        _DIFFICULTY, partial(tag_cell, "difficulty"), partial(compute_tag, "difficulty")
    ),
    "category": Computed(
        _CATEGORY, partial(tag_cell, "category"), partial(compute_tag, "category")
    ),
    "response": Computed(single_turn.RESPONSE_FIELDS, _response_cell, _response),
    "reward": Computed(
        {"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64}, _reward_cell, _reward
    ),
    "pair_score": Computed(
        {**llm.TAGS["pair_score"].fields, **_TOKENS},
        partial(tag_cell, "pair_score"),
        partial(compute_tag, "pair_score"),
    ),
    "ifd": Computed({"ifd": pl.Float64, **_TOKENS}, _ifd_cell, _ifd),
    "base_response": Computed({**_BASE, **_TOKENS}, _base_cell, _base),
    "reward_difference": Computed(_DIFFERENCE, _difference_cell, _difference),
    "safety": Computed({**_SAFETY, **_TOKENS}, _safety_cell, _safety),
    "turns": Computed(turns.FIELDS, turns.cell, turns.compute),
}
"""Every measure but `text`, which is computed while reading."""
