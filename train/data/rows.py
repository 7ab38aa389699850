"""Rows of a selection -> token ids and labels, with what each row counts for in the ledger.

Rows are rendered by the training template and tokenised once, here; control tokens that a row
spells are plain text to the model. A label of -100 bears no loss.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from core.errors import UserError, first_line
from core.models import tokenizer as shared_tokenizer
from core.pretrained.control_tokens import spells_control
from train import chat as chats
from train.config import DpoConfig, TrainConfig
from train.data import tools
from train.encoding import Ids, Mask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256  # conversations tokenised at once
IGNORED = -100
Row = dict[str, Any]

NO_TURN, TURN_BEYOND = "no assistant turn", "assistant turn beyond max_length"
DROPPED = (NO_TURN, TURN_BEYOND, tools.UNKNOWN)
UNFIT = "unfit"
Batch = list[tuple[Row, Ids, Mask]]
NOTHING = (np.empty(0, np.int32), np.empty(0, np.bool_))


@dataclass(frozen=True)
class Rendering:
    """How rows of a selection become tokens: all that a process which tokenises them needs."""

    tokenizer: str
    """Folder or hub id that the tokenizer is loaded from."""
    revision: str | None
    template: str
    """The training template, its text."""
    end_of_turn: int
    assistant_only: bool
    """Whether only what the assistant writes bears loss."""
    max_length: int | None
    splits: bool
    """Whether the packing splits what exceeds max_length, so that nothing is truncated."""
    source: str
    """The selection, as errors name it."""

    @functools.cached_property
    def words(self) -> PreTrainedTokenizerBase:
        """The tokenizer, shared."""
        return shared_tokenizer(self.tokenizer, self.revision)


@dataclass(frozen=True)
class Trained:
    """What is trained on of one row: token ids and labels of one length."""

    id: str
    input_ids: Ids
    labels: Ids


def read_selection(path: Path) -> pl.DataFrame:
    """The selection [id: str, messages: list[struct{role, content}]] in training order. Raises
    UserError naming the file and the first bad row."""
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a selection ({error}); build the selection again."
        ) from error
    if missing := {"id", "messages"} - set(frame.columns):
        raise UserError(
            f"{path} has no column {' or '.join(sorted(missing))}; "
            "a selection needs id and messages."
        )
    if frame.is_empty():
        raise UserError(
            f"{path} holds no rows, so there is nothing to train on; "
            "loosen the arm's filter or enlarge the pool."
        )
    for part in frame.select("id", "messages").iter_slices(BATCH * 16):
        for name, messages in part.iter_rows():
            if not messages or any(not m.get("role") or m.get("content") is None for m in messages):
                raise UserError(
                    f"{path}, row {name}, field messages: every message needs a role and a content."
                )
    return frame.select("id", "messages")


def cut_rows(
    frame: pl.DataFrame, how: Rendering
) -> Iterator[list[tuple[Trained | None, Counter[str]]]]:
    """Every row of [id, messages], in order and in batches: what is trained on of it (None:
    nothing), and what it counts for in the ledger."""
    for batch in _one_ahead(encoded_rows(frame, how.words, how.template, Path(how.source))):
        yield [_counted(row, ids, mask, how) for row, ids, mask in batch]


def _one_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the next one is made while one is used (tokenizers work outside of Python's
    lock, on all cores)."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _counted(
    row: Row, tokens: Ids, mask: Mask, how: Rendering
) -> tuple[Trained | None, Counter[str]]:
    """One tokenised row, cut to what is trained on, and its counts."""
    if UNFIT in row:
        return None, Counter({"rows": 1, "dropped_rows": 1, row[UNFIT]: 1})
    labels = tokens.copy()
    if how.assistant_only:
        labels[~mask] = IGNORED
    labels[:1] = IGNORED  # a causal model predicts from the second token on
    if how.assistant_only:
        _check_end(labels, how.words, how.end_of_turn, f"{how.source}, row {row['id']}")
    kept, counts = _cut(labels, how.max_length, splits=how.splits)
    counts["spelled_rows"] = int(spells_control(how.words, row["messages"]))
    if not len(kept):
        return None, counts
    return Trained(row["id"], tokens[: len(kept)], kept), counts


def _cut(labels: Ids, length: int | None, *, splits: bool) -> tuple[Ids, Counter[str]]:
    """The labels that are trained on of a row's (none where the row is dropped), and what it counts
    for, by the ledger's names; `attended` is what its tokens attend to, in tokens.

    A row of more than `length` tokens is truncated, or split by the packing later; a fragment's
    first token has nothing to be predicted from.
    """
    tokens, bearing = len(labels), _bearing(labels)
    length = length or tokens or 1
    counts = Counter(rows=1, tokens=tokens, loss_tokens=bearing)
    kept = labels if splits else labels[:length]
    starts = labels[length::length]
    if splits and len(starts):
        counts.update(split_rows=1, split_loss_tokens=_bearing(starts))
    left = _bearing(kept)
    if not left:
        reason = TURN_BEYOND if bearing else NO_TURN
        counts.update(dropped_rows=1, dropped_tokens=tokens, dropped_loss_tokens=bearing)
        counts.update({reason: 1})
        return labels[:0], counts
    if len(kept) < tokens:
        counts.update(truncated_rows=1, truncated_tokens=tokens - len(kept))
        counts.update(truncated_loss_tokens=bearing - left)
    whole, rest = divmod(len(kept), length)
    attended = whole * length * (length + 1) // 2 + rest * (rest + 1) // 2
    counts.update(trained_rows=1, trained_tokens=len(kept), attended=attended)
    counts.update(trained_loss_tokens=left - counts["split_loss_tokens"])
    return kept, counts


def _bearing(labels: Ids) -> int:
    """How many tokens bear loss."""
    return int((labels != IGNORED).sum())


def encoded_rows(
    frame: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, template: str, source: Path
) -> Iterator[Batch]:
    """(row, token ids, supervision mask) of each row, in order and in batches; a row whose tool
    turns the template does not know has no tokens, and says why under `UNFIT`. Raises UserError
    naming a row that the template refuses."""
    knows = tools.knows_tools(tokenizer, template)
    for part in frame.iter_slices(BATCH):
        every = part.to_dicts()
        reasons = [tools.unfit(plain(row["messages"]), knows) for row in every]
        rows = [row for row, reason in zip(every, reasons, strict=True) if reason is None]
        conversations = [rendered(row["messages"]) for row in rows]
        names = [f"row {row['id']}" for row in rows]
        encoded = encode(tokenizer, conversations, template, source, names)
        left = iter(encoded)
        yield [
            (row, *next(left)) if reason is None else ({**row, UNFIT: reason}, *NOTHING)
            for row, reason in zip(every, reasons, strict=True)
        ]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[dict[str, Any]]],
    template: str,
    source: Path,
    names: list[str],
) -> list[tuple[Ids, Mask]]:
    """Token ids and supervision mask of each conversation. Raises UserError with the name ("row 7")
    of the first that the template refuses."""
    try:
        return chats.encode_arrays(tokenizer, conversations, template)
    # a template raises errors of its own; find what it refuses
    except Exception as error:
        for name, conversation in zip(names, conversations, strict=True):
            try:
                chats.encode_arrays(tokenizer, [conversation], template)
            except Exception as refused:
                raise UserError(
                    f"{source}, {name}: the chat template refuses the conversation "
                    f"({first_line(refused)})."
                ) from refused
        raise UserError(f"{source}: the chat template fails ({first_line(error)}).") from error


def summed(
    totals: Counter[str], longest: int, names: Sequence[str], reasons: Sequence[str]
) -> dict[str, Any]:
    """A ledger of what was counted over all rows: its sums by `names`, the longest row, and how
    many rows were dropped for which of the `reasons`."""
    return {
        **{name: totals[name] for name in names},
        "longest_row": longest,
        "dropped": {name: n for name, n in totals.items() if name in reasons},
        # tokens that a token attends to, itself included
        "mean_context": totals["attended"] / max(1, totals["trained_tokens"]),
    }


def check_cut(config: TrainConfig, source: Path, counts: dict[str, Any], larger: str) -> None:
    """Raise UserError where nothing of a ledger is left to train on, or too little; `larger`: what
    to do so that less is cut."""
    dropped, block = counts["dropped"], "dpo" if isinstance(config, DpoConfig) else "train"
    what = "pairs" if block == "dpo" else "rows"
    if not counts["trained_rows"]:
        raise UserError(
            f"none of the {counts['rows']} {what} of {source} bears loss ({dropped}); "
            "check the template and max_length."
        )
    cut = (counts["truncated_tokens"] + counts["dropped_tokens"]) / counts["tokens"]
    if cut > config.max_truncated_share:
        raise UserError(
            f"{cut:.1%} of the tokens of {source} would be cut ({counts['truncated_rows']} {what} "
            f"truncated, {counts['dropped_rows']} dropped: {dropped}), more than "
            f"{block}.max_truncated_share {config.max_truncated_share:.1%}; raise "
            f"{block}.trainer.max_length ({config.max_length} tokens), {larger}or the share."
        )


def plain(messages: Any) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def rendered(messages: Any) -> list[dict[str, Any]]:
    """A conversation as templates take it."""
    turns = plain(messages)
    return tools.as_templates_take(turns) if tools.has_tools(turns) else turns


def _check_end(labels: Ids, tokenizer: PreTrainedTokenizerBase, end: int, where: str) -> None:
    """Raise UserError unless a row's last supervised token, white space aside, is the end-of-turn
    token `end`."""
    supervised = labels[labels != IGNORED].tolist()
    last = chats.last_written(tokenizer, supervised) if supervised else end
    if last != end:
        raise UserError(
            f"{where}: the last supervised token is {tokenizer.decode([last])!r} instead of the "
            f"end-of-turn token {tokenizer.decode([end])!r}, so this row would teach the model "
            "not to stop; check the training chat template."
        )
