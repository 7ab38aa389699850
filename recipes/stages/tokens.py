"""Conversations of the pool, what they digest to, and how many tokens of the student they are."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.cells.damage import hurt, mends, set_aside
from core.columns import MESSAGES, OK, Column
from core.errors import UserError
from core.files import write_atomic
from core.models import Model
from core.store import canonical, digest
from recipes.stages.walk import Arms
from synth.context import Conversation, Resolve, Student
from synth.pool.pool import SLICE, Pool
from synth.pool.short_columns import Lean, conversations_digest
from synth.published.rows import parquet_file
from train.config import TrainConfig

TEXTS = ("instruction", "response", "messages")


@dataclass(frozen=True)
class Conversations:
    """Conversations of rows of a pool's frame, in the order of `rows`; their texts are read slice
    by slice, by whoever needs them."""

    pool: Pool
    rows: pl.DataFrame

    @classmethod
    def of(cls, pool: Pool, frame: pl.DataFrame, ids: Sequence[str]) -> Conversations:
        """Those of these ids, in their order."""
        wanted = pl.DataFrame({"id": ids}, schema={"id": pl.String})
        return cls(pool, wanted.join(frame, on="id", how="left", maintain_order="left"))

    def slices(self) -> Iterator[pl.DataFrame]:
        """[id, messages], slice by slice; one slice, without rows, where there are none."""
        for top in range(0, max(len(self.rows), 1), SLICE):
            yield as_messages(self.pool.with_texts(self.rows.slice(top, SLICE), TEXTS))

    @cached_property
    def known_as(self) -> str:
        """What they are known by while no text is read: equal only where all texts are."""
        return conversations_digest(self.rows)


Rows = pl.DataFrame | Conversations
"""Conversations [id, messages] in order, at hand or in the pool."""


def write_rows(rows: Rows, path: Path) -> int:
    """Write conversations to one Parquet file; returns how many."""
    if isinstance(rows, pl.DataFrame):
        rows.write_parquet(path)
        return len(rows)
    with parquet_file(path, "zstd") as add:
        for part in rows.slices():
            add(part.to_arrow())
    return len(rows.rows)


@dataclass(frozen=True)
class Contents:
    """What selections from pools hold, `ROOT/selections/KNOWN_AS`: the digest of their texts by
    that of the ids and digests that tell them. So neither a plan nor a run that changes nothing
    reads a text."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self.root / "selections"

    def find(self, known_as: str) -> str | None:
        """The content of the selection that is known so; None where nobody has read it yet."""
        with suppress(FileNotFoundError):
            return self._read(self.folder / known_as[:32])
        return None

    def keep(self, known_as: str, content: str) -> None:
        """Remember a content."""
        name = known_as[:32]
        write_atomic(self.folder / name, f"{content} {_check(name, content)}")

    def all(self) -> set[str | None]:
        """Every content that is remembered."""
        return {self._read(path) for path in self.folder.glob("[0-9a-f]*")}

    def _read(self, path: Path) -> str | None:
        """What a file holds; None where that is no digest, or was changed since."""
        text = ""
        try:
            text = path.read_text(errors="replace")
        except IsADirectoryError:
            if mends():
                set_aside(path, self.root)
        content, _, check = text.partition(" ")
        # what was kept of before has no check
        if re.fullmatch("[0-9a-f]{64}", content) and check in ("", _check(path.name, content)):
            return content
        hurt(path, "was changed after it was made; the texts that it tells of are read again")
        return None


def _check(name: str, content: str) -> str:
    """What ends a file of this name that holds this content."""
    return hashlib.sha256(f"{name} {content}".encode()).hexdigest()[:16]


def as_messages(rows: pl.DataFrame) -> pl.DataFrame:
    """[id, messages] of rows [id, instruction, response, messages]: the whole conversation where
    there is one, else the pair."""
    turns = [
        pl.struct(pl.lit(role).alias("role"), pl.col(name).alias("content"))
        for role, name in (("user", "instruction"), ("assistant", "response"))
    ]
    whole = pl.col("messages")
    if rows.schema["messages"] != MESSAGES:
        whole = pl.lit(None, MESSAGES)
    return rows.select("id", pl.coalesce(whole, pl.concat_list(turns)).alias("messages"))


def rows_digest(rows: pl.DataFrame | Iterable[pl.DataFrame]) -> str:
    """Digest of an ordered list of conversations [id, messages], which may come in slices: what a
    selection is, whatever rule chose it."""
    slices = [rows] if isinstance(rows, pl.DataFrame) else rows
    each = itertools.chain.from_iterable(part.iter_rows(named=True) for part in slices)
    # The canonical form of one list, piece by piece.
    seen, mark = hashlib.sha256(b"["), b""
    for row in each:
        seen.update(mark + canonical([row["id"], digest(row["messages"])]).encode())
        mark = b","
    seen.update(b"]")
    return seen.hexdigest()


