"""A selection -> packs of tokens that every process of a training maps, and a ledger of everything
that is cut, split or dropped on the way. Made once for a selection, whatever the seed and the
number of devices.

`make` writes, under `out`: `tokens.arrow` (one row a pack: input_ids, labels, seq_lengths, and the
ids of the rows that its pieces come from; -100 where no loss is borne; the last row is the filler
of `train.data.order`), `validation.arrow` (the same of the rows that are held out, where there are
any) and `ledger.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from core.errors import UserError
from core.files import file_digest, read_json, replacing, write_atomic
from core.models import tokenizer as shared_tokenizer
from core.store import digest
from core.tracking import Log
from train import chat as chats
from train.config import Job, TrainConfig
from train.data import tools
from train.data.order import FILLER_TOKENS, Steps, steps
from train.data.packs import Packs, pack
from train.data.parts import Documents, lists, processes_for, tokenise
from train.data.rows import (
    DROPPED,
    IGNORED,
    Rendering,
    check_cut,
    encoded_rows,
    plain,
    read_selection,
    rendered,
    summed,
)

VERSION = 2
PACKS_AT_ONCE = 128  # packs in a batch of the Arrow stream
Ledger = dict[str, Any]

LARGER = "use packing_strategy bfd_split, "
"""What else lets fewer tokens be cut."""

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


def determines(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what `make` writes, beside the selection and the tokenizer, whose
    own template is the training's where no other is named."""
    settings = config.trainer_arguments()
    named = {"training": config.chat_template_path, "inference": config.inference_template}
    return {
        "templates": {
            which: name and digest(chats.read(name, training=which == "training"))
            for which, name in named.items()
        },
        "max_length": config.max_length,
        "packing": _strategy(config),
        "assistant_only_loss": settings["assistant_only_loss"],
        "validation": config.validation,
        "VERSION": VERSION,
    }


def token_counts(selection: Path, tokenizer: str, template: str) -> pl.DataFrame:
    """[id: str, tokens: int] for each row of `selection`: its non-pad tokens under `template` (its
    text).

    `tokenizer` is a resolved model path. A token budget is a sum of these counts; nothing is
    truncated here.
    """
    frame = read_selection(selection)
    encoded = encoded_rows(frame, shared_tokenizer(tokenizer), template, selection)
    counts = [len(ids) for batch in encoded for _, ids, _ in batch]
    return pl.DataFrame({"id": frame["id"], "tokens": pl.Series(counts, dtype=pl.Int64)})


def make(config: TrainConfig, base: str, selection: Path, out: Path, log: Log) -> Ledger:
    """Tokenise and pack `selection` for a training of `base` (its resolved path) into `out`, and
    return the ledger; what is there already is kept.

    The ledger's rows and tokens are counted once an epoch; it reconciles: tokens = trained +
    truncated + dropped. `spelled_rows`: rows that spell control tokens, which are plain text to the
    model. Raises UserError for a bad row, when training and inference template differ on a row,
    when a supervised row does not end a turn, and when too large a share would be cut.
    """
    if (out / "ledger.json").exists():
        return read_ledger(out)
    frame = read_selection(selection)
    how, filler = _rendering(config, base, selection, frame)
    held = held_out(frame["id"], config.validation)
    parts = out / "parts"
    processes = processes_for(len(frame))
    log.say(f"tokenising {len(frame):,} rows in {processes} process(es)")
    trained = tokenise(
        frame.filter(~held), how, parts / "train", processes, lambda n: log.progress(n, len(frame))
    )
    counts = _counts(trained)
    check_cut(config, selection, counts, LARGER)
    ledger = {**counts, **_packed(config, trained, out / "tokens.arrow", filler)}
    if held.any():
        kept = tokenise(frame.filter(held), how, parts / "validation", 1)
        if not kept.counts["trained_rows"]:
            raise UserError(
                f"none of the {held.sum()} rows of {selection} that train.validation "
                f"{config.validation} holds out bears loss; raise the share, or set it to 0."
            )
        ledger["validation"] = _validation(config, kept, out / "validation.arrow", filler)
    write_atomic(out / "ledger.json", json.dumps(ledger, indent=2))
    shutil.rmtree(parts)
    return ledger


