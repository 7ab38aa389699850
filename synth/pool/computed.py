"""How each measure is computed: one entry a measure. What it costs and which columns it fills is
declared in synth/measures.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import polars as pl

from core.store import digest
from synth.chat import templates
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.config.tags import BaseConfig, OwnConfig, SafetyConfig, TagConfig, TagsConfig
from synth.context import Context, Serving
from synth.duplicates import decontaminate, embeddings, minhash, neighbors, services
from synth.generate import single_turn, turns
from synth.generate.ask import Rows, only
from synth.measures import MEASURES
from synth.tags import base_answers, language, llm, pii, reward, safety, sanitize, several
from synth.tags.asking import classifier, codes
from synth.tags.asking import own as own_columns
from synth.tags.asking.tag import Mode, prompt_text
from synth.tags.scores import fit, ifd, rip

Frames = Iterator[pl.DataFrame]
Determines = dict[str, Any] | None

Model = TypeVar("Model")
_PAIR = ("id", "instruction", "response")


@dataclass(frozen=True)
class Computed:
    """One measure's functions.

    `determines`: what determines one cell (model revision, prompt, sampling, VERSION of the code),
    or None when the recipe gives no way to measure it. `compute`: finished cells [id, what
    synth/measures.py says is stored, status, reason] of the rows, in batches as they arrive; rows
    hold id, instruction, and for a measure that reads responses also response and what `after`
    names. Of a measure of the whole pool they are all rows, without texts: `context.instructions`
    reads those in slices.
    """

    determines: Callable[[SynthConfig, Context], Determines]
    compute: Callable[[pl.DataFrame, SynthConfig, Serving], Frames]
    stream: Callable[[Rows, SynthConfig, Serving], Frames] | None = None
    """The same for frames [id, texts] that come one after the other, where a row is one request:
    its server need not drain between two frames."""


def _asked(
    determines: Callable[[SynthConfig, Context], Determines],
    compute: Callable[[Rows, SynthConfig, Serving], Frames],
) -> Computed:
    """A measure that asks a server once a row."""
    return Computed(determines, compute, compute)


def tag_determines(
    name: str, config: SynthConfig, context: Context, mode: Mode | None = None
) -> dict[str, Any]:
    """What determines one cell of an LLM tag; `mode` in place of the recipe's own."""
    tag = tag_config(config, name)
    mode = mode or tag.mode
    asked = own_columns.tags(config.tags)[name]
    determines = {
        "tagger": context.revision(tag.model or config.teacher),
        "mode": mode,
        "prompt": digest(prompt_text(asked, mode, tag.prompt))[:16],
        "sampling": tag.sampling,
        "VERSION": llm.VERSIONS[mode],
    }
    if mode == "label" and tag.floor != codes.FLOOR:
        determines["floor"] = tag.floor
    own = config.tags.own.get(name)
    if own is not None:
        determines |= {"holds": own.holds, "reads": own.reads}
    return determines


def compute_tag(
    name: str, rows: Rows, config: SynthConfig, context: Serving, mode: Mode | None = None
) -> Frames:
    """Cells of an LLM tag; `mode` in place of the recipe's own."""
    tag = tag_config(config, name)
    served = context.serve(tag.model or config.teacher)
    how = llm.Asking(mode or tag.mode, tag.sampling, tag.prompt, tag.floor)
    asked, own = own_columns.tags(config.tags)[name], config.tags.own.get(name)
    reads = own.reads if own else MEASURES[name].reads
    texts = _PAIR if reads == "response" else _PAIR[:2]
    rows = only(rows, texts)
    if served.config is not None and served.config.hosted:
        cells = llm.chat_tag(asked, rows, how, served.endpoint)
    else:
        cells = llm.tag(asked, rows, how, served.tokenizer, served.endpoint)
    return codes.watched(cells, asked, context.say)


def tag_config(config: SynthConfig, name: str) -> TagConfig:
    """How the recipe has an LLM tag measured."""
    own = config.tags.own.get(name)
    if own is not None:
        return own.tag
    tag: TagConfig = getattr(config.tags, name)
    return tag


