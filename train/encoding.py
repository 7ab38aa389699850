"""Rendered conversations -> token ids and which of them the assistant wrote.

Most tokenizers today are byte-level: the tokens of a text are its bytes, all of them and in order.
Where in the text each one stands is then a running sum of their widths, and the tokenizer need not
work it out; of any other kind it is asked for it.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Span = tuple[int, int]
"""Characters [start, end) of a text."""

_NO_BYTES = -(2**20)
"""Width of a token that is not bytes of the text: no sum with it is the length of one."""


def rendered_spans(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Any], template: str
) -> tuple[list[str], list[list[Span]]]:
    """The text of each conversation under a chat template, and what of it generation markers
    enclose."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(
        list(conversations),
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return list(texts), list(spans)


def marked_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> list[tuple[Ids, Mask]]:
    """Token ids of each text, control tokens of it as such and none added, and whether each lies,
    with any character, in one of the text's spans. Raises UserError for a tokenizer that does not
    tell."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} cannot say which characters a token stands "
            "for: it has no tokenizer.json; save it as a fast one."
        )
    backend = tokenizer.backend_tokenizer
    # Other calls leave these as they needed them; set them only then, since nothing may be set
    # while another thread tokenises.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens:
        backend.encode_special_tokens = False
    widths = _widths(tokenizer)
    if widths is None:
        return _by_offsets(backend, texts, spans)
    encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    composes = backend.normalizer is not None
    rows: list[tuple[Ids, Mask]] = []
    for text, marked, each in zip(texts, spans, encoded, strict=True):
        ids = np.array(each.ids, dtype=np.int32)
        mask = _by_widths(widths[ids], text, marked, composes=composes)
        rows += _by_offsets(backend, [text], [marked]) if mask is None else [(ids, mask)]
    return rows


def as_lists(encoded: Sequence[tuple[Ids, Mask]]) -> list[tuple[list[int], list[int]]]:
    """Ids and masks (1 where true) as lists."""
    return [(ids.tolist(), mask.astype(int).tolist()) for ids, mask in encoded]


def _by_widths(widths: Ids, text: str, spans: Sequence[Span], *, composes: bool) -> Mask | None:
    """Which tokens of these widths (bytes) lie in the spans; None where they are not the bytes of
    the text. `composes`: the tokenizer reads the text in NFC."""
    plain = text.isascii()
    if composes and not plain and not unicodedata.is_normalized("NFC", text):
        return None
    ends = np.cumsum(widths)
    mask = np.zeros(len(widths), dtype=bool)
    size = len(text) if plain else len(text.encode())
    if int(widths.sum()) != size:
        return None
    for start, end in spans:
        if not plain:
            start, end = (len(text[:place].encode()) for place in (start, end))
        if start < end:
            first, last = np.searchsorted(ends, (start, end - 1), side="right")
            mask[first : last + 1] = True
    return mask


def _by_offsets(
    backend: Any, texts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> list[tuple[Ids, Mask]]:
    """As `marked_ids`, by the places that the tokenizer gives."""
    rows: list[tuple[Ids, Mask]] = []
    encoded = backend.encode_batch(list(texts), add_special_tokens=False)
    for marked, each in zip(spans, encoded, strict=True):
        starts, ends = np.array(each.offsets, dtype=np.int64).reshape(-1, 2).T
        mask = np.zeros(len(starts), dtype=bool)
        for start, end in marked:
            mask |= (starts < end) & (ends > start)
        rows.append((np.array(each.ids, dtype=np.int32), mask))
    return rows


@functools.lru_cache(maxsize=8)
def _widths(tokenizer: PreTrainedTokenizerBase) -> Ids | None:
    """How many bytes of a text each token is, by id; None for a tokenizer that is not byte-level or
    changes what it reads (but to NFC)."""
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.normalizer, NFC | None):
        return None
    letters = set(ByteLevel.alphabet())
    added = tokenizer.added_tokens_decoder
    vocabulary = backend.get_vocab(with_added_tokens=True)
    widths = np.full(max(vocabulary.values()) + 1, _NO_BYTES, dtype=np.int32)
    for token, number in vocabulary.items():
        if number in added:
            widths[number] = len(token.encode())
        elif letters.issuperset(token):
            widths[number] = len(token)
    # Some write a space before every text.
    alone = backend.encode("a", add_special_tokens=False).ids
    return widths if int(widths[alone].sum()) == 1 else None
