"""The published Magpie sets, and ShareGPT and TRL files, in and out.

Two namings are in use (input/output or instruction/response, uuid or conversation_id, gen_input_config or gen_input_configs) and two ways to write
a conversation (from/value or role/content); all are read, and nothing that a filter may name is lost. A label that is no label and a null
in a tag's column are that row's failed tag; a row without an instruction or a response is a failed row. Neither is dropped.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError
from core.store import digest, fsync_folder
from synth.config import CATEGORY, DIFFICULTY, QUALITY

BATCH = 10_000
"""Rows in memory at once."""

Form = Literal["23", "25", "sharegpt", "messages"]

# Our name -> (type, the names it goes by in published files).
_NAMES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "id": (pl.String, ("uuid", "conversation_id", "id")),
    "model": (pl.String, ("model",)),
    "gen_input_config": (pl.String, ("gen_input_config", "gen_input_configs")),
    "instruction": (pl.String, ("input", "instruction", "prompt")),
    "response": (pl.String, ("output", "response")),
    "task_category": (pl.String, ("task_category",)),
    "other_task_category": (pl.List(pl.String), ("other_task_category",)),
    "task_category_generator": (pl.String, ("task_category_generator",)),
    "difficulty": (pl.String, ("difficulty",)),
    "intent": (pl.String, ("intent",)),
    "knowledge": (pl.String, ("knowledge",)),
    "difficulty_generator": (pl.String, ("difficulty_generator",)),
    "input_quality": (pl.String, ("input_quality",)),
    "quality_explanation": (pl.String, ("quality_explanation",)),
    "quality_generator": (pl.String, ("quality_generator",)),
    "llama_guard_2": (pl.String, ("llama_guard_2",)),
    "reward_model": (pl.String, ("reward_model",)),
    "instruct_reward": (pl.Float64, ("instruct_reward",)),
    "base_output": (pl.String, ("base_output",)),
    "base_reward": (pl.Float64, ("base_reward",)),
    "reward_difference": (pl.Float64, ("reward_difference",)),
    "min_neighbor_distance": (pl.Float64, ("min_neighbor_distance",)),
    "repeat_count": (pl.Int64, ("repeat_count",)),
    "min_similar_id": (pl.String, ("min_similar_uuid", "min_similar_conversation_id", "min_similar_id")),
    "language": (pl.String, ("language",)),
}
_LABELS = {"input_quality": QUALITY, "difficulty": DIFFICULTY, "task_category": CATEGORY}
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_TROUBLE = pl.List(pl.Struct({"column": pl.String, "reason": pl.String}))
_ROW: dict[str, Any] = {"messages": _MESSAGES, "status": pl.String, "reason": pl.String, "failed_tags": _TROUBLE}


def read(source: str | Path | Sequence[str | Path], limit: int | None = None, *, batch: int = BATCH) -> Iterator[pl.DataFrame]:
    """Rows of a published set in our names, in batches, in the order of the file.

    `source`: Parquet, JSONL or JSON files, a folder of them, or a hub id (streamed). Yields frames with id, instruction, response, messages (the
    whole conversation; null when it is just that pair), every known column that the file has, status and reason of the row, and failed_tags (list
    of {column, reason}: unknown labels, which are null in their column). A row without an id gets one from its content.
    Raises UserError for a missing file, one that cannot be read, or one in which no instruction is to be found.
    """
    rows = _numbered(source)
    seen: set[str] = set()
    rows = islice(rows, limit) if limit is not None else rows
    while part := list(islice(rows, batch)):
        found = [_row(where, row, seen) for where, row in part]
        present = [name for name in _NAMES if any(name in row for row in found)]
        yield pl.DataFrame(found, schema={**{name: _NAMES[name][0] for name in present}, **_ROW}, strict=False)


def write(rows: pl.DataFrame | Iterable[pl.DataFrame], path: Path, form: Form) -> int:
    """Write rows to one Parquet or JSONL file (by its ending) in a published form; returns how many rows were written.

    `form`: "23" (Llama-3 v0.1 sets: input, output, base_*), "25" (later sets: instruction, response, *_generator, language), "sharegpt"
    (conversations of from/value) or "messages" (TRL). Failed rows are left out. The file appears when it is whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"cannot write {path}: the name must end in .parquet or .jsonl.")
    count, schema = 0, _arrow(form)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as handle:
        with pq.ParquetWriter(handle, schema) if path.suffix == ".parquet" else nullcontext() as writer:
            for frame in [rows] if isinstance(rows, pl.DataFrame) else rows:
                kept = frame.filter(pl.col("status") != FAILED) if "status" in frame.columns else frame
                made = [_published(row, schema.names, form) for row in kept.iter_rows(named=True)]
                count += len(made)
                if writer is None:
                    handle.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in made)
                else:
                    writer.write_table(pa.Table.from_pylist(made, schema=schema))
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
    return count


