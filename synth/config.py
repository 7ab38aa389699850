"""Synthesis, as a recipe states it. Imports pydantic only; what a column needs loads when it is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from synth.tags_config import STRICT, ModelConfig, TagsConfig


class ImportConfig(BaseModel):
    """Rows that exist already."""

    model_config = STRICT
    import_: str = Field(alias="import")
    """A published Magpie set or a ShareGPT/messages file: hub id, file or folder (Parquet or JSONL)."""
    limit: int | None = None
    """Take the first rows only."""


class GridCell(BaseModel):
    """Part of the instructions, with sampling of its own."""

    model_config = STRICT
    rows: int = Field(ge=1)
    """How many of them; the cells' rows sum to `synth.rows`."""
    sampling: dict[str, Any]
    """What differs from `synth.instruction`: SamplingParams, verbatim."""


class SystemPromptConfig(BaseModel):
    """A system prompt that some of the instructions are drawn under; their responses are made without it."""

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
        if sum(given is not None for given in (self.text, self.file, self.domain or self.language)) != 1:
            raise ValueError("a system prompt is either `text`, or `file`, or `domain` and/or `language`")
        return self


class FirstTokenConfig(BaseModel):
    """A rule for the first token of an instruction: drawn by a request of its own, from which the rest is continued."""

    model_config = STRICT
    suppress: Literal["markdown"] | tuple[str, ...] = ()
    """`markdown`: no token that opens a heading, bold text or a rule (Llama-3.1 needs it); or texts that are one token each."""
    temperature: float | None = Field(default=None, ge=0)
    """Temperature of the first token (the original's "flaming" is 1.2 times the others'); default: as the others."""

    @model_validator(mode="after")
    def _something(self) -> FirstTokenConfig:
        if not self.suppress and self.temperature is None:
            raise ValueError("first_token needs `suppress` or `temperature`")
        return self


