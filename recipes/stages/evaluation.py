"""What is measured of every checkpoint: lm-eval, answers, held-out loss, scores; then the
comparison and the report. Judging is in recipes/stages/judging.py.

A run is a checkpoint by its name: "ARM/SEED", or "ARM" of a finished model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import file_digest, read_json, write_atomic, write_changed
from core.store import Counts, Result, content_of_files, digest
from core.tracking import Log
from eval.config import EvalConfig, TasksConfig, pairwise_benchmarks, rated_benchmarks
from eval.protocols import AnswersConfig
from recipes.schema import Recipe
from recipes.stages import judging
from recipes.stages.judging import Judged, PromptSet
from recipes.stages.session import WAITS, Results, Session, Stage, told
from recipes.stages.training import served_path
from recipes.stages.walk import Arms


def stages(
    session: Session,
    recipe: Recipe,
    config: EvalConfig,
    arms: Arms,
    checkpoints: Results,
    heldout: Result | None,
) -> None:
    """Everything after training, over `checkpoints` (run -> its result); `heldout` are the
    conversations kept out of training."""
    # Finished models last: the judge or the next recipe may be the same model, and then its server
    # stays up.
    runs = sorted(checkpoints, key=lambda name: "/" not in name)
    parts: dict[str, Results] = {run: {} for run in runs}
    if config.tasks is not None:
        for run in runs:
            parts[run]["tasks"] = _tasks(session, config.tasks, run, checkpoints[run])
    session.done("tasks")
    pairwise, rated = pairwise_benchmarks(config), rated_benchmarks(config)
    prompt_sets = {name: _prompts(session, config, name) for name in [*pairwise, *rated]}
    answers: dict[str, dict[Judged, Result | None]] = {}
    for run in runs:
        answers[run] = _answers_of_run(session, config, run, checkpoints[run], prompt_sets)
        if config.heldout is not None:
            server = config.heldout.server
            if server is None:
                server = config.answers.server
            loss = _heldout(session, server, run, checkpoints[run], heldout)
            parts[run]["heldout"] = loss
    session.done("answers")
    session.done("heldout")
    for benchmark in prompt_sets:
        given = {run: answers[run][benchmark] for run in runs}
        judged = judging.judge(session, config, arms, benchmark, given, prompt_sets[benchmark])
        kind = "judgments" if benchmark in pairwise else "ratings"
        for run, result in judged.items():
            parts[run][f"{kind}-{benchmark}"] = result
    session.done("judge")
    scores = {run: _score(session, run, parts[run]) for run in runs if parts[run]}
    session.done("score")
    comparison = _compare(session, config, arms.baseline, scores)
    session.done("compare")
    _report(session, recipe, arms, comparison)
    session.done("report")


def _tasks(
    session: Session, config: TasksConfig, run: str, checkpoint: Result | None
) -> Result | None:
    """lm-eval's scores of a checkpoint; task files count by content."""
    from eval.checkpoint import lm_eval_tasks

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        session.servers.release()
        model = served_path(inputs["checkpoint"])
        return lm_eval_tasks.run(config, {}, out, model=model, log=log)

    named = {
        task if isinstance(task, str) else str(task.get("task") or task.get("group"))
        for task in config.tasks
    }
    files = {name: lm_eval_tasks.LISTS.get(name) or content_of_files(name) for name in named}
    # Who computes a score is no part of it, unless the recipe says so.
    named_backend = config.model_copy(update={"backend": config.backend or "hf"})
    spec = {"tasks": named_backend, "files": files, "VERSION": lm_eval_tasks.VERSION}
    return session.result(Stage(f"tasks/{run}", spec, {"checkpoint": checkpoint}, make))


