"""Judgments of every run: pairwise against a baseline (AlpacaEval-style, Arena-Hard-style), or each
answer rated by itself (WildBench, MT-Bench)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import file_digest
from core.store import Counts, Result, content_of_files, digest
from core.tracking import Log
from eval.config import EvalConfig
from eval.prompt_sets.rated_tasks import Task
from eval.protocols import (
    AnswersConfig,
    PairwiseBenchmark,
    PairwiseProtocol,
    RatedBenchmark,
    RatedProtocol,
    WildBenchProtocol,
)
from recipes.stages.session import Make, Results, Session, Stage
from recipes.stages.walk import Arms

Judged = PairwiseBenchmark | RatedBenchmark

LOOKED_AT = "looks"
"""The kind of stage that judges the first prompts of several steps (`steps.py`)."""


@dataclass(frozen=True)
class PromptSet:
    """A benchmark's prompts (None in a plan that cannot know them), and how many characters of them
    each call to the judge shows, the answers aside."""

    result: Result | None
    characters: list[int]


def answers_config(config: EvalConfig, benchmark: Judged) -> AnswersConfig:
    """How checkpoints answer in a benchmark."""
    if benchmark == "wildbench" or benchmark == "mtbench":
        return config.rating(benchmark).answers
    return config.protocol(benchmark).answers


def judge(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    benchmark: Judged,
    answers: Results,
    prompt_set: PromptSet,
) -> Results:
    """The judgments of each run's `answers` (by run) in one benchmark, by run; a run that is itself
    the baseline has none."""
    if benchmark == "wildbench" or benchmark == "mtbench":
        protocol = config.rating(benchmark)
        references = _references(session, protocol, prompt_set.result)
        return {
            run: _rate(session, protocol, f"judge/{benchmark}/{run}", own, references, prompt_set)
            for run, own in answers.items()
        }
    pairs = against_baselines(session, config, arms, benchmark, answers, prompt_set.result)
    return compare(session, config.protocols(benchmark), benchmark, pairs, prompt_set)


def against_baselines(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    benchmark: PairwiseBenchmark,
    answers: Results,
    prompts: Result | None,
) -> dict[str, Results]:
    """The answers of each run that is judged, and its baseline's."""
    against = _baselines(session, config, arms, benchmark, answers, prompts)
    return {run: {"answers": answers[run], "baseline": against[run]} for run in against}


def _baselines(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    benchmark: PairwiseBenchmark,
    answers: Results,
    prompts: Result | None,
) -> Results:
    """The answers that each run is judged against: another run's of the same seed, or a published
    file's."""
    from eval.prompt_sets import prompts as prompt_sets

    protocol = config.protocol(benchmark)
    source = rival(config, arms, benchmark)
    if source is not None:
        judged = [run for run in answers if run.partition("/")[0] != source]
        against = {run: same_seed(source, run, answers, arms) for run in judged}
        # A baseline whose training is not finished leaves out whom it would be compared with.
        left = [run for run in judged if against[run] not in answers]
        if judged and left == judged:
            raise UserError(
                f"eval.{benchmark}: no answer can be judged, because none of the baseline "
                f"{source}'s trainings is finished that others have the seed of."
            )
        session.unjudged |= {run: against[run] for run in left}
        return {run: answers[other] for run, other in against.items() if run not in left}
    if prompts is None:
        return dict.fromkeys(answers)
    given = protocol.baseline or arms.baseline
    files = given if isinstance(given, dict) else {"*": given}
    digests = {category: content_of_files(file) for category, file in files.items()}

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        wanted = prompt_sets.prompts(str(inputs["prompts"] / "prompts.jsonl"))
        return prompt_sets.baseline(given, wanted, out, prompt_set=str(protocol.prompts))

    stage = Stage(f"baseline/{benchmark}", {"baseline": digests}, {"prompts": prompts}, make)
    return dict.fromkeys(answers, session.result(stage))


def rival(config: EvalConfig, arms: Arms, benchmark: PairwiseBenchmark) -> str | None:
    """The arm that a benchmark judges all others against; None where that is a file of answers."""
    source = config.protocol(benchmark).baseline or arms.baseline
    return source if isinstance(source, str) and source in arms.configs else None


def same_seed(arm: str, run: str, answers: Results, arms: Arms) -> str:
    """The run of an arm that another run is compared with."""
    if arm in answers:  # a finished model, which no seed varies
        return arm
    seed = run.partition("/")[2] or arms.seeds[0]
    return f"{arm}/{seed}"


def compare(
    session: Session,
    protocols: tuple[PairwiseProtocol, ...],
    benchmark: PairwiseBenchmark,
    pairs: Mapping[str, Results],
    prompt_set: PromptSet,
    kind: str = "judge",
) -> Results:
    """The judgments of every run, as stages of a `kind`. Several judges ask one after the other,
    each all runs, so that a server starts once; then their judgments are put together."""
    from eval.judging import several_judges

    if len(protocols) == 1:
        names = {run: f"{kind}/{benchmark}/{run}" for run in pairs}
        return _verdicts(session, protocols[0], names, pairs, prompt_set)
    judges = several_judges.names([protocol.judge for protocol in protocols])
    each = kind if kind.partition("/")[0] == LOOKED_AT else "verdicts"
    by_judge: dict[str, Results] = {}
    for judge, protocol in zip(judges, protocols, strict=True):
        names = {run: f"{each}/{benchmark}/{judge}/{run}" for run in pairs}
        by_judge[judge] = _verdicts(session, protocol, names, pairs, prompt_set)

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        return _logged(several_judges.combine(inputs, out), out, log, "judgments")

    spec = {"judges": judges, "VERSION": several_judges.VERSION}
    combined: Results = {}
    for run in pairs:
        verdicts = {judge: by_judge[judge][run] for judge in judges}
        stage = Stage(f"{kind}/{benchmark}/{run}", spec, verdicts, make, content=_judgments_digest)
        combined[run] = session.result(stage)
    return combined


