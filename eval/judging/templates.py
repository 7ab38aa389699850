"""What a judge is shown: a template filled with a prompt and two answers, as token ids (our
servers) or messages (hosted judges).

Prompts and answers are hostile text. Filled into a conversation and tokenised with it, an answer
that holds `<|im_end|>` would end the judge's instructions and begin others. So the template alone
goes through the chat template, with placeholders; the result is cut at the placeholders, and the
hostile pieces are tokenised on their own, as plain text, and spliced in. No control token survives
in them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError, nearest
from core.pretrained.control_tokens import hostile_ids, trusted_ids
from eval.judging.official import prompts as official

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "prompts"
SHIPPED = ("alpaca", "arena", "arena-direct", "wildbench", "wildbench-reward", "mtbench")
SLOTS = ("instruction", "output_1", "output_2")
# brackets that occur in no template; hostile text is never searched for them
_MARK = "\u2983slot:{}\u2984"
_CUT = re.compile("\u2983slot:([A-Za-z_0-9]+)\u2984")
_SECTION = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)\n?<\|im_end\|>", re.DOTALL)

Message = dict[str, str]


@dataclass(frozen=True)
class Template:
    """A judge's prompt: `messages` with placeholders for its slots; `text` is the file's text,
    which counts in the key."""

    text: str
    messages: tuple[tuple[str, str], ...]


CONVERSATION = Template(
    "", (("user", _MARK.format("instruction")), ("assistant", _MARK.format("answer")))
)
"""A prompt and one answer to it, as reward models read them."""


def read(name: str) -> tuple[Path, str]:
    """The file and the text of a template: one of `SHIPPED`, an official prompt by name (from the
    user's copy: eval/judging/official/prompts.py), or a path. Raises UserError for an unknown name
    or a file that cannot be read."""
    if name in official.OFFICIAL:
        return official.read(name)
    path = FOLDER / f"{name}.jinja" if name in SHIPPED else Path(name)
    try:
        return path, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        other = nearest(name, (*SHIPPED, *official.OFFICIAL))
        raise UserError(
            f"judge prompt '{name}' is neither shipped nor a file that can be read ({error}){other}"
        ) from error


def template(
    name: str, codes: tuple[str, str] = ("A", "B"), slots: Iterable[str] = SLOTS
) -> Template:
    """Load a template: one of `SHIPPED`, or a path.

    A template is a sequence of `<|im_start|>ROLE … <|im_end|>` sections (text without any is one
    user message). A `.jinja` file names the slots {{ instruction }}, {{ output_1 }}, {{ output_2 }}
    and may use {{ code_1 }}, {{ code_2 }}; any other file has {instruction}, {output_1},
    {output_2}, as alpaca_eval's own (or {$instruction} …, as WildBench's). `slots` are the names
    where they are others; each must occur; a .jinja file may ask whether one `is defined`. Raises
    UserError for an unknown name, a file that cannot be read, a slot that is missing.
    """
    path, text = read(name)
    marks = {slot: _MARK.format(slot) for slot in slots}
    if path.suffix == ".jinja":
        filled = _from_jinja(path, text, {**marks, "code_1": codes[0], "code_2": codes[1]})
    else:
        filled = re.sub(rf"\{{\$?({'|'.join(marks)})\}}", lambda m: marks[m[1]], text)
    absent = [slot for slot in marks if marks[slot] not in filled]
    if absent:
        raise UserError(
            f"judge prompt {path} does not show {', '.join(absent)}; "
            "name each slot where its text belongs."
        )
    sections = _SECTION.findall(filled)
    return Template(text, tuple(sections) or (("user", filled.strip()),))


def _from_jinja(path: Path, text: str, names: Mapping[str, str]) -> str:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    strict = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        return strict.from_string(text).render(names)
    except jinja2.TemplateError as error:
        known = ", ".join(names)
        raise UserError(f"judge prompt {path}: {error}; its names are {known}.") from error


def messages(
    shape: Template, values: Mapping[str, str], follow: Iterable[Message] = ()
) -> list[Message]:
    """The conversation for a chat API: `values` has the text of each slot; `follow` are further
    turns."""
    filled = [
        {"role": role, "content": _CUT.sub(lambda m: values[m[1]], content)}
        for role, content in shape.messages
    ]
    return [*filled, *follow]


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    shape: Template,
    values: Mapping[str, str],
    follow: Iterable[Message] = (),
    *,
    reply: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """The conversation as token ids, ready for the judge's reply, or, without `reply`, as it ends
    (for reward models).

    `values` and the assistant turns of `follow` are plain text to the tokenizer; `template_kwargs`
    are arguments of the chat template. The judge's own chat template writes the BOS, so there is
    exactly one. Raises UserError when the tokenizer has no chat template.
    """
    slots = dict(values)
    turns = list(shape.messages)
    for number, turn in enumerate(follow):
        role, content = turn["role"], turn["content"]
        if role == "assistant":
            # The judge's own earlier words: no control tokens from there either.
            slots[f"turn_{number}"] = content
            content = _MARK.format(f"turn_{number}")
        turns.append((role, content))
    ids: list[int] = []
    # Splitting at a pattern with a group gives text and slot in turns.
    more = json.dumps(template_kwargs or {}, sort_keys=True, default=str)
    for number, piece in enumerate(_CUT.split(_rendered(tokenizer, tuple(turns), reply, more))):
        if number % 2:
            ids += hostile_ids(tokenizer, slots[piece])
        elif piece:
            ids += trusted_ids(tokenizer, piece)
    return ids


@functools.lru_cache(maxsize=64)
def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: tuple[tuple[str, str], ...],
    reply: bool,
    more: str,
) -> str:
    """The conversation by the judge's own chat template. `more`: its other arguments, as JSON, for
    lists and mappings cannot be part of a cache's key."""
    from jinja2 import TemplateError

    name = tokenizer.name_or_path
    conversation = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(
            tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=reply, **json.loads(more)
            )
        )
    except ValueError as error:
        raise UserError(
            f"the judge {name} has no chat template: take an instruction-tuned model."
        ) from error
    except TemplateError as error:
        if conversation[0]["role"] != "system":
            raise UserError(
                f"the chat template of the judge {name} refuses its prompt: {error}"
            ) from error
        # Families without a system role (Gemma, Mistral v0.1): its text goes before the user's.
        first = (("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:])
        return _rendered(tokenizer, first, reply, more)