def _prompts(session: Session, config: EvalConfig, benchmark: Judged) -> PromptSet:
    """The prompt set of a benchmark as a file of ours, known by its content.

    In a plan, one that is on the hub and not downloaded yet is waited for.
    """
    from eval.prompt_sets import prompts, rated_tasks

    name = f"prompts/{benchmark}"
    fetch = not session.planning
    wanted: Sequence[prompts.Prompt]
    if benchmark == "wildbench" or benchmark == "mtbench":
        rated = config.rating(benchmark)
        source, limit = rated.prompts, rated.limit
    else:
        source, limit = str(config.protocol(benchmark).prompts), config.limit
    try:
        if benchmark == "wildbench" or benchmark == "mtbench":
            wanted = tasks = rated_tasks.tasks(benchmark, source, limit, fetch=fetch)
            characters = judging.shown_characters(tasks)
        else:
            wanted = prompts.prompts(source, limit, fetch=fetch)
            characters = [len(prompt.prompt) for prompt in wanted]
    except UserError:
        if session.planning and source in {**prompts.HUB, **rated_tasks.HUB}:
            why = f"depends on the hub's {source}, which is not downloaded yet"
            session.note(name, WAITS, why)
            return PromptSet(None, [])
        raise
    content = digest([prompt.record() for prompt in wanted])

    def make(out: Path, log: Log, _: dict[str, Path]) -> Counts:
        prompts.write_prompts(wanted, out / "prompts.jsonl")
        return {"rows": len(wanted)}

    stage = Stage(name, {"prompts": content}, {}, make, content=lambda _: content)
    made = session.result(stage) or Result(Path(), {"digest": content})
    return PromptSet(made, characters)


def _answers_of_run(
    session: Session,
    config: EvalConfig,
    run: str,
    checkpoint: Result | None,
    prompt_sets: Mapping[Judged, PromptSet],
) -> dict[Judged, Result | None]:
    """The answers of one checkpoint by benchmark; benchmarks that ask the same prompts in the same
    way share them."""
    answers: dict[Judged, Result | None] = {}
    shared: Results = {}
    for benchmark, prompt_set in prompt_sets.items():
        settings = judging.answers_config(config, benchmark)
        prompts = prompt_set.result
        asked = digest([settings, prompts.digest if prompts else None])
        if asked not in shared:
            name = f"answers/{run}/{benchmark}" if shared else f"answers/{run}"
            parents = {"checkpoint": checkpoint, "prompts": prompts}
            shared[asked] = _answers(session, settings, name, benchmark, parents)
        answers[benchmark] = shared[asked]
    return answers


def _answers(
    session: Session, settings: AnswersConfig, name: str, benchmark: Judged, parents: Results
) -> Result | None:
    """A checkpoint's answers to a prompt set; MT-Bench's questions go on for a second turn."""
    from eval.checkpoint import answers, second_turns

    two_turns = benchmark == "mtbench"

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        model = served_path(inputs["checkpoint"])
        prompts = {"prompts": inputs["prompts"] / "prompts.jsonl"}
        ask = second_turns.run if two_turns else answers.run
        return ask(settings, prompts, out, model=model, servers=session.servers, log=log)

    spec: dict[str, Any] = {
        "answers": settings.model_dump(mode="json", exclude={"server"}),
        "args": settings.server.get("args"),
        "VERSION": answers.VERSION,
    }
    if two_turns:
        spec["turns"] = second_turns.VERSION
    stage = Stage(
        name, spec, parents, make, content=lambda out: file_digest(out / "answers.parquet")
    )
    return session.result(stage)


def _heldout(
    session: Session,
    server: Mapping[str, Any],
    run: str,
    checkpoint: Result | None,
    rows: Result | None,
) -> Result | None:
    """A checkpoint's loss on the conversations kept out of training."""
    from eval.checkpoint import heldout_loss

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        return heldout_loss.run(
            server,
            {"heldout": inputs["heldout"] / "heldout.parquet"},
            out,
            model=served_path(inputs["checkpoint"]),
            servers=session.servers,
            log=log,
        )

    parents = {"checkpoint": checkpoint, "heldout": rows}
    spec = {"VERSION": heldout_loss.VERSION}
    return session.result(Stage(f"heldout/{run}", spec, parents, make))