def read_ledger(out: Path) -> Ledger:
    """The ledger that was written into `out`."""
    ledger: Ledger = read_json(out / "ledger.json")
    return ledger


def prepare(job: Job, out: Path, *, processes: int) -> Ledger:
    """Make the job's tokens unless it has them, work out its steps on `processes` devices, and
    write OUT/ledger.json, which is returned: the ledger of `make`, and the steps. Does nothing when
    it is there for the same job. Raises UserError as `make` and `order.steps` do."""
    if (done := prepared(job, out, processes=processes)) is not None:
        return done
    folder = folder_of(job, out)
    if job.tokens is None:
        made = make(job.config, job.base, Path(job.selection), folder, Log())
    else:
        made = read_ledger(folder)
        check_cut(job.config, folder, made, LARGER)
    taken = steps_of(job.config, made, processes)
    a_pack = made["trained_tokens"] / made["packs"]
    ledger = {
        "key": _key(job, processes),
        **made,
        "packs_per_step": taken.packs_per_step,
        "tokens_per_step": round(a_pack * taken.packs_per_step),
        "gradient_accumulation_steps": taken.accumulation,
        "steps_per_epoch": taken.steps_per_epoch,
        "idle_share": taken.waste,
    }
    write_atomic(out / "ledger.json", json.dumps(ledger, indent=2))
    return ledger


def prepared(job: Job, out: Path, *, processes: int) -> Ledger | None:
    """The ledger of an earlier `prepare` of the same job in `out`, or None."""
    if not (out / "ledger.json").exists() or not (folder_of(job, out) / "tokens.arrow").exists():
        return None
    ledger = read_ledger(out)
    return ledger if ledger["key"] == _key(job, processes) else None


def folder_of(job: Job, out: Path) -> Path:
    """Where the job's tokens are: made before it, or below its own folder."""
    if job.tokens is not None:
        return Path(job.tokens)
    selection = Path(job.selection)
    if not selection.is_file():
        raise UserError(f"{selection} is not there to be trained on; build the selection again.")
    content = digest([file_digest(selection), job.base, determines(job.config)])
    return out / "scratch" / f"tokens-{content[:16]}"


def steps_of(config: TrainConfig, ledger: Ledger, devices: int) -> Steps:
    """How the packs of a ledger of `make` are trained on."""
    settings = config.trainer_arguments()
    micro_batch = settings.get("per_device_train_batch_size", 8)
    accumulation = settings.get("gradient_accumulation_steps", 1)
    passes = (devices, micro_batch, accumulation)
    return steps(ledger["packs"], ledger["trained_tokens"], config.tokens_per_step, passes)


def _key(job: Job, processes: int) -> str:
    return digest([VERSION, job, processes])


def held_out(ids: pl.Series, share: float) -> pl.Series:
    """Which rows are held out of training for its validation loss: the `share` of them whose ids
    hash lowest, so that arms and seeds which share rows hold out the same ones. Never all, and at
    least one where the share is not 0."""
    if not share or len(ids) < 2:
        return pl.repeat(False, len(ids), dtype=pl.Boolean, eager=True)
    wanted = min(len(ids) - 1, math.ceil(share * len(ids)))
    ranks = pl.Series([hashlib.sha256(f"validation {each}".encode()).hexdigest() for each in ids])
    return ranks.rank("ordinal") <= wanted


