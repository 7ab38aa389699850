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

from core.errors import UserError
from core.files import file_digest, write_atomic
from core.models import tokenizer as load_tokenizer
from core.store import digest
from train import chat as chats
from train.config import Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
BATCH = 256  # conversations tokenised at once; the tokenizer works on them in parallel
IGNORED = -100
Ledger = dict[str, Any]


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
            f"{path} has no column {' or '.join(sorted(missing))}; a selection needs id and messages."
        )
    if frame.is_empty():
        raise UserError(
            f"{path} holds no rows, so there is nothing to train on; loosen the arm's filter or enlarge the pool."
        )
    frame = frame.select("id", "messages")
    for row in frame.iter_rows(named=True):
        messages = row["messages"]
        if not messages or any(not m.get("role") or m.get("content") is None for m in messages):
            raise UserError(
                f"{path}, row {row['id']}, field messages: every message needs a role and a content."
            )
    return frame


def token_counts(selection: Path, tokenizer: str, template: str) -> pl.DataFrame:
    """[id: str, tokens: int] for each row of `selection`: its non-pad tokens under `template` (a
    shipped name, a Jinja file, or template text).

    `tokenizer` is a resolved model path. A token budget is a sum of these counts; nothing is
    truncated here.
    """
    text = template if "{%" in template else chats.read(template, training=True)
    words, frame = load_tokenizer(tokenizer), read_selection(selection)
    counts = [len(ids) for _, ids, _ in _encoded(frame, words, text, selection)]
    return pl.DataFrame({"id": frame["id"], "tokens": pl.Series(counts, dtype=pl.Int64)})


def prepare(job: Job, out: Path, *, processes: int) -> Ledger:
    """Tokenise the job's selection for `processes` devices, write tokens.arrow and ledger.json, and
    return the ledger.

    Does nothing when both are there for the same job. The ledger's rows and tokens are counted once
    an epoch and over all devices; it reconciles: tokens = trained + truncated + dropped. Raises
    UserError for a bad row, when training and inference template differ on a row, when a supervised
    row does not end a turn, when too large a share would be cut, and when tokens_per_step cannot be
    met.
    """
    if (done := prepared(job, out, processes=processes)) is not None:
        return done
    selection, tokens = Path(job.selection), out / "scratch" / "tokens.arrow"
    words = load_tokenizer(job.base, job.config.revision)
    chat = chats.choose(job.config, words)
    frame = read_selection(selection)
    chats.agree(words, chat, [_plain(m) for m in frame["messages"].head(64)])
    settings = job.config.trainer_arguments()
    ledger: Ledger = {
        "key": _key(job, processes),
        "rows": len(frame),
        **dict.fromkeys(_COUNTED, 0),
        "dropped": {},
    }
    rows = _trained(frame, words, chat, settings, ledger, selection)
    _write(tokens, rows)
    if not ledger["trained_rows"]:
        raise UserError(
            f"none of the {len(frame)} rows of {selection} bears loss ({ledger['dropped']}); check the template and max_length."
        )
    cut = (ledger["truncated_tokens"] + ledger["dropped_tokens"]) / ledger["tokens"]
    if cut > job.config.max_truncated_share:
        raise UserError(
            f"{cut:.1%} of the tokens of {selection} would be cut ({ledger['truncated_rows']} rows truncated, {ledger['dropped_rows']} dropped: "
            f"{ledger['dropped']}), more than train.max_truncated_share {job.config.max_truncated_share:.1%}; raise trainer.max_length "
            f"({settings.get('max_length', 1024)} tokens), use packing_strategy bfd_split, or raise the share."
        )
    ledger.update(_steps(tokens, settings, job.config.tokens_per_step, processes, ledger))
    write_atomic(out / "ledger.json", json.dumps(ledger, indent=2))
    return ledger


def prepared(job: Job, out: Path, *, processes: int) -> Ledger | None:
    """The ledger of an earlier `prepare` of the same job in `out`, or None."""
    path = out / "ledger.json"
    if not path.exists() or not (out / "scratch" / "tokens.arrow").exists():
        return None
    ledger: Ledger = json.loads(path.read_text())
    return ledger if ledger["key"] == _key(job, processes) else None


def read_ledger(out: Path) -> Ledger:
    """The ledger that `prepare` wrote into `out`."""
    ledger: Ledger = json.loads((out / "ledger.json").read_text())
    return ledger


def _key(job: Job, processes: int) -> str:
    words = load_tokenizer(job.base, job.config.revision)
    chat = chats.choose(job.config, words)
    return digest(
        [VERSION, job, file_digest(Path(job.selection)), processes, chat.training, chat.inference]
    )


_COUNTED = (
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
    "longest_row",
)