class PreferencesConfig(BaseModel):
    """Preference pairs over the rows that arms chose."""

    model_config = STRICT
    k: int = Field(default=5, ge=2)
    """Answers an instruction, each with a seed of its own."""
    sampling: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.8, "max_tokens": 4096})
    """SamplingParams of the answers, verbatim."""
    reward: ModelConfig | None = None
    """The reward model; default: that of `tags`."""
    margin: float = Field(default=0.0, ge=0)
    """The best and the worst reward must differ by more than this."""
    test_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of the pairs in test.parquet, by hash of id."""
    arms: tuple[str, ...] = ()
    """Whose rows; default: every arm that has rows."""

    @field_validator("sampling")
    @classmethod
    def _random(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        if sampling.get("temperature") == 0:
            raise ValueError("at temperature 0 all k answers would be the same; set it above 0 (the paper: 0.8)")
        return sampling


class SynthConfig(BaseModel):
    """From a teacher's name to rows with tags."""

    model_config = STRICT
    teacher: ModelConfig
    """The aligned model that writes instructions (and responses, unless `responder` is given)."""
    responder: ModelConfig | None = None
    """Another model for the responses."""
    rows: Annotated[int, Field(ge=1)] | ImportConfig = 1000
    """How many instructions to draw, or `{import: ...}` for rows that exist."""
    seed: int = 0
    """Seed of the pool: with the model, template and sampling it fixes every row's id and its own sampling seed."""
    system_prompt: str | None = None
    """None: without where the template and the model family allow it; `default`: what the chat template itself puts; else this text ("": none)."""
    system_prompts: tuple[SystemPromptConfig, ...] = ()
    """Several in place of `system_prompt`: each row is drawn under one of them, by hash of its id and the weights."""
    pre_query_template: str | None = None
    """Overrides the pre-query template derived from the tokenizer's chat template."""
    instruction: dict[str, Any] = Field(default_factory=lambda: {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048})
    """SamplingParams of the instructions, verbatim."""
    grid: Literal["magpie-pro", "magpie-air"] | tuple[GridCell, ...] | None = None
    """Several samplings in one pool: cells with rows of their own, or the paper's four (Pro) or twelve (Air) scaled to `rows`. More rows of a cell,
    or one more cell, draw nothing anew."""
    first_token: FirstTokenConfig | None = None
    """A rule for the first token of each instruction."""
    category_balance: int | None = Field(default=None, ge=1)
    """After every so many instructions, label 100 of them with the category tagger and report the shares; the labels serve later as well."""
    response: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 4096})
    """SamplingParams of the responses, verbatim; greedy by default as in the paper."""
    turns: int = Field(default=1, ge=1)
    """User's messages in a conversation. Beyond 1, rows that an arm chose are continued: the teacher writes the next user's message, and so on."""
    end_with: Literal["assistant", "user"] = "assistant"
    """Whose message ends a conversation of several turns; `user` leaves the last one unanswered."""
    turns_system_prompt: str | None = None
    """System prompt while further user's messages are drawn (never for answers): None for the chat template's own, `paper` for one that tells of
    several rounds, as the paper's does, or a text."""
    sanitize: Literal["gemma", "llama-3"] | None = None
    """Take off what the teacher wrote around each instruction (labels, wrappers, its own answer), by the rules for its family; the raw text is kept
    as raw_instruction."""
    tags: TagsConfig = TagsConfig()
    """How each tag is measured, where a filter asks for it."""
    preferences: PreferencesConfig | None = None
    """Preference pairs (k answers, best against worst by reward) over the rows that arms chose."""
    heldout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows kept out of every arm, by hash of id; they are answered and used for held-out loss."""

    @model_validator(mode="before")
    @classmethod
    def _rows_of_grid(cls, data: Any) -> Any:
        """Cells with rows of their own say how many rows there are."""
        cells = data.get("grid") if isinstance(data, dict) and "rows" not in data else None
        if isinstance(cells, list | tuple) and all(isinstance(c, dict) and isinstance(c.get("rows"), int) for c in cells) and cells:
            return {**data, "rows": sum(c["rows"] for c in cells)}
        return data

    @model_validator(mode="after")
    def _agree(self) -> SynthConfig:
        if isinstance(self.rows, ImportConfig) and (self.grid or self.first_token or self.system_prompts or self.category_balance):
            raise ValueError("imported rows are not drawn: they take no grid, first_token, system_prompts or category_balance")
        if isinstance(self.rows, ImportConfig) and self.sanitize:
            raise ValueError("`sanitize` is for instructions that are drawn: imported responses and tags are of the text as it was; leave it out")
        if isinstance(self.grid, tuple) and (total := sum(cell.rows for cell in self.grid)) != self.rows:
            raise ValueError(f"the rows of `grid` sum to {total}, but `rows` says {self.rows}")
        if self.system_prompt is not None and self.system_prompts:
            raise ValueError("give `system_prompt` or `system_prompts`, not both")
        tagger = self.tags.category.model
        if self.category_balance and tagger and not tagger.server.get("urls") and tagger != self.teacher:
            raise ValueError("category_balance labels while the teacher draws: the category tagger must be the teacher, or a server given by `urls`")
        if self.preferences is not None and self.preferences.reward is None and self.tags.reward is None:
            raise ValueError("`preferences` needs a reward model; add `reward: {model: ...}` to it, or to `tags`")
        if self.turns == 1 and (self.end_with == "user" or self.turns_system_prompt is not None):
            raise ValueError("`end_with` and `turns_system_prompt` are for conversations of several turns; set `turns` to 2 or more")
        if self.pre_query_template and self.system_prompts:
            raise ValueError("`pre_query_template` fixes the whole text before the instruction: it takes no `system_prompts`")
        return self


class Budget(BaseModel):
    """How much an arm selects, in absolute terms, so that no arm depends on another."""

    model_config = STRICT
    rows: int | None = Field(default=None, ge=1)
    """Rows."""
    tokens: int | None = Field(default=None, ge=1)
    """Non-pad tokens after the student's chat template."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("a budget is either {rows: N} or {tokens: N}")
        return self


class ArmConfig(BaseModel):
    """One arm: a filter over the pool, someone else's data, or a finished model."""

    model_config = STRICT
    strategy: str | None = None
    """A named strategy (`magpie filters` lists them); `where`, `choose` and `budget` given beside it replace its own."""
    params: dict[str, float | str] = Field(default_factory=dict)
    """Thresholds of the named strategy."""
    where: str | None = None
    """SQL predicate over columns, decided row by row; absent: every row may be chosen."""
    choose: str | None = None
    """longest, top(COLUMN), hash_order, difficulty_mix, balanced(COLUMN), diverse, deita or all (`magpie filters` says what each costs)."""
    budget: Budget | None = None
    """How much to choose; required unless `choose: all`."""
    allow_short: bool = False
    """Train on fewer rows when the budget cannot be filled, instead of stopping."""
    data: str | None = None
    """Someone else's data in place of the pool: hub id, file or folder in a published, ShareGPT or messages form."""
    model: str | None = None
    """A finished model in place of training (`untuned` in the demo is the base model itself)."""
    revision: str | None = None
    """Hub revision of `model` or `data`."""

    @model_validator(mode="after")
    def _one_source(self) -> ArmConfig:
        if self.model and (self.data or self.where or self.choose or self.strategy or self.budget):
            raise ValueError("an arm that is a finished model takes nothing but `model` and `revision`")
        if self.data and (self.where or self.strategy):
            raise ValueError("an arm with `data` takes no `where` or `strategy`: its rows are not in the pool")
        return self
