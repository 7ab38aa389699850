"""Control tokens: which ids they are, and texts that spell them, which must reach a model as those
characters.

Model output is hostile text. A spelled `<|im_end|>` inside a message is hidden behind a placeholder
while the chat template is rendered, and tokenised as plain text afterwards, so that only the
template's own control tokens are control tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from core.store import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Added tokens that are markup without being flagged as special (DeepSeek's <｜User｜>); think tags
# are content, not headers.
_MARKUP = re.compile(r"^(<[^<>\s]+>|\[[^\[\]\s]+\])$")


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Ids of the control tokens by their text: those flagged special, and added markup such as
    <｜User｜>; think tags are content."""
    return {
        str(token.content): int(i)
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip()
        and (token.special or (_MARKUP.match(token.content) and "think" not in token.content))
    }


def shield(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Messages with every spelled control token replaced by a placeholder word, and what each
    placeholder stands for."""
    spelled = _spelled(tokenizer)
    nonce = "Zq" + digest([message["content"] for message in messages])[:20]
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        placeholder = f"{nonce}n{len(hidden)}e"
        hidden[placeholder] = match.group()
        return placeholder

    shielded = [{**m, "content": spelled.sub(hide, m["content"])} for m in messages]
    return shielded, hidden


def encode(tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str]) -> list[int]:
    """Ids of rendered text in which placeholders stand for spelled control tokens."""
    ids: list[int] = []
    for piece in re.split(f"({_any_of(hidden).pattern})", text):
        if piece in hidden:
            ids += _spelled_ids(tokenizer, hidden[piece])
        elif piece:
            ids += trusted_ids(tokenizer, piece)
    return ids


def trusted_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which control tokens are control tokens, without a BOS of the
    tokenizer's own."""
    return list(map(int, tokenizer(text, add_special_tokens=False)["input_ids"]))


def hostile_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` in which no added token (control tokens, `<think>` and its like) occurs,
    whatever the text says. Raises ValueError where that cannot be.

    Tokenizers match added tokens in raw text before anything else, and `split_special_tokens`
    covers only those flagged special. So the text is cut inside every occurrence of an added token
    and the fragments are tokenised on their own. Added white space is harmless.
    """
    added, names = _added_tokens(tokenizer)
    ids: list[int] = []
    for fragment in _cut(text, names):
        ids += _plain_ids(tokenizer, fragment)
    if added.intersection(ids):
        raise ValueError("a control token of the judge's tokenizer cannot be written as plain text")
    return ids


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which tokens that are flagged special are plain characters."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(map(int, encoded["input_ids"]))


def _spelled_ids(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    """Ids of the characters of a control token."""
    ids = _plain_ids(tokenizer, token)
    if not set(control_tokens(tokenizer).values()).intersection(ids):
        return ids
    # Added markup is matched even so; halves of it are not.
    middle = len(token) // 2
    return trusted_ids(tokenizer, token[:middle]) + trusted_ids(tokenizer, token[middle:])


def _cut(text: str, names: re.Pattern[str]) -> Iterator[str]:
    """Cut `text` after the first character of each match until no fragment holds one."""
    start = 0
    while match := names.search(text, start):
        yield text[start : match.start() + 1]
        start = match.start() + 1
    if start < len(text):
        yield text[start:]


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these words, the longest first; of none, nothing."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@functools.lru_cache(maxsize=8)
def _spelled(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds control tokens that are spelled in a text."""
    return _any_of(control_tokens(tokenizer))


@functools.lru_cache(maxsize=8)
def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], re.Pattern[str]]:
    """Ids of the added tokens of more than one character, and what finds them in a text."""
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.strip()) > 1
    }
    return frozenset(added.values()), _any_of(added)
