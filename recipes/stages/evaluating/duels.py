"""Head to head: two arms judged directly against each other, beside the way over the baseline."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError, nearest
from core.files import read_json
from core.store import Counts, Result
from core.tracking import Log
from eval.config import EvalConfig
from eval.protocols import PairwiseBenchmark
from recipes.stages.evaluating import judging
from recipes.stages.evaluating.judging import PromptSet
from recipes.stages.session import Results, Session, Stage
from recipes.stages.walk import Arms

DIRECT = "head-to-head"
"""The kind of stage that compares two arms so; its name goes on with benchmark, arm and arm."""


def duels(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    benchmark: PairwiseBenchmark,
    answers: Results,
    prompt_set: PromptSet,
) -> Results:
    """The comparison of each pair of arms that a benchmark names, by its stage's name; seeds meet
    the same seed. The intervals of all these pairs hold at once. `answers`: of each run. Raises
    UserError for a pair that is none."""
    found: Results = {}
    wanted = config.protocol(benchmark).head_to_head
    for a, b in wanted:
        _check(arms, benchmark, a, b)
        rivals = {
            run: judging.same_seed(b, run, answers, arms)
            for run in answers
            if run.partition("/")[0] == a
        }
        met = {run: rival for run, rival in rivals.items() if rival in answers}
        pairs = {
            f"{run}-against-{b}": {"answers": answers[run], "baseline": answers[rival]}
            for run, rival in met.items()
        }
        protocols = config.protocols(benchmark)
        judged = judging.compare(session, protocols, benchmark, pairs, prompt_set, "duels")
        games = {run: judged[f"{run}-against-{b}"] for run in met}
        if games:
            name = f"{DIRECT}/{benchmark}/{a}/{b}"
            rivals_of = sorted(set(met.values()))
            found[name] = _compared(session, name, games, rivals_of, len(wanted))
    return found


def _check(arms: Arms, benchmark: str, a: str, b: str) -> None:
    where = f"eval.{benchmark}.head_to_head"
    for name in (a, b):
        if name not in arms.configs:
            hint = nearest(name, arms.configs)
            raise UserError(f"{where}: no arm is called '{name}'{hint}")
    if a == b:
        raise UserError(f"{where}: {a} cannot be judged against itself; name two arms.")


def _compared(
    session: Session, name: str, games: Results, rivals: list[str], beside: int
) -> Result | None:
    """One pair's comparison, of `beside` that hold at once: the first arm's score against the
    second, which scores 50."""
    from eval import compare
    from eval.comparing.metrics import Declared
    from eval.scoring import of_checkpoint

    _, benchmark, _, rival = name.split("/")

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        scores = {}
        for run, folder in inputs.items():
            scores[run] = out / "scores" / run.replace("/", "-")
            of_checkpoint.run({f"judgments-{benchmark}": folder}, scores[run])
        against = {benchmark: rival}
        declared = Declared(benchmark, rival, judged_against=against, beside=beside)
        return compare.run(scores, out, declared, unscored=rivals)

    spec: dict[str, object] = {"rivals": rivals, "score": of_checkpoint.VERSION}
    spec |= {"VERSION": compare.VERSION} | ({"beside": beside} if beside > 1 else {})
    return session.result(Stage(name, spec, games, make))


def shown(name: str, folder: Path) -> tuple[dict[str, object] | None, str]:
    """(the difference of a pair's deciding metric, as in comparison.json, None where no game was
    judged; the same in words)."""
    _, benchmark, a, b = name.split("/")
    comparison = read_json(folder / "comparison.json")
    (score,) = [s for s in comparison["scores"] if s["primary"] and s["arm"] == a]
    deciding = {"benchmark": score["benchmark"], "metric": score["metric"], "a": a, "b": b}
    about = f"head to head ({benchmark} {score['metric']}): {a} against {b}"
    rows = [d for d in comparison["differences"] if deciding.items() <= d.items()]
    if not rows:
        return None, f"{about}: no game was judged, so there is nothing to say."
    row = rows[0]
    low, high = (
        f"{50 + row[bound]:.1f}" if row[bound] is not None else "?"
        for bound in ("simultaneous_lower", "simultaneous_upper")
    )
    scope = row["scope"].split(";")[0]
    words = (
        f"{about} {score['value']:.1f} [{low}, {high}], {row['verdict']} (exploratory; {scope})."
    )
    return {**row, "benchmark": benchmark, "scope": f"{scope}; exploratory"}, words