def _language_determines(config: SynthConfig, context: Context) -> Determines:
    return {"languages": config.tags.languages, "VERSION": language.VERSION}


def _language(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Frames:
    settings = {"languages": config.tags.languages}
    return iter(language.language(rows.select("id", "instruction"), settings))


def _neighbors_determines(config: SynthConfig, context: Context) -> Determines:
    near = config.tags.neighbors
    return {
        "model": services.model_of(near, context).revision,
        "threshold": near.threshold,
        "exact_up_to": near.exact_up_to,
        "probes": near.probes,
        "VERSION": neighbors.VERSION,
    }


def _neighbors(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Frames:
    near = config.tags.neighbors
    ids = rows["id"].to_list()
    neighbors.check_index(rows["of"].n_unique() if "of" in rows.columns else len(ids), near)
    texts = itertools.chain.from_iterable(context.instructions(rows))
    model, service = services.model_of(near, context), services.service_of(near, context)
    known_as = rows["of"].to_list()
    vectors = embeddings.vectors(
        context.root, ids, texts, model, service=service, known_as=known_as
    )
    yield neighbors.neighbors(ids, vectors, near, say=context.say)


def _response_determines(config: SynthConfig, context: Context) -> Determines:
    if config.responses is not None:
        return several.best_of_determines(config, context)
    return {
        "responder": context.revision(config.responder or config.teacher),
        "sampling": config.response,
        "VERSION": [single_turn.VERSION, templates.VERSION],
    }


def _response(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    asked = only(rows, _PAIR[:2])
    if config.responses is not None:
        return several.best_of(asked, config, context)
    return single_turn.answered(
        asked, config.response, context.serve(config.responder or config.teacher)
    )


def _by_model(
    model_of: Callable[[SynthConfig], Model | None],
    determines: Callable[[Model, Context], dict[str, Any]],
    compute: Callable[[Rows, Model, Serving], Frames],
) -> Computed:
    """A measure by a model that the recipe may state: without it there is no way to measure it, and
    no cell is made."""

    def determined(config: SynthConfig, context: Context) -> Determines:
        model = model_of(config)
        return None if model is None else determines(model, context)

    def computed(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
        model = model_of(config)
        return iter(()) if model is None else compute(rows, model, context)

    return _asked(determined, computed)


def _reward_determines(model: ModelConfig, context: Context) -> dict[str, Any]:
    reward.check(model.model, own_server=not model.server.get("urls"))
    return {"model": context.revision(model), "VERSION": reward.VERSION}


def _reward(rows: Rows, model: ModelConfig, context: Serving) -> Frames:
    served = context.serve(model)
    return reward.reward(only(rows, _PAIR), served.tokenizer, served.endpoint)


def _safety_determines(guard: SafetyConfig, context: Context) -> dict[str, Any]:
    return {
        "guard": context.revision(guard),
        "family": safety.family(guard.model, guard.family),
        "sampling": guard.sampling,
        "VERSION": safety.VERSION,
    }


def _safety(rows: Rows, guard: SafetyConfig, context: Serving) -> Frames:
    served = context.serve(guard)
    family = safety.family(guard.model, guard.family)
    if guard.hosted:
        return safety.chat_safety(only(rows, _PAIR), family, guard.sampling, served.endpoint)
    return safety.safety(
        only(rows, _PAIR), family, guard.sampling, served.tokenizer, served.endpoint
    )


def _base_determines(base: BaseConfig, context: Context) -> dict[str, Any]:
    return {
        "base": context.revision(base),
        "prompt": digest(base_answers.PROMPT.read_text())[:16],
        "sampling": base.sampling,
        "VERSION": base_answers.VERSION,
    }


def _base(rows: Rows, base: BaseConfig, context: Serving) -> Frames:
    served = context.serve(base)
    return base_answers.base_responses(
        only(rows, _PAIR[:2]), base.sampling, served.tokenizer, served.endpoint
    )


def _difference_determines(config: SynthConfig, context: Context) -> Determines:
    base, scored = (COMPUTED[m].determines(config, context) for m in ("base_response", "reward"))
    return {"base_response": base, "reward": scored} if base and scored else None


def _difference(rows: pl.DataFrame, config: SynthConfig, context: Serving) -> Frames:
    model = config.tags.reward
    if model is None:
        return iter(())
    if isinstance(config.rows, ImportConfig):  # its rewards may be another model's
        scored = [part.select("id", "instruct_reward") for part in _reward(rows, model, context)]
        rows = rows.drop("instruct_reward")
        rows = rows.join(pl.concat(scored), on="id", how="left", maintain_order="left")
    served = context.serve(model)
    return base_answers.reward_differences(rows, served.tokenizer, served.endpoint)


def _ifd_determines(config: SynthConfig, context: Context) -> Determines:
    model = config.tags.ifd or config.teacher
    if model.hosted:  # its log-probabilities of a given text are not to be had
        return None
    return {
        "model": context.revision(model),
        "VERSION": [ifd.VERSION, templates.VERSION],
    }


def _ifd(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    served = context.serve(config.tags.ifd or config.teacher)
    return ifd.ifd(only(rows, _PAIR), served.tokenizer, served.endpoint)


def _tags(reads: str) -> dict[str, Computed]:
    """The LLM tags of instructions, or of conversations."""
    names = [name for name, m in MEASURES.items() if m.asks and m.reads == reads]
    return {
        name: _asked(partial(tag_determines, name), partial(compute_tag, name)) for name in names
    }


def _pii(text: str, column: str) -> Computed:
    return Computed(pii.cell, partial(pii.compute, text, column))


COMPUTED: dict[str, Computed] = {
    "language": Computed(_language_determines, _language),
    "neighbors": Computed(_neighbors_determines, _neighbors),
    "sanitized": Computed(sanitize.cell, sanitize.compute),
    "pii": _pii("instruction", "pii"),
    "response_pii": _pii("response", "response_pii"),
    "minhash": Computed(minhash.cell, minhash.compute),
    "overlap": Computed(decontaminate.overlap_cell, decontaminate.compute_overlap),
    "eval_distance": Computed(decontaminate.distance_cell, decontaminate.compute_distance),
    **_tags("instruction"),
    "response": _asked(_response_determines, _response),
    "reward": _by_model(lambda config: config.tags.reward, _reward_determines, _reward),
    **_tags("response"),
    "superfilter": _asked(ifd.small_cell, ifd.small),
    "ifd": _asked(_ifd_determines, _ifd),
    "fit": _asked(fit.cell, fit.compute),
    "base_response": _by_model(lambda config: config.tags.base, _base_determines, _base),
    "rip": Computed(rip.cell, rip.compute),
    "reward_difference": Computed(_difference_determines, _difference),
    "safety": _by_model(lambda config: config.tags.safety, _safety_determines, _safety),
    "turns": Computed(turns.cell, turns.compute),
}
"""Every shipped measure but `text`, which is computed while reading."""


def computed(tags: TagsConfig) -> Mapping[str, Computed]:
    """How each measure is computed, the recipe's own columns among them."""
    own = {}
    for name, each in tags.own.items():
        if each.classifier is None:
            own[name] = _asked(partial(tag_determines, name), partial(compute_tag, name))
        else:
            own[name] = _classified(name, each, each.classifier)
    return {**COMPUTED, **own}


def _classified(name: str, own: OwnConfig, model: ModelConfig) -> Computed:
    """A recipe's own column by a classifier."""

    def determines(config: SynthConfig, context: Context) -> Determines:
        return {
            "classifier": context.revision(model),
            "holds": own.holds,
            "reads": own.reads,
            "VERSION": classifier.VERSION,
            **({"truncate": True} if own.truncate else {}),
        }

    def compute(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
        served = context.serve(model)
        texts = _PAIR if own.reads == "response" else _PAIR[:2]
        return classifier.classified(
            name, own, only(rows, texts), served.model.path, served.tokenizer, served.endpoint
        )

    return _asked(determines, compute)
