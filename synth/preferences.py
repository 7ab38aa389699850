"""Preference pairs: k answers an instruction, scored by a reward model, the best against the worst
(the paper's DPO sets, appendix on alignment).

Every answer and every score is a cell of its own, so a killed run continues, a larger k asks only
for the further answers, and arms that share rows share what was paid for. What the original did
otherwise (gen_po_*, process_po.ipynb): ties and identical answers made pairs, an API's one answer
stood for all k, one conversation went through the reward model at a time, and the split had no
seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import MESSAGES, OK
from core.errors import UserError
from core.store import Counts
from core.tracking import Log
from synth.config.models import ModelConfig
from synth.config.synthesis import PreferencesConfig, SynthConfig
from synth.context import Context, Serving
from synth.filters.orders import hash_rank
from synth.tags import reward, several
from synth.tags.several import Several

VERSION = 1
"""Part of every key of a preference set; raised when the same settings would give other pairs."""

PAIR: dict[str, Any] = {
    "id": pl.String,
    "instruction": pl.String,
    "prompt": MESSAGES,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
    "score_chosen": pl.Float64,
    "score_rejected": pl.Float64,
    "margin": pl.Float64,
    "chosen_index": pl.Int64,
    "rejected_index": pl.Int64,
    "responses": pl.List(pl.String),
    "rewards": pl.List(pl.Float64),
    "response_model": pl.String,
    "reward_model": pl.String,
}
"""A row of the set: TRL's conversational form with an explicit prompt, and beside it all answers
with their rewards (null: failed), in order."""


def reward_model(config: SynthConfig) -> ModelConfig:
    """The model that scores answers: the block's own, else that of the tags. Raises UserError where
    it is none that can be asked for rewards."""
    scorer = _block(config).reward or config.tags.reward
    if scorer is None:
        raise ValueError("a block without a reward model")  # which the config refuses
    reward.check(scorer.model, own_server=not scorer.server.get("urls"))
    return scorer


def spec(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines the set besides the rows."""
    block = _block(config)
    answer, rewarded = _cells(config, context)
    return {
        "answer": answer,
        "reward": rewarded,
        "k": block.k,
        "margin": block.margin,
        "test_share": block.test_share,
        "VERSION": VERSION,
    }


def build(rows: pl.DataFrame, config: SynthConfig, context: Serving, out: Path, log: Log) -> Counts:
    """Make the set of rows [id, messages] (only the first user's message is asked) in folder `out`:
    train.parquet, test.parquet, dropped.parquet.

    Returns rows, pairs (train, test), dropped rows by reason, answers, failed answers by reason,
    generated tokens and the mean margin. Raises UserError when no row gives a pair.
    """
    turn = pl.element().struct
    questions = pl.element().filter(turn.field("role") == "user").struct.field("content")
    first = pl.col("messages").list.eval(questions).list.first()
    block = _block(config)
    asked = rows.select("id", first.alias("instruction"))
    columns = several.columns(context, *_cells(config, context))
    buying = Several(asked, block.k, block.sampling, *columns, log.progress)
    responder, scorer = config.responder or config.teacher, reward_model(config)
    with buying.answers.alone(), buying.rewards.alone():
        buying.answer(context.serve(responder))
        buying.score(context.serve(scorer))
        buying.compact()
    return _Writing(buying, block).write(out, responder.model, scorer.model)


def _block(config: SynthConfig) -> PreferencesConfig:
    if config.preferences is None:
        raise ValueError("a recipe without `synth.preferences`")
    return config.preferences


