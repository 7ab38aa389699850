"""Where a pool's rows come from and how they are drawn, as a recipe states it. Imports pydantic
only."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from synth.config.models import STRICT, Verbatim

MOST_ROWS = 1_000_000_000
"""Rows of one pool: a billion, which is a slip of the finger rather than a plan."""


class Reading(BaseModel):
    """How someone's data is read, where that does not follow from the data itself."""

    model_config = STRICT
    map: dict[str, str] = Field(default_factory=dict)
    """Our column -> the file's, in place of what is recognised: {instruction: question, response:
    answer}; also `messages` (a whole conversation), `system`, `chosen`, `rejected`, and every
    column that filters know."""
    join: str | None = None
    """The instruction from several columns of the file: "{instruction}\n\n{input}"; an empty one
    goes with the text before it."""
    split: str | None = None
    """Split of a hub data set; default: `train`, or the only one."""
    config: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Commit, branch or tag of a hub data set."""
    as_: Literal["sft"] | None = Field(default=None, alias="as")
    """Preference data is refused unless `sft`: its `chosen` answers are then the responses (of
    rated answers, those that were rated good)."""

    @field_validator("join")
    @classmethod
    def _unescaped(cls, join: str | None) -> str | None:
        """A shell passes \\n as two characters."""
        return join and join.replace("\\n", "\n").replace("\\t", "\t")

    @model_validator(mode="after")
    def _one_instruction(self) -> Reading:
        if self.join is not None and not re.search(r"\{[^{}]+\}", self.join):
            raise ValueError("`join` names no column; write it as '{instruction}\\n\\n{input}'")
        if self.join is not None and "instruction" in self.map:
            raise ValueError("give `join`, or `instruction` in `map`, not both")
        return self

    def spec(self) -> dict[str, Any]:
        """What differs from the defaults, for a key; {} for data that is read as it is."""
        names = set(Reading.model_fields)
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=names)


class ImportConfig(Reading):
    """Rows that exist already."""

    import_: str = Field(alias="import")
    """Anybody's data: hub id, file or folder (docs/files.md lists the layouts that are known)."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first rows only."""
    answers: Literal["keep", "missing", "all"] = "keep"
    """What becomes of the rows' answers. `keep`: they are taken as they are, and a row without one
    is a failed row; `missing`: the responder answers the rows that have none; `all`: it answers
    every row anew, and what was imported stays as the column `imported_response`."""
    tags: Literal["keep", "anew"] = "keep"
    """Whether the tags that rows bring are taken, or all are measured anew."""


class GridCell(BaseModel):
    """Part of the instructions, with sampling of its own."""

    model_config = STRICT
    rows: int = Field(ge=1, le=MOST_ROWS)
    """How many of them; the cells' rows sum to `synth.rows`."""
    sampling: Verbatim
    """What differs from `synth.instruction`: SamplingParams, verbatim."""


class SystemPromptConfig(BaseModel):
    """A system prompt that some of the instructions are drawn under; their responses are made
    without it."""

    model_config = STRICT
    name: str | None = None
    """Recorded with each row; default: the domain and language, or the file's name."""
    text: str | None = None
    """The prompt; "" for none, `default` for what the chat template itself puts."""
    file: str | None = None
    """A text file that holds it."""
    domain: str | None = None
    """A shipped one: math, code or translation."""
    language: str | None = None
    """A user who writes in this language (its English name); alone or together with `domain`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the rows, relative to the other prompts' weights."""

    @model_validator(mode="after")
    def _one_source(self) -> SystemPromptConfig:
        sources = [self.text, self.file, self.domain or self.language]
        if sources.count(None) != 2:
            raise ValueError(
                "a system prompt is either `text`, or `file`, or `domain` and/or `language`"
            )
        return self


class FirstTokenConfig(BaseModel):
    """A rule for the first token of an instruction: drawn by a request of its own, from which the
    rest is continued."""

    model_config = STRICT
    suppress: Literal["markdown"] | tuple[str, ...] = ()
    """`markdown`: no token that opens a heading, bold text or a rule (Llama-3.1 needs it); or texts
    that are one token each."""
    temperature: float | None = Field(default=None, ge=0)
    """Temperature of the first token (the original's "flaming" is 1.2 times the others'); default:
    as the others."""

    @model_validator(mode="after")
    def _something(self) -> FirstTokenConfig:
        if not self.suppress and self.temperature is None:
            raise ValueError("first_token needs `suppress` or `temperature`")
        return self
