"""Evaluation, as a recipe states it. Imports pydantic only: whatever runs loads when it is used."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from core.wire import no_code
from eval.presets import judges
from eval.protocols import (
    PAIRWISE,
    RATED,
    AlpacaConfig,
    AlpacaProtocol,
    AnswersConfig,
    ArenaConfig,
    ArenaProtocol,
    Block,
    JudgeConfig,
    MTBenchConfig,
    MTBenchProtocol,
    PairwiseBenchmark,
    PairwiseProtocol,
    RatedBenchmark,
    RatedProtocol,
    ServerBlock,
    Settings,
    WildBenchConfig,
    WildBenchProtocol,
)

Benchmark = Literal["alpaca", "arena", "wildbench", "mtbench", "heldout", "checks", "tasks"]


IN_STEPS = "alpaca/win_rate"
"""What decides where judging stops early: a length-controlled figure of the prompts judged so far
has no interval that holds at every look."""


class ForeignConfig(Block):
    """Rows that no arm was drawn from: another teacher's, or people's."""

    data: str
    """Hub id, file or folder in any layout that `magpie import` reads."""
    limit: int = Field(default=200, ge=1)
    """So many of its rows, by a hash of their ids."""
    reading: Settings = Field(default={})
    """How it is read, as beside an arm's `data`: map, join, split, config, revision, as."""


class HeldoutConfig(Block):
    """Loss on the conversations kept out of training."""

    server: ServerBlock | None = None
    """The checkpoint's server; none means the one of `eval.answers`."""
    foreign: ForeignConfig | None = None
    """Also the loss on these rows (`foreign_loss`). The pool's own rows are what a random arm is a
    sample of, so their loss favours it; this one favours no arm."""


class ChecksConfig(Block):
    """Instructions that say in so many words what an answer must do, checked by a program in the
    manner of IFEval: no judge is needed."""

    prompts: str = "magpie-checks-48"
    """`magpie-checks-48` (48 prompts with 81 checks, written here), or the path of a .json, .jsonl
    or .parquet file of id, prompt and checks."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many prompts, spread evenly over the set; none means `eval.limit`."""
    answers: AnswersConfig | None = None
    """How checkpoints answer in this benchmark; none means `eval.answers`."""


