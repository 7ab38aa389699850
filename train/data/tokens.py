"""Rows -> conversations -> tokens, with a ledger of everything that is cut, split or dropped on the
way.

Rows are rendered by the training template and tokenised once, here; SFTTrainer packs what it is
given. `prepare` writes, under `out`: `scratch/tokens.arrow` (one row a conversation: id, messages,
input_ids, labels; -100 where no loss is borne) and `ledger.json`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.control_tokens import spells_control
from core.errors import UserError
from core.files import file_digest, read_json, replacing, write_atomic
from core.models import tokenizer as shared_tokenizer
from core.store import digest
from train import chat as chats
from train.config import Job
from train.data import tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
BATCH = 256  # conversations tokenised at once; the tokenizer works on them in parallel
IGNORED = -100
Ledger = dict[str, Any]
Row = dict[str, Any]


def read_selection(path: Path) -> pl.DataFrame:
    """The selection [id: str, messages: list[struct{role, content}]] in training order. Raises
    UserError naming the file and the first bad row."""
    try:
        frame = pl.read_parquet(path)
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
    for name, messages in frame.select("id", "messages").iter_rows():
        if not messages or any(not m.get("role") or m.get("content") is None for m in messages):
            raise UserError(
                f"{path}, row {name}, field messages: every message needs a role and a content."
            )
    return frame.select("id", "messages")


def token_counts(selection: Path, tokenizer: str, template: str) -> pl.DataFrame:
    """[id: str, tokens: int] for each row of `selection`: its non-pad tokens under `template` (its
    text).

    `tokenizer` is a resolved model path. A token budget is a sum of these counts; nothing is
    truncated here.
    """
    frame = read_selection(selection)
    encoded = _encoded(frame, shared_tokenizer(tokenizer), template, selection)
    counts = [len(ids) for batch in encoded for _, ids, _ in batch]
    return pl.DataFrame({"id": frame["id"], "tokens": pl.Series(counts, dtype=pl.Int64)})


def prepare(job: Job, out: Path, *, processes: int) -> Ledger:
    """Tokenise the job's selection for `processes` devices, write tokens.arrow and ledger.json, and
    return the ledger.

    Does nothing when both are there for the same job. The ledger's rows and tokens are counted once
    an epoch and over all devices; it reconciles: tokens = trained + truncated + dropped.
    `spelled_rows`: rows that spell control tokens, which are plain text to the model. Raises
    UserError for a bad row, when training and inference template differ on a row, when a supervised
    row does not end a turn, when too large a share would be cut, and when tokens_per_step cannot be
    met.
    """
    if (done := prepared(job, out, processes=processes)) is not None:
        return done
    tokens = out / "scratch" / "tokens.arrow"
    counts = _tokenise(job, tokens)
    _check_cut(job, counts)
    ledger = {"key": _key(job, processes), **counts, **_steps(job, tokens, processes, counts)}
    write_atomic(out / "ledger.json", json.dumps(ledger, indent=2))
    return ledger


def prepared(job: Job, out: Path, *, processes: int) -> Ledger | None:
    """The ledger of an earlier `prepare` of the same job in `out`, or None."""
    if not (out / "ledger.json").exists() or not (out / "scratch" / "tokens.arrow").exists():
        return None
    ledger = read_ledger(out)
    return ledger if ledger["key"] == _key(job, processes) else None


def read_ledger(out: Path) -> Ledger:
    """The ledger that `prepare` wrote into `out`."""
    ledger: Ledger = read_json(out / "ledger.json")
    return ledger


def _key(job: Job, processes: int) -> str:
    tokenizer = shared_tokenizer(job.base, job.config.revision)
    chat = chats.choose(job.config, tokenizer)
    selection = file_digest(Path(job.selection))
    return digest([VERSION, job, selection, processes, chat.training, chat.inference])


_SUMS = (
    "rows",
    "tokens",
    "loss_tokens",
    "trained_rows",
    "trained_tokens",
    "trained_loss_tokens",
    "truncated_rows",
    "truncated_tokens",
    "truncated_loss_tokens",
    "split_rows",
    "split_loss_tokens",
    "dropped_rows",
    "dropped_tokens",
    "dropped_loss_tokens",
    "spelled_rows",
)
_NO_TURN, _TURN_BEYOND = "no assistant turn", "assistant turn beyond max_length"
_DROPPED = (_NO_TURN, _TURN_BEYOND, tools.UNKNOWN)
UNFIT = "unfit"


def _tokenise(job: Job, path: Path) -> Ledger:
    """Write the rows that are trained on to `path`, as an Arrow stream, which every process on a
    machine maps instead of loading; returns what was counted over all rows."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    ids = pa.list_(pa.int32())
    columns = {"id": pa.string(), "messages": pa.list_(message), "input_ids": ids, "labels": ids}
    schema = pa.schema(list(columns.items()))
    totals = Counter[str]()
    longest = 0
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in _cut_rows(job):
            trained = [row for row, _ in batch if row is not None]
            writer.write_batch(pa.RecordBatch.from_pylist(trained, schema))
            for _, counts in batch:
                longest = max(longest, counts["tokens"])
                totals.update(counts)
    return {
        **{name: totals[name] for name in _SUMS},
        "longest_row": longest,
        "dropped": {name: n for name, n in totals.items() if name in _DROPPED},
        # tokens that a token attends to, itself included
        "mean_context": totals["attended"] / max(1, totals["trained_tokens"]),
    }


