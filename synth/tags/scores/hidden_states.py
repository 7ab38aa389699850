"""What a language model holds of a conversation, as one vector (RDS+, Ivison et al., arXiv
2503.01807, after SGPT, arXiv 2202.08904):

    the mean of the last layer's hidden states over positions t = 1 ... T,
    with weights t / (1 + ... + T), of unit length

Conversations are rendered as the recipe's training renders them, and cut after MAX_TOKENS as in the
published code, which renders them in Tulu's format. Vectors are kept in the store: a conversation
is read once by a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.models import Model, folder
from core.store import digest
from synth.context import Conversation, Resolve, Student
from synth.duplicates import embeddings
from synth.duplicates.blocks import Vectors

VERSION = 1
"""Part of the key of such vectors."""
MAX_TOKENS = 2_048
BATCH_TOKENS = 16_384
"""Tokens that the model takes at a time, padding included."""


def compared(
    root: Path,
    names: Sequence[str],
    conversations: Iterable[Conversation],
    queries: Sequence[Conversation],
    student: Student,
    resolve: Resolve,
) -> tuple[Vectors, Vectors]:
    """Unit vectors of conversations, float32 [len(names), d], and of queries; `root` is the store's
    folder. Raises UserError when the model cannot be loaded."""
    model = resolve(student.base, student.revision)
    known = digest([model.determines, student.determines, MAX_TOKENS, VERSION])
    kept = Model(f"hidden states of {model.name}", model.path, f"hidden-states-{known}")
    states = HiddenStates(model, student)
    numbers = [str(number) for number in range(len(queries))]
    of_queries = embeddings.vectors(root, numbers, map(_text, queries), kept, service=states)
    rows = embeddings.vectors(root, names, map(_text, conversations), kept, service=states)
    return rows, of_queries


def _text(conversation: Conversation) -> str:
    return json.dumps([[m["role"], m["content"]] for m in conversation], ensure_ascii=False)


class HiddenStates:
    """The model that reads conversations, loaded when the first is read."""

    def __init__(self, model: Model, student: Student) -> None:
        self.model, self.student = model, student
        self._loaded: Any = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Nothing has to be opened."""
        yield

    def stored(self) -> None:
        """Nothing has to be done once vectors are stored."""

    def encode(self, texts: list[str]) -> NDArray[np.float64]:
        """Vectors of conversations (JSON), float64 [n, d], not of unit length."""
        turns = [json.loads(text) for text in texts]
        conversations = [_messages(each) for each in turns]
        ids = [each[0][:MAX_TOKENS] for each in self.student.encode(conversations)]
        made: dict[int, NDArray[np.float64]] = {}
        for batch in _batches([len(each) for each in ids]):
            states = self._weighted([ids[at] for at in batch])
            made |= dict(zip(batch, states, strict=True))
        return np.array([made[at] for at in range(len(ids))])

    def _weighted(self, batch: list[list[int]]) -> NDArray[np.float64]:
        """The weighted mean of the hidden states of each row of tokens."""
        import torch

        model = self._model()
        longest = max(map(len, batch))
        padded = [each + [0] * (longest - len(each)) for each in batch]
        ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(each) for each in batch], device=model.device)
        place = torch.arange(1, longest + 1, device=model.device)
        mask = place <= lengths[:, None]
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = (place * mask).double()
        weights /= weights.sum(1, keepdim=True)
        mean = torch.einsum("bt,btd->bd", weights, states.double())
        vectors: NDArray[np.float64] = mean.cpu().numpy()
        return vectors

    def _model(self) -> Any:
        """The model without its head, on a GPU where there is one."""
        if self._loaded is None:
            import torch
            from transformers import AutoModel

            device, kind = "cpu", torch.float32
            if torch.cuda.is_available():
                device, kind = "cuda", torch.bfloat16
            here = folder(self.model)
            try:
                self._loaded = AutoModel.from_pretrained(here, dtype=kind)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{self.model.name} cannot be loaded: {reason}") from error
            self._loaded = self._loaded.to(device).eval()
        return self._loaded


def _messages(turns: list[list[str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts of like length, so many that their padded tokens fit."""
    batch: list[int] = []
    for at in np.argsort(lengths, kind="stable").tolist():
        if batch and lengths[at] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
