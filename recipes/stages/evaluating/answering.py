"""What checkpoints are asked: lm-eval's tasks, the prompts of benchmarks, and their losses on
held-out conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import UserError
from core.files import file_digest
from core.store import Counts, Result, content_of_files, digest
from core.tracking import Log
from eval.config import ChecksConfig, EvalConfig, TasksConfig
from eval.protocols import AnswersConfig
from recipes.schema import Recipe
from recipes.stages.evaluating import judging
from recipes.stages.evaluating.judging import Judged, PromptSet
from recipes.stages.evaluating.runs import Run
from recipes.stages.session import WAITS, Results, Session, Stage
from recipes.stages.sets.foreign import foreign_rows

if TYPE_CHECKING:
    from eval.prompt_sets.prompts import Prompt

Asked = Judged | Literal["checks"]
"""A benchmark that asks checkpoints prompts, whoever scores the answers."""


def tasks(session: Session, config: TasksConfig, run: Run) -> Result | None:
    """lm-eval's scores of a checkpoint; task files count by content."""
    from eval.checkpoint import lm_eval_tasks
    from eval.checkpoint.lm_eval_models import SERVED

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        model = run.asked(inputs["checkpoint"])
        return lm_eval_tasks.run(config, {}, out, model=model, servers=session.servers, log=log)

    named = {
        task if isinstance(task, str) else str(task.get("task") or task.get("group"))
        for task in config.tasks
    }
    files = {name: lm_eval_tasks.LISTS.get(name) or content_of_files(name) for name in named}
    # Who computes a score is no part of it, unless the recipe says so.
    named_backend = config.model_copy(update={"backend": config.backend or "hf", "server": None})
    spec: dict[str, Any] = {"tasks": named_backend, "files": files}
    spec["VERSION"] = lm_eval_tasks.VERSION
    if config.backend in SERVED:  # our server's settings then decide too
        spec["args"] = (config.server or {}).get("args")
        spec |= {} if "base_url" in config.model_args else run.determines
    spec["lm_eval"] = lm_eval_tasks.release()
    return session.result(Stage(f"tasks/{run.name}", spec, {"checkpoint": run.checkpoint}, make))


def answers_config(config: EvalConfig, benchmark: Asked) -> AnswersConfig:
    """How checkpoints answer in a benchmark."""
    if benchmark != "checks":
        return judging.answers_config(config, benchmark)
    return (config.checks and config.checks.answers) or config.answers


def prompt_set(session: Session, config: EvalConfig, benchmark: Judged) -> PromptSet:
    """The prompt set of a judged benchmark as a file of ours, known by its content.

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
            return PromptSet(None, prompts.about(source, limit))
        raise
    return PromptSet(_prompts_file(session, name, wanted), characters)


def checked_prompts(session: Session, config: ChecksConfig, limit: int | None) -> PromptSet:
    """The prompts whose answers a program checks, as a file of ours, known by its content."""
    from eval.prompt_sets import checked_prompts as sets

    wanted = sets.checked_prompts(config.prompts, config.limit or limit)
    return PromptSet(_prompts_file(session, "prompts/checks", wanted), [])


def _prompts_file(session: Session, name: str, wanted: Sequence[Prompt]) -> Result:
    """Prompts as a file of ours, known by its content."""
    from eval.prompt_sets import prompts

    content = digest([prompt.record() for prompt in wanted])

    def make(out: Path, log: Log, _: dict[str, Path]) -> Counts:
        prompts.write_prompts(wanted, out / "prompts.jsonl")
        return {"rows": len(wanted)}

    stage = Stage(name, {"prompts": content}, {}, make, content=lambda _: content)
    return session.result(stage) or Result(Path(), {"digest": content})


@dataclass(frozen=True)
class Question:
    """What every checkpoint is asked: the prompts of benchmarks (`benchmarks`, which share their
    answers because they ask the same prompts in the same way), or the conversations of a `part` of
    its score, whose loss is measured."""

    rows: Result | None
    benchmarks: tuple[Asked, ...] = ()
    first: bool = False
    """Whether its benchmarks are the first of all, whose answers have the short name."""
    part: str | None = None


def questions(
    config: EvalConfig, prompt_sets: Mapping[Asked, PromptSet], unseen: Results
) -> list[Question]:
    """All that checkpoints are asked: prompts, and `unseen` conversations by the parts of a
    score."""
    found: dict[str, Question] = {}
    for benchmark, prompt_set in prompt_sets.items():
        prompts = prompt_set.result
        same = digest([answers_config(config, benchmark), prompts.digest if prompts else None])
        before = found.get(same, Question(prompts, first=not found))
        found[same] = replace(before, benchmarks=(*before.benchmarks, benchmark))
    return [*found.values(), *(Question(rows, part=part) for part, rows in unseen.items())]


def in_turn(runs: Sequence[Run], questions: Sequence[Question]) -> Iterator[tuple[Run, Question]]:
    """Who is asked what, so that servers change least: what one server answers for goes through one
    question after the other, which may have servers of their own, and every other checkpoint
    through all of them."""
    together = [run for run in runs if run.over is not None]
    yield from ((run, question) for question in questions for run in together)
    yield from ((run, question) for run in runs if run.over is None for question in questions)


def asked(session: Session, config: EvalConfig, run: Run, question: Question) -> Result | None:
    """A checkpoint's answers to the prompts of a question, or its loss on the conversations."""
    if question.part is not None:
        return heldout(session, config, run, question.part, question.rows)
    return _answers(session, answers_config(config, question.benchmarks[0]), run, question)


