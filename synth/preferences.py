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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

from core.columns import MESSAGES, OK, Column, merging_read
from core.errors import UserError
from core.store import Counts, digest
from core.tracking import Log
from synth.chat import templates
from synth.config import ModelConfig, PreferencesConfig, SynthConfig
from synth.context import Context
from synth.filters.orders import hash_rank
from synth.generate import single_turn
from synth.tags import reward

VERSION = 1
"""Part of every key of a preference set; raised when the same settings would give other pairs."""

SLICE = 20_000
"""Rows whose answers are in memory at once."""

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
    """The model that scores answers: the block's own, else that of the tags."""
    assert config.preferences is not None
    found = config.preferences.reward or config.tags.reward
    assert found is not None  # the config refuses a block without one
    reward.check(found.model, own_server=not found.server.get("urls"))
    return found


def spec(config: SynthConfig, context: Context) -> dict[str, Any]:
    """What determines the set besides the rows."""
    block = config.preferences
    assert block is not None
    cells = {
        "answer": _answer_cell(config, block, context),
        "reward": _reward_cell(config, context),
    }
    return {
        **cells,
        "k": block.k,
        "margin": block.margin,
        "test_share": block.test_share,
        "VERSION": VERSION,
    }


def _answer_cell(config: SynthConfig, block: PreferencesConfig, context: Context) -> dict[str, Any]:
    responder = context.revision(config.responder or config.teacher)
    return {
        "responder": responder,
        "sampling": block.sampling,
        "VERSION": [VERSION, single_turn.VERSION, templates.VERSION],
    }


def _reward_cell(config: SynthConfig, context: Context) -> dict[str, Any]:
    return {"model": context.revision(reward_model(config)), "VERSION": [VERSION, reward.VERSION]}