@dataclass
class TokenCounts:
    """The student's tokens of rows of a pool, counted once a row and text: kept in a column of the
    store. Without `count` (in a plan) nothing is counted, and `uncounted` says how many rows would
    have been: theirs are estimates."""

    pool: Pool
    column: Column
    count: Callable[[pl.DataFrame], dict[str, int]] | None
    uncounted: int = 0

    def __call__(self, frame: pl.DataFrame) -> pl.Series:
        """Of each row of the pool's frame; null where there is no response."""
        known = self._known(frame)
        missing = known["tokens"].is_null() & (frame["status:response"] == OK)
        if self.count is None or not missing.any():
            self.uncounted = int(missing.sum())
            return known["tokens"]
        fresh, of = frame.filter(missing), known.filter(missing).select("id", "of")
        for part in Conversations(self.pool, fresh).slices():
            counted = self.count(part)
            tokens = pl.DataFrame({"id": list(counted), "tokens": list(counted.values())})
            self.column.append(tokens.join(of, on="id", how="left"))
        self.column.cut()
        return self._known(frame)["tokens"]

    def _known(self, frame: pl.DataFrame) -> pl.DataFrame:
        """[id, of, tokens] of these rows."""
        of = pl.col("of_pair")
        if "of_messages" in frame.columns:  # a conversation that grew is counted anew
            of = pl.coalesce("of_messages", of)
        cells = self._cells.read().select("id", "of", "tokens")
        rows = frame.select("id", of=of)
        return rows.join(cells, on=["id", "of"], how="left", maintain_order="left")

    @cached_property
    def _cells(self) -> Lean:
        return Lean(self.column, lambda part: part)


def token_counter(
    train: TrainConfig | None, arms: Arms, pool: Pool, resolve: Resolve, *, planning: bool = False
) -> TokenCounts | None:
    """Counts the student's tokens of each row of a pool frame with the student's chat template, in
    a plan as far as they were counted before; None where no arm has a budget in tokens."""
    from train import chat
    from train.data import tokens as data

    budgets = [rule.budget for rule in arms.rules.values() if rule.budget]
    if train is None or not any(budget.tokens for budget in budgets):
        return None
    base, template = resolve(train.base, train.revision), train.chat_template_path
    determines = {
        "base": base.determines,
        "template": template and digest(chat.read(template, training=True)),
        "VERSION": data.VERSION,
    }
    fields = {"of": pl.String(), "tokens": pl.Int64()}
    column = Column.open(pool.root, "student_tokens", determines, fields)
    return TokenCounts(pool, column, None if planning else partial(count_tokens, train, base))


def student_of(train: TrainConfig | None, arms: Arms, resolve: Resolve) -> Student | None:
    """The model that is fine-tuned, as its training renders rows; None where nothing is trained or
    no arm ranks rows by it."""
    rules = [*arms.rules.values(), *arms.data.values()]
    asked = any("fit" in rule.columns or rule.choose.choice.waits for rule in rules)
    return student(train, resolve) if train is not None and asked else None


def student(train: TrainConfig, resolve: Resolve) -> Student:
    """What `train` fine-tunes, and how. Raises UserError where it has no training template."""
    from core.models import tokenizer
    from train import chat

    base = resolve(train.base, train.revision)
    own = tokenizer(base.path, base.commit)
    template = chat.choose(train, own).training
    everything = not train.trainer_arguments()["assistant_only_loss"]
    determines: dict[str, Any] = {"template": digest(template)[:16]}
    if everything:
        determines["supervised"] = "all"

    def encode(conversations: Sequence[Conversation]) -> list[tuple[list[int], list[int]]]:
        plain = (map(dict, each) for each in conversations)
        encoded = chat.encode(own, list(map(list, plain)), template)
        return [(ids, [1] * len(ids) if everything else mask) for ids, mask in encoded]

    return Student(train.base, train.revision, determines, encode)


def count_tokens(config: TrainConfig, base: Model, rows: pl.DataFrame) -> dict[str, int]:
    """Non-pad tokens of conversations [id, messages] under the student's chat template, by id;
    `base` is it."""
    from core.models import text_folder, tokenizer
    from train import chat
    from train.data import tokens as data

    with TemporaryDirectory() as folder:
        path = Path(folder) / "selection.parquet"
        rows.write_parquet(path)
        template = chat.choose(config, tokenizer(base.path, base.commit)).training
        counted = data.token_counts(path, str(text_folder(base)), template)
    return dict(counted.select("id", "tokens").iter_rows())


def counting(
    train: TrainConfig | None, resolve: Resolve
) -> tuple[Callable[[pl.DataFrame], dict[str, int]], Any]:
    """What counts the student's tokens of conversations [id, messages], by id, and what determines
    its figures, as long as nothing is counted. Without a training it raises UserError."""

    def count(rows: pl.DataFrame) -> dict[str, int]:
        if train is None:
            raise UserError(
                "a budget in tokens needs the student's tokenizer and chat template (`train`); "
                "give the budget in rows instead."
            )
        return count_tokens(train, resolve(train.base, train.revision), rows)

    if train is None:
        return count, None
    return count, [train.base, train.revision, train.chat_template_path]


def knows_tools(config: TrainConfig, resolve: Resolve) -> bool:
    """Whether the student's chat templates, for training and inference, write out tool turns."""
    from core.models import tokenizer
    from train import chat
    from train.data import tools

    base = resolve(config.base, config.revision)
    own = tokenizer(base.path, base.commit)
    chosen = chat.choose(config, own)
    return all(tools.knows_tools(own, each) for each in (chosen.training, chosen.inference))
