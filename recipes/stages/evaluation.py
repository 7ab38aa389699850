"""The evaluation half of the graph: lm-eval, answers and held-out loss of every checkpoint,
judgments, scores, the comparison, the report.

What is rated by itself instead of compared with a baseline is judged in recipes/stages/judging.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import UserError
from core.files import file_digest
from core.store import Build, Result, digest, tree_digest
from core.tracking import Log
from eval.config import AlpacaConfig, ArenaConfig, RatedBenchmark, rated_benchmarks
from recipes.stages import judging
from recipes.stages.session import WAITS, Results
from recipes.stages.versions import content_of_files

if TYPE_CHECKING:
    from recipes.stages.graph import Stages

Pairwise = Literal["alpaca", "arena"]


def stages(
    graph: Stages, checkpoints: Results, selections: dict[tuple[str, int], Result | None]
) -> None:
    """Everything after training. `checkpoints` maps "ARM/SEED" (or "ARM" for a finished model) to
    its result."""
    config = graph.recipe.eval
    assert config is not None
    # Finished models last: the judge or the next recipe may be the same model, and then its server
    # stays up.
    runs = sorted(checkpoints, key=lambda name: "/" not in name)
    parts: dict[str, Results] = {run: {} for run in runs}
    if config.tasks is not None:
        for run in runs:
            parts[run]["tasks"] = _tasks(graph, run, checkpoints[run])
    graph.session.done("tasks")
    pairwise: list[Pairwise] = [b for b in ("alpaca", "arena") if getattr(config, b) is not None]
    judged: list[Pairwise | RatedBenchmark] = [*pairwise, *rated_benchmarks(config)]
    prompts = {b: _prompts(graph, b) for b in judged}
    answers: dict[tuple[str, str], Result | None] = {}
    names: dict[tuple[str, str], str] = {}
    for run in runs:
        for benchmark in judged:
            answers[(run, benchmark)] = _answers(
                graph, run, benchmark, checkpoints[run], prompts[benchmark], names
            )
        if config.heldout is not None:
            parts[run]["heldout"] = _heldout(
                graph, run, checkpoints[run], selections.get(("heldout", 0))
            )
    graph.session.done("answers")
    graph.session.done("heldout")
    for pair in pairwise:
        for run, made in _judgments(graph, runs, pair, answers, prompts[pair]).items():
            parts[run][f"judgments-{pair}"] = made
    for rated in rated_benchmarks(config):
        for run in runs:
            parts[run][f"ratings-{rated}"] = judging.ratings(
                graph, run, rated, answers[(run, rated)], prompts[rated]
            )
    graph.session.done("judge")
    scores = {run: _score(graph, run, parts[run], prompts) for run in runs if parts[run]}
    graph.session.done("score")
    comparison = _compare(graph, scores)
    graph.session.done("compare")
    _report(graph, comparison)
    graph.session.done("report")


def _tasks(graph: Stages, run: str, checkpoint: Result | None) -> Result | None:
    from eval.checkpoint import lm_eval_tasks

    config = graph.recipe.eval
    assert config is not None and config.tasks is not None
    settings = config.tasks

    def make(build: Build, log: Log) -> None:
        graph.session.servers.release()
        assert checkpoint is not None
        build.counts.update(
            lm_eval_tasks.run(settings, {}, build.path, model=graph.model_path(checkpoint), log=log)
        )

    named = {
        t if isinstance(t, str) else str(t.get("task") or t.get("group")) for t in settings.tasks
    }
    files = {
        name: lm_eval_tasks.LISTS.get(name) or content_of_files(name) for name in sorted(named)
    }
    spec = {"tasks": settings, "files": files, "VERSION": lm_eval_tasks.VERSION}
    return graph.session.stage(f"tasks/{run}", spec, {"checkpoint": checkpoint}, make)


def _prompts(graph: Stages, benchmark: Pairwise | RatedBenchmark) -> Result | None:
    """The prompt set of a benchmark as a file of ours, known by its content."""
    from eval.prompt_sets import prompts, rated_tasks

    config = graph.recipe.eval
    assert config is not None
    name = f"prompts/{benchmark}"
    fetch = not graph.session.planning
    wanted: Sequence[prompts.Prompt]
    try:
        if benchmark == "wildbench" or benchmark == "mtbench":
            settings = config.rating(benchmark)
            source = settings.prompts
            wanted = tasks = rated_tasks.tasks(benchmark, source, settings.limit, fetch=fetch)
            characters = judging.shown_characters(tasks)
        else:
            source = str(config.protocol(benchmark).prompts)
            wanted = prompts.prompts(source, config.limit, fetch=fetch)
            characters = [len(p.prompt) for p in wanted]
    except UserError:
        if graph.session.planning and source in {**prompts.HUB, **rated_tasks.HUB}:
            graph.session.note(
                name, WAITS, f"depends on the hub's {source}, which is not downloaded yet"
            )
            return None
        raise
    content = digest([p.record() for p in wanted])
    graph.prompt_characters[benchmark] = characters

    def make(build: Build, log: Log) -> None:
        prompts.write_prompts(wanted, build.path / "prompts.jsonl")
        build.counts["rows"] = len(wanted)

    made = graph.session.stage(name, {"prompts": content}, {}, make, content=lambda _: content)
    return made or Result(Path(), {"digest": content})


def _answers(
    graph: Stages,
    run: str,
    benchmark: Pairwise | RatedBenchmark,
    checkpoint: Result | None,
    prompts: Result | None,
    names: dict[tuple[str, str], str],
) -> Result | None:
    from eval.checkpoint import answers, second_turns

    config = graph.recipe.eval
    assert config is not None
    settings = (
        config.rating(benchmark)
        if benchmark == "wildbench" or benchmark == "mtbench"
        else config.protocol(benchmark)
    ).answers
    assert settings is not None
    group = (run, digest([settings, prompts.digest if prompts else None]))
    if group in names:  # both benchmarks ask the same prompts in the same way
        return graph.session.results.get(names[group])
    names[group] = (
        f"answers/{run}" if not any(r == run for r, _ in names) else f"answers/{run}/{benchmark}"
    )

    def make(build: Build, log: Log) -> None:
        assert checkpoint is not None and prompts is not None
        inputs = {"prompts": prompts.path / "prompts.jsonl"}
        answer = second_turns.run if benchmark == "mtbench" else answers.run
        build.counts.update(
            answer(
                settings,
                inputs,
                build.path,
                model=graph.model_path(checkpoint),
                servers=graph.session.servers,
                log=log,
            )
        )

    spec = {
        "answers": settings.model_dump(mode="json", exclude={"server"}),
        "args": settings.server.get("args"),
        "VERSION": answers.VERSION,
    }
    if benchmark == "mtbench":
        spec["turns"] = second_turns.VERSION
    parents = {"checkpoint": checkpoint, "prompts": prompts}
    return graph.session.stage(
        names[group], spec, parents, make, content=lambda out: file_digest(out / "answers.parquet")
    )


def _heldout(
    graph: Stages, run: str, checkpoint: Result | None, rows: Result | None
) -> Result | None:
    from eval.checkpoint import heldout_loss

    config = graph.recipe.eval
    assert config is not None and config.heldout is not None
    settings = config.heldout

    def make(build: Build, log: Log) -> None:
        assert checkpoint is not None and rows is not None
        inputs = {"heldout": rows.path / "heldout.parquet"}
        model, servers = graph.model_path(checkpoint), graph.session.servers
        build.counts.update(
            heldout_loss.run(
                settings,
                inputs,
                build.path,
                model=model,
                servers=servers,
                log=log,
                answers=config.answers,
            )
        )

    parents = {"checkpoint": checkpoint, "heldout": rows}
    return graph.session.stage(f"heldout/{run}", {"VERSION": heldout_loss.VERSION}, parents, make)


def _baseline(
    graph: Stages,
    run: str,
    benchmark: Pairwise,
    answers: dict[tuple[str, str], Result | None],
    prompts: Result | None,
) -> Any:
    """The answers that `run` is judged against: another run's, or a published file's; "self" when
    that is the run itself."""
    from eval.prompt_sets import prompts as benchmarks
    from recipes.stages.graph import baseline_of

    config = graph.recipe.eval
    assert config is not None
    protocol = config.protocol(benchmark)
    source = protocol.baseline or baseline_of(graph.recipe, graph.arms)
    if isinstance(source, str) and source in graph.arms:
        arm, _, seed = run.partition("/")
        other = source if (source, benchmark) in answers else f"{source}/{seed or graph.seeds[0]}"
        return "self" if arm == source else answers[(other, benchmark)]
    name = f"baseline/{benchmark}"
    if name in graph.session.results:
        return graph.session.results[name]
    if prompts is None:
        return None

    def make(build: Build, log: Log) -> None:
        wanted = benchmarks.prompts(str(prompts.path / "prompts.jsonl"))
        build.counts.update(
            benchmarks.baseline(source, wanted, build.path, prompt_set=str(protocol.prompts))
        )

    files = {
        k: content_of_files(v)
        for k, v in (source.items() if isinstance(source, dict) else [("*", source)])
    }
    return graph.session.stage(name, {"baseline": files}, {"prompts": prompts}, make)


def _judgments(
    graph: Stages,
    runs: Sequence[str],
    benchmark: Pairwise,
    answers: dict[tuple[str, str], Result | None],
    prompts: Result | None,
) -> Results:
    """The judgments of every run but the baseline. Several judges ask one after the other, each all
    runs, so that a server starts once."""
    from eval.judging import several_judges

    config = graph.recipe.eval
    assert config is not None
    protocols = config.protocols(benchmark)
    baselines = {run: _baseline(graph, run, benchmark, answers, prompts) for run in runs}
    judged = [run for run in runs if baselines[run] != "self"]

    def one(name: str, run: str, protocol: AlpacaConfig | ArenaConfig) -> Result | None:
        parents = {
            "answers": answers[(run, benchmark)],
            "baseline": baselines[run],
            "prompts": prompts,
        }
        return _judge(graph, name, protocol, parents, graph.prompt_characters.get(benchmark, []))

    if len(protocols) == 1:
        return {run: one(f"judge/{benchmark}/{run}", run, protocols[0]) for run in judged}
    found: dict[str, Results] = {run: {} for run in judged}
    for name, protocol in zip(
        several_judges.names([p.judge for p in protocols if p.judge]), protocols, strict=True
    ):
        for run in judged:
            found[run][name] = one(f"verdicts/{benchmark}/{name}/{run}", run, protocol)

    def together(run: str) -> Result | None:
        def make(build: Build, log: Log) -> None:
            build.counts.update(
                several_judges.combine(
                    {name: made.path for name, made in found[run].items() if made is not None},
                    build.path,
                )
            )
            _judgment_table(build.path, log)

        spec = {"judges": list(found[run]), "VERSION": several_judges.VERSION}
        return graph.session.stage(
            f"judge/{benchmark}/{run}",
            spec,
            found[run],
            make,
            content=lambda out: file_digest(out / "judgments.parquet"),
        )

    return {run: together(run) for run in judged}


def _judge(
    graph: Stages,
    name: str,
    protocol: AlpacaConfig | ArenaConfig,
    parents: Results,
    characters: list[int],
) -> Result | None:
    from eval.judging import pairwise, settle

    assert protocol.judge is not None

    def make(build: Build, log: Log) -> None:
        prompts, own, baseline = parents["prompts"], parents["answers"], parents["baseline"]
        assert own is not None and baseline is not None and prompts is not None
        inputs = {
            "prompts": prompts.path / "prompts.jsonl",
            "answers": own.path,
            "baseline": baseline.path,
        }
        store = graph.session.store.root
        build.counts.update(
            pairwise.run(
                protocol, inputs, store, build.path, servers=graph.session.servers, log=log
            )
        )
        _judgment_table(build.path, log)

    order = protocol.model_dump(mode="json", include={"order", "order_seed"})
    spec = {"cell": settle.determines(protocol.judge, protocol), **order}
    made = graph.session.stage(
        name, spec, parents, make, content=lambda out: file_digest(out / "judgments.parquet")
    )
    if made is None:
        graph.session.add(name, _judge_estimate(protocol, characters))
    return made


def _judge_estimate(protocol: AlpacaConfig | ArenaConfig, characters: list[int]) -> str:
    """The most that a judge can be asked and paid for one checkpoint, before its answers are known;
    "" while the prompts are unknown."""
    from eval.judging.ask import most_tokens
    from eval.judging.journal import Purse

    assert protocol.judge is not None and protocol.answers is not None
    if not characters:
        return ""
    reward = (
        protocol.kind == "alpaca" and protocol.mode == "reward"
    )  # a call for each answer, and nothing generated
    games = 1 if protocol.kind == "alpaca" and protocol.order == "random" and not reward else 2
    answers = 2 * int(protocol.answers.sampling.get("max_tokens", 1024))
    # four characters a token, and about 400 tokens of the judge's own instructions
    asked = games * sum(n // 4 + (answers // 2 if reward else answers + 400) for n in characters)
    told = 0 if reward else games * len(characters) * most_tokens(protocol.sampling)
    money = (
        f", {Purse(protocol.judge.prices, None).cost(asked, told):.2f} in money"
        if protocol.judge.prices
        else ""
    )
    return f"at most {games * len(characters)} calls, {asked:,} prompt tokens, {told:,} generated{money}"


def _judgment_table(folder: Path, log: Log) -> None:
    import polars as pl

    log.table("judgments", pl.read_parquet(folder / "judgments.parquet"))


def _score(
    graph: Stages, run: str, parts: Results, prompts: dict[Any, Result | None]
) -> Result | None:
    from eval.scoring import of_checkpoint

    def make(build: Build, log: Log) -> None:
        inputs = {name: part.path for name, part in parts.items() if part is not None}
        build.counts.update(of_checkpoint.run(inputs, build.path))
        summary = json.loads((build.path / "summary.json").read_text())
        flat = {
            f"{b}/{m}": v["value"]
            for b, metrics in summary.items()
            for m, v in metrics.items()
            if v.get("value") is not None
        }
        log.metrics(flat)

    return graph.session.stage(f"score/{run}", {"VERSION": of_checkpoint.VERSION}, parts, make)


def _compare(graph: Stages, scores: Results) -> Result | None:
    from eval import compare
    from recipes.stages.graph import baseline_of

    config = graph.recipe.eval
    assert config is not None
    baseline = baseline_of(graph.recipe, graph.arms)
    spec = {"baseline": baseline, "primary": config.deciding, "VERSION": compare.VERSION}

    def make(build: Build, log: Log) -> None:
        inputs = {run: result.path for run, result in scores.items() if result is not None}
        known = baseline in {run.partition("/")[0] for run in inputs}
        build.counts.update(
            compare.run(
                inputs,
                build.path,
                baseline=baseline if known else None,
                primary=str(config.deciding),
            )
        )

    return graph.session.stage("compare", spec, scores, make)


def _report(graph: Stages, comparison: Result | None) -> None:
    """The page, and a copy of it where a person finds it: STORE/recipes/NAME/report.html."""
    from recipes.report import page
    from recipes.report.judges import judge_lines

    session = graph.session
    folder = session.store.root / "recipes" / graph.recipe.name
    inputs: dict[str, Path] = (
        {"measure": folder / "measure"} if (folder / "measure").is_dir() else {}
    )
    heads = {
        "train": "train",
        "answers": "answers",
        "judge": "judge",
        "score": "scores",
        "compare": "comparison",
    }
    for name, result in session.results.items():
        head, _, rest = name.partition("/")
        if head in heads:
            inputs[f"{heads[head]}/{rest}" if rest else heads[head]] = result.path
        elif head == "prompts":
            inputs[name] = result.path / "prompts.jsonl"
    for arm in graph.filters:
        for path in (folder / "select" / arm, folder / "select" / arm / str(graph.seeds[0])):
            if (path / "funnel.json").is_file():
                inputs[f"select/{arm}"] = path
    shown = graph.recipe.model_dump(mode="json")
    notes = judge_lines(graph.recipe, session.results)

    def make(build: Build, log: Log) -> None:
        build.counts.update(page.build(inputs, build.path, shown, notes))

    snapshot = {
        n: tree_digest(p) for n, p in inputs.items() if n == "measure" or n.startswith("select/")
    }
    spec = {"page": page.VERSION, "snapshot": snapshot, "name": graph.recipe.name, "notes": notes}
    made = session.stage("report", spec, {"compare": comparison}, make)
    if made is not None and not session.planning:
        (folder / "report.html").write_bytes((made.path / "report.html").read_bytes())
