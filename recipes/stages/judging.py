"""The rated rated_benchmarks in the graph: WildBench and MT-Bench, where every answer is rated by
itself and compared with no baseline.

WildBench's may also be compared with those of reference models, for WB-Reward.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import file_digest
from core.store import Build, Result, digest
from core.tracking import Log
from eval.config import MTBenchConfig, RatedBenchmark, WildBenchConfig
from recipes.stages.versions import content_of_files

if TYPE_CHECKING:
    from eval.prompt_sets.rated_tasks import Task
    from recipes.stages.graph import Stages


def shown_characters(wanted: list[Task]) -> list[int]:
    """How many characters of the task each call to the judge shows, the answers aside: one call a
    task, or one a turn."""
    found = []
    for task in wanted:
        fixed = sum(
            len(text)
            for text in (*task.checklist, *task.references, *(m["content"] for m in task.history))
        )
        found += [
            fixed + sum(map(len, (task.turns or (task.prompt,))[: turn + 1]))
            for turn in range(len(task.turns) or 1)
        ]
    return found


def ratings(
    graph: Stages,
    run: str,
    benchmark: RatedBenchmark,
    answers: Result | None,
    prompts: Result | None,
) -> Result | None:
    """The ratings of one run, named judge/BENCHMARK/RUN."""
    from eval.judging import ratings as rating
    from eval.judging import settle

    config = graph.recipe.eval
    assert config is not None
    protocol, name = config.rating(benchmark), f"judge/{benchmark}/{run}"
    assert protocol.judge is not None
    named = protocol.references if isinstance(protocol, WildBenchConfig) else {}
    references = {
        f"reference/{who}": _reference(graph, who, path, prompts) for who, path in named.items()
    }

    def make(build: Build, log: Log) -> None:
        import polars as pl

        assert answers is not None and prompts is not None
        inputs = {"prompts": prompts.path / "prompts.jsonl", "answers": answers.path}
        inputs |= {who: made.path for who, made in references.items() if made is not None}
        build.counts.update(
            rating.run(
                protocol,
                inputs,
                graph.session.store.root,
                build.path,
                servers=graph.session.servers,
                log=log,
            )
        )
        log.table("ratings", pl.read_parquet(build.path / "ratings.parquet"))
        if references:
            log.table("rewards", pl.read_parquet(build.path / "rewards.parquet"))

    def content(out: Path) -> str:
        found = [
            file_digest(out / f"{table}.parquet")
            for table in ("ratings", *(("rewards",) if references else ()))
        ]
        return digest(found) if references else found[0]

    spec: dict[str, Any] = {"cell": settle.determines(protocol.judge, protocol)}
    if (
        isinstance(protocol, WildBenchConfig) and references
    ):  # what a recipe without references has as its key stays
        spec["rewards"] = {
            "cell": settle.determines(protocol.judge, protocol.reward),
            "margin": protocol.margin,
            "names": list(named),
        }
    parents = {"answers": answers, "prompts": prompts, **references}
    made = graph.session.stage(name, spec, parents, make, content=content)
    if made is None:
        graph.session.add(name, _estimate(protocol, graph.prompt_characters.get(benchmark, [])))
    return made


def _reference(graph: Stages, who: str, path: str, prompts: Result | None) -> Result | None:
    """A reference model's answers to the tasks, made once for all runs."""
    from eval.prompt_sets import prompts as rated_benchmarks

    name = f"baseline/wildbench/{who}"
    if name in graph.session.results:
        return graph.session.results[name]
    if any(
        step.name == name for step in graph.session.steps
    ):  # in a plan, its line is there already
        return None

    def make(build: Build, log: Log) -> None:
        assert prompts is not None
        wanted = rated_benchmarks.prompts(str(prompts.path / "prompts.jsonl"))
        build.counts.update(rated_benchmarks.baseline({"*": path}, wanted, build.path))

    return graph.session.stage(
        name, {"baseline": content_of_files(path)}, {"prompts": prompts}, make
    )


def _estimate(protocol: WildBenchConfig | MTBenchConfig, characters: list[int]) -> str:
    """The most that a judge can be asked and paid for one checkpoint, before its answers are known;
    "" while the tasks are unknown."""
    from eval.judging.ask import most_tokens
    from eval.judging.journal import Purse

    assert protocol.judge is not None and protocol.answers is not None
    if not characters:
        return ""
    answers = (1 if protocol.kind == "wildbench" else 2) * int(
        protocol.answers.sampling.get("max_tokens", 1024)
    )  # MT-Bench shows both turns
    asked = sum(
        n // 4 + answers + 400 for n in characters
    )  # as for pairwise judges: four characters a token, 400 tokens of instructions
    pairs = len(characters) * (
        len(protocol.references) if isinstance(protocol, WildBenchConfig) else 0
    )
    if pairs:
        asked += (pairs // len(characters)) * sum(
            n // 4 + 2 * answers + 400 for n in characters
        )  # a reference's answer counts like the model's
    calls = len(characters) + pairs
    told = calls * most_tokens(protocol.sampling)
    money = (
        f", {Purse(protocol.judge.prices, None).cost(asked, told):.2f} in money"
        if protocol.judge.prices
        else ""
    )
    return f"at most {calls} calls, {asked:,} prompt tokens, {told:,} generated{money}"
