"""How each tag is measured, as a recipe states it. Imports pydantic only."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from synth.config.models import STRICT, ModelConfig, Verbatim, checked_server


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
    floor: float = Field(default=0.05, ge=0, le=1)
    """Label mode: what the codes must carry of the probability; a cell with less fails."""


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
"""A column's name, as SQL writes it without quotes."""
Kind = Literal["label", "number", "text", "labels"]


class OwnConfig(BaseModel):
    """A column of the recipe's own: what a language model says of a row when it is asked by a
    prompt of yours, or what a classifier gives for it."""

    model_config = STRICT
    prompt: str | None = None
    """A prompt file (jinja). It may name `instruction`, `response`, `fence` (longer than any run of
    backticks in them), `labels`, `codes` and `mode`; where it names neither `codes` nor `mode`, a
    line on how to answer is put below it."""
    classifier: ModelConfig | None = None
    """In place of a prompt: a sequence-classification model (its name, or a block as of a reward
    model: `server: {args: {runner: pooling}}`, or `urls`)."""
    output: str | int | None = None
    """Of a classifier with several outputs: whose probability is the number, by name or place."""
    truncate: bool = False
    """Whether a text is cut to a classifier's `max_model_len`; else it is a failed cell."""
    kind: Kind = "label"
    """label: one of `labels`; number; text; labels: a list of `labels`. Default: what `labels` or
    `between` say."""
    labels: tuple[str, ...] = ()
    """What it may hold, the lowest first."""
    ordered: bool = True
    """Whether the labels have an order: `>=` compares them, and NAME_rank holds their rank."""
    between: tuple[int, int] | None = None
    """The lowest and the highest number."""
    reads: Literal["instruction", "response"] = "instruction"
    """What a cell is of: the instruction, or the conversation with its response."""
    model: ModelConfig | None = None
    """The tagger; default: the teacher."""
    mode: Literal["label", "explain"]
    """As of any tag; default: label for one label and for a number between two figures, else
    explain."""
    sampling: Verbatim = Field(default_factory=dict)
    """SamplingParams, verbatim; default greedy."""
    check: int = Field(default=0, ge=0)
    """How many measured rows, by hash of id, are asked in the other mode as well."""
    floor: float = Field(default=0.05, ge=0, le=1)
    """As of any tag."""

    @model_validator(mode="before")
    @classmethod
    def _kind_and_mode(cls, data: Any) -> Any:
        """What is not said of kind and mode follows from the rest."""
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("classifier"), str):
            args = {"runner": "pooling"}
            data = {**data, "classifier": {"model": data["classifier"], "server": {"args": args}}}
        scored = data.get("classifier") and not data.get("labels")
        kind = data.get("kind") or ("number" if scored or data.get("between") else "label")
        in_codes = kind == "label" or (kind == "number" and _few(data.get("between")))
        return {"kind": kind, "mode": "label" if in_codes else "explain", **data}

    @model_validator(mode="after")
    def _agree(self) -> OwnConfig:
        """Refuse settings that contradict each other."""
        of_labels = self.kind in ("label", "labels")
        low, high = self.between or (0, 1)
        asks = self.model or self.sampling or self.check or self.between
        contradictions = [
            (
                (self.prompt is None) == (self.classifier is None),
                "a column of your own has either a `prompt` or a `classifier`",
            ),
            (
                self.classifier and (asks or self.kind == "text"),
                "a classifier takes `labels` (or `kind: number`), `output` and `truncate` alone: "
                "it is asked nothing",
            ),
            (
                self.classifier and self.classifier.hosted,
                "a classifier answers /classify, which a service that chats does not offer",
            ),
            (
                (self.output is not None or self.truncate) and not self.classifier,
                "`output` and `truncate` are for a `classifier`",
            ),
            (
                self.output is not None and self.kind != "number",
                "`output` is for `kind: number`",
            ),
            (
                of_labels and len(set(self.labels)) < 2,
                "say what it may hold: `labels: [low, high]`, or `kind: number` or `kind: text`",
            ),
            (of_labels and len(set(self.labels)) < len(self.labels), "a label is there twice"),
            (of_labels and "" in self.labels, "a label is empty"),
            (not of_labels and self.labels, f"a {self.kind} takes no `labels`"),
            (self.between and self.kind != "number", "`between` is for `kind: number`"),
            (low >= high, "`between` is [lowest, highest]"),
            (
                self.mode == "label" and self.kind in ("text", "labels"),
                f"`mode: label` reads one code, which cannot say {self.kind}; use `mode: explain`",
            ),
            (
                self.prompt
                and self.mode == "label"
                and self.kind == "number"
                and not _few(self.between),
                "in `mode: label` a number is one digit: give `between` within 0 and 9, or use "
                "`mode: explain`",
            ),
            (
                self.mode == "label" and len(self.labels) > MOST_CODES,
                f"`mode: label` tells {MOST_CODES} labels apart at most; use `mode: explain`",
            ),
            (
                self.check and (self.mode == "explain") and self.kind in ("text", "labels"),
                f"`check` compares labels, and {self.kind} is asked in one mode only",
            ),
        ]
        for contradicted, sentence in contradictions:
            if contradicted:
                raise ValueError(sentence)
        return self

    @property
    def holds(self) -> dict[str, Any]:
        """What a cell may hold, as it enters keys."""
        said = {
            "labels": self.labels,
            "between": self.between,
            "ordered": self.ordered,
            "output": self.output,
        }
        held = {name: value for name, value in said.items() if value not in (None, (), False)}
        return {"kind": self.kind, **held}

    @property
    def tag(self) -> TagConfig:
        """How the tag is asked for."""
        given = {name: getattr(self, name) for name in TagConfig.model_fields}
        return TagConfig.model_validate(given)


