"""Control tokens: which ids they are, and texts that spell them, which must reach a model as those
characters.

Model output is hostile text. A spelled `<|im_end|>` inside a message is hidden behind a placeholder
while the chat template is rendered, and tokenised as plain text afterwards, so that only the
template's own control tokens are control tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from core.store import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from collections.abc import Iterable

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
    pattern = _spelled(tokenizer)
    hidden: dict[str, str] = {}
    nonce = ""

    def hide(match: re.Match[str]) -> str:
        nonlocal nonce
        nonce = nonce or "Zq" + digest([m["content"] for m in messages])[:20]
        placeholder = f"{nonce}n{len(hidden)}e"
        hidden[placeholder] = match.group()
        return placeholder

    return [{**m, "content": pattern.sub(hide, m["content"])} for m in messages], hidden


@functools.lru_cache(maxsize=8)
def _spelled(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds control tokens that are spelled in a text, the longest first; of a tokenizer without
    any, nothing."""
    return re.compile(
        "|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True)))
        or r"(?!)"
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str]) -> list[int]:
    """Ids of rendered text in which placeholders stand for spelled control tokens."""
    if not hidden:
        return trusted_ids(tokenizer, text)
    control = set(control_tokens(tokenizer).values())
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, hidden)) + ")", text):
        if piece not in hidden:
            ids += trusted_ids(tokenizer, piece) if piece else []
            continue
        spelled = [
            int(i)
            for i in tokenizer(hidden[piece], add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
        ]
        if control & set(spelled):  # added markup is matched even so: halves of it are not
            middle = len(hidden[piece]) // 2
            spelled = trusted_ids(tokenizer, hidden[piece][:middle]) + trusted_ids(
                tokenizer, hidden[piece][middle:]
            )
        ids += spelled
    return ids


def trusted_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which control tokens are control tokens, without a BOS of the
    tokenizer's own."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def hostile_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` in which no added token (control tokens, `<think>` and its like) occurs,
    whatever the text says.

    Tokenizers match added tokens in raw text before anything else, and `split_special_tokens`
    covers only those flagged special. So the text is cut inside every occurrence of an added token
    and the fragments are tokenised on their own. Added white space is harmless.
    """
    controls, pattern = _added_tokens(tokenizer)
    ids: list[int] = []
    for fragment in _cut(text, pattern):
        ids += tokenizer(fragment, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if controls.intersection(ids):
        raise ValueError("a control token of the judge's tokenizer cannot be written as plain text")
    return ids


def _cut(text: str, pattern: re.Pattern[str] | None) -> Iterable[str]:
    """Cut `text` after the first character of each match until no fragment holds one."""
    start = 0
    while pattern is not None and (match := pattern.search(text, start)) is not None:
        yield text[start : match.start() + 1]
        start = match.start() + 1
    if start < len(text):
        yield text[start:]


@functools.lru_cache(maxsize=8)
def _added_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[frozenset[int], re.Pattern[str] | None]:
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.strip()) > 1
    }
    if not added:
        return frozenset(), None
    names = sorted(
        added, key=len, reverse=True
    )  # longest first, so that the longest is the one that is cut
    return frozenset(added.values()), re.compile("|".join(re.escape(name) for name in names))
