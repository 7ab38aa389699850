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
from typing import TYPE_CHECKING, Any

from core.store import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Added tokens that are markup without being flagged as special (DeepSeek's <｜User｜>); think tags
# and HTML's elements (Gemma has tokens for <table> and its like) are content, not headers.
_MARKUP = re.compile(r"^(<[^<>\s]+>|\[[^\[\]\s]+\])$")
_CONTENT = re.compile(
    r"think|^</?(table|caption|t(head|body|foot|r|h|d)|h[1-6]|p|div|span|blockquote|strong|em|b|i|u"
    r"|s|su[bp]|code|pre|a|ul|ol|li|br|hr|img)>$"
)

_NAMES = ("role", "type")

Message = Mapping[str, Any]
"""{"role", "content"}, and whatever else a chat template reads of it."""


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Ids of the control tokens by their text: those flagged special, and added markup such as
    <｜User｜>; think tags and HTML's elements are content."""
    return {
        str(token.content): int(i)
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or _is_header(str(token.content)))
    }


def _is_header(added: str) -> bool:
    """Whether an added token that is not flagged special is a template's markup all the same."""
    return bool(_MARKUP.match(added)) and not _CONTENT.search(added)


def spells_control(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> bool:
    """Whether a message spells a control token anywhere but in its role."""
    spelled = _spelled(tokenizer)
    return any(spelled.search(text) for message in messages for text in _texts(message))


def shield(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[Message], dict[str, str]]:
    """Messages with every spelled control token replaced by a placeholder word, and what each
    placeholder stands for. Every text of a message counts but its role: content, parts of it,
    reasoning, tool calls."""
    if not spells_control(tokenizer, messages):
        return list(messages), {}
    spelled = _spelled(tokenizer)
    nonce = "Zq" + digest([list(_texts(message)) for message in messages])[:20]
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        placeholder = f"{nonce}n{len(hidden)}e"
        hidden[placeholder] = match.group()
        return placeholder

    def safe(value: Any) -> Any:
        if isinstance(value, str):
            return spelled.sub(hide, value)
        if isinstance(value, list | tuple):
            return [safe(one) for one in value]
        if isinstance(value, Mapping):
            return {key: one if key in _NAMES else safe(one) for key, one in value.items()}
        return value

    return [safe(message) for message in messages], hidden


def encode(tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str]) -> list[int]:
    """Ids of rendered text in which placeholders stand for spelled control tokens."""
    if not hidden:
        return trusted_ids(tokenizer, text)
    return [i for ids, _, _ in _pieces(tokenizer, text, hidden) for i in ids]


def encode_marked(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    hidden: Mapping[str, str],
    spans: Sequence[tuple[int, int]],
) -> tuple[list[int], list[int]]:
    """(ids, mask) of rendered text as by `encode`: 1 for each token that lies, with any character,
    in one of the `spans` [start, end) of `text`."""

    def marked(start: int, end: int) -> int:
        return int(any(start < b and a < end for a, b in spans))

    ids: list[int] = []
    mask: list[int] = []
    for tokens, starts, ends in _pieces(tokenizer, text, hidden):
        ids += tokens
        mask += map(marked, starts, ends)
    return ids, mask


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
    for number, fragment in enumerate(_cut(text, names)):
        ids += _part(tokenizer, fragment, plain=True, within=number > 0)[0]
    if added.intersection(ids):
        raise ValueError("a control token of the judge's tokenizer cannot be written as plain text")
    return ids


Piece = tuple[list[int], list[int], list[int]]
"""Token ids, and where in a text each begins and ends (characters)."""


def _pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, hidden: Mapping[str, str]
) -> Iterator[Piece]:
    """The text piece by piece: what the template wrote around the placeholders, and what those
    stand for, whose tokens all have the placeholder's place."""
    place = 0
    for piece in re.split(f"({_any_of(hidden).pattern})", text):
        end = place + len(piece)
        if piece in hidden:
            ids = _spelled_ids(tokenizer, hidden[piece])
            yield ids, [place] * len(ids), [end] * len(ids)
        elif piece:
            ids, offsets = _part(tokenizer, piece, plain=False, within=place > 0)
            starts = [place + start for start, _ in offsets]
            yield ids, starts, [place + stop for _, stop in offsets]
        place = end


def _part(
    tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool, within: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of part of a text, and the characters [start, end) of each. `plain`: tokens flagged
    special are plain characters; `within`: other text stands before it.

    SentencePiece's kind writes a space before every text that it is given; there is none within
    one, so such a part is read behind a line break that is then left out.
    """

    def read(what: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = tokenizer(
            what,
            add_special_tokens=False,
            split_special_tokens=plain,
            return_offsets_mapping=True,
        )
        offsets = [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
        return list(map(int, encoded["input_ids"])), offsets

    ids, offsets = read(text)
    if not within or not _writes_a_space(tokenizer):
        return ids, offsets
    lead, (behind, places) = read("\n")[0], read("\n" + text)
    if behind[: len(lead)] != lead:
        return ids, offsets
    return behind[len(lead) :], [(max(a - 1, 0), b - 1) for a, b in places[len(lead) :]]


@functools.lru_cache(maxsize=8)
def _writes_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before a text by itself."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(ids)[0]).startswith("\u2581")


def _spelled_ids(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    """Ids of the characters of a control token, within a text."""
    ids = _part(tokenizer, token, plain=True, within=True)[0]
    if not set(control_tokens(tokenizer).values()).intersection(ids):
        return ids
    # Added markup is matched even so; halves of it are not.
    middle = len(token) // 2
    halves = (token[:middle], token[middle:])
    return [i for half in halves for i in _part(tokenizer, half, plain=False, within=True)[0]]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a message but its role, and the names of its parts' kinds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key not in _NAMES:
                yield from _texts(one)


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