def _cut_rows(job: Job) -> Iterator[list[tuple[Row | None, Counter[str]]]]:
    """Every row of the job's selection, in order and in batches: what is trained on of it (None:
    nothing), and what it counts for in the ledger."""
    source, config = Path(job.selection), job.config
    tokenizer = shared_tokenizer(job.base, config.revision)
    chat = chats.choose(config, tokenizer)
    selection = read_selection(source)
    knows = all(tools.knows_tools(tokenizer, each) for each in (chat.training, chat.inference))
    first = [m for m in selection["messages"].head(64) if knows or not tools.has_tools(_plain(m))]
    chats.agree(tokenizer, chat, [_rendered(messages) for messages in first])
    settings = config.trainer_arguments()
    assistant_only = settings["assistant_only_loss"]
    splits = settings["packing"] and settings["packing_strategy"] in ("bfd_split", "wrapped")
    for batch in _encoded(selection, tokenizer, chat.training, source):
        cuts: list[tuple[Row | None, Counter[str]]] = []
        for row, ids, mask in batch:
            if UNFIT in row:
                cuts.append((None, Counter({"rows": 1, "dropped_rows": 1, row[UNFIT]: 1})))
                continue
            marked = mask if assistant_only else [1] * len(ids)
            labels = [i if m else IGNORED for i, m in zip(ids, marked, strict=True)]
            # A causal model predicts from the second token on.
            labels[:1] = [IGNORED for _ in labels[:1]]
            if assistant_only:
                _check_end(labels, tokenizer, chat.end_of_turn, f"{source}, row {row['id']}")
            kept, counts = _cut(labels, config.max_length, splits=splits)
            tokens = {"input_ids": ids[: len(kept)], "labels": kept}
            counts["spelled_rows"] = int(spells_control(tokenizer, row["messages"]))
            cuts.append(({**row, **tokens} if kept else None, counts))
        yield cuts


def _cut(labels: list[int], length: int | None, *, splits: bool) -> tuple[list[int], Counter[str]]:
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
    if splits and starts:
        counts.update(split_rows=1, split_loss_tokens=_bearing(starts))
    left = _bearing(kept)
    if not left:
        reason = _TURN_BEYOND if bearing else _NO_TURN
        counts.update(dropped_rows=1, dropped_tokens=tokens, dropped_loss_tokens=bearing)
        counts.update({reason: 1})
        return [], counts
    if len(kept) < tokens:
        counts.update(truncated_rows=1, truncated_tokens=tokens - len(kept))
        counts.update(truncated_loss_tokens=bearing - left)
    whole, rest = divmod(len(kept), length)
    attended = whole * length * (length + 1) // 2 + rest * (rest + 1) // 2
    counts.update(trained_rows=1, trained_tokens=len(kept), attended=attended)
    counts.update(trained_loss_tokens=left - counts["split_loss_tokens"])
    return kept, counts


def _bearing(labels: list[int]) -> int:
    """How many tokens bear loss."""
    return len(labels) - labels.count(IGNORED)