def _score(session: Session, run: str, parts: Results) -> Result | None:
    from eval.scoring import of_checkpoint

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        counts = of_checkpoint.run(inputs, out)
        summary = read_json(out / "summary.json")
        values = {
            f"{benchmark}/{metric}": figures.get("value")
            for benchmark, metrics in summary.items()
            for metric, figures in metrics.items()
        }
        log.metrics({name: value for name, value in values.items() if value is not None})
        return counts

    return session.result(Stage(f"score/{run}", {"VERSION": of_checkpoint.VERSION}, parts, make))


def _compare(session: Session, config: EvalConfig, baseline: str, scores: Results) -> Result | None:
    """The comparison of all scored runs, which says what it goes without."""
    from eval import compare
    from eval.comparing.metrics import Declared

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        scored = {run.partition("/")[0] for run in inputs}
        against = baseline if baseline in scored else None
        counts = compare.run(inputs, out, Declared(str(config.deciding), against))
        if left_out:
            comparison = read_json(out / "comparison.json")
            comparison["notes"] = [*left_out, *comparison["notes"]]
            text = json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
            write_atomic(out / "comparison.json", text)
        return counts

    spec: dict[str, Any] = {"baseline": baseline, "primary": config.deciding}
    spec["VERSION"] = compare.VERSION
    left_out = _left_out(session)
    if left_out:
        spec["left_out"] = left_out
    return session.result(Stage("compare", spec, scores, make))


def _left_out(session: Session) -> list[str]:
    """Sentences on what this comparison goes without."""
    said = [f"{run} is left out: {why}." for run, why in session.left_out.items()]
    unjudged = session.unjudged.items()
    return said + [f"{run} is not judged, because {other} is left out." for run, other in unjudged]


REPORTED = {
    "train": "train",
    "answers": "answers",
    "judge": "judge",
    "score": "scores",
    "compare": "comparison",
}
"""Stages whose results the report reads, and what it calls them."""


def _report(session: Session, recipe: Recipe, arms: Arms, comparison: Result | None) -> None:
    """The page, and a copy of it where a person finds it: STORE/recipes/NAME/report.html."""
    from recipes.report import page
    from recipes.report.sections.judges import judge_lines

    measured, funnels = _measured(session.folder), _funnels(session.folder, arms)
    shown = {**measured, **_shown_results(session.results), **funnels}
    snapshot = {name: told(path) for name, path in {**measured, **funnels}.items()}
    settings = recipe.model_dump(mode="json")
    notes = judge_lines(recipe, session.results)

    spec = {
        "page": page.VERSION,
        "snapshot": snapshot,
        "name": recipe.name,
        "notes": notes,
    }
    stage = Stage(
        "report",
        spec,
        {"compare": comparison},
        lambda out, log, inputs: page.build(shown, out, settings, notes),
    )
    made = session.result(stage)
    if made is not None and not session.planning:
        shown_page = (made.path / "report.html").read_text(encoding="utf-8")
        write_changed(session.folder / "report.html", shown_page)


def _measured(folder: Path) -> dict[str, Path]:
    """The pool as it was measured, and its cost, where there is a pool."""
    measure = folder / "measure"
    return {"measure": measure} if measure.is_dir() else {}


def _funnels(folder: Path, arms: Arms) -> dict[str, Path]:
    """How each arm came to its rows; of an arm that seeds draw anew, the first seed's."""
    shown = {}
    for arm in arms.with_rows:
        beside = folder / "select" / arms.selections(arm)[0][1]
        if any((beside / kept).is_file() for kept in ("funnel.json", "mixture.json")):
            shown[f"select/{arm}"] = beside
    return shown


def _shown_results(results: Mapping[str, Result]) -> dict[str, Path]:
    shown = {}
    for name, result in results.items():
        stage, _, rest = name.partition("/")
        if stage in REPORTED:
            shown[f"{REPORTED[stage]}/{rest}" if rest else REPORTED[stage]] = result.path
        elif stage == "prompts":
            shown[name] = result.path / "prompts.jsonl"
    return shown
