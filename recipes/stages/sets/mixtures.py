"""Arms that are mixtures: each part gives its share of the budget, and no row comes twice.

The parts give in the order in which the recipe writes them, so a text that two of them hold is
taken from the first of them that reaches it. Rows are known as PART:ID.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.errors import UserError
from core.store import Counts, Result, digest
from core.tracking import Log
from recipes.schema import Recipe
from recipes.stages.session import RUN, WAITS, Session, Stage
from recipes.stages.sets import beside, others
from recipes.stages.sets.data_arms import texts_of
from recipes.stages.sets.data_sets import DataSet
from recipes.stages.sets.licences import licence_of
from recipes.stages.sets.parts import CountTokens, Part, Waits, of_data, of_selection
from recipes.stages.synthesis import FILE
from recipes.stages.tokens import rows_digest
from recipes.stages.walk import HELDOUT, Arms, Selections
from synth.config.rows import ImportConfig
from synth.filters.arm import ArmConfig, PartConfig, mixing_order
from synth.filters.mixing import Taken, Unit, interleaved, quotas, take

VERSION = 1
"""Part of what a mixture is remembered by; raised when the same parts would give other rows."""
TOKENS_A_ROW = 400
"""What a row is taken to have, before its tokens are counted, to ask a part for so many rows."""
UNSTATED = "not stated"


@dataclass(frozen=True)
class Mixing:
    """What mixtures are made from: `sets` by arm or part, `count` for budgets in tokens (`counts`:
    what determines its figures), and the selections made before."""

    recipe: Recipe
    arms: Arms
    sets: Mapping[str, DataSet]
    count: CountTokens
    counts: Any
    selections: Selections


@dataclass(frozen=True)
class Mixed:
    """A mixture: its `rows` [id, messages], where each comes from [id, source, source_id, licence],
    and what each part gave."""

    rows: pl.DataFrame
    origin: pl.DataFrame
    told: dict[str, Any]


def from_mixtures(session: Session, mixing: Mixing) -> Selections:
    """A selection for every arm that is a mixture, and every seed; those that it mixes first."""
    arms, found = mixing.arms, dict[tuple[str, int], Result | None]()
    for arm in mixing_order(arms.configs):
        by_seed = {}
        for seed, name in arms.selections(arm):
            by_seed[seed] = _selection(session, mixing, arm, seed, name)
        first = by_seed[arms.seeds[0]]
        every = {(arm, seed): by_seed.get(seed, first) for seed in arms.seeds}
        found |= every
        mixing.selections.update(every)
    return found


def _selection(session: Session, mixing: Mixing, arm: str, seed: int, name: str) -> Result | None:
    """A mixture for one seed: found again by what determines it, else mixed now."""
    config = mixing.arms.configs[arm]
    known = beside.mixture_of(beside.folder_of(session, name))
    try:
        parts = _parts(session, mixing, arm, seed)
        key = _key(mixing, config, parts)
        if known.get("key") == key:
            content, mix = known["content"], cache(lambda: _mixed(mixing, arm, parts))
            return _result(session, name, content, config, mix)
        if session.planning:
            why = "its parts or shares are others now" if known else "not made yet"
            session.note(f"select/{name}", RUN, why)
            return None
        mixed = _mixed(mixing, arm, parts)
    except Waits as waits:
        session.note(f"select/{name}", WAITS, f"depends on {waits}")
        return None
    content = rows_digest(mixed.rows)
    made = _result(session, name, content, config, lambda: mixed)
    if made is not None:
        others.link(session, name, made.path / FILE)
    beside.keep_rows(session, name, mixed.origin)
    beside.keep_mixture(session, name, {**mixed.told, "key": key, "content": content})
    for line in _short_lines(arm, mixed.told):
        session.log.say(line)
    return made


def _result(
    session: Session, name: str, content: str, config: ArmConfig, mixed: Callable[[], Mixed]
) -> Result | None:
    """The selection's result, keyed by its ordered rows as every selection is."""

    def make(out: Path, log: Log, _: dict[str, Path]) -> Counts:
        rows = mixed().rows
        rows.write_parquet(out / FILE)
        log.metrics({"rows": float(len(rows))})
        return {"rows": len(rows)}

    shares = {part: float(share) for part, share in config.parts.items()}
    because = {"mix": shares, "budget": str(config.budget)}
    spec = {"rows": content, "file": FILE}
    made = session.result(
        Stage(f"select/{name}", spec, {}, make, content=lambda _: content, because=because)
    )
    if made is None and session.planning:  # its content is known before it is written
        return Result(Path(), {"digest": content})
    return made


def _parts(session: Session, mixing: Mixing, arm: str, seed: int) -> dict[str, Part]:
    """The parts of a mixture by name. Raises `Waits` for one that is not selected yet."""
    if HELDOUT in mixing.selections and texts_of(mixing.selections[HELDOUT]) is None:
        raise Waits("select/heldout")
    parts: dict[str, Part] = {}
    for name, config in (mixing.arms.configs[arm].mix or {}).items():
        if not isinstance(config, PartConfig):
            parts[name] = _of_arm(session, mixing, name, seed)
        elif config.data:
            label = f"{arm}/{name}"
            parts[name] = of_data(session, mixing.sets[label], label, seed, mixing.selections)
        else:
            at = f"arms.{arm}.mix.{name}"
            parts[name] = others.part_of(session, mixing.recipe, at, config, seed)
    return parts


