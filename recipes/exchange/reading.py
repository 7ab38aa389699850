"""How a source is read, as the options of a verb state it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from core.errors import UserError
from recipes.blocks.refusals import sentence
from synth.config.rows import Reading


def of(map_: Sequence[str] | None, **given: Any) -> Reading:
    """The description of `--map instruction=question,response=answer` and the options of the same
    name as its settings. Raises UserError for one that says nothing, or contradicts another."""
    settings = {name.rstrip("_"): value for name, value in given.items() if value is not None}
    if settings.get("as") == "preferences":  # another file is written then; rows are read alike
        settings["as"] = "sft"
    settings["map"] = pairs(map_ or ())
    try:
        return Reading.model_validate(settings)
    except ValidationError as error:
        said = sentence(error, settings)
        option = "--" if error.errors()[0]["loc"] else "options: "
        raise UserError(f"{option}{said}.") from error


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Our column -> the file's, of texts such as instruction=question,response=answer. Raises
    UserError for one of another form, and for a column of ours that is said twice."""
    said = [_pair(pair) for text in texts for pair in text.split(",")]
    made = dict(said)
    if len(made) < len(said):
        twice = Counter(ours for ours, _ in said).most_common(1)[0][0]
        raise UserError(f"--map names {twice} twice; say which one column it is.")
    return made


def _pair(text: str) -> tuple[str, str]:
    ours, mark, theirs = (each.strip() for each in text.partition("="))
    if not (ours and mark and theirs):
        raise UserError(
            f"--map {text}: say it as OURS=THEIRS, as in instruction=question,response=answer."
        )
    return ours, theirs
