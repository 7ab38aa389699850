"""Benchmarks that a judge decides, as a recipe states them, and how checkpoints answer in them.
Imports pydantic only."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, model_validator

from core.sending.purse import Prices
from eval.presets import judges

Settings = dict[str, Any]


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
    answers_per_prompt: int = Field(default=1, ge=1, le=64)
    """So many answers to each prompt, drawn with seeds of their own (`sampling.seed`, or 0, and
    counting up): a temperature above 0 must be given. Each is judged; a prompt's are one cluster,
    and what they vary by is reported beside what prompts vary by."""
    system: str | None = None
    """System prompt before each prompt; none leaves it to the checkpoint's chat template, which may
    bring one of its own."""
    server: ServerBlock = {}
    """The checkpoint's server, as core.wire.ServerSpec has it: replicas, max_in_flight, timeout,
    args (vLLM's, verbatim), env."""

    @model_validator(mode="after")
    def _answers_differ(self) -> AnswersConfig:
        if self.answers_per_prompt > 1 and not self.sampling.get("temperature", 1):
            raise ValueError(
                "`answers_per_prompt` above 1 needs a `sampling.temperature` above 0: greedy "
                "answers are all the same"
            )
        return self


class JudgeConfig(Block):
    """Who judges: a model of ours behind vLLM, or any OpenAI-compatible endpoint. `preset:NAME` in
    its place, or `preset: NAME` in it, takes a known judge (eval/presets/judges.json)."""

    preset: str | None = None
    """A known judge by name; the block's other settings replace the preset's, and so do those of
    the benchmark's block (sampling, codes, mode)."""
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
    chat_template_kwargs: Settings = {}
    """Arguments of the judge's chat template, verbatim ({enable_thinking: false}); `chat` sends
    them along, which vLLM understands."""
    max_answer_characters: int = Field(default=100_000, ge=100)
    """An answer longer than this is cut before it is judged, with a note in its place, and counted.
    Characters, not tokens."""
    prices: Prices | None = None
    """With prices, the money spent is counted and `budget` can stop it."""
    budget: float | None = Field(default=None, gt=0)
    """The most that the recipe may spend on this judge in all, over all its results and runs, in
    the currency of `prices`; what is in the store already costs nothing. When it is reached the run
    stops with a sentence; everything bought is kept."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, said: Any) -> Any:
        return judges.judge(said)

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
    head_to_head: tuple[tuple[str, str], ...] = ()
    """Pairs of arms whose answers are also judged directly against each other ([[magpie, random]]),
    beside the way over the baseline."""
    judge: JudgeConfig | None = None
    """The judge of this benchmark; none means `eval.judge`."""
    judges: tuple[JudgeConfig, ...] | None = Field(default=None, min_length=1)
    """Several judges instead of `judge`: each asks and is cached by itself, and the preference of
    an item is the mean over those that judged it."""
    judges_share: bool = False
    """Several judges share the items: prompt i goes to judge i mod J (with several answers a
    prompt, its k-th to judge (i + k) mod J), alike for all arms. J judges at the price of one; no
    item is judged by two."""

    @model_validator(mode="after")
    def _one_or_several(self) -> Compared:
        if self.judge is not None and self.judges is not None:
            raise ValueError("give `judge` or `judges`, not both")
        if self.judges_share and len(self.judges or ()) < 2:
            raise ValueError("`judges_share` needs `judges`, two at least")
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
    data: str | None = None
    """Folder with what AlpacaEval publishes for its length-controlled win rate
    (instruction_difficulty.csv, df_gamed.csv, the baseline's outputs). None: from the hub, when the
    prompts are `alpaca_eval`."""
    order: Literal["random", "both"] = "random"
    """`random` fixes one order an instruction, by the official rule, alike for every model; `both`
    asks twice and averages."""
    order_seed: str = "0"
    """Seed in the official rule for the order (the published judgments have 0)."""
    prompt: str = "alpaca"
    """`alpaca` (ours), `alpaca_eval` (the official text, from your copy: MAGPIE_OFFICIAL or an
    installed alpaca_eval), or the path of a template: .jinja with {{ instruction }}, {{ output_1
    }}, {{ output_2 }}, or the official text with {instruction}, {output_1}, {output_2}."""
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
    step), `arena-hard-v0.1`, `arena-hard-v2.0`, `arena-hard-v2.0-creative` (the official texts,
    from your copy: MAGPIE_OFFICIAL), or the path of a template as in `alpaca`. A mapping from
    category to one of these asks each category in its own way (v2.0 judges creative writing
    directly)."""
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
    share: tuple[int, int] | None = None
    """(j, J): this judge is the j-th of J that share the items; None judges all."""
    first: int | None = None
    """Only so many prompts, the first in the random order of judging in steps; None judges all."""


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