def _encoded(
    frame: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, template: str, source: Path
) -> Iterator[list[tuple[Row, list[int], list[int]]]]:
    """(row, token ids, supervision mask) of each row, in order and in batches; a row whose tool
    turns the template does not know has no tokens, and says why under `UNFIT`. Raises UserError
    naming a row that the template refuses."""
    knows = tools.knows_tools(tokenizer, template)
    for part in frame.iter_slices(BATCH):
        every = part.to_dicts()
        reasons = [tools.unfit(_plain(row["messages"]), knows) for row in every]
        rows = [row for row, reason in zip(every, reasons, strict=True) if reason is None]
        conversations = [_rendered(row["messages"]) for row in rows]
        try:
            encoded = chats.encode(tokenizer, conversations, template)
        # a template raises errors of its own; find the row that it refuses
        except Exception as error:
            for row, conversation in zip(rows, conversations, strict=True):
                try:
                    chats.encode(tokenizer, [conversation], template)
                except Exception as refused:
                    raise UserError(
                        f"{source}, row {row['id']}: the chat template refuses the "
                        f"conversation ({refused})."
                    ) from refused
            raise UserError(f"{source}: the chat template fails ({error}).") from error
        left = iter(encoded)
        yield [
            (row, *next(left)) if reason is None else ({**row, UNFIT: reason}, [], [])
            for row, reason in zip(every, reasons, strict=True)
        ]


def _plain(messages: Any) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _rendered(messages: Any) -> list[dict[str, Any]]:
    """A conversation as templates take it."""
    plain = _plain(messages)
    return tools.as_templates_take(plain) if tools.has_tools(plain) else plain


def _check_end(labels: list[int], tokenizer: PreTrainedTokenizerBase, end: int, where: str) -> None:
    """Raise UserError unless a row's last supervised token, white space aside, is the end-of-turn
    token `end`."""
    supervised = [label for label in labels if label != IGNORED]
    last = chats.last_written(tokenizer, supervised) if supervised else end
    if last != end:
        raise UserError(
            f"{where}: the last supervised token is {tokenizer.decode([last])!r} instead of the "
            f"end-of-turn token {tokenizer.decode([end])!r}, so this row would teach the model "
            "not to stop; check the training chat template."
        )


def _check_cut(job: Job, counts: Ledger) -> None:
    """Raise UserError where nothing is left to train on, or too little."""
    config, dropped = job.config, counts["dropped"]
    if not counts["trained_rows"]:
        raise UserError(
            f"none of the {counts['rows']} rows of {job.selection} bears loss ({dropped}); "
            "check the template and max_length."
        )
    cut = (counts["truncated_tokens"] + counts["dropped_tokens"]) / counts["tokens"]
    if cut > config.max_truncated_share:
        raise UserError(
            f"{cut:.1%} of the tokens of {job.selection} would be cut "
            f"({counts['truncated_rows']} rows truncated, {counts['dropped_rows']} dropped: "
            f"{dropped}), more than train.max_truncated_share {config.max_truncated_share:.1%}; "
            f"raise trainer.max_length ({config.max_length} tokens), "
            "use packing_strategy bfd_split, or raise the share."
        )


def _steps(job: Job, tokens: Path, processes: int, counts: Ledger) -> Ledger:
    """Sequences after packing, and the gradient accumulation that brings the wanted non-pad tokens
    to one optimizer step."""
    settings, wanted = job.config.trainer_arguments(), job.config.tokens_per_step
    sequences = counts["trained_rows"]
    if settings["packing"]:
        from datasets import Dataset
        from trl import pack_dataset

        # in memory: no cache file is left behind
        rows = Dataset.from_file(str(tokens), in_memory=True).select_columns(["input_ids"])
        sequences = len(pack_dataset(rows, job.config.max_length, settings["packing_strategy"]))
    batch = settings.get("per_device_train_batch_size", 8) * processes
    one_pass = counts["trained_tokens"] / sequences * batch
    accumulation = settings.get("gradient_accumulation_steps", 1)
    if wanted is not None:
        if wanted < 0.75 * one_pass:
            raise UserError(
                f"train.tokens_per_step {wanted:,} is less than one pass of {processes} device(s) "
                f"holds (about {one_pass:,.0f} non-pad tokens: {batch} sequences of "
                f"{one_pass / batch:,.0f}); lower trainer.per_device_train_batch_size or "
                "max_length, or use fewer processes."
            )
        accumulation = max(1, round(wanted / one_pass))
    return {
        "sequences": sequences,
        "gradient_accumulation_steps": accumulation,
        "sequences_per_step": batch * accumulation,
        "tokens_per_step": round(one_pass * accumulation),
        "steps_per_epoch": math.ceil(sequences / (batch * accumulation)),
    }