MOST_CODES = 26
"""Labels that one-token codes tell apart."""


def _few(between: Any) -> bool:
    """Whether the whole numbers between two are digits."""
    return isinstance(between, (list, tuple)) and all(number in range(10) for number in between)


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
    model: str | ModelConfig = "embedded/all-MiniLM-L6-v2"
    """A sentence-transformers model (the paper used sentence-transformers/all-mpnet-base-v2); or a
    service: {model: NAME, server: {urls: [...]}} is asked through /v1/embeddings, with `prices`
    and `budget` as any hosted model."""
    threshold: float = Field(default=0.05, ge=0, le=4)
    """Squared L2 distance of unit vectors under which two rows count as repeats (gen_dis.py of the
    original)."""
    exact_up_to: int = Field(default=2_000_000, ge=1)
    """Distinct instructions up to which every pair is compared on the processor; more are searched
    by an index (faiss-cpu), whose recall is measured and stored. A GPU compares every pair, however
    many."""
    probes: int = Field(default=32, ge=1)
    """Lists of the index that a row looks into: more takes longer and finds more."""

    @property
    def name(self) -> str:
        """The embedding model's name."""
        return self.model if isinstance(self.model, str) else self.model.model

    @field_validator("model")
    @classmethod
    def _service(cls, model: str | ModelConfig) -> str | ModelConfig:
        """A model of our own is named; what it is asked with is for services, which know theirs by
        name."""
        if isinstance(model, str):
            return model
        if not model.server.get("urls"):
            raise ValueError(
                "an embedding model with a `server` is a service: give its `urls`, or name a "
                "sentence-transformers model alone"
            )
        return model.model_copy(update={"api": "chat"})


class MinhashConfig(BaseModel):
    """Near-duplicates by the words that instructions share."""

    model_config = STRICT
    threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two instructions are near-duplicates; of 20
    words one may differ at 0.7 and n-grams of 3."""
    ngram: int = Field(default=3, ge=1, le=100)
    """Words in an n-gram."""
    permutations: int = Field(default=128, ge=8, le=10_000)
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


class FitConfig(BaseModel):
    """The server of the model that `train` fine-tunes, for `fit`."""

    model_config = STRICT
    server: Verbatim = Field(default_factory=dict)
    """As of any model: `args` (vLLM's, verbatim), replicas, urls ..."""

    @field_validator("server")
    @classmethod
    def _check_server(cls, block: Verbatim) -> Verbatim:
        return checked_server(block)


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
    superfilter: ModelConfig | None = None
    """A small model (GPT-2's size) for superfilter: the ifd of another model beside `ifd`
    (Superfiltering, arXiv 2402.00530). Without a chat template it reads plain text."""
    fit: FitConfig = FitConfig()
    """fit: the mean log-probability of the answer under the model that `train` fine-tunes, as its
    training renders the row (after GRAPE, arXiv 2502.04194)."""
    ifd: ModelConfig | None = None
    """The model whose log-probabilities give ifd; default: the teacher. A small one is cheap and
    ranks rows much alike (arXiv 2402.00530)."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that the language detector may answer; empty: all of lingua's."""
    own: dict[Name, OwnConfig] = Field(default_factory=dict)
    """Columns of the recipe's own, by name."""