def _cells(config: SynthConfig, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """What determines an answer, and its reward."""
    responder = config.responder or config.teacher
    return (
        several.answer_cell(responder, _block(config).sampling, context),
        several.reward_cell(reward_model(config), context),
    )


@dataclass(frozen=True)
class _Writing:
    """A set that is written of what was bought."""

    several: Several
    block: PreferencesConfig

    def write(self, out: Path, responder: str, scorer: str) -> Counts:
        """Write the pairs of what was bought. Raises UserError when there is none."""
        import pyarrow.parquet as pq

        out.mkdir(parents=True, exist_ok=True)
        schema = pl.DataFrame(schema=PAIR).to_arrow().schema
        tally = _Tally()
        models = {"response_model": responder, "reward_model": scorer}
        with (
            pq.ParquetWriter(out / "train.parquet", schema) as train,
            pq.ParquetWriter(out / "test.parquet", schema) as test,
        ):
            for draws in self.several.slices():
                pairs = self._pairs(draws, models, tally)
                in_test = hash_rank(pairs["id"], "preferences") < int(self.block.test_share * 2**64)
                tally.train += len(pairs) - int(in_test.sum())
                tally.test += int(in_test.sum())
                train.write_table(pairs.filter(~in_test).to_arrow().cast(schema))
                test.write_table(pairs.filter(in_test).to_arrow().cast(schema))
        dropped = pl.DataFrame(tally.dropped, schema=["id", "reason"], orient="row")
        dropped.cast(pl.String).write_parquet(out / "dropped.parquet")
        return tally.counts(len(self.several.asked), self.block.k)

    def _pairs(self, draws: pl.DataFrame, models: dict[str, str], tally: _Tally) -> pl.DataFrame:
        """The pairs of one slice, as PAIR has them."""
        answered = self.several.answered(draws)
        scored, scores = self.several.scored(answered)
        tally.answered(answered)
        tally.failed.update(scores.filter(pl.col("status") != OK)["reason"])
        pairs = []
        for (row,), group in scored.group_by("id", maintain_order=True):
            responses, rewards = group["response"].to_list(), group["instruct_reward"].to_list()
            best_and_worst, reason = pair(responses, rewards, self.block.margin)
            if best_and_worst is None:
                tally.dropped.append((str(row), reason))
                continue
            instruction = group["instruction"][0]
            prompt = [{"role": "user", "content": instruction}]
            about = {"id": row, "instruction": instruction, "prompt": prompt}
            pairs.append({**about, **best_and_worst, **models})
        frame = pl.DataFrame(pairs, schema=PAIR)
        tally.margins += float(frame["margin"].sum())
        return frame


@dataclass
class _Tally:
    """What is counted while a set is written; `dropped` holds (id, reason)."""

    train: int = 0
    test: int = 0
    tokens: int = 0
    margins: float = 0.0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def answered(self, answers: pl.DataFrame) -> None:
        """Count tokens, and the answers that cannot make a pair."""
        self.tokens += int(answers["tokens"].sum())
        self.failed.update(answers.filter(pl.col("status") != OK)["reason"])
        cut_off = (answers["status"] == OK) & (answers["finish_reason"] == "length")
        self.failed[several.CUT_OFF] += int(cut_off.sum())

    def counts(self, rows: int, k: int) -> Counts:
        """As the manifest has them. Raises UserError when there is no pair."""
        dropped = dict(Counter(reason for _, reason in self.dropped))
        failed = {reason: n for reason, n in self.failed.items() if n}
        pairs = self.train + self.test
        if not pairs:
            why = ", ".join(f"{n} x {reason}" for reason, n in {**dropped, **failed}.items())
            raise UserError(f"synth.preferences: none of {rows} rows gives a pair ({why}).")
        return {
            "rows": rows,
            "pairs": pairs,
            "train": self.train,
            "test": self.test,
            "dropped": dropped,
            "answers": rows * k,
            "failed": failed,
            "tokens": self.tokens,
            "mean_margin": round(self.margins / pairs, 4),
        }


def pair(
    responses: Sequence[str | None], rewards: Sequence[float | None], margin: float
) -> tuple[dict[str, Any] | None, str]:
    """The best answer against the worst, or None and the reason why there is no pair. Of equal
    rewards, the answer drawn first counts.

    `rewards`: null where an answer or its score failed. A pair needs two different answers and
    rewards that differ by more than `margin`.
    """
    answers = enumerate(zip(responses, rewards, strict=True))
    scored = [(r, n) for n, (text, r) in answers if r is not None and text is not None]
    if len(scored) < 2:
        return None, "fewer than two answers with a reward"
    # of equal rewards, the lower number
    high, best = max(scored, key=lambda each: (each[0], -each[1]))
    low, worst = min(scored)
    if len({responses[number] for _, number in scored}) == 1:
        return None, "all answers are the same"
    if high == low:
        return None, "all rewards are equal"
    if high - low <= margin:
        return None, f"the rewards differ by no more than {margin:g}"
    return {
        "chosen": [{"role": "assistant", "content": responses[best]}],
        "rejected": [{"role": "assistant", "content": responses[worst]}],
        "score_chosen": high,
        "score_rejected": low,
        "margin": high - low,
        "chosen_index": best,
        "rejected_index": worst,
        "responses": list(responses),
        "rewards": list(rewards),
    }, ""
