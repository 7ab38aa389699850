"""Preference pairs -> tokens, with a ledger of everything that is cut or dropped on the way.

A pair's two conversations are rendered by the training template and tokenised once, here; what both
begin with is the prompt, what follows it up to the end of turn an answer. `prepare` writes, under
`out`: `scratch/pairs.arrow` (a pair a row: id, prompt_ids, chosen_ids, rejected_ids) and
`ledger.json`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError, first_line
from core.files import file_digest, read_json, replacing, write_atomic
from core.models import tokenizer as shared_tokenizer
from core.pretrained.control_tokens import spells_control
from core.store import digest
from train import chat as chats
from train.config import DpoConfig, Job
from train.data import tools
from train.data.order import accumulation_of_pairs
from train.data.rows import check_cut, encode, summed
from train.encoding import as_lists

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
BATCH = 256  # pairs tokenised at once
Ledger = dict[str, Any]
Turns = list[dict[str, str]]
COLUMNS = ("prompt", "chosen", "rejected")

NO_ANSWER = "an answer without text"
FULL = "the prompt fills max_length"
ALIKE = "the answers do not differ within max_length"
_DROPPED = (NO_ANSWER, FULL, ALIKE, tools.UNKNOWN)
_SUMS = (
    "rows",
    "tokens",
    "loss_tokens",
    "trained_rows",
    "trained_tokens",
    "trained_loss_tokens",
    "truncated_rows",
    "truncated_tokens",
    "dropped_rows",
    "dropped_tokens",
    "spelled_rows",
)


def read_pairs(path: Path) -> pl.DataFrame:
    """The pairs [id: str, prompt, chosen, rejected: list[struct{role, content}]] of a Parquet file,
    in order. Raises UserError naming the file and what is wrong with it."""
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as preference pairs ({first_line(error)}); make them again."
        ) from error
    if missing := {"id", *COLUMNS} - set(frame.columns):
        raise UserError(
            f"{path} has no column {' or '.join(sorted(missing))}; preference pairs need id, "
            "prompt, chosen and rejected (`magpie import --as preferences` writes them)."
        )
    if frame.is_empty():
        raise UserError(f"{path} holds no pairs, so there is nothing to train on.")
    return frame.select("id", *COLUMNS)


def prepare(job: Job, out: Path, *, processes: int) -> Ledger:
    """Tokenise the job's pairs, write pairs.arrow and ledger.json, and return the ledger.

    Does nothing when both are there for the same job. Rows of the ledger are pairs; tokens are
    those of both sequences of a pair (its prompt twice, as the model reads it), and reconcile:
    tokens = trained + truncated + dropped. Raises UserError for a pair that the template refuses,
    when too large a share would be cut, and when pairs_per_step is no multiple of what the devices
    take at once.
    """
    if (done := prepared(job, out, processes=processes)) is not None:
        return done
    counts = _tokenise(job, out / "scratch" / "pairs.arrow")
    check_cut(job.config, Path(job.selection), counts, "")
    ledger = {"key": _key(job, processes), **counts, **_steps(job, processes, counts)}
    write_atomic(out / "ledger.json", json.dumps(ledger, indent=2))
    return ledger


def prepared(job: Job, out: Path, *, processes: int) -> Ledger | None:
    """The ledger of an earlier `prepare` of the same job in `out`, or None."""
    if not (out / "ledger.json").exists() or not (out / "scratch" / "pairs.arrow").exists():
        return None
    ledger: Ledger = read_json(out / "ledger.json")
    return ledger if ledger["key"] == _key(job, processes) else None


def _key(job: Job, processes: int) -> str:
    chat = chats.choose(job.config, shared_tokenizer(job.base, job.config.revision))
    pairs = file_digest(Path(job.selection))
    return digest([VERSION, job, pairs, processes, chat.training, chat.inference])


def _tokenise(job: Job, path: Path) -> Ledger:
    """Write the pairs that are trained on to `path`, as an Arrow stream, which every process on a
    machine maps; returns what was counted over all of them."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    columns = {"id": pa.string(), "prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids}
    schema = pa.schema(list(columns.items()))
    totals = Counter[str]()
    longest = 0
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in _batches(job):
            trained = [row for row, _ in batch if row is not None]
            writer.write_batch(pa.RecordBatch.from_pylist(trained, schema))
            for _, counts in batch:
                longest = max(longest, counts.pop("longest", 0))
                totals.update(counts)
    return summed(totals, longest, _SUMS, _DROPPED)