def _logged(counts: Counts, folder: Path, log: Log, *tables: str) -> Counts:
    """Counts as they are; the tables of a result are shown to the tracker."""
    for table in tables:
        log.table(table, pl.read_parquet(folder / f"{table}.parquet", glob=False))
    return counts


def _judgments_digest(folder: Path) -> str:
    return file_digest(folder / "judgments.parquet")


def _verdicts(
    session: Session,
    protocol: PairwiseProtocol,
    names: Mapping[str, str],
    pairs: Mapping[str, Results],
    prompt_set: PromptSet,
) -> Results:
    """One judge's judgments by run; `names`: of each run's stage."""
    from eval.judging import pairwise, settle

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        files = {**inputs, "prompts": inputs["prompts"] / "prompts.jsonl"}
        root, servers = session.store.root, session.servers
        counts = pairwise.run(protocol, files, root, out, servers=servers, log=log)
        return _logged(counts, out, log, "judgments")

    order = protocol.model_dump(mode="json", include={"order", "order_seed"})
    spec = {"cell": settle.determines(protocol.judge, protocol), **order}
    if protocol.share is not None:
        spec["share"] = list(protocol.share)
    if protocol.first is not None:
        spec["first"] = protocol.first
    verdicts: Results = {}
    for run, name in names.items():
        parents = {**pairs[run], "prompts": prompt_set.result}
        stage = Stage(name, spec, parents, make, content=_judgments_digest, asks=True)
        verdicts[run] = session.result(stage)
        if verdicts[run] is None:
            session.expect(
                name, protocol.judge.model, settle.estimate(protocol, prompt_set.characters)
            )
    return verdicts


def _references(session: Session, protocol: RatedProtocol, prompts: Result | None) -> Results:
    """Reference models' answers to the tasks (WB-Reward), made once for all runs."""
    if not isinstance(protocol, WildBenchProtocol):
        return {}
    return {
        f"reference/{who}": _reference(session, f"baseline/wildbench/{who}", path, prompts)
        for who, path in protocol.references.items()
    }


def _reference(session: Session, name: str, path: str, prompts: Result | None) -> Result | None:
    from eval.prompt_sets import prompts as prompt_sets

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        wanted = prompt_sets.prompts(str(inputs["prompts"] / "prompts.jsonl"))
        return prompt_sets.baseline({"*": path}, wanted, out)

    spec = {"baseline": content_of_files(path)}
    return session.result(Stage(name, spec, {"prompts": prompts}, make))


def _rate(
    session: Session,
    protocol: RatedProtocol,
    name: str,
    answers: Result | None,
    references: Results,
    prompt_set: PromptSet,
) -> Result | None:
    """The ratings of one run's answers, and WB-Reward's choices where there are references."""
    from eval.judging import ratings, settle

    cell = settle.determines(protocol.judge, protocol)
    spec: dict[str, Any] = {"cell": cell, "VERSION": ratings.VERSION}
    # What a recipe without references has as its key stays.
    if isinstance(protocol, WildBenchProtocol) and references:
        spec["rewards"] = {
            "cell": settle.determines(protocol.judge, protocol.reward),
            "margin": protocol.margin,
            "names": list(protocol.references),
        }
    tables = ["ratings", *(["rewards"] if references else [])]

    def content(folder: Path) -> str:
        digests = [file_digest(folder / f"{table}.parquet") for table in tables]
        return digest(digests) if references else digests[0]

    parents = {"answers": answers, "prompts": prompt_set.result, **references}
    make = _rating_of(session, protocol, tables)
    result = session.result(Stage(name, spec, parents, make, content=content, asks=True))
    if result is None:
        session.expect(name, protocol.judge.model, settle.estimate(protocol, prompt_set.characters))
    return result


def _rating_of(session: Session, protocol: RatedProtocol, tables: list[str]) -> Make:
    from eval.judging import ratings

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        files = {**inputs, "prompts": inputs["prompts"] / "prompts.jsonl"}
        root, servers = session.store.root, session.servers
        counts = ratings.run(protocol, files, root, out, servers=servers, log=log)
        return _logged(counts, out, log, *tables)

    return make


def shown_characters(tasks: list[Task]) -> list[int]:
    """How many characters of the task each call to the judge shows, the answers aside: one call a
    task, or one a turn."""
    shown = []
    for task in tasks:
        history = [turn["content"] for turn in task.history]
        fixed = sum(map(len, (*task.checklist, *task.references, *history)))
        turns = task.turns or (task.prompt,)
        shown += [fixed + sum(map(len, turns[:last])) for last in range(1, len(turns) + 1)]
    return shown