def _of_arm(session: Session, mixing: Mixing, name: str, seed: int) -> Part:
    """An arm of this recipe as a part: what it selected for this seed."""
    selected = mixing.selections[(name, seed)]
    if selected is None or not (selected.path / FILE).is_file():
        raise Waits(f"select/{name}")
    config, rows = mixing.arms.configs[name], mixing.recipe.synth.rows
    licence = config.licence
    if licence is None and config.kind == "pool" and isinstance(rows, ImportConfig):
        ask = not session.planning
        licence = licence_of(rows.import_, rows.revision, session.folder, ask=ask)
    folder = beside.selected_folder(session.folder, name, seed)
    return of_selection(f"arm {name}", selected.digest, selected.path / FILE, folder, licence)


def _key(mixing: Mixing, config: ArmConfig, parts: Mapping[str, Part]) -> str:
    """What determines a mixture besides this module's VERSION."""
    heldout = mixing.selections.get(HELDOUT)
    return digest(
        {
            "parts": {name: part.content for name, part in parts.items()},
            "shares": [[name, str(share)] for name, share in config.parts.items()],
            "budget": config.budget,
            "allow_short": config.allow_short,
            "tokens": mixing.counts if config.budget and config.budget.tokens else None,
            "heldout": heldout and heldout.digest,
            "VERSION": VERSION,
        }
    )


def _mixed(mixing: Mixing, arm: str, parts: Mapping[str, Part]) -> Mixed:
    """Take each part's share, and set the rows in an order of which every prefix holds the
    shares."""
    config = mixing.arms.configs[arm]
    unit, total = _size(config)
    asked = quotas(config.parts, total)
    # no row that the recipe holds out is trained on by way of a mixture
    texts = set(texts_of(mixing.selections.get(HELDOUT)) or ())
    taken: dict[str, Taken] = {}
    for name, part in parts.items():
        if unit == "tokens":
            batches = part.counted(asked[name] // TOKENS_A_ROW + 1, mixing.count)
        else:
            batches = part.batches(asked[name])
        taken[name] = take(batches, asked[name], unit, texts)
        _check_filled(f"arms.{arm}.mix.{name}", config, part, asked[name], taken[name])
    held = {name: gave for name, gave in taken.items() if len(gave.rows)}
    order = interleaved([len(gave.rows) for gave in held.values()])
    rows = pl.concat(_messages(name, parts[name], gave) for name, gave in held.items())
    origin = pl.concat(_origin(name, gave.rows) for name, gave in held.items())
    starts = np.cumsum([0, *(len(gave.rows) for gave in held.values())])
    places = [int(starts[part]) + place for part, place in order]
    told = {
        "budget": {unit: total},
        "unit": unit,
        "chosen": len(rows),
        "sources": [_told(name, config, parts[name], asked[name], taken[name]) for name in parts],
    }
    return Mixed(rows[places], origin[places], told)


def _size(config: ArmConfig) -> tuple[Unit, int]:
    budget = config.budget
    if budget is not None and budget.tokens is not None:
        return "tokens", budget.tokens
    return "rows", (budget and budget.rows) or 0


def _check_filled(at: str, config: ArmConfig, part: Part, asked: int, gave: Taken) -> None:
    """Raises UserError for a part that does not fill its share."""
    unit, _ = _size(config)
    if gave.short and not config.allow_short:
        twice = f" ({gave.twice} more were taken already)" if gave.twice else ""
        raise UserError(
            f"{at}: its share is {asked:,} {unit} and {part.called} gives {gave.amount:,}{twice}; "
            "give it more rows, lower the budget, or say `allow_short: true`."
        )
    if asked and gave.rows.is_empty() and not gave.short:
        raise UserError(
            f"{at}: the first row of {part.called} alone has more than its share of {asked:,} "
            "tokens; raise the budget."
        )


def _messages(name: str, part: Part, gave: Taken) -> pl.DataFrame:
    """The conversations that a part gave, under ids of the mixture."""
    rows = part.messages(gave.rows["id"])
    return rows.with_columns(id=pl.format("{}:{}", pl.lit(name), "id"))


def _origin(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """[id, source, source_id, licence] of the rows that a part gave; of a mixture in a mixture the
    source is MIXTURE/PART."""
    source = pl.lit(name)
    if "source" in rows.columns:
        source = pl.coalesce(pl.format("{}/{}", pl.lit(name), "source"), pl.lit(name))
    mine = pl.format("{}:{}", pl.lit(name), "id")
    licence = pl.col("licence").cast(pl.String)
    return rows.select(id=mine, source=source, source_id="id", licence=licence)


def _told(name: str, config: ArmConfig, part: Part, asked: int, gave: Taken) -> dict[str, Any]:
    """What a part gave, for people."""
    licences = Counter(gave.rows["licence"].fill_null(UNSTATED)) if len(gave.rows) else {}
    return {
        "name": name,
        "from": part.called,
        "share": float(config.parts[name]),
        "asked": asked,
        "amount": gave.amount,
        "rows": len(gave.rows),
        "twice": gave.twice,
        "short": gave.short,
        "licences": dict(licences),
    }


def _short_lines(arm: str, told: Mapping[str, Any]) -> list[str]:
    """A sentence for each part that gave less than its share."""
    return [
        f"{arm}: {part['name']} gave {part['amount']:,} {told['unit']} of its share of "
        f"{part['asked']:,}"
        for part in told["sources"]
        if part["short"]
    ]
