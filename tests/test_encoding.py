"""Token ids and masks of rendered conversations, by widths of tokens and by the tokenizer's own
places: those that transformers gives, of any kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from core.errors import UserError
from synth.chat.encoding import pair
from tests import tiny
from train import chat, encoding

TEMPLATE = chat.read("chatml", training=True)
TEXTS = (
    "It is 4.",
    " begins with a space",
    "\n\ntwo lines\n",
    "Wörter, 你好 — `x < y` 👩‍👩‍👧 e\u0301 \u1e9b\u0323",
    "",
    "🙂",
    "a" * 300,
)
ROWS = [pair(question, answer) for question in TEXTS[:4] for answer in TEXTS]


def byte_level(**settings: Any) -> Any:
    """The tiny byte-level tokenizer, its backend changed as `settings` say."""
    words = tiny.tokenizer()
    for name, value in settings.items():
        setattr(words.backend_tokenizer, name, value)
    return words


def sentence_piece() -> Any:
    """A tokenizer of characters that writes spaces as U+2581, as SentencePiece's kind does."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted({*"".join(TEXTS + TEXTS), *"user assistant system\u2581\n"})
    vocabulary = {"<unk>": 0, **{letter: n + 1 for n, letter in enumerate(letters)}}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Replace("\u2581", " ")
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def stripping() -> Any:
    """One whose end of turn swallows the white space before it."""
    words = tiny.tokenizer()
    words.add_tokens([AddedToken("4.", lstrip=True, rstrip=True)])
    return words


KINDS = {
    "byte-level": (byte_level, True),
    "to NFC": (lambda: byte_level(normalizer=normalizers.NFC()), True),
    "to lower case": (lambda: byte_level(normalizer=normalizers.Lowercase()), False),
    "with a space of its own": (
        lambda: byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        False,
    ),
    "swallowing spaces": (stripping, True),
    "SentencePiece": (sentence_piece, False),
}
"""A tokenizer of each kind, and whether widths of its tokens are known."""


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_masks_are_those_of_transformers(kind: str) -> None:
    make, known = KINDS[kind]
    words = make()
    theirs = words.apply_chat_template(
        ROWS, chat_template=TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = chat.encode(words, ROWS, TEMPLATE)
    assert [ids for ids, _ in ours] == theirs["input_ids"]
    masks = [mask for _, mask in ours]
    assert masks == theirs["assistant_masks"]
    assert all(0 < sum(mask) < len(mask) for mask in masks)
    assert (encoding._widths(words) is not None) == known


def test_what_another_call_left_in_the_tokenizer_changes_nothing() -> None:
    words = tiny.tokenizer()
    whole = chat.encode(words, ROWS, TEMPLATE)
    words.pad_token = "<|im_end|>"
    words([TEXTS[0], TEXTS[1]], truncation=True, max_length=5, padding=True)
    words(TEXTS[0], split_special_tokens=True)
    assert chat.encode(words, ROWS, TEMPLATE) == whole


def test_a_tokenizer_that_gives_no_places_is_a_sentence() -> None:
    class Slow:
        is_fast, name_or_path = False, "some/base"

    with pytest.raises(UserError, match="some/base cannot say which characters"):
        encoding.marked_ids(Slow(), ["a"], [[(0, 1)]])  # type: ignore[arg-type]