def build(rows: pl.DataFrame, config: SynthConfig, context: Context, out: Path, log: Log) -> Counts:
    """Make the set of rows [id, messages] (only the first user's message is asked) in folder `out`:
    train.parquet, test.parquet, dropped.parquet.

    `context` must have servers. Returns rows, pairs (train, test), dropped rows by reason, answers,
    failed answers by reason, generated tokens and the mean margin. Raises UserError when no row
    gives a pair.
    """
    block = config.preferences
    assert block is not None
    first = (
        pl.col("messages")
        .list.eval(
            pl.element().filter(pl.element().struct.field("role") == "user").struct.field("content")
        )
        .list.first()
    )
    asked = rows.select("id", first.alias("instruction"))
    answers = Column.open(
        context.root,
        "preference_answer",
        _answer_cell(config, block, context),
        single_turn.RESPONSE_FIELDS,
    )
    rewards = Column.open(
        context.root,
        "preference_reward",
        _reward_cell(config, context),
        {"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64},
    )
    with ExitStack() as held:
        held.enter_context(answers.alone())
        held.enter_context(rewards.alone())
        _answer(asked, config, block, context, answers, log)
        _score(asked, config, block, context, answers, rewards, log)
    return _write(asked, config, block, answers, rewards, out)


def _keys(rows: pl.DataFrame, k: int) -> pl.DataFrame:
    """One row an answer: [key, id, instruction, number]; the key also tells the words that are
    answered."""
    words = pl.Series(
        [digest(text)[:12] for text in rows["instruction"].to_list()], dtype=pl.String
    )
    numbered = rows.with_columns(words.alias("words")).join(
        pl.DataFrame({"number": range(k)}), how="cross", maintain_order="left_right"
    )
    return numbered.with_columns(pl.format("{}:{}:{}", "id", "words", "number").alias("key")).drop(
        "words"
    )


def _slices(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for top in range(0, len(rows), SLICE):
        yield rows.slice(top, SLICE)


def _held(column: Column, keys: pl.Series, fields: Sequence[str]) -> pl.DataFrame:
    """[key, *fields] of those cells that are there, ok or failed; one slice's words in memory."""
    wanted = keys.alias("id").to_frame()

    def read() -> list[pl.DataFrame]:
        return [
            pl.read_parquet(path, columns=["id", *fields]).join(wanted, on="id", how="semi")
            for path in column.parts()
        ]

    frames = merging_read(read)
    found = pl.concat(frames) if frames else column.schema.to_frame().select("id", *fields)
    return found.unique("id", keep="first", maintain_order=True).rename({"id": "key"})


def _answer(
    asked: pl.DataFrame,
    config: SynthConfig,
    block: PreferencesConfig,
    context: Context,
    answers: Column,
    log: Log,
) -> None:
    """Buy the answers that are missing, each with a seed of its own."""
    served = context.serve(config.responder or config.teacher)
    sampling = {name: value for name, value in block.sampling.items() if name != "seed"}
    done, total = 0, len(asked) * block.k
    for rows in _slices(asked):
        keys = _keys(rows, block.k)
        missing = keys.join(
            _held(answers, keys["key"], []), on="key", how="anti", maintain_order="left"
        )
        done += len(keys) - len(missing)
        seeds = [
            int(digest([key, block.sampling.get("seed")])[:8], 16) % 2**31
            for key in missing["key"].to_list()
        ]
        due = missing.select(
            pl.col("key").alias("id"), "instruction", pl.Series("seed", seeds, dtype=pl.Int64)
        )
        for part in single_turn.responses(due, served.tokenizer, sampling, served.endpoint):
            answers.append(part)
            done += len(part)
            log.progress(done, total, "answers")
    answers.compact()


def _score(
    asked: pl.DataFrame,
    config: SynthConfig,
    block: PreferencesConfig,
    context: Context,
    answers: Column,
    rewards: Column,
    log: Log,
) -> None:
    """Buy the rewards that are missing."""
    served = context.serve(reward_model(config))
    done = 0
    for rows in _slices(asked):
        keys = _scorable(rows, block, answers)
        missing = keys.join(
            _held(rewards, keys["score_key"], []).rename({"key": "score_key"}),
            on="score_key",
            how="anti",
            maintain_order="left",
        )
        due = missing.select(pl.col("score_key").alias("id"), "instruction", "response").unique(
            "id", maintain_order=True
        )
        done += len(keys) - len(due)
        for part in reward.reward(due, served.tokenizer, served.endpoint):
            rewards.append(part)
            done += len(part)
            log.progress(done, len(asked) * block.k, "rewards")
    rewards.compact()


def _scorable(rows: pl.DataFrame, block: PreferencesConfig, answers: Column) -> pl.DataFrame:
    """The answers of these rows that may make a pair: finished ones. Also [score_key], by which two
    equal answers of a row share a score."""
    keys = _keys(rows, block.k)
    given = keys.join(
        _held(answers, keys["key"], ["response", "finish_reason", "status"]),
        on="key",
        how="inner",
        maintain_order="left",
    )
    given = given.filter(
        (pl.col("status") == OK) & (pl.col("finish_reason").fill_null("") != "length")
    )
    words = pl.Series(
        [digest([i, r])[:16] for i, r in given.select("instruction", "response").iter_rows()],
        dtype=pl.String,
    )
    return given.with_columns(pl.concat_str("id", pl.lit(":"), words).alias("score_key"))


def _write(
    asked: pl.DataFrame,
    config: SynthConfig,
    block: PreferencesConfig,
    answers: Column,
    rewards: Column,
    out: Path,
) -> Counts:
    import pyarrow.parquet as pq

    responder, scorer = (config.responder or config.teacher).model, reward_model(config).model
    dropped: list[dict[str, str]] = []
    failed: Counter[str] = Counter()
    tokens, margins = 0, 0.0
    written = {"train": 0, "test": 0}
    out.mkdir(parents=True, exist_ok=True)
    schema = pl.DataFrame(schema=PAIR).to_arrow().schema
    with ExitStack() as open_files:
        files = {
            name: open_files.enter_context(pq.ParquetWriter(out / f"{name}.parquet", schema))
            for name in written
        }
        for rows in _slices(asked):
            keys = _keys(rows, block.k)
            fields = ["response", "finish_reason", "tokens", "status", "reason"]
            given = keys.join(
                _held(answers, keys["key"], fields), on="key", how="left", maintain_order="left"
            )
            tokens += int(given["tokens"].sum() or 0)
            failed.update(given.filter(pl.col("status") != OK)["reason"].to_list())
            failed["cut off at max_tokens"] += int(
                ((given["status"] == OK) & (given["finish_reason"] == "length")).sum()
            )
            usable = _scorable(rows, block, answers)
            scores = _held(
                rewards, usable["score_key"], ["instruct_reward", "status", "reason"]
            ).rename({"key": "score_key"})
            failed.update(scores.filter(pl.col("status") != OK)["reason"].to_list())
            scored = usable.join(
                scores.filter(pl.col("status") == OK).select("score_key", "instruct_reward"),
                on="score_key",
                how="left",
            )
            whole = given.join(
                scored.select("key", "instruct_reward"), on="key", how="left", maintain_order="left"
            )
            made = []
            for (key,), group in whole.group_by("id", maintain_order=True):
                found, reason = pair(
                    group["response"].to_list(), group["instruct_reward"].to_list(), block.margin
                )
                if found is None:
                    dropped.append({"id": str(key), "reason": reason})
                    continue
                question = [{"role": "user", "content": group["instruction"][0]}]
                made.append(
                    {
                        "id": key,
                        "instruction": group["instruction"][0],
                        "prompt": question,
                        **found,
                        "response_model": responder,
                        "reward_model": scorer,
                    }
                )
            frame = pl.DataFrame(made, schema=PAIR)
            margins += float(frame["margin"].sum())
            test = hash_rank(frame["id"], "preferences") < int(block.test_share * 2**64)
            for name, part in (("train", frame.filter(~test)), ("test", frame.filter(test))):
                files[name].write_table(part.to_arrow().cast(schema))
                written[name] += len(part)
    pl.DataFrame(dropped, schema={"id": pl.String, "reason": pl.String}).write_parquet(
        out / "dropped.parquet"
    )
    reasons = dict(Counter(d["reason"] for d in dropped))
    pairs = sum(written.values())
    if not pairs:
        why = ", ".join(
            f"{n} x {reason}"
            for reason, n in {**reasons, **{r: n for r, n in failed.items() if n}}.items()
        )
        raise UserError(f"synth.preferences: none of {len(asked)} rows gives a pair ({why}).")
    return {
        "rows": len(asked),
        "pairs": pairs,
        **written,
        "dropped": reasons,
        "answers": len(asked) * block.k,
        "failed": {r: n for r, n in failed.items() if n},
        "tokens": tokens,
        "mean_margin": round(margins / pairs, 4),
    }


def pair(
    responses: Sequence[str | None], rewards: Sequence[float | None], margin: float
) -> tuple[dict[str, Any] | None, str]:
    """The best answer against the worst, or None and the reason why there is no pair. Of equal
    rewards, the answer drawn first counts.

    `rewards`: null where an answer or its score failed. A pair needs two different answers and
    rewards that differ by more than `margin`.
    """
    scored = [
        (score, number)
        for number, score in enumerate(rewards)
        if score is not None and responses[number] is not None
    ]
    if len(scored) < 2:
        return None, "fewer than two answers with a reward"
    best = max(scored, key=lambda s: (s[0], -s[1]))
    worst = min(scored, key=lambda s: (s[0], s[1]))
    if len({responses[number] for _, number in scored}) == 1:
        return None, "all answers are the same"
    if best[0] == worst[0]:
        return None, "all rewards are equal"
    if best[0] - worst[0] <= margin:
        return None, f"the rewards differ by no more than {margin:g}"
    chosen, rejected = (
        [{"role": "assistant", "content": responses[number]}] for _, number in (best, worst)
    )
    return {
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": best[0],
        "score_rejected": worst[0],
        "margin": best[0] - worst[0],
        "chosen_index": best[1],
        "rejected_index": worst[1],
        "responses": list(responses),
        "rewards": list(rewards),
    }, ""