def _row(where: str, row: Mapping[str, Any], seen: set[str]) -> dict[str, Any]:
    """One published row in our names, with what is wrong with it."""
    ours: dict[str, Any] = {}
    for name, (_, aliases) in _NAMES.items():
        held = [alias for alias in aliases if alias in row]
        if held:
            ours[name] = next((row[alias] for alias in held if row[alias] is not None), None)
    if isinstance(ours.get("gen_input_config"), Mapping):
        ours["gen_input_config"] = json.dumps(ours["gen_input_config"], ensure_ascii=False)
    messages = _messages(row.get("conversations") or row.get("messages") or row.get("conversation"))
    for role, name in (("user", "instruction"), ("assistant", "response")):
        if not ours.get(name):
            ours[name] = next((m["content"] for m in messages if m["role"] == role), None)
    if [m["role"] for m in messages] not in ([], ["user", "assistant"]):
        ours["messages"] = messages
    ours["id"] = str(ours.get("id") or digest([ours["instruction"], ours["response"]])[:20])
    reason = next((f"no {name} ({where})" for name in ("instruction", "response") if not str(ours[name] or "").strip()), None)
    if ours["id"] in seen:
        reason, ours["id"] = f"the id {ours['id']} occurs twice ({where})", f"{ours['id']}#{where}"
    seen.add(ours["id"])
    trouble = []
    for name, labels in _LABELS.items():
        if ours.get(name) is not None and ours[name] not in labels:
            trouble.append({"column": name, "reason": f"unknown label {str(ours[name])[:40]!r}"})
            ours[name] = None
    if "min_similar_id" in ours and ours["min_similar_id"] is None and ours.get("repeat_count") == 0:
        ours["min_similar_id"] = ours["id"]  # ours is always filled; the published sets write null where there is no repeat
    return {**ours, "status": FAILED if reason else OK, "reason": reason, "failed_tags": trouble}


def _messages(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list):
        return []
    read: list[dict[str, str]] = []
    for turn in turns:
        if isinstance(turn, Mapping):
            role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
            if isinstance(content, str) and role in _ROLES:
                read.append({"role": _ROLES[role], "content": content})
    return read


