"""Synthesis as a recipe states it: models, rows, answers, tags. Imports pydantic only.

What a column needs loads when it is computed; what an arm is stands in synth/filters/arm.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from synth.config.models import STRICT, ModelConfig, Verbatim
from synth.config.rows import (
    MOST_ROWS,
    FirstTokenConfig,
    GridCell,
    ImportConfig,
    SystemPromptConfig,
)
from synth.config.tags import TagsConfig


def _drawn(sampling: Verbatim, number: str) -> Verbatim:
    """The sampling of several answers. Raises ValueError where they would all be the same."""
    if sampling.get("temperature") == 0:
        raise ValueError(
            f"at temperature 0 all {number} answers would be the same; set it above 0 (the paper: "
            "0.8)"
        )
    return sampling


class PreferencesConfig(BaseModel):
    """Preference pairs over the rows that arms chose."""

    model_config = STRICT
    k: int = Field(default=5, ge=2, le=1000)
    """Answers an instruction, each with a seed of its own."""
    sampling: Verbatim = Field(default_factory=lambda: {"temperature": 0.8, "max_tokens": 4096})
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
    def _random(cls, sampling: Verbatim) -> Verbatim:
        return _drawn(sampling, "k")


class ResponsesConfig(BaseModel):
    """Several answers to each instruction, of which one is the row's response."""

    model_config = STRICT
    n: int = Field(ge=2, le=1000)
    """Answers an instruction, each with a seed of its own; the same cells as those of
    `preferences`, so n = 4 beside k = 5 buys nothing twice."""
    keep: Literal["reward"] = "reward"
    """Which one: that with the highest reward. An answer that was cut off is never taken."""
    sampling: Verbatim | None = None
    """SamplingParams of the answers, verbatim; default: those of `preferences`, which are
    {temperature: 0.8, max_tokens: 4096} where it does not say."""
    reward: ModelConfig | None = None
    """The reward model; default: that of `tags`, else that of `preferences`."""

    @field_validator("sampling")
    @classmethod
    def _random(cls, sampling: Verbatim | None) -> Verbatim | None:
        return None if sampling is None else _drawn(sampling, "n")


