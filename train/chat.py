"""Chat templates of a training: which one trains, which one serves, do they agree, and where does a
turn end.

The training template carries {% generation %} markers around what the assistant writes, its
end-of-turn token included; the inference template is what the exported checkpoint is served with. A
difference between the two is the commonest way to lose a fine-tuning's effect, so both are rendered
and compared before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import UserError, nearest
from core.models import render
from core.pretrained.control_tokens import encode_marked, shield, spells_control
from train.config import SHIPPED_TEMPLATES, TrainConfig
from train.encoding import Ids, Mask, as_lists, marked_ids, rendered_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "templates"

PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "It is 4."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name two rivers,\nplease."},
        {"role": "assistant", "content": "The Nile and the Rhine."},
        {"role": "user", "content": "A third?"},
        {"role": "assistant", "content": "The Amazon."},
    ],
)
"""Conversations without and with a system prompt, of one and of two turns, on which templates are
compared."""

SHIPPED = ", ".join(SHIPPED_TEMPLATES)


@dataclass(frozen=True)
class Chat:
    """The templates of one training (their text, not their names) and the token that ends an
    assistant's turn."""

    training: str
    inference: str
    end_of_turn: int


def read(name: str, *, training: bool) -> str:
    """Text of a shipped template (its training or its inference form) or of a Jinja file. Raises
    UserError when there is neither."""
    if name in SHIPPED_TEMPLATES:
        form = "_training" if training else ""
        return (FOLDER / f"{name}{form}.jinja").read_text()
    path = Path(name).expanduser()
    if not path.is_file():
        hint = nearest(name, SHIPPED_TEMPLATES)
        raise UserError(f"chat template '{name}' is neither shipped nor a file{hint}")
    return path.read_text()