class TasksConfig(Block):
    """lm-eval."""

    tasks: tuple[str | Settings, ...] = ("everyday-science",)
    """Names of lm-eval tasks or groups (`ifeval`), paths of task YAML files, `everyday-science`
    (the small set shipped here), `open-llm-leaderboard-v1` or `mmlu-redux`; or a mapping with
    `task` or `group` (a name) and what it overrides, verbatim: {task: hellaswag, num_fewshot: 10},
    {group: mmlu, num_fewshot: 5}."""
    backend: str | None = None
    """lm-eval's model type: hf, local-completions, vllm … None: vllm with a replica a GPU where
    there are GPUs and `model_args` says nothing that would be hf's, else hf. `local-completions`
    without a `base_url` in `model_args` asks a vLLM server of ours for the checkpoint."""
    server: ServerBlock | None = None
    """That server; none means the one of `eval.answers`."""
    model_args: Settings = Field(default={})
    """Arguments of that model, verbatim ({"dtype": "bfloat16"}); `pretrained` is the checkpoint."""
    evaluate: Settings = Field(default={})
    """Arguments of lm_eval.simple_evaluate, verbatim: limit, num_fewshot, batch_size, gen_kwargs …
    `apply_chat_template` is true where the checkpoint has a chat template, unless it is given
    here."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, given: Any) -> Any:
        if isinstance(given, (str, list)):
            raise ValueError("is a mapping of keys, of which `tasks` has the names: {tasks: [...]}")
        return given

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

    @field_validator("tasks", "model_args", "evaluate")
    @classmethod
    def _without_code(cls, value: Any) -> Any:
        no_code({"": value})
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
    lora: Literal["merged", "served"] = "merged"
    """Who answers for trainings with `train.lora`, wherever a server of ours does (answers,
    held-out loss, lm-eval's `local-completions`): `merged`, a server for each checkpoint with the
    adapter merged into its weights, or `served`, one server of the base with all their adapters,
    each asked by its name. The two round differently, so their results have keys of their own."""
    heldout: HeldoutConfig | None = None
    """Loss on held-out conversations."""
    checks: ChecksConfig | None = None
    """Instructions whose answers a program checks."""
    tasks: TasksConfig | None = None
    """lm-eval tasks."""
    primary: str | None = None
    """The one benchmark that decides, declared beforehand; all others are exploratory. Its first
    metric does, or the one that is named (`heldout/foreign_loss`). None means the
    first that is named, in the order alpaca, arena, wildbench, mtbench, heldout, checks, tasks."""

    judging: Literal["whole", "sequential"] = "whole"
    """`sequential` judges `alpaca`, which must be the primary benchmark, in steps of a tenth of its
    prompts in random order, and stops when every difference is decided or hopeless; its raw win
    rate decides. Every other benchmark is judged whole."""
    equivalent: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The smallest difference of the primary metric that would matter, in its unit (points of win
    rate, nats a token), declared beforehand: with it "equal within" and "no worse" are verdicts."""

    @property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """The benchmarks that this recipe runs, in a fixed order."""
        return tuple(name for name in get_args(Benchmark) if getattr(self, name) is not None)

    @property
    def deciding(self) -> str | None:
        """The primary benchmark, and its metric where that is named."""
        if self.judging == "sequential":
            return IN_STEPS
        return self.primary or next(iter(self.benchmarks), None)

    def protocol(self, benchmark: PairwiseBenchmark) -> PairwiseProtocol:
        """The first of `protocols`: all that its judges have in common."""
        return self.protocols(benchmark)[0]

    def protocols(self, benchmark: PairwiseBenchmark) -> tuple[PairwiseProtocol, ...]:
        """A pairwise benchmark that this recipe runs, once for each of its judges."""
        kind: type[PairwiseProtocol] = AlpacaProtocol if benchmark == "alpaca" else ArenaProtocol
        settings = self._filled(benchmark, "prompts", "answers", "judge")
        one = settings.pop("judge")
        each = settings.pop("judges") or (one,)
        shared = settings.pop("judges_share")
        return tuple(
            kind(
                **settings | self._of_preset(benchmark, judge),
                judge=judge,
                share=(number, len(each)) if shared else None,
            )
            for number, judge in enumerate(each)
        )

    def rating(self, benchmark: RatedBenchmark) -> RatedProtocol:
        """A rated benchmark that this recipe runs."""
        kind: type[RatedProtocol]
        kind = WildBenchProtocol if benchmark == "wildbench" else MTBenchProtocol
        settings = self._filled(benchmark, "limit", "answers", "judge")
        return kind(**settings | self._of_preset(benchmark, settings["judge"]))

    def _of_preset(self, benchmark: Benchmark, judge: JudgeConfig) -> Settings:
        """How a preset's judge is asked, where the benchmark's block does not say it."""
        said = getattr(self, benchmark).model_fields_set
        known = judges.settings(judge.preset, benchmark)
        return {name: value for name, value in known.items() if name not in said}

    def _filled(self, benchmark: Benchmark, *shared: str) -> Settings:
        """The block of a benchmark; what it leaves out of `shared` is as `eval` has it."""
        block = dict(getattr(self, benchmark))
        return block | {name: block[name] or getattr(self, name) for name in shared}

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        """What two blocks together ask for must be possible."""
        for name in (*PAIRWISE, *RATED):
            block = getattr(self, name)
            if block and not (getattr(block, "judges", None) or block.judge or self.judge):
                where = f"write `judge:` in `eval`, or in `eval.{name}`"
                raise ValueError(f"`{name}` needs a judge: {where}")
        if self.primary and self.primary.partition("/")[0] not in self.benchmarks:
            what = f"not run (it runs {', '.join(self.benchmarks) or 'none'})"
            raise ValueError(f"`primary` is {self.primary}, which this recipe does {what}")
        if self.judging == "sequential" and not self._decided_by_alpaca():
            raise ValueError(
                "`judging: sequential` judges `alpaca` until its raw win rate tells the arms "
                "apart: write `alpaca:`, and leave `primary` out or set it to alpaca"
            )
        if self.mtbench and self.rating("mtbench").answers.answers_per_prompt > 1:
            own = "give `mtbench` `answers:` of its own with one"
            raise ValueError(f"MT-Bench takes one answer a question (two turns each): {own}")
        if self.checks and (self.checks.answers or self.answers).answers_per_prompt > 1:
            own = "give `checks` `answers:` of its own with one"
            raise ValueError(f"`checks` scores one answer a prompt: {own}")
        games = self.protocols("arena") if self.arena and self.arena.constrain else ()
        if any(game.judge.asks_by == "chat" for game in games):
            judge = "a judge asked by `completions` (vLLM's structured outputs on token ids)"
            raise ValueError(f"`arena.constrain` needs {judge}")
        return self

    def _decided_by_alpaca(self) -> bool:
        return self.alpaca is not None and self.primary in (None, "alpaca", IN_STEPS)


def pairwise_benchmarks(config: EvalConfig) -> list[PairwiseBenchmark]:
    """The benchmarks of a recipe that compare each answer with a baseline's."""
    return [name for name in PAIRWISE if getattr(config, name) is not None]


def rated_benchmarks(config: EvalConfig) -> list[RatedBenchmark]:
    """The rated benchmarks that a recipe runs."""
    return [name for name in RATED if getattr(config, name) is not None]
