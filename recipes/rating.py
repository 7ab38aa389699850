"""The rated benchmarks in the graph: WildBench and MT-Bench, where every answer is rated by itself and compared with no baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.store import Build, Result, file_digest
from core.tracking import Log
from eval.config import EvalConfig, MTBenchConfig, WildBenchConfig

if TYPE_CHECKING:
    from eval.questions import Task
    from recipes.graph import Stages

Rated = Literal["wildbench", "mtbench"]
RATED: tuple[Rated, ...] = ("wildbench", "mtbench")


def benchmarks(config: EvalConfig) -> list[Rated]:
    """The rated benchmarks that a recipe runs."""
    return [name for name in RATED if getattr(config, name) is not None]


def shown_characters(wanted: list[Task]) -> list[int]:
    """How many characters of the task each call to the judge shows, the answers aside: one call a task, or one a turn."""
    found = []
    for task in wanted:
        fixed = sum(len(text) for text in (*task.checklist, *task.references, *(m["content"] for m in task.history)))
        found += [fixed + sum(map(len, (task.turns or (task.prompt,))[: turn + 1])) for turn in range(len(task.turns) or 1)]
    return found


def ratings(graph: Stages, run: str, benchmark: Rated, answers: Result | None, prompts: Result | None) -> Result | None:
    """The ratings of one run, named judge/BENCHMARK/RUN."""
    from eval import judges
    from eval import ratings as rating

    config = graph.recipe.eval
    assert config is not None
    protocol, name = config.rating(benchmark), f"judge/{benchmark}/{run}"
    assert protocol.judge is not None

    def make(build: Build, log: Log) -> None:
        import polars as pl

        assert answers is not None and prompts is not None
        inputs = {"prompts": prompts.path / "prompts.jsonl", "answers": answers.path}
        build.counts.update(rating.run(protocol, inputs, graph.session.store.root, build.path, servers=graph.session.servers, log=log))
        log.table("ratings", pl.read_parquet(build.path / "ratings.parquet"))

    spec = {"cell": judges.determines(protocol.judge, protocol)}
    parents = {"answers": answers, "prompts": prompts}
    made = graph.session.stage(name, spec, parents, make, content=lambda out: file_digest(out / "ratings.parquet"))
    if made is None:
        graph.session.add(name, _estimate(protocol, graph.prompt_characters.get(benchmark, [])))
    return made


def _estimate(protocol: WildBenchConfig | MTBenchConfig, characters: list[int]) -> str:
    """The most that a judge can be asked and paid for one checkpoint, before its answers are known; "" while the tasks are unknown."""
    from eval.asking import most_tokens
    from eval.purchases import Purse

    assert protocol.judge is not None and protocol.answers is not None
    if not characters:
        return ""
    answers = (1 if protocol.kind == "wildbench" else 2) * int(protocol.answers.sampling.get("max_tokens", 1024))  # MT-Bench shows both turns
    asked = sum(n // 4 + answers + 400 for n in characters)  # as for pairwise judges: four characters a token, 400 tokens of instructions
    told = len(characters) * most_tokens(protocol.sampling)
    money = f", {Purse(protocol.judge.prices, None).cost(asked, told):.2f} in money" if protocol.judge.prices else ""
    return f"at most {len(characters)} calls, {asked:,} prompt tokens, {told:,} generated{money}"
