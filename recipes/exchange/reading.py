"""How a source is read, as the options of a verb state it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from core.errors import UserError
from synth.config.rows import Reading


def of(map_: str | None, **given: Any) -> Reading:
    """The description of `--map instruction=question,response=answer` and the options of the same
    name as its settings. Raises UserError for one that says nothing, or contradicts another."""
    settings = {name.rstrip("_"): value for name, value in given.items() if value is not None}
    if settings.get("as") == "preferences":  # another file is written then; rows are read alike
        settings["as"] = "sft"
    if map_ is not None:
        settings["map"] = dict(map(_pair, map_.split(",")))
    try:
        return Reading.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(each) for each in first["loc"]) or "options"
        raise UserError(f"--{option}: {first['msg'].removeprefix('Value error, ')}.") from error


def _pair(text: str) -> tuple[str, str]:
    ours, mark, theirs = (each.strip() for each in text.partition("="))
    if not (ours and mark and theirs):
        raise UserError(
            f"--map {text}: write OURS=THEIRS pairs, as instruction=question,response=answer."
        )
    return ours, theirs
