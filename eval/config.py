"""Evaluation, as a recipe states it. Imports pydantic only: whatever runs loads when it is used."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from core.sending.purse import Prices

Settings = dict[str, Any]
Benchmark = Literal["alpaca", "arena", "wildbench", "mtbench", "heldout", "tasks"]


class Block(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """A part of a recipe: only the keys that it declares."""


def _server(block: Settings) -> Settings:
    """Check a `server:` block where it is written, by the class that it ends up in."""
    from core.wire import ServerSpec

    ServerSpec(**block | {"model": "model"})
    if "model" in block:
        raise ValueError("a `server:` block names no model; write `model:` beside it")
    return block


ServerBlock = Annotated[Settings, AfterValidator(_server)]


class AnswersConfig(Block):
    """How a checkpoint answers a prompt set."""

    sampling: Settings = {"temperature": 0, "max_tokens": 1024}
    """Sampling of the answers, verbatim in the request (vLLM's SamplingParams names: temperature,
    max_tokens, repetition_penalty, seed …)."""
    system: str | None = None
    """System prompt before each prompt; none leaves it to the checkpoint's chat template, which may
    bring one of its own."""
    server: ServerBlock = {}
    """The checkpoint's server, as core.wire.ServerSpec has it: replicas, max_in_flight, timeout,
    args (vLLM's, verbatim), env."""


class JudgeConfig(Block):
    """Who judges: a model of ours behind vLLM, or any OpenAI-compatible endpoint."""

    model: str
    """Folder, `embedded/NAME`, hub id, or with `server.urls` the name that the endpoint knows."""
    revision: str | None = None
    """Hub branch, tag or commit; for a hosted judge any note of yours that should count as part of
    its identity."""
    server: ServerBlock = {}
    """As core.wire.ServerSpec has it. `urls` and `api_key_env` use servers that run already; `args`
    are vLLM's, verbatim."""
    api: Literal["completions", "chat"] | None = None
    """How to ask. `completions` sends token ids, so that no control token of an answer survives;
    `chat` sends messages, as hosted judges want it. Default: chat when `server.urls` is given, else
    completions."""
    max_answer_characters: int = Field(default=100_000, ge=100)
    """An answer longer than this is cut before it is judged, with a note in its place, and counted.
    Characters, not tokens."""
    prices: Prices | None = None
    """With prices, the money spent is counted and `budget` can stop it."""
    budget: float | None = Field(default=None, gt=0)
    """The most that the judgments of one result may cost in all (those already in the store count
    as what they cost), in the currency of `prices`. When it is reached the run stops with a
    sentence; everything bought is kept."""

    @property
    def asks_by(self) -> Literal["completions", "chat"]:
        """The API in use."""
        return self.api or ("chat" if self.server.get("urls") else "completions")

    @model_validator(mode="after")
    def _budget_needs_prices(self) -> JudgeConfig:
        if self.budget is not None and self.prices is None:
            raise ValueError("`budget` needs `prices`: without them no money is counted")
        return self


class Compared(Block):
    """What the two pairwise benchmarks share: whose answers are compared on which prompts, and how
    the judge is asked."""

    prompts: str | None = None
    """Prompt set of this benchmark; none means `eval.prompts`."""
    answers: AnswersConfig | None = None
    """How checkpoints answer in this benchmark; none means `eval.answers`."""
    baseline: str | dict[str, str] | None = None
    """Answers that every arm is compared with: an arm's name, a file of answers, or `hub`; for
    prompts whose categories have baselines of their own, a mapping from category to file. None
    means the baseline arm of the recipe."""
    judge: JudgeConfig | None = None
    """The judge of this benchmark; none means `eval.judge`."""
    judges: tuple[JudgeConfig, ...] | None = Field(default=None, min_length=1)
    """Several judges instead of `judge`: each asks and is cached by itself, and the preference of
    an item is the mean over those that judged it."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Compared:
        if self.judge is not None and self.judges is not None:
            raise ValueError("give `judge` or `judges`, not both")
        return self


class AlpacaConfig(Compared):
    """AlpacaEval-style: one verdict between two unordered outputs, read from the log-probabilities
    of a one-token code."""

    kind: Literal["alpaca"] = "alpaca"
    """Which protocol this is; never needs writing."""
    mode: Literal["logprob", "text", "reward"] = "logprob"
    """`logprob` reads P(first output is better) from the first token's log-probabilities; `text`
    takes the code that the judge writes, for judges that give no log-probabilities. `reward`: the
    judge is a sequence-classification reward model behind a vLLM pooling server (ours, or
    `server.urls`; its tokenizer must be at hand); P = sigmoid(difference of the rewards), and
    order, prompt, codes and sampling do not matter."""
    order: Literal["random", "both"] = "random"
    """`random` fixes one order an instruction, by the official rule, alike for every model; `both`
    asks twice and averages."""
    order_seed: str = "0"
    """Seed in the official rule for the order (the published judgments have 0)."""
    prompt: str = "alpaca"
    """`alpaca` (ours), or the path of a template: .jinja with {{ instruction }}, {{ output_1 }}, {{
    output_2 }}, or the official text with {instruction}, {output_1}, {output_2}."""
    codes: tuple[str, str] = ("m", "M")
    """What the template calls the first and the second output; each must be one token of the
    judge."""
    sampling: Settings = {"temperature": 0, "max_tokens": 1}
    """Sampling of the judge, verbatim in the request; in text mode allow more tokens when the judge
    thinks first."""

    @model_validator(mode="after")
    def _codes_differ(self) -> AlpacaConfig:
        codes = list(self.codes)
        if codes[0] == codes[1] or "" in codes:
            raise ValueError(f"`codes` must be two different, non-empty texts, not {codes}")
        return self


class ArenaConfig(Compared):
    """Arena-Hard-style: two games with swapped positions, each ending in one of five verdict
    labels."""

    kind: Literal["arena"] = "arena"
    """Which protocol this is; never needs writing."""
    version: Literal["v0.1", "v2.0"] = "v0.1"
    """Whose rules read the verdict: v0.1 wants exactly one distinct [[label]] and asks once more
    when there is none; v2.0 takes the last."""
    prompt: str | dict[str, str] = "arena"
    """`arena` (ours: the judge answers the prompt itself first), `arena-direct` (ours, without that
    step), or the path of a template as in `alpaca`. A mapping from category to one of these asks
    each category in its own way (v2.0 judges creative writing directly)."""
    sampling: Settings = {"temperature": 0, "max_tokens": 4096}
    """Sampling of the judge, verbatim in the request."""
    constrain: bool = False
    """When a judge's text ends without a verdict, ask for the bare label by constrained decoding
    (vLLM structured outputs; not with `chat`). Such verdicts are counted as constrained. It
    replaces the retry of v0.1."""


PairwiseBenchmark = Literal["alpaca", "arena"]
PAIRWISE: tuple[PairwiseBenchmark, ...] = get_args(PairwiseBenchmark)
RatedBenchmark = Literal["wildbench", "mtbench"]
RATED: tuple[RatedBenchmark, ...] = get_args(RatedBenchmark)


class Rated(Block):
    """What the two rated benchmarks share: each answer is rated from 1 to 10 by itself, against no
    baseline."""

    limit: int | None = Field(default=None, ge=1)
    """Only so many tasks, spread evenly over the set; none means `eval.limit`."""
    answers: AnswersConfig | None = None
    """How checkpoints answer in this benchmark; none means `eval.answers`."""
    judge: JudgeConfig | None = None
    """The judge of this benchmark; none means `eval.judge`."""
    sampling: Settings = {"temperature": 0, "max_tokens": 2048}
    """Sampling of the judge, verbatim in the request. A judge's text that `max_tokens` cuts off
    holds no rating."""


class WildBenchConfig(Rated):
    """WildBench's WB-Score: one rating a task, guided by the task's checklist."""

    kind: Literal["wildbench"] = "wildbench"
    """Which protocol this is; never needs writing."""
    prompts: str = "wildbench"
    """`wildbench` (v2, 1,024 tasks, from the hub's allenai/WildBench), or the path of a .json,
    .jsonl or .parquet file in its form or ours."""
    prompt: str = "wildbench"
    """`wildbench` (ours), or the path of a template: .jinja with {{ history }}, {{ user_query }},
    {{ model_output }}, {{ checklist }}, or the official text with {$history} and so on. The reply
    must end with a JSON object that has a score."""
    references: dict[str, str] = {}
    """WB-Reward: models to compare every arm with, NAME: a file or folder of their answers in a
    form that a baseline has (id and answer …). One more question a task and reference. Empty:
    WB-Reward is not judged."""
    reward_prompt: str = "wildbench-reward"
    """`wildbench-reward` (ours), or the path of a template: .jinja with {{ history }}, {{
    user_query }}, {{ candidate_A }}, {{ candidate_B }}, {{ checklist }}, or the official text with
    {$history} and so on. The reply must end with a JSON object that has a choice."""
    margin: int | None = Field(default=None, ge=0)
    """WB-Reward: a slight win of an answer that is longer by more characters than this is a tie;
    none means that length does not matter."""


class MTBenchConfig(Rated):
    """MT-Bench by single-answer grading: two turns a question, each rated."""

    kind: Literal["mtbench"] = "mtbench"
    """Which protocol this is; never needs writing."""
    prompts: str = "mt_bench"
    """`mt_bench` (80 questions, from the hub's HuggingFaceH4/mt_bench_prompts), or the path of a
    file like FastChat's question.jsonl; a `reference` in it is shown to the judge."""
    prompt: str = Field(default="mtbench", pattern=r"^mtbench$|\.jinja$")
    """`mtbench` (ours), or the path of a .jinja template with {{ question_1 }}, {{ answer_1 }} and,
    each defined only where there is one, {{ reference_1 }}, {{ question_2 }}, {{ answer_2 }}, {{
    reference_2 }}. The reply must end with [[rating]]."""


class Protocol(Block):
    """A judged benchmark's block for one judge, with every default of `eval` filled in."""

    answers: AnswersConfig
    judge: JudgeConfig


class AlpacaProtocol(Protocol, AlpacaConfig):
    """`eval.alpaca` for one judge."""


class ArenaProtocol(Protocol, ArenaConfig):
    """`eval.arena` for one judge."""


class RewardProtocol(Protocol, Rated):
    """WildBench's WB-Reward, as `WildBenchProtocol.reward` has it."""

    kind: Literal["wildbench-reward"] = "wildbench-reward"
    prompt: str


class WildBenchProtocol(Protocol, WildBenchConfig):
    """`eval.wildbench`."""

    @property
    def reward(self) -> RewardProtocol:
        """How the pairwise questions of WB-Reward are asked."""
        shared = self.model_dump(include={"answers", "judge", "sampling"})
        return RewardProtocol(prompt=self.reward_prompt, **shared)


class MTBenchProtocol(Protocol, MTBenchConfig):
    """`eval.mtbench`."""


PairwiseProtocol = AlpacaProtocol | ArenaProtocol
RatedProtocol = WildBenchProtocol | MTBenchProtocol


class HeldoutConfig(Block):
    """Loss on the conversations kept out of training."""

    server: ServerBlock | None = None
    """The checkpoint's server; none means the one of `eval.answers`."""


class TasksConfig(Block):
    """lm-eval."""

    tasks: tuple[str | Settings, ...] = ("everyday-science",)
    """Names of lm-eval tasks or groups (`ifeval`), paths of task YAML files, `everyday-science`
    (the small set shipped here), `open-llm-leaderboard-v1` or `mmlu-redux`; or a mapping with
    `task` or `group` (a name) and what it overrides, verbatim: {task: hellaswag, num_fewshot: 10},
    {group: mmlu, num_fewshot: 5}."""
    backend: str | None = None
    """lm-eval's model type: hf, local-completions, vllm … None: vllm with a replica a GPU where
    there are GPUs and `model_args` says nothing that would be hf's, else hf."""
    model_args: Settings = {}
    """Arguments of that model, verbatim ({"dtype": "bfloat16"}); `pretrained` is the checkpoint."""
    evaluate: Settings = {}
    """Arguments of lm_eval.simple_evaluate, verbatim: limit, num_fewshot, batch_size,
    apply_chat_template, gen_kwargs …"""

    @field_validator("tasks")
    @classmethod
    def _named(cls, value: tuple[str | Settings, ...]) -> tuple[str | Settings, ...]:
        for entry in value:
            names = [] if isinstance(entry, str) else [entry.get("task"), entry.get("group")]
            if names and sum(isinstance(name, str) for name in names) != 1:
                raise ValueError(
                    f"a mapping in `tasks` needs `task` or `group`, one name, not {entry}"
                )
        return value

    @field_validator("evaluate")
    @classmethod
    def _ours(cls, value: Settings) -> Settings:
        taken = sorted({"model", "model_args", "tasks", "log_samples", "task_manager"} & set(value))
        if taken:
            names = f"{', '.join(taken)} {'is' if len(taken) == 1 else 'are'}"
            raise ValueError(f"{names} set by the harness and cannot be in `evaluate`")
        return value


class EvalConfig(Block):
    """What is measured on every checkpoint. A benchmark that is not named is not run."""

    prompts: str = "magpie-48"
    """`magpie-48` (48 prompts written here, 4 in each of 12 categories), `alpaca_eval`,
    `arena-hard-v0.1`, `arena-hard-v2.0` (from the hub), or the path of a file in our form or in
    either benchmark's."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many prompts, spread evenly over the set; none means all."""
    answers: AnswersConfig = AnswersConfig()
    """How checkpoints answer."""
    judge: JudgeConfig | None = None
    """The judge of every judged benchmark that names none of its own."""
    alpaca: AlpacaConfig | None = None
    """AlpacaEval-style pairwise preference."""
    arena: ArenaConfig | None = None
    """Arena-Hard-style games."""
    wildbench: WildBenchConfig | None = None
    """WildBench's WB-Score: answers rated from 1 to 10 with checklists."""
    mtbench: MTBenchConfig | None = None
    """MT-Bench: two turns, each rated from 1 to 10."""
    heldout: HeldoutConfig | None = None
    """Loss on held-out conversations."""
    tasks: TasksConfig | None = None
    """lm-eval tasks."""
    primary: Benchmark | None = None
    """The one benchmark that decides, declared beforehand; all others are exploratory. None means
    the first that is named, in the order alpaca, arena, wildbench, mtbench, heldout, tasks."""

    @property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """The benchmarks that this recipe runs, in a fixed order."""
        return tuple(name for name in get_args(Benchmark) if getattr(self, name) is not None)

    @property
    def deciding(self) -> Benchmark | None:
        """The primary benchmark."""
        return self.primary or next(iter(self.benchmarks), None)

    def protocol(self, benchmark: PairwiseBenchmark) -> PairwiseProtocol:
        """The first of `protocols`: all that its judges have in common."""
        return self.protocols(benchmark)[0]

    def protocols(self, benchmark: PairwiseBenchmark) -> tuple[PairwiseProtocol, ...]:
        """A pairwise benchmark that this recipe runs, once for each of its judges."""
        kind: type[PairwiseProtocol] = AlpacaProtocol if benchmark == "alpaca" else ArenaProtocol
        settings = self._filled(benchmark, "prompts", "answers", "judge")
        judges = settings.pop("judges") or (settings["judge"],)
        return tuple(kind(**settings | {"judge": judge}) for judge in judges)

    def rating(self, benchmark: RatedBenchmark) -> RatedProtocol:
        """A rated benchmark that this recipe runs."""
        kind: type[RatedProtocol]
        kind = WildBenchProtocol if benchmark == "wildbench" else MTBenchProtocol
        return kind(**self._filled(benchmark, "limit", "answers", "judge"))

    def _filled(self, benchmark: Benchmark, *shared: str) -> Settings:
        """The block of a benchmark; what it leaves out of `shared` is as `eval` has it."""
        block = dict(getattr(self, benchmark))
        return block | {name: block[name] or getattr(self, name) for name in shared}

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        for name in (*PAIRWISE, *RATED):
            block = getattr(self, name)
            if block and not (getattr(block, "judges", None) or block.judge or self.judge):
                where = f"write `judge:` in `eval`, or in `eval.{name}`"
                raise ValueError(f"`{name}` needs a judge: {where}")
        if self.primary not in (None, *self.benchmarks):
            what = f"not run (it runs {', '.join(self.benchmarks) or 'none'})"
            raise ValueError(f"`primary` is {self.primary}, which this recipe does {what}")
        games = self.protocols("arena") if self.arena and self.arena.constrain else ()
        if any(game.judge.asks_by == "chat" for game in games):
            judge = "a judge asked by `completions` (vLLM's structured outputs on token ids)"
            raise ValueError(f"`arena.constrain` needs {judge}")
        return self


def pairwise_benchmarks(config: EvalConfig) -> list[PairwiseBenchmark]:
    """The benchmarks of a recipe that compare each answer with a baseline's."""
    return [name for name in PAIRWISE if getattr(config, name) is not None]


def rated_benchmarks(config: EvalConfig) -> list[RatedBenchmark]:
    """The rated benchmarks that a recipe runs."""
    return [name for name in RATED if getattr(config, name) is not None]
