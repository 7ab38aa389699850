"""What `magpie filter` compares rows by: embeddings of their instructions, hidden states of their
conversations. Both are kept in the cache folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.cells.damage import Damage
from core.errors import UserError
from core.files import cache_folder
from recipes.schema import load
from synth.measures import SHIPPED, Measures
from synth.published import chosen_rows
from synth.tags.asking import own


@dataclass(frozen=True)
class Models:
    """What some filters need a model for."""

    embedding: str | None = None
    """Embeds instructions, for choices by likeness."""
    student: str | None = None
    """Its tokenizer and chat template count a budget in tokens."""
    chat_template_path: str | None = None
    """The student's chat template, where it has none."""
    recipe: str | None = None
    """A recipe whose own columns (`synth.tags.own`) the filters may name."""

    @property
    def measures(self) -> Measures:
        """What the filters may name columns of."""
        return own.measures(load(self.recipe).recipe.synth.tags) if self.recipe else SHIPPED


_MENDED = Damage(partial(print, file=sys.stderr), moves=True)
"""Vectors of the cache folder that are damaged are made again at once."""

NO_MODELS = Models()
"""Where none is named."""


class Embedder:
    """Embeddings of a data set's instructions, kept in the cache folder."""

    def __init__(self, source: str | Path, ids: pl.Series, model: str) -> None:
        self.source, self.ids, self.model = source, ids, model

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each id stands, the first time."""
        return {name: place for place, name in reversed(list(enumerate(self.ids)))}

    def __call__(self, ids: pl.Series) -> NDArray[np.float32]:
        """float32 [len(ids), d], of unit length."""
        distinct, back = np.unique([self.places[name] for name in ids], return_inverse=True)
        rows = pl.Series(distinct)
        texts = chosen_rows.texts(self.source, rows)
        return self._vectors(self.ids.gather(rows).to_list(), texts)[back]

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts (labels), float32 [n, d]."""
        return self._vectors(texts, texts)

    def _vectors(self, names: Sequence[str], texts: Iterable[str | None]) -> NDArray[np.float32]:
        from core.models import resolve
        from synth.duplicates import embeddings

        with _MENDED.noted():
            return embeddings.vectors(cache_folder(), names, texts, resolve(self.model, None))


class Comparer:
    """Hidden states of a data set's conversations and of queries, kept in the cache folder."""

    def __init__(self, source: str | Path, ids: pl.Series, models: Models) -> None:
        self.source, self.ids, self.models = source, ids, models

    def __call__(
        self, ids: pl.Series, queries: Path
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """float32 [len(ids), d] and [queries, d], of unit length."""
        from core.models import resolve
        from recipes.stages.tokens import student
        from synth.tags.scores.hidden_states import compared
        from synth.tags.scores.queries import read_queries
        from train.config import TrainConfig

        if self.models.student is None:
            raise UserError("rds needs --student MODEL: it compares that model's hidden states.")
        template = self.models.chat_template_path
        config = TrainConfig(base=self.models.student, chat_template_path=template)
        names = self.ids.filter(self.ids.is_in(ids.implode())).to_list()
        with redirect_stdout(sys.stderr), _MENDED.noted():
            trained, asked = student(config, resolve), read_queries(queries)
            pairs = self._pairs(set(names))
            rows, of_queries = compared(cache_folder(), names, pairs, asked, trained, resolve)
        place = {name: at for at, name in enumerate(names)}
        return rows[[place[name] for name in ids]], of_queries

    def _pairs(self, names: set[str]) -> Iterator[list[dict[str, str]]]:
        """The conversations of these ids, in the order of the source."""
        from synth.chat.encoding import pair
        from synth.published import rows

        left = set(names)
        for batch in rows.read(self.source):
            for name, *texts in batch.select("id", "instruction", "response").iter_rows():
                if name in left:
                    left.remove(name)
                    yield pair(*texts)