def _published(row: Mapping[str, Any], names: Sequence[str], form: Form) -> dict[str, Any]:
    """One of our rows in a published form."""
    messages = row.get("messages") or [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
    if form == "messages":
        return {"id": row["id"], "messages": messages}
    turns = [{"from": _SPEAKERS[m["role"]], "value": m["content"]} for m in messages]
    if form == "sharegpt":
        return {"conversation_id": row["id"], "conversations": turns}
    lone = row.get("repeat_count") == 0 and row.get("min_similar_id") == row["id"]
    config = json.loads(row["gen_input_config"]) if row.get("gen_input_config") else {k: row.get(k) for k in ("temperature", "top_p")}
    lengths = [len(row["instruction"]), len(row["response"])]
    special = {
        "uuid": row["id"], "conversations": turns, "min_similar_uuid": None if lone else row.get("min_similar_id"),
        "gen_input_config": {k: config.get(k) for k in ("temperature", "top_p")}, "input": row["instruction"], "output": row["response"],
        "input_length": lengths[0], "output_length": lengths[1], "instruction_length": lengths[0], "response_length": lengths[1],
        "gen_input_configs": {k: config.get(k) for k in _CONFIG},
    }  # fmt: skip
    return {name: special.get(name, row.get(name)) for name in names}


_CONFIG = ("temperature", "top_p", "input_generator", "seed", "pre_query_template", "extract_input")


def _arrow(form: Form) -> Any:
    """The Arrow schema of a published form, columns in the order of the cards."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    turn = pa.list_(pa.struct([("from", text), ("value", text)]))
    if form == "messages":
        return pa.schema([("id", text), ("messages", pa.list_(pa.struct([("role", text), ("content", text)])))])
    if form == "sharegpt":
        return pa.schema([("conversation_id", text), ("conversations", turn)])
    config = [("temperature", number), ("top_p", number)]
    if form == "23":
        return pa.schema([
            ("uuid", text), ("model", text), ("gen_input_config", pa.struct(config)), ("input", text), ("output", text), ("conversations", turn),
            *[(n, text) for n in ("task_category", "difficulty", "intent", "knowledge", "input_quality", "quality_explanation", "llama_guard_2")],
            ("reward_model", text), ("instruct_reward", number), ("base_output", text), ("base_reward", number), ("reward_difference", number),
            ("min_neighbor_distance", number), ("repeat_count", whole), ("min_similar_uuid", text), ("input_length", whole), ("output_length", whole),
        ])  # fmt: skip
    later = [*config, ("input_generator", text), ("seed", whole), ("pre_query_template", text), ("extract_input", text)]
    return pa.schema([
        ("uuid", text), ("model", text), ("gen_input_configs", pa.struct(later)), ("instruction", text), ("response", text), ("conversations", turn),
        ("task_category", text), ("other_task_category", pa.list_(text)),
        *[(n, text) for n in ("task_category_generator", "difficulty", "intent", "knowledge", "difficulty_generator", "input_quality")],
        *[(n, text) for n in ("quality_explanation", "quality_generator", "llama_guard_2", "reward_model")],
        ("instruct_reward", number), ("min_neighbor_distance", number), ("repeat_count", whole), ("min_similar_uuid", text),
        ("instruction_length", whole), ("response_length", whole), ("language", text),
    ])  # fmt: skip


def _numbered(source: str | Path | Sequence[str | Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of every row of a source; the first row must hold an instruction or a conversation."""
    paths = [source] if isinstance(source, (str, Path)) else list(source)
    first = True
    for each in paths:
        path = Path(each).expanduser()
        if not path.exists():
            if isinstance(each, Path) or each.count("/") != 1 or each.startswith((".", "~", "/")):
                raise UserError(f"data file {each} does not exist; check the path.")
            rows: Iterator[tuple[str, dict[str, Any]]] = _hub(str(each))
        else:
            rows = (pair for file in _files(path) for pair in _file(file))
        for where, row in rows:
            if first:
                known = {*_NAMES["instruction"][1], "conversations", "conversation", "messages"}
                if not known & set(row):
                    wanted = ", ".join(sorted(known))
                    raise UserError(f"{where}: no instruction is to be found in the columns {', '.join(row)}; one of {wanted} is needed.")
                first = False
            yield where, row


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.name.endswith((".parquet", ".jsonl", ".jsonl.gz", ".json")) and not p.name.startswith("."))
    if not files:
        raise UserError(f"folder {path} holds no .parquet, .jsonl or .json file.")
    return files


def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            number = 0
            for part in pq.ParquetFile(path).iter_batches(batch_size=1000):
                for row in part.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as handle:
        try:
            if path.suffix == ".json":
                rows = json.load(handle)
                yield from ((f"{path.name} row {n}", row) for n, row in enumerate(rows, 1))
                return
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield f"{path.name} line {number}", _object(json.loads(line), path, number)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not valid JSON{'' if path.suffix == '.json' else ' Lines'}: {error}; repair or remove that line.") from error


def _object(value: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path} line {number} is JSON but no object; every line must be one row.")
    return value


def _hub(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True)
        yield from ((f"{name} row {n}", dict(row)) for n, row in enumerate(rows, 1))
    except Exception as error:  # the hub client's many ways to say that it cannot be reached
        raise UserError(f"data set {name} is neither a file here nor to be had from the hub: {str(error).splitlines()[0][:200]}") from error
