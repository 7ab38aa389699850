"""Filling a pool with instructions: drawn from the teacher, or imported.

Finished draws are appended as they arrive, so a killed run continues where it stopped, and a draw
that failed is followed by another for its place, so the pool has as many instructions as were asked
for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import polars as pl

from core.cells.seconds import filling
from core.columns import FAILED, OK
from core.servers import Servers
from core.store import Counts, canonical, digest
from core.tracking import Log
from synth.chat.families import system_prompt_of
from synth.chat.pre_query import PreQuery, pre_query
from synth.chat.thinking import thinking_of
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.context import Served
from synth.generate import single_turn
from synth.generate.engine_seeds import seeded
from synth.generate.first_token import first_token
from synth.generate.sampling_grid import DRAWS
from synth.generate.system_prompts import Steered, chosen, steered
from synth.pool.category_balance import Balance
from synth.pool.importing import import_rows
from synth.pool.pool import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Share = tuple[int, int]
"""(rank, world): this task's part of the rows when many machines fill one pool."""


def draw(pool: Pool, servers: Servers, log: Log, share: Share = (0, 1)) -> Counts:
    """Fill the pool's instructions: generate what is missing, or import them.

    Returns usable rows, failed draws by reason and tokens (of the whole pool).
    """
    source = pool.config.rows
    if isinstance(source, ImportConfig):
        if pool.to_import():
            with filling(pool.instruction.folder) as made:
                import_rows(pool, source, log)
                made(len(pool.drawn()))
    else:
        _generate(pool, servers, log, share)
    if share == (0, 1):
        pool.merge(log.say)
    else:
        pool.instruction.cut()
    drawn = pool.drawn()
    failed = drawn.filter(pl.col("status") == FAILED)
    rows = len(drawn) - len(failed)
    if isinstance(source, int) and share == (0, 1) and rows < source:
        log.say(
            f"{source - rows} of {source} instructions could not be had in {DRAWS} draws each; "
            f"see the reasons in {pool.instruction.folder}"
        )
    return {
        "rows": rows,
        "failed": dict(Counter(failed["reason"].to_list())),
        "tokens": int(drawn["tokens"].sum() or 0),
    }


@dataclass(frozen=True)
class _Entries:
    """What draws are made with: the system prompts (none: one that is the pool's own) with their
    pre-query templates, and the samplings of the grid's entries."""

    prompts: Sequence[Steered]
    templates: Sequence[PreQuery]
    samplings: Sequence[dict[str, Any]]

    def prompted(self, due: pl.DataFrame) -> pl.DataFrame:
        """Draws with the number of the system prompt that each is made under."""
        ids = due["id"].to_list()
        numbers = chosen(ids, self.prompts) if self.prompts else [0] * len(ids)
        return due.with_columns(pl.Series("prompt", numbers, dtype=pl.Int64))

    def facts(self) -> pl.DataFrame:
        """What is recorded with each draw of an entry and a prompt: [cell, prompt, sampling,
        temperature, top_p, template, stop, system_prompt]."""
        templates = [
            (digest(t.token_ids)[:16], canonical(t.stop_strings) if t.stop_strings else None)
            for t in self.templates
        ]
        names: list[str | None] = [prompt.name for prompt in self.prompts]
        prompts = enumerate(zip(templates, names or [None], strict=True))
        each = product(enumerate(self.samplings), prompts)
        facts = [
            {
                "cell": cell,
                "prompt": prompt,
                "sampling": canonical(sampling),
                "temperature": sampling.get("temperature"),
                "top_p": sampling.get("top_p"),
                "template": template,
                "stop": stop,
                "system_prompt": name,
            }
            for (cell, sampling), (prompt, ((template, stop), name)) in each
        ]
        words = dict.fromkeys(("stop", "system_prompt"), pl.String)
        types = {"temperature": pl.Float64, "top_p": pl.Float64, **words}
        return pl.DataFrame(facts, schema_overrides=types, strict=False)


def _entries(pool: Pool, tokenizer: PreTrainedTokenizerBase) -> _Entries:
    config = pool.config
    prompts = steered(config.system_prompts)
    alone = system_prompt_of(config.teacher.model, config.system_prompt)
    texts = [prompt.text for prompt in prompts] or [alone]
    templates = [pre_query(tokenizer, text, config.pre_query_template) for text in texts]
    return _Entries(prompts, templates, pool.plan.sampling(config.instruction))


def _generate(pool: Pool, servers: Servers, log: Log, share: Share) -> None:
    """Draw this task's places until each has an instruction or has failed too often."""
    due = mine(pool.missing_instructions(), share)
    if len(due):
        with filling(pool.instruction.folder) as made:
            _generated(pool, servers, log, share, due, made)


def _generated(
    pool: Pool,
    servers: Servers,
    log: Log,
    share: Share,
    due: pl.DataFrame,
    made: Callable[[int], None],
) -> None:
    """The same where these draws are `due`; `made` is told how many more there are."""
    config = pool.config
    context = pool.context.serving(servers)
    own_seeds = seeded(config, servers, pool.root)
    served = context.serve(config.teacher)
    entries = _entries(pool, served.tokenizer)
    drawn_by = {"model": served.model.name, "revision": served.model.revision}
    recorded = entries.facts().with_columns(pl.lit(v).alias(k) for k, v in drawn_by.items())
    every = config.category_balance
    balance = Balance(pool, context, log, every) if every else None
    total = len(mine(pool.planned, share))
    done = total - due["place"].n_unique()
    log.progress(done, total)
    while len(due):
        due = entries.prompted(due)
        if not own_seeds:
            due = due.with_columns(seed=pl.lit(None, pl.Int64))
        facts = due.join(recorded, on=["cell", "prompt"], how="left", maintain_order="left")
        for draws in _drawn(due, entries, served, config):
            pool.instruction.append(draws.join(facts, on="id", how="left", maintain_order="left"))
            made(len(draws))
            done += int((draws["status"] == OK).sum())
            log.progress(done, total)
            if balance:
                balance.drawn(draws)
        due = mine(pool.missing_instructions(), share)


def _drawn(
    due: pl.DataFrame, entries: _Entries, served: Served, config: SynthConfig
) -> Iterator[pl.DataFrame]:
    """The draws as they finish: what `single_turn.instructions` yields."""
    rule = config.first_token
    tokenizer = served.tokenizer
    # A draw has a seed of its own.
    samplings = [dict(sampling) for sampling in entries.samplings]
    for sampling in samplings:
        sampling.pop("seed", None)
    return single_turn.instructions(
        due,
        entries.templates,
        samplings,
        served.endpoint,
        first=first_token(tokenizer, rule.suppress, rule.temperature) if rule else None,
        thinking=thinking_of(tokenizer),
    )


def mine(rows: pl.DataFrame, share: Share) -> pl.DataFrame:
    """This task's rows [id, ...] of many tasks': by the id alone (of its place, for draws), so that
    it never depends on what is missing."""
    rank, world = share
    if world == 1:
        return rows
    places = rows["place" if "place" in rows.columns else "id"]
    own = [int(digest(place)[:8], 16) % world == rank for place in places]
    return rows.filter(pl.Series(own, dtype=pl.Boolean))
