"""Synthesis, as a recipe states it: models, how each tag is measured, what is drawn. Imports
pydantic only.

What a column needs loads when it is computed; what an arm is stands in synth/filters/arm.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Verbatim = dict[str, Any]
"""Settings of a library, passed through as they are."""

STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(BaseModel):
    """A model behind an OpenAI-compatible server."""

    model_config = STRICT
    model: str
    """Hub id, local folder, or `embedded/NAME` for a model that pip delivered."""
    revision: str | None = None
    """Hub commit, branch or tag."""
    server: Verbatim = Field(default_factory=dict)
    """Its server, as core.wire.ServerSpec has it: `args` (vLLM's, verbatim), env, replicas,
    max_in_flight, timeout; or `urls` (and `api_key_env`) of servers that run already."""
    chat_template: str | None = None
    """A Jinja file in place of the tokenizer's chat template."""
    chat_template_kwargs: Verbatim = Field(default_factory=dict)
    """Variables of the chat template, e.g. {enable_thinking: false} for Qwen3 and SmolLM3,
    {reasoning_effort: low} for gpt-oss."""

    @field_validator("server")
    @classmethod
    def _check_server(cls, block: Verbatim) -> Verbatim:
        from core.wire import ServerSpec

        if "model" in block:
            raise ValueError("a `server:` block names no model; write `model:` beside it")
        ServerSpec(model="model", **block)
        return block


class TagConfig(BaseModel):
    """How one LLM tag is measured."""

    model_config = STRICT
    model: ModelConfig | None = None
    """The tagger; default: the teacher."""
    mode: Literal["label", "explain"] = "label"
    """`label`: log-probabilities of one-token codes in one request of one token; `explain`:
    schema-constrained JSON with the explanation first."""
    sampling: Verbatim = Field(default_factory=dict)
    """SamplingParams, verbatim; default greedy."""
    prompt: str | None = None
    """A prompt file (jinja) in place of the shipped one."""
    check: int = Field(default=0, ge=0)
    """How many measured rows, by hash of id, are asked in the other mode as well; how far both
    agree is in tag_agreement.json and the report."""


class SafetyConfig(ModelConfig):
    """A guard model."""

    family: Literal["llama-guard-2", "llama-guard-3", "llama-guard-4", "qwen3guard"] | None = None
    """What its verdicts are like; default: told from the model's name."""
    sampling: Verbatim = Field(default_factory=dict)
    """SamplingParams, verbatim; default greedy."""


class BaseConfig(ModelConfig):
    """A base model that answers the same instructions, by examples in its prompt."""

    sampling: Verbatim = Field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 2048})
    """SamplingParams, verbatim; `stop` adds to the headings that end an answer."""


class NeighborsConfig(BaseModel):
    """Embedding and nearest neighbours over all generated rows."""

    model_config = STRICT
    model: str = "embedded/all-MiniLM-L6-v2"
    """A sentence-transformers model (the paper used sentence-transformers/all-mpnet-base-v2)."""
    threshold: float = 0.05
    """Squared L2 distance of unit vectors under which two rows count as repeats (gen_dis.py of the
    original)."""
    exact_up_to: int = Field(default=2_000_000, ge=1)
    """Distinct instructions up to which every pair is compared; more are searched by an index
    (faiss-cpu), whose recall is measured and stored."""
    probes: int = Field(default=32, ge=1)
    """Lists of the index that a row looks into: more takes longer and finds more."""


class MinhashConfig(BaseModel):
    """Near-duplicates by the words that instructions share."""

    model_config = STRICT
    threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two instructions are near-duplicates; of 20
    words one may differ at 0.7 and n-grams of 3."""
    ngram: int = Field(default=3, ge=1)
    """Words in an n-gram."""
    permutations: int = Field(default=128, ge=8)
    """Hashes in a signature: more are more exact and take more memory (4 bytes each a row)."""


class DecontaminateConfig(BaseModel):
    """Overlap with evaluation prompts: those of the recipe's `eval`, and those of a file."""

    model_config = STRICT
    file: str | None = None
    """JSONL with a `prompt` (or `instruction`) a line, and an `id` where there is one: prompts of
    evaluations that are not in the recipe."""
    ngram: int = Field(default=8, ge=3)
    """Words in a shared n-gram; a shorter prompt counts as one n-gram, and one of fewer than 5
    words only where it is the whole instruction."""


class TagsConfig(BaseModel):
    """Settings of the measures; a measure that no arm's filter names is never computed."""

    model_config = STRICT
    quality: TagConfig = TagConfig()
    """input_quality, input_quality_rank (1 to 5), quality_explanation."""
    difficulty: TagConfig = TagConfig()
    """difficulty, difficulty_rank (1 to 5), intent, knowledge."""
    category: TagConfig = TagConfig()
    """task_category."""
    neighbors: NeighborsConfig = NeighborsConfig()
    """min_neighbor_distance, repeat_count, min_similar_id, near_duplicate, neighbor_group and its
    size, neighbor_recall."""
    minhash: MinhashConfig = MinhashConfig()
    """minhash_group, minhash_duplicate."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """eval_overlap, eval_overlap_prompt, eval_distance (the latter by the model of `neighbors`)."""
    reward: ModelConfig | None = None
    """A sequence-classification reward model for instruct_reward (and base_reward). Thresholds on
    it (`tau`) belong to one model."""
    pair_score: TagConfig = TagConfig()
    """pair_score (1 to 5), pair_score_rank, pair_score_explanation: how well the response answers
    the instruction."""
    safety: SafetyConfig | None = None
    """safety, safety_categories, llama_guard_2."""
    base: BaseConfig | None = None
    """base_output; with `reward` also base_reward and reward_difference."""
    ifd: ModelConfig | None = None
    """The model whose log-probabilities give ifd; default: the teacher. A small one is cheap and
    ranks rows much alike (arXiv 2402.00530)."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that the language detector may answer; empty: all of lingua's."""


class ImportConfig(BaseModel):
    """Rows that exist already."""

    model_config = STRICT
    import_: str = Field(alias="import")
    """A published Magpie set or a ShareGPT/messages file: hub id, file or folder (Parquet or
    JSONL)."""
    limit: int | None = None
    """Take the first rows only."""


class GridCell(BaseModel):
    """Part of the instructions, with sampling of its own."""

    model_config = STRICT
    rows: int = Field(ge=1)
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


class PreferencesConfig(BaseModel):
    """Preference pairs over the rows that arms chose."""

    model_config = STRICT
    k: int = Field(default=5, ge=2)
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
        if sampling.get("temperature") == 0:
            raise ValueError(
                "at temperature 0 all k answers would be the same; set it above 0 (the paper: 0.8)"
            )
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
    """Seed of the pool: with the model, template and sampling it fixes every row's id and its own
    sampling seed."""
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
    turns: int = Field(default=1, ge=1)
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
        of_turns = self.end_with == "user" or self.turns_system_prompt is not None
        contradictions = [
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
        for contradicted, sentence in contradictions:
            if contradicted:
                raise ValueError(sentence)
        return self