def _trained(
    frame: pl.DataFrame,
    words: PreTrainedTokenizerBase,
    chat: chats.Chat,
    settings: dict[str, Any],
    ledger: Ledger,
    source: Path,
) -> Iterator[dict[str, Any]]:
    """The rows that are trained on, truncated where the strategy truncates; counts into `ledger` as
    it goes."""
    limit: int | None = settings.get("max_length", 1024)
    attended = 0
    splits = settings["packing"] and settings["packing_strategy"] in ("bfd_split", "wrapped")
    supervised_only, dropped = settings["assistant_only_loss"], Counter[str]()
    for row, ids, mask in _encoded(frame, words, chat.training, source):
        # A causal model predicts from the second token on, so the first token of a sequence never
        # bears loss.
        labels = [
            i if (m or not supervised_only) and at else IGNORED
            for at, (i, m) in enumerate(zip(ids, mask, strict=True))
        ]
        bearing = sum(label != IGNORED for label in labels)
        ledger["tokens"] += len(ids)
        ledger["loss_tokens"] += bearing
        ledger["longest_row"] = max(ledger["longest_row"], len(ids))
        if supervised_only and bearing:
            _ends_turn(row["id"], ids, mask, chat.end_of_turn, words, source)
        kept, reason = labels, "no assistant turn" if not bearing else None
        if limit is not None and len(ids) > limit:
            if splits:
                ledger["split_rows"] += 1
                ledger["split_loss_tokens"] += sum(
                    label != IGNORED for label in labels[limit::limit]
                )
            else:
                kept = labels[:limit]
                if bearing and all(label == IGNORED for label in kept):
                    reason = "assistant turn beyond max_length"
        left = sum(label != IGNORED for label in kept)
        if reason is not None:
            dropped[reason] += 1
            ledger["dropped_rows"] += 1
            ledger["dropped_tokens"] += len(ids)
            ledger["dropped_loss_tokens"] += bearing
            continue
        if len(kept) < len(labels):
            ledger["truncated_rows"] += 1
            ledger["truncated_tokens"] += len(labels) - len(kept)
            ledger["truncated_loss_tokens"] += bearing - left
        ledger["trained_rows"] += 1
        ledger["trained_tokens"] += len(kept)
        pieces, rest = divmod(len(kept), limit or len(kept))
        attended += sum(n * (n + 1) // 2 for n in [limit or len(kept)] * pieces + [rest])
        yield {
            "id": row["id"],
            "messages": row["messages"],
            "input_ids": ids[: len(kept)],
            "labels": kept,
        }
    ledger["dropped"] = dict(dropped)
    ledger["mean_context"] = attended / max(
        1, ledger["trained_tokens"]
    )  # tokens that a token attends to, itself included
    ledger["trained_loss_tokens"] = (
        ledger["loss_tokens"]
        - ledger["truncated_loss_tokens"]
        - ledger["dropped_loss_tokens"]
        - ledger["split_loss_tokens"]
    )


def _encoded(
    frame: pl.DataFrame, words: PreTrainedTokenizerBase, template: str, source: Path
) -> Iterator[tuple[dict[str, Any], list[int], list[int]]]:
    """(row, token ids, supervision mask) of each row, in order."""
    for part in frame.iter_slices(BATCH):
        rows = part.to_dicts()
        try:
            encoded = chats.encode(words, [_plain(r["messages"]) for r in rows], template)
        except (
            Exception
        ) as error:  # a template raises errors of its own; find the row that it refuses
            for row in rows:
                try:
                    chats.encode(words, [_plain(row["messages"])], template)
                except Exception as refused:
                    raise UserError(
                        f"{source}, row {row['id']}: the chat template refuses the conversation ({refused})."
                    ) from refused
            raise UserError(f"{source}: the chat template fails ({error}).") from error
        for row, (ids, mask) in zip(rows, encoded, strict=True):
            yield row, ids, mask


def _plain(messages: Any) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _ends_turn(
    row: str,
    ids: list[int],
    mask: list[int],
    end: int,
    words: PreTrainedTokenizerBase,
    source: Path,
) -> None:
    """Raise UserError unless the row's last supervised token, white space aside, is the end-of-turn
    token."""
    for token, supervised in zip(reversed(ids), reversed(mask), strict=True):
        if supervised and token == end:
            return
        if supervised and str(words.decode([token])).strip():
            raise UserError(
                f"{source}, row {row}: the last supervised token is {words.decode([token])!r} instead of the end-of-turn token "
                f"{words.decode([end])!r}, so this row would teach the model not to stop; check the training chat template."
            )


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Rows as an Arrow stream, which every process on a machine maps instead of loading; whole or
    absent."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(message)),
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.int32())),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == 1000:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    temporary.replace(path)


def _steps(
    tokens: Path, settings: dict[str, Any], wanted: int | None, processes: int, ledger: Ledger
) -> Ledger:
    """Sequences after packing, and the gradient accumulation that brings `wanted` non-pad tokens to
    one optimizer step."""
    sequences = ledger["trained_rows"]
    if settings["packing"]:
        from datasets import Dataset
        from trl import pack_dataset

        lengths_matter = Dataset.from_file(str(tokens), in_memory=True).select_columns(
            ["input_ids"]
        )  # in memory: no cache file is left behind
        sequences = len(
            pack_dataset(
                lengths_matter, settings.get("max_length", 1024), settings["packing_strategy"]
            )
        )
    batch = settings.get("per_device_train_batch_size", 8) * processes
    per_micro_step = ledger["trained_tokens"] / sequences * batch
    accumulation = settings.get("gradient_accumulation_steps", 1)
    if wanted is not None:
        if wanted < 0.75 * per_micro_step:
            raise UserError(
                f"train.tokens_per_step {wanted:,} is less than one pass of {processes} device(s) holds (about {per_micro_step:,.0f} non-pad "
                f"tokens: {batch} sequences of {per_micro_step / batch:,.0f}); lower trainer.per_device_train_batch_size or max_length, or use "
                "fewer processes."
            )
        accumulation = max(1, round(wanted / per_micro_step))
    return {
        "sequences": sequences,
        "gradient_accumulation_steps": accumulation,
        "sequences_per_step": batch * accumulation,
        "tokens_per_step": round(per_micro_step * accumulation),
        "steps_per_epoch": math.ceil(sequences / (batch * accumulation)),
    }
