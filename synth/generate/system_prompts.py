"""System prompts that steer what the teacher's user asks: by domain, by language, or any text,
drawn by weight for each row.

A system prompt steers the instruction alone: the response is made without it, as in the original
(gen_res.py renders the instruction only).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError, nearest
from synth.config.rows import SystemPromptConfig

_FOLDER = Path(__file__).with_name("prompts") / "domains"


@dataclass(frozen=True)
class Steered:
    """One system prompt to draw: its name (recorded with each row), its text (None: none,
    "default": the chat template's own) and its weight."""

    name: str
    text: str | None
    weight: float


def domains() -> list[str]:
    """The domains that are shipped."""
    return sorted(p.stem for p in _FOLDER.glob("*.txt") if p.stem != "language")


def steered(prompts: Sequence[SystemPromptConfig]) -> list[Steered]:
    """The system prompts of a recipe with their texts. Raises UserError for an unknown domain, a
    missing file and a name that comes twice."""
    named: dict[str, Steered] = {}
    for number, prompt in enumerate(prompts, 1):
        name = prompt.name or "+".join(filter(None, (prompt.domain, prompt.language)))
        name = name or (Path(prompt.file).stem if prompt.file else f"text-{number}")
        if name in named:
            raise UserError(
                f"synth.system_prompts: two of them are named '{name}'; "
                "give them names of their own."
            )
        named[name] = Steered(name, _text(prompt), prompt.weight)
    return list(named.values())


def _text(prompt: SystemPromptConfig) -> str | None:
    """What a system prompt of a recipe says; None where it is to say nothing."""
    if prompt.file is not None:
        file = Path(prompt.file).expanduser()
        if not file.is_file():
            raise UserError(f"synth.system_prompts: the file {file} does not exist; check `file`.")
        return file.read_text().strip()
    if prompt.text is not None:
        return prompt.text or None
    parts = []
    if prompt.domain is not None:
        if prompt.domain not in domains():
            hint = nearest(prompt.domain, domains())
            raise UserError(
                f"synth.system_prompts: there is no domain '{prompt.domain}'{hint}; "
                "any `text` or `file` does as well."
            )
        parts.append(_shipped(prompt.domain))
    if prompt.language is not None:
        parts.append(_shipped("language").replace("{language}", prompt.language))
    return "\n\n".join(parts)


def _shipped(name: str) -> str:
    return (_FOLDER / f"{name}.txt").read_text().strip()


def chosen(ids: Sequence[str], prompts: Sequence[Steered]) -> list[int]:
    """Which prompt each row gets, by hash of its id against the weights, which need not sum to
    1."""
    bounds = list(itertools.accumulate(prompt.weight for prompt in prompts))
    scale = bounds.pop() / 2**64
    return [bisect.bisect_right(bounds, _number(row) * scale) for row in ids]


def _number(row: str) -> int:
    """A number of 64 bits that stands for a row's id."""
    return int.from_bytes(hashlib.sha256(f"system prompt {row}".encode()).digest()[:8])
