"""Several answers to each prompt and the reward of each: what preference pairs and the best of n
are made of.

Every answer and every reward is a cell of its own, in columns that all uses share: a killed run
continues, a larger number asks only for the further answers, and n = 4 beside k = 5 buys nothing
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from core.columns import FAILED, OK, Column
from core.store import digest
from synth.chat import templates
from synth.config.models import ModelConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context, Served, Serving
from synth.generate import single_turn
from synth.generate.ask import Frames, Rows
from synth.tags import reward

VERSION = 1
"""Part of every key of such an answer or reward; raised when the same settings would give
others."""

BEST_OF_VERSION = 1
"""Part of every key of the best of several; raised when another answer would be chosen."""

SLICE = 20_000
"""Rows whose answers are in memory at once."""

STATUS = ("status", "reason")
ANSWER = ("response", "thinking", "finish_reason", "tokens", "prompt_tokens")
CUT_OFF = "cut off at max_tokens"


def answer_cell(
    responder: ModelConfig, sampling: Mapping[str, Any], context: Context
) -> dict[str, Any]:
    """What determines an answer."""
    return {
        "responder": context.revision(responder),
        "sampling": sampling,
        "VERSION": [VERSION, single_turn.VERSION, templates.VERSION],
    }


def reward_cell(scorer: ModelConfig, context: Context) -> dict[str, Any]:
    """What determines the reward of an answer. Raises UserError for a model that cannot be asked
    for rewards."""
    reward.check(scorer.model, own_server=not scorer.server.get("urls"))
    return {"model": context.revision(scorer), "VERSION": [VERSION, reward.VERSION]}


@dataclass(frozen=True)
class Several:
    """The answers of some prompts `asked` [id, instruction], `k` each with a seed of its own, and
    the columns that hold them and their rewards."""

    asked: pl.DataFrame
    k: int
    sampling: Mapping[str, Any]
    answers: Column
    rewards: Column
    progress: Callable[[int, int, str], None]
    """Told how many of how many answers, or rewards, are there."""

    def answer(self, served: Served) -> None:
        """Buy the answers that are missing."""
        sampling = {name: value for name, value in self.sampling.items() if name != "seed"}
        done = 0
        for draws in self.slices():
            missing = _joined(draws, "key", self.answers, [], how="anti")
            seeds = map(self._seed, missing["key"])
            due = missing.select(
                pl.col("key").alias("id"), "instruction", pl.Series("seed", seeds, dtype=pl.Int64)
            )
            parts = single_turn.answered(due, sampling, served)
            done = self._keep(self.answers, parts, done + len(draws) - len(due), "answers")

    def score(self, served: Served) -> None:
        """Buy the rewards that are missing."""
        done = 0
        for draws in self.slices():
            finished = _finished(self.answered(draws))
            missing = _joined(finished, "score_key", self.rewards, [], how="anti")
            due = missing.select(pl.col("score_key").alias("id"), "instruction", "response").unique(
                "id", maintain_order=True
            )
            parts = reward.reward(due, served.tokenizer, served.endpoint)
            done = self._keep(self.rewards, parts, done + len(finished) - len(due), "rewards")

    def compact(self) -> None:
        """Merge small parts of both columns."""
        self.answers.compact()
        self.rewards.compact()

    def slices(self) -> Iterator[pl.DataFrame]:
        """One row an answer, [id, instruction, number, key], of some rows at a time; the key also
        tells the words that are answered."""
        numbers = pl.DataFrame({"number": range(self.k)})
        for rows in self.asked.iter_slices(SLICE):
            digests = [digest(text)[:12] for text in rows["instruction"]]
            words = pl.Series("words", digests, dtype=pl.String)
            draws = rows.with_columns(words).join(numbers, how="cross", maintain_order="left_right")
            key = pl.format("{}:{}:{}", "id", "words", "number")
            yield draws.with_columns(key.alias("key")).drop("words")

    def answered(self, draws: pl.DataFrame) -> pl.DataFrame:
        """A slice with its answers, in order; `status` null: not asked yet."""
        return _joined(draws, "key", self.answers, [*ANSWER, *STATUS], how="left")

    def scored(self, answered: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """A slice's answers with [instruct_reward, unscored: why there is none], and the rewards'
        cells [id, status, reason] that it looked at. A cut-off answer has none."""
        finished = _finished(answered)
        cells = _cells(self.rewards, finished["score_key"], ["instruct_reward", *STATUS])
        good = pl.col("status") == OK
        found = cells.select(
            pl.col("id").alias("score_key"),
            pl.when(good).then("instruct_reward").alias("instruct_reward"),
            pl.when(~good).then("reason").alias("unscored"),
        )
        each = finished.join(found, on="score_key", how="left")
        each = each.select("key", "instruct_reward", "unscored")
        cut = (pl.col("status") == OK) & (pl.col("finish_reason") == "length")
        whole = answered.join(each, on="key", how="left", maintain_order="left")
        why = pl.when(cut).then(pl.lit(CUT_OFF)).otherwise(pl.coalesce("unscored", "reason"))
        return whole.with_columns(unscored=why), cells

    def _seed(self, key: str) -> int:
        return int(digest([key, self.sampling.get("seed")])[:8], 16) % 2**31

    def _keep(self, column: Column, parts: Iterable[pl.DataFrame], done: int, what: str) -> int:
        """Append what arrives; returns how many are done then."""
        for part in parts:
            column.append(part)
            done += len(part)
            self.progress(done, len(self.asked) * self.k, what)
        return done


def columns(
    context: Context, answer: Mapping[str, Any], rewarded: Mapping[str, Any]
) -> tuple[Column, Column]:
    """The columns of the answers and the rewards that these determine."""
    fields = {"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64}
    return (
        Column.open(context.root, "preference_answer", answer, single_turn.RESPONSE_FIELDS),
        Column.open(context.root, "preference_reward", rewarded, fields),
    )


def _cells(column: Column, keys: pl.Series, fields: Sequence[str]) -> pl.DataFrame:
    """[id, *fields] of those cells that are there, ok or failed; one slice's words in memory."""
    return column.read(keys, fields).select("id", *fields)