class SynthConfig(BaseModel):
    """From a teacher's name to rows with tags."""

    model_config = STRICT
    teacher: ModelConfig
    """The aligned model that writes instructions (and responses, unless `responder` is given)."""
    responder: ModelConfig | None = None
    """Another model for the responses."""
    rows: Annotated[int, Field(ge=1, le=MOST_ROWS)] | ImportConfig = 1000
    """How many instructions to draw, or `{import: ...}` for rows that exist."""
    seed: int = Field(default=0, ge=0)
    """Seed of the pool: with the model, template and sampling it fixes every row's id and its own
    sampling seed."""
    seeds: Literal["per_row", "none"] = "per_row"
    """`per_row`: each draw has a sampling seed of its own, so the same recipe draws the same rows.
    `none`: none has, which vLLM samples faster; every server that is started gets an engine seed of
    its own, recorded in the store's engine_seeds.jsonl, and what is drawn cannot be drawn again."""
    system_prompt: str | None = None
    """None: without where the template and the model family allow it; `default`: what the chat
    template itself puts; else this text ("": none)."""
    system_prompts: tuple[SystemPromptConfig, ...] = ()
    """Several in place of `system_prompt`: each row is drawn under one of them, by hash of its id
    and the weights."""
    pre_query_template: str | None = None
    """Overrides the pre-query template derived from the tokenizer's chat template."""
    instruction: Verbatim = Field(
        default_factory=lambda: {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048}
    )
    """SamplingParams of the instructions, verbatim."""
    grid: Literal["magpie-pro", "magpie-air"] | tuple[GridCell, ...] | None = None
    """Several samplings in one pool: cells with rows of their own, or the paper's four (Pro) or
    twelve (Air) scaled to `rows`. More rows of a cell, or one more cell, draw nothing anew."""
    first_token: FirstTokenConfig | None = None
    """A rule for the first token of each instruction."""
    category_balance: int | None = Field(default=None, ge=1)
    """After every so many instructions, label 100 of them with the category tagger and report the
    shares; the labels serve later as well."""
    response: Verbatim = Field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 4096})
    """SamplingParams of the responses, verbatim; greedy by default as in the paper."""
    responses: ResponsesConfig | None = None
    """Best of n: several answers to each instruction, the one with the highest reward is the row's
    response. `response` is then the sampling of further turns only."""
    turns: int = Field(default=1, ge=1, le=100)
    """User's messages in a conversation. Beyond 1, rows that an arm chose are continued: the
    teacher writes the next user's message, and so on."""
    end_with: Literal["assistant", "user"] = "assistant"
    """Whose message ends a conversation of several turns; `user` leaves the last one unanswered."""
    turns_system_prompt: str | None = None
    """System prompt while further user's messages are drawn (never for answers): None for the chat
    template's own, `paper` for one that tells of several rounds, as the paper's does, or a text."""
    sanitize: Literal["gemma", "llama-3"] | None = None
    """Take off what the teacher wrote around each instruction (labels, wrappers, its own answer),
    by the rules for its family; the raw text is kept as raw_instruction."""
    tags: TagsConfig = TagsConfig()
    """How each tag is measured, where a filter asks for it."""
    preferences: PreferencesConfig | None = None
    """Preference pairs (k answers, best against worst by reward) over the rows that arms chose."""
    heldout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows kept out of every arm, by hash of id; they are answered and used for
    held-out loss."""

    @model_validator(mode="before")
    @classmethod
    def _rows_of_grid(cls, data: Any) -> Any:
        """Cells with rows of their own say how many rows there are."""
        entries = data.get("grid") if isinstance(data, dict) and "rows" not in data else None
        if not entries or not isinstance(entries, list | tuple):
            return data
        counts = [entry.get("rows") for entry in entries if isinstance(entry, dict)]
        whole = [count for count in counts if isinstance(count, int)]
        return {**data, "rows": sum(whole)} if len(whole) == len(entries) else data

    @property
    def best_of_reward(self) -> ModelConfig | None:
        """The model that chooses among several answers."""
        own = self.responses.reward if self.responses else None
        others = self.preferences.reward if self.preferences else None
        return own or self.tags.reward or others

    @property
    def best_of_sampling(self) -> Verbatim:
        """How several answers to choose among are sampled."""
        own = self.responses.sampling if self.responses else None
        shared = self.preferences or PreferencesConfig()
        return shared.sampling if own is None else own

    def _by_token_ids(self) -> list[tuple[str, ModelConfig | None]]:
        """The models that are asked by token ids here, with their place in the block."""
        further = self.teacher if self.turns > 1 else None
        drawing = None if isinstance(self.rows, ImportConfig) else self.teacher
        preferred = self.preferences.reward if self.preferences else None
        best_of = self.responses.reward if self.responses else None
        answering = self.responder if self.turns > 1 else None
        return [
            ("teacher", drawing or further),
            ("responder", answering),
            ("tags.reward", self.tags.reward),
            ("tags.base", self.tags.base),
            ("tags.ifd", self.tags.ifd),
            ("tags.superfilter", self.tags.superfilter),
            ("preferences.reward", preferred),
            ("responses.reward", best_of),
        ]

    @model_validator(mode="after")
    def _agree(self) -> SynthConfig:
        """Refuse settings that contradict each other."""
        imported = isinstance(self.rows, ImportConfig)
        drawing = self.grid or self.first_token or self.system_prompts or self.category_balance
        entries = self.grid if isinstance(self.grid, tuple) else ()
        total = sum(entry.rows for entry in entries)
        tagger = self.tags.category.model
        other_tagger = tagger and not tagger.server.get("urls") and tagger != self.teacher
        no_reward = self.tags.reward is None
        chatting = [name for name, model in self._by_token_ids() if model and model.hosted]
        of_turns = self.end_with == "user" or self.turns_system_prompt is not None
        contradictions = [
            (
                bool(chatting),
                f"`{next(iter(chatting), '')}` cannot have `api: chat`: it needs raw completions "
                "or scores of token ids, which a service that chats does not offer (answers, tags, "
                "guards and embeddings need none)",
            ),
            (
                imported and drawing,
                "imported rows are not drawn: they take no grid, first_token, system_prompts or "
                "category_balance",
            ),
            (
                imported and self.sanitize,
                "`sanitize` is for instructions that are drawn: imported responses and tags are "
                "of the text as it was; leave it out",
            ),
            (
                isinstance(self.grid, tuple) and total != self.rows,
                f"the rows of `grid` sum to {total}, but `rows` says {self.rows}",
            ),
            (
                self.system_prompt is not None and self.system_prompts,
                "give `system_prompt` or `system_prompts`, not both",
            ),
            (
                self.category_balance and other_tagger,
                "category_balance labels while the teacher draws: the category tagger must be the "
                "teacher, or a server given by `urls`",
            ),
            (
                self.preferences and self.preferences.reward is None and no_reward,
                "`preferences` needs a reward model; add `reward: {model: ...}` to it, or to "
                "`tags`",
            ),
            (
                self.responses and self.best_of_reward is None,
                "`responses` needs a reward model; add `reward: {model: ...}` to it, or to `tags`",
            ),
            (
                self.turns == 1 and of_turns,
                "`end_with` and `turns_system_prompt` are for conversations of several turns; set "
                "`turns` to 2 or more",
            ),
            (
                self.pre_query_template and self.system_prompts,
                "`pre_query_template` fixes the whole text before the instruction: it takes no "
                "`system_prompts`",
            ),
        ]
        contradictions += _unseeded(self) if self.seeds == "none" else []
        for contradicted, sentence in contradictions:
            if contradicted:
                raise ValueError(sentence)
        return self


def _unseeded(config: SynthConfig) -> list[tuple[Any, str]]:
    """What contradicts draws without seeds of their own: servers whose engine seeds are not given
    here."""
    server = config.teacher.server
    args = server.get("args", {})
    return [
        (
            isinstance(config.rows, ImportConfig),
            "imported rows are not drawn: `seeds` is for instructions that are; leave it out",
        ),
        (
            server.get("urls"),
            "`seeds: none` needs servers that the run starts, each with an engine seed of its own: "
            "servers behind `urls` may have been started alike, and would draw the same; keep "
            "`per_row`",
        ),
        (
            "seed" in args,
            "`seeds: none` gives every server an engine seed of its own; take `seed` out of the "
            "teacher's server.args",
        ),
        (
            int(args.get("data_parallel_size") or 1) > 1,
            "`seeds: none` and data_parallel_size do not go together: its engines start with one "
            "seed; use `replicas`",
        ),
    ]