def _rendering(
    config: TrainConfig, base: str, selection: Path, frame: pl.DataFrame
) -> tuple[Rendering, int]:
    """How rows are tokenised, its templates checked on the first of them, and the token that fills
    packs without loss."""

    tokenizer = shared_tokenizer(base, config.revision)
    chat = chats.choose(config, tokenizer)
    knows = all(tools.knows_tools(tokenizer, each) for each in (chat.training, chat.inference))
    first = [m for m in frame["messages"].head(64) if knows or not tools.has_tools(plain(m))]
    chats.agree(tokenizer, chat, [rendered(messages) for messages in first])
    how = Rendering(
        tokenizer=base,
        revision=config.revision,
        template=chat.training,
        end_of_turn=chat.end_of_turn,
        assistant_only=config.trainer_arguments()["assistant_only_loss"],
        max_length=config.max_length,
        splits=_strategy(config) in ("bfd_split", "wrapped"),
        source=str(selection),
    )
    return how, chats.padding(tokenizer, chat)


def _strategy(config: TrainConfig) -> str:
    """How documents share packs: SFTConfig's packing_strategy, or `alone` where nothing is
    packed."""
    settings = config.trainer_arguments()
    return str(settings["packing_strategy"]) if settings["packing"] else "alone"


def _counts(documents: Documents) -> Ledger:
    """What all rows count for, by the ledger's names."""
    return summed(documents.counts, documents.longest, _SUMS, DROPPED)


def _packed(config: TrainConfig, documents: Documents, path: Path, filler: int) -> Ledger:
    """Pack and write documents; how many packs there are, and how full (a fraction, 0 to 1)."""
    lengths = np.array([len(each) for each in documents.input_ids], dtype=np.int64)
    packs = pack(lengths, config.max_length, _strategy(config))
    _write(path, documents, packs, filler)
    tokens = int(packs.lengths.sum())
    full = len(packs) * (config.max_length or int(lengths.max(initial=1)))
    return {"packs": len(packs), "packing_efficiency": tokens / full}


def _validation(config: TrainConfig, documents: Documents, path: Path, filler: int) -> Ledger:
    """Pack and write the rows that are held out, and count them."""
    names = ("rows", "tokens", "loss_tokens")
    counts = {name: documents.counts[f"trained_{name}"] for name in names}
    return {**counts, "packs": _packed(config, documents, path, filler)["packs"]}


def _write(path: Path, documents: Documents, packs: Packs, filler: int) -> None:
    """Write packs as an Arrow stream, which every process on a machine maps instead of loading; the
    filler is its last row."""
    ids = pa.list_(pa.int32())
    columns = {"input_ids": ids, "labels": ids, "seq_lengths": ids, "ids": pa.list_(pa.string())}
    schema = pa.schema(list(columns.items()))
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for batch in _batches(documents, packs):
            writer.write_batch(pa.RecordBatch.from_arrays(batch, schema=schema))
        blank = [np.full(FILLER_TOKENS, value, np.int32) for value in (filler, IGNORED)]
        row = [*(lists([each]) for each in blank), lists([np.array([FILLER_TOKENS], np.int32)])]
        row.append(pa.array([[]], pa.list_(pa.string())))
        writer.write_batch(pa.RecordBatch.from_arrays(row, schema=schema))


def _batches(documents: Documents, packs: Packs) -> Iterator[list[pa.Array]]:
    """Columns of some packs at a time."""
    for first in range(0, len(packs), PACKS_AT_ONCE):
        some = [packs.pieces(p) for p in range(first, min(first + PACKS_AT_ONCE, len(packs)))]
        yield [
            lists([_joined(documents.input_ids, packs, pieces) for pieces in some]),
            lists([_joined(documents.labels, packs, pieces) for pieces in some]),
            lists([packs.lengths[pieces].astype(np.int32) for pieces in some]),
            pa.array([_ids(documents, packs, pieces) for pieces in some], pa.list_(pa.string())),
        ]


def _ids(documents: Documents, packs: Packs, pieces: slice) -> list[str]:
    return [documents.ids[document] for document in packs.documents[pieces]]


def _joined(values: list[Any], packs: Packs, pieces: slice) -> Any:
    """The tokens (or labels) of a pack."""
    each = zip(packs.documents[pieces], packs.starts[pieces], packs.lengths[pieces], strict=True)
    return np.concatenate([values[document][start : start + n] for document, start, n in each])