def choose(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Chat:
    """Training and inference template for `config.base`, checked: markers present, end-of-turn
    token trained, same token ids from both.

    Without `chat_template_path` the base tokenizer's own template decides: a shipped family that
    renders the same text, itself when it has markers, or TRL's marked form of a family it knows.
    Raises UserError when none applies or a check fails.
    """
    own: str | None = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    name = config.chat_template_path
    if name is None and own is not None:
        name = _family(own, tokenizer)
    training = _training(name, own, tokenizer, config)
    inference = _inference(name, own, config)
    chat = Chat(training, inference, end_of_turn(tokenizer, training))
    # The probe without system prompt: some families (gemma) refuse those.
    agree(tokenizer, chat, PROBES[:1])
    _opens_alike(tokenizer, chat)
    return chat


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Token id that ends the assistant's turn: the last supervised token of a probe, white space
    aside.

    The rule is that of trl.chat_template_utils.is_chat_template_stop_token_trained, which only
    warns; here a template without markers, or with the end token outside of them, is a UserError,
    because the model would never learn to stop while its loss looks healthy.
    """
    # A user message follows, since some templates close an assistant's turn only when the next
    # message opens.
    probe = [*PROBES[0], {"role": "user", "content": "Thanks."}]
    ids, mask = encode(tokenizer, [probe], template)[0]
    supervised = [token for token, marked in zip(ids, mask, strict=True) if marked]
    if not supervised:
        raise UserError(
            "the training chat template marks nothing as the assistant's: "
            "put {% generation %} … {% endgeneration %} around its words."
        )
    last = last_written(tokenizer, supervised)
    if last not in tokenizer.get_added_vocab().values():
        raise UserError(
            "the training chat template's last supervised token is "
            f"{tokenizer.decode([last])!r}, not an end-of-turn token, so the model would never "
            "learn to stop: put the end-of-turn token inside {% generation %} … "
            "{% endgeneration %}, and use one that the tokenizer of "
            f"{tokenizer.name_or_path} has as a single token."
        )
    return last


def last_written(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """The last token that is more than white space; the last one where none is."""
    written = (token for token in reversed(ids) if str(tokenizer.decode([token])).strip())
    return next(written, ids[-1])


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]], template: str
) -> list[tuple[list[int], list[int]]]:
    """As `encode_arrays`, as lists."""
    return as_lists(encode_arrays(tokenizer, conversations, template))


def encode_arrays(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]], template: str
) -> list[tuple[Ids, Mask]]:
    """Token ids and supervision mask (true for each token that lies, with any character, inside
    generation markers) of each conversation, in order; rendered and tokenised once. A control token
    that a message spells is plain text."""
    spelled = [spells_control(tokenizer, messages) for messages in conversations]
    clean = [c for c, hostile in zip(conversations, spelled, strict=True) if not hostile]
    texts, spans = rendered_spans(tokenizer, clean, template)
    rows = marked_ids(tokenizer, texts, spans)
    for number, messages in enumerate(conversations):
        if spelled[number]:
            safe, hidden = shield(tokenizer, messages)
            (text,), (marked,) = rendered_spans(tokenizer, [safe], template)
            ids, mask = encode_marked(tokenizer, text, hidden, marked)
            rows.insert(number, (np.array(ids, np.int32), np.array(mask, bool)))
    return rows


def agree(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, conversations: Iterable[list[dict[str, str]]]
) -> None:
    """Raise UserError unless training and inference template give the same token ids for each
    conversation."""
    for messages in conversations:
        trained = encode(tokenizer, [messages], chat.training)[0][0]
        served = render(
            tokenizer, messages, add_generation_prompt=False, chat_template=chat.inference
        )
        if trained != served:
            pairs = zip(trained, served, strict=False)
            at = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            raise UserError(
                "the training and the inference chat template differ at token "
                f"{at} of a conversation: training has "
                f"{tokenizer.decode(trained[at : at + 8])!r}, "
                f"inference {tokenizer.decode(served[at : at + 8])!r}; the checkpoint would be "
                "served with words it never saw. Make them render the same text."
            )


def _training(
    name: str | None, own: str | None, tokenizer: PreTrainedTokenizerBase, config: TrainConfig
) -> str:
    """The training template: the named one, else the tokenizer's own in a marked form."""
    if name is not None:
        return read(name, training=True)
    if own is None:
        raise UserError(
            f"{config.base} has no chat template of its own, so train.chat_template_path "
            f"is needed; shipped are {SHIPPED}."
        )
    if "generation %}" in own:
        return own
    from trl.chat_template_utils import get_training_chat_template

    try:
        return str(get_training_chat_template(tokenizer))
    except ValueError as error:
        raise UserError(
            f"the chat template of {config.base} has no {{% generation %}} markers and TRL "
            f"knows no marked form of it; give train.chat_template_path ({SHIPPED}, or a Jinja "
            "file of your own) and, for a file, train.inference_template where it differs."
        ) from error


def _inference(name: str | None, own: str | None, config: TrainConfig) -> str:
    """The template for serving: the configured one, a shipped training template's counterpart, or
    the tokenizer's own."""
    if config.inference_template is not None:
        return read(config.inference_template, training=False)
    if name in SHIPPED_TEMPLATES:
        return read(name, training=False)
    if own is None:
        raise UserError(
            f"train.chat_template_path '{name}' is a file and {config.base} has no chat template "
            "of its own, so the template for serving is unknown; give train.inference_template."
        )
    return own


def _opens_alike(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> None:
    """Raise UserError unless the inference template's generation prompt is how the training
    template opens an assistant's turn."""
    prompt = render(
        tokenizer, PROBES[0][:-1], add_generation_prompt=True, chat_template=chat.inference
    )
    trained = encode(tokenizer, [PROBES[0]], chat.training)[0][0]
    if trained[: len(prompt)] != prompt:
        raise UserError(
            "the inference chat template's generation prompt is not how the training template "
            f"opens an assistant's turn: {tokenizer.decode(prompt)!r} is no beginning of "
            f"{tokenizer.decode(trained)!r}."
        )


def _family(own: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The shipped family whose inference template renders every probe as the tokenizer's own
    template does, or None."""

    def texts(template: str) -> list[Any]:
        return [
            tokenizer.apply_chat_template(
                probe, tokenize=False, chat_template=template, add_generation_prompt=opens
            )
            for probe in PROBES
            for opens in (False, True)
        ]

    try:
        wanted = texts(own)
    # any template may raise its own errors (a family that refuses system prompts)
    except Exception:
        return None
    same = (name for name in SHIPPED_TEMPLATES if texts(read(name, training=False)) == wanted)
    return next(same, None)


def padding(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> int:
    """Token id to pad with: the base's pad token, else the base's eos (Magpie padded Llama-3 with
    <|end_of_text|>), else the end of turn.

    Padding may equal the end of turn (SmolLM2), because labels are masked by position, never by
    token id.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return chat.end_of_turn