def _answers(
    session: Session, settings: AnswersConfig, run: Run, question: Question
) -> Result | None:
    """A checkpoint's answers to a prompt set; MT-Bench's questions go on for a second turn."""
    from eval.checkpoint import answers, second_turns

    benchmark = question.benchmarks[0]
    two_turns = benchmark == "mtbench"

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        model = run.asked(inputs["checkpoint"])
        prompts = inputs | {"prompts": inputs["prompts"] / "prompts.jsonl"}
        ask = second_turns.run if two_turns else answers.run
        return ask(settings, prompts, out, model=model, servers=session.servers, log=log)

    # One answer a prompt has the key that it had before there could be several.
    unsaid = {"server"} if settings.answers_per_prompt > 1 else {"server", "answers_per_prompt"}
    spec: dict[str, Any] = {
        "answers": settings.model_dump(mode="json", exclude=unsaid),
        "args": settings.server.get("args"),
        "VERSION": answers.VERSION,
    } | run.determines
    if two_turns:
        spec["turns"] = second_turns.VERSION
    stage = Stage(
        f"answers/{run.name}" if question.first else f"answers/{run.name}/{benchmark}",
        spec,
        {"checkpoint": run.checkpoint, "prompts": question.rows},
        make,
        content=lambda out: file_digest(out / "answers.parquet"),
        asks=True,
    )
    return session.result(stage)


FOREIGN = "heldout-foreign"
"""What the loss on rows that no arm was drawn from is called among the parts of a score."""


def unseen(session: Session, recipe: Recipe, heldout: Result | None) -> Results:
    """The conversations that losses are measured on, by what a score calls them: the pool's own
    that are held out, and those that no arm was drawn from."""
    config = recipe.eval.heldout if recipe.eval else None
    if config is None:
        return {}
    rows: Results = {"heldout": heldout} if recipe.synth.heldout else {}
    if config.foreign is not None:
        rows[FOREIGN] = foreign_rows(session, config.foreign)
    return rows


def heldout(
    session: Session, config: EvalConfig, run: Run, part: str, rows: Result | None
) -> Result | None:
    """A checkpoint's loss on conversations that it was not trained on."""
    from eval.checkpoint import heldout_loss

    own = config.heldout.server if config.heldout else None
    server = config.answers.server if own is None else own

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        return heldout_loss.run(
            server,
            inputs | {"heldout": inputs["heldout"] / "heldout.parquet"},
            out,
            model=run.asked(inputs["checkpoint"]),
            servers=session.servers,
            log=log,
        )

    parents = {"checkpoint": run.checkpoint, "heldout": rows}
    # fp8 has other losses than bfloat16; a recipe without engine arguments keeps its key.
    spec: dict[str, Any] = {"VERSION": heldout_loss.VERSION} | run.determines
    if server.get("args"):
        spec["args"] = server["args"]
    name = f"heldout/{run.name}/foreign" if part == FOREIGN else f"heldout/{run.name}"
    return session.result(Stage(name, spec, parents, make, asks=True))


def followed(
    session: Session, run: str, answers: Result | None, prompts: Result | None
) -> Result | None:
    """Which of the checks of `prompts` a checkpoint's answers follow."""
    from eval.checkpoint import followed

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        files = {
            "prompts": inputs["prompts"] / "prompts.jsonl",
            "answers": inputs["answers"] / "answers.parquet",
        }
        return followed.run(files, out)

    spec = {"VERSION": followed.VERSION}
    parents = {"answers": answers, "prompts": prompts}
    return session.result(Stage(f"checks/{run}", spec, parents, make))
