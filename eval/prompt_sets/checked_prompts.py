"""Prompts whose answers a program checks; what it checks is in eval/prompt_sets/checks.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from eval.prompt_sets import checks
from eval.prompt_sets.prompts import Prompt, load, set_file

SHIPPED = {"magpie-checks-48": Path(__file__).parent / "data" / "magpie-checks-48.jsonl"}


@dataclass(frozen=True)
class Checked(Prompt):
    """A prompt and what its answer must do, one check for each thing that it asks for."""

    checks: tuple[checks.Check, ...] = ()


def checked_prompts(source: str, limit: int | None = None) -> list[Checked]:
    """The prompts of a shipped set by name, or of a file: records of id, prompt, checks (a list)
    and, where there is one, category; see `prompts.load`. Raises UserError for a record without
    checks and for a check that is none."""
    return load(set_file("prompt", source, SHIPPED, fetch=False), _checked, limit, "prompts")


def _checked(record: Mapping[str, Any], where: str) -> Checked:
    """A record in our form."""
    match record:
        case {"id": str(name) | int(name), "prompt": str(text), "checks": [*listed]} if listed:
            asked = tuple(checks.validated(check, where) for check in listed)
            return Checked(str(name), text, str(record.get("category") or ""), checks=asked)
    raise UserError(f"{where}: a checked prompt needs id, prompt and checks, a list of mappings.")