def _batches(job: Job) -> Iterator[list[tuple[dict[str, Any] | None, Counter[str]]]]:
    """Every pair of the job, in order and in batches: its tokens (None: dropped), and what it
    counts for in the ledger."""
    source, config = Path(job.selection), job.config
    tokenizer = shared_tokenizer(job.base, config.revision)
    chat = chats.choose(config, tokenizer)
    knows = tools.knows_tools(tokenizer, chat.training)
    frame = read_pairs(source)
    first = [[*row["prompt"], *row["chosen"]] for row in frame.head(64).to_dicts()]
    shown = [tools.as_templates_take(talk) for talk in first if tools.unfit(talk, knows) is None]
    chats.agree(tokenizer, chat, shown)
    for part in frame.iter_slices(BATCH):
        rows = part.to_dicts()
        fit = [tools.unfit(_whole(row), knows) is None for row in rows]
        good = [row for row, fits in zip(rows, fit, strict=True) if fits]
        sides = [_encoded(good, side, tokenizer, chat.training, source) for side in COLUMNS[1:]]
        encoded = iter(zip(*sides, strict=True))
        batch: list[tuple[dict[str, Any] | None, Counter[str]]] = []
        for row, fits in zip(rows, fit, strict=True):
            if not fits:
                batch.append((None, Counter({"rows": 1, "dropped_rows": 1, tools.UNKNOWN: 1})))
                continue
            answers = sum(turn["role"] == "assistant" for turn in row["prompt"])
            chosen, rejected = next(encoded)
            tokens = _split(chosen, rejected, answers)
            kept, counts = _cut(tokens, config.max_length)
            counts["spelled_rows"] = int(spells_control(tokenizer, _whole(row)))
            batch.append(({"id": row["id"], **kept} if kept else None, counts))
        yield batch


def _whole(row: dict[str, Any]) -> Turns:
    """All turns of a pair, to ask something of them."""
    return [*row["prompt"], *row["chosen"], *row["rejected"]]


def _encoded(
    rows: Sequence[dict[str, Any]],
    side: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    source: Path,
) -> list[tuple[list[int], list[int]]]:
    """Token ids and mask of what the assistant wrote of each prompt with one of its answers. Raises
    UserError naming the pair that the template refuses."""
    talks = [tools.as_templates_take([*row["prompt"], *row[side]]) for row in rows]
    names = [f"pair {row['id']}, field {side}" for row in rows]
    return as_lists(encode(tokenizer, talks, template, source, names))


Encoded = tuple[list[int], list[int]]


def _split(chosen: Encoded, rejected: Encoded, answers: int) -> tuple[list[int], ...]:
    """(prompt, chosen answer, rejected answer) in tokens, from both conversations as `_encoded` has
    them; `answers`: turns of the assistant in the prompt. An answer that is empty where there is
    none.

    An answer begins where the assistant's turn behind the prompt does, and before that where the
    two prompts differ in tokens (text that merges with the last token of the prompt), and ends with
    its last supervised token: white space behind the end of turn is not the model's to write.
    """
    starts = [_start_of_run(mask, answers) for _, mask in (chosen, rejected)]
    alike = zip(chosen[0], rejected[0], strict=False)
    same = len(list(takewhile(lambda two: two[0] == two[1], alike)))
    start = min(*starts, same)
    ends = [len(mask) - mask[::-1].index(1) if 1 in mask else 0 for _, mask in (chosen, rejected)]
    return chosen[0][:start], chosen[0][start : ends[0]], rejected[0][start : ends[1]]


def _start_of_run(mask: list[int], number: int) -> int:
    """Where the run of ones begins before which there are `number` others; the end where there is
    none."""
    starts = [at for at, one in enumerate(mask) if one and not (at and mask[at - 1])]
    return starts[number] if number < len(starts) else len(mask)


def _cut(
    tokens: tuple[list[int], ...], length: int | None
) -> tuple[dict[str, list[int]] | None, Counter[str]]:
    """What is trained on of a pair (None: nothing), and what it counts for, by the ledger's names;
    `attended` is what its tokens attend to, in tokens."""
    prompt, *whole = tokens
    total = sum(len(prompt) + len(answer) for answer in whole)
    counts = Counter(rows=1, tokens=total, loss_tokens=sum(map(len, whole)))
    counts["longest"] = len(prompt) + max(map(len, whole))
    room = None if length is None else max(0, length - len(prompt))
    answers = [answer[:room] for answer in whole]
    reason = None
    if not all(whole):
        reason = NO_ANSWER
    elif not all(answers):
        reason = FULL
    elif answers[0] == answers[1]:
        reason = ALIKE
    if reason is not None:
        counts.update({"dropped_rows": 1, "dropped_tokens": total, reason: 1})
        return None, counts
    lengths = [len(prompt) + len(answer) for answer in answers]
    kept = sum(lengths)
    counts.update(trained_rows=1, trained_tokens=kept, trained_loss_tokens=sum(map(len, answers)))
    counts.update(attended=sum(n * (n + 1) // 2 for n in lengths))
    if kept < total:
        counts.update(truncated_rows=1, truncated_tokens=total - kept)
    return {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}, counts


def _steps(job: Job, processes: int, counts: Ledger) -> Ledger:
    """The gradient accumulation that brings the wanted pairs to one optimizer step."""
    assert isinstance(job.config, DpoConfig)
    accumulation = accumulation_of_pairs(job.config, processes)
    device = job.config.trainer_arguments().get("per_device_train_batch_size", 8)
    at_once = device * processes
    return {
        "gradient_accumulation_steps": accumulation,
        "pairs_per_step": at_once * accumulation,
        "steps_per_epoch": math.ceil(counts["trained_rows"] / (at_once * accumulation)),
    }