def _joined(
    rows: pl.DataFrame,
    key: str,
    column: Column,
    fields: Sequence[str],
    *,
    how: Literal["anti", "left"],
) -> pl.DataFrame:
    """Rows with their cells of a column (`left`), or those that have none (`anti`)."""
    cells = _cells(column, rows[key], fields).rename({"id": key})
    return rows.join(cells, on=key, how=how, maintain_order="left")


def _finished(answered: pl.DataFrame) -> pl.DataFrame:
    """The answers that may be scored. Also [score_key], by which two equal answers of a row share a
    score."""
    cut_off = pl.col("finish_reason").fill_null("") == "length"
    finished = answered.filter((pl.col("status") == OK) & ~cut_off)
    texts = finished.select("instruction", "response").iter_rows()
    words = pl.Series("words", [digest(list(each))[:16] for each in texts], dtype=pl.String)
    return finished.with_columns(pl.format("{}:{}", "id", words).alias("score_key"))


def best_of_determines(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines a response that is the best of several answers."""
    answer, rewarded = _both_cells(config, context)
    n = config.responses.n if config.responses else 1
    return {"best_of": n, "answer": answer, "reward": rewarded, "VERSION": BEST_OF_VERSION}


def _both_cells(config: SynthConfig, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """What determines an answer, and its reward."""
    answer = answer_cell(_responder(config), config.best_of_sampling, context)
    return answer, reward_cell(_scorer(config), context)


def _responder(config: SynthConfig) -> ModelConfig:
    return config.responder or config.teacher


def _scorer(config: SynthConfig) -> ModelConfig:
    scorer = config.best_of_reward
    if scorer is None:
        raise ValueError("best of n without a reward model")  # which the config refuses
    return scorer


def best_of(rows: Rows, config: SynthConfig, context: Serving) -> Frames:
    """The best answer to each row [id, instruction]: frames [id, response, thinking, finish_reason,
    tokens, prompt_tokens, all_tokens, status, reason].

    All answers of a frame of rows are bought before all their rewards, so that two servers of ours
    that need the same GPU take turns once a frame. `tokens` are those of the chosen answer,
    `prompt_tokens` and `all_tokens` those of all answers together. A row of which no answer could
    be scored is a failed cell with the most frequent reason.
    """
    n = config.responses.n if config.responses else 1
    held = columns(context, *_both_cells(config, context))
    for asked in [rows] if isinstance(rows, pl.DataFrame) else rows:
        buying = Several(asked, n, config.best_of_sampling, *held, context.progress)
        buying.answer(context.serve(_responder(config)))
        buying.score(context.serve(_scorer(config)))
        for draws in buying.slices():
            scored, _ = buying.scored(buying.answered(draws))
            yield best(scored, n)


def best(scored: pl.DataFrame, n: int) -> pl.DataFrame:
    """The answer with the highest reward of each row (of equal ones the first), as `best_of` yields
    it, of answers as `Several.scored` has them."""
    spent = scored.group_by("id", maintain_order=True).agg(
        pl.col("tokens").sum().alias("all_tokens"),
        pl.col("prompt_tokens").sum(),
        pl.col("unscored").drop_nulls().mode().sort().first().alias("why"),
    )
    ranked = scored.drop_nulls("instruct_reward").sort(
        "instruct_reward", "number", descending=[True, False]
    )
    kept = ("id", "response", "thinking", "finish_reason", "tokens")
    chosen = ranked.unique("id", keep="first", maintain_order=True).select(kept)
    rows = spent.join(chosen, on="id", how="left", maintain_order="left")
    none = pl.col("response").is_null()
    why = pl.format("none of {} answers could be scored: {}", pl.lit(n), "why")
    return rows.with_columns(
        status=pl.when(none).then(pl.lit(FAILED)).otherwise(pl.lit(OK)),
        reason=pl.when(none).then(why),
    ).drop("why")
